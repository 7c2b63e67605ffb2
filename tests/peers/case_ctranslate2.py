"""CTranslate2. usage: case_ctranslate2.py f32|int8"""

import json
import random
import sys
import time

import ctranslate2

from measure import THREADS, measure, peers

TYPE = {"f32": "float32", "int8": "int8"}[sys.argv[1]]
FOLDER = peers() / f"ct2-{TYPE}"
GENERATOR = ctranslate2.Generator(str(FOLDER), device="cpu", compute_type=TYPE, inter_threads=1, intra_threads=THREADS)
VOCABULARY = json.loads((FOLDER / "vocabulary.json").read_text())
random.seed(1)


def run(batch, prompt, new):
    prompts = [[VOCABULARY[random.randrange(50000)] for _ in range(prompt)] for _ in range(batch)]
    begun = time.perf_counter()
    results = GENERATOR.generate_batch(
        prompts, max_length=new, min_length=new, sampling_topk=1, beam_size=1, include_prompt_in_result=False,
        max_batch_size=batch, batch_type="examples", end_token=[],
    )
    seconds = time.perf_counter() - begun
    tokens = sum(len(result.sequences_ids[0]) for result in results)
    assert tokens == batch * new, (tokens, batch * new)
    return seconds


def generate(batch, prompt, new):
    # One call does it all: the first token's time is that of a call for one token.
    first = run(batch, prompt, 1)
    return first, first if new == 1 else run(batch, prompt, new)


measure(generate)
