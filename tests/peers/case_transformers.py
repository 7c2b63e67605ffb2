"""Hugging Face transformers on torch's CPU. usage: case_transformers.py f32|bf16"""

import sys
import time

import torch
import transformers

from measure import THREADS, measure, peers

transformers.logging.set_verbosity_error()
torch.set_num_threads(THREADS)
torch.manual_seed(1)
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[1]]
MODEL = transformers.GPT2LMHeadModel.from_pretrained(peers() / "gpt2-rand", dtype=DTYPE).eval()
MODEL.generation_config.eos_token_id = None
MODEL.generation_config.pad_token_id = 0


def run(batch, prompt, new):
    ids = torch.randint(0, 50000, (batch, prompt))
    begun = time.perf_counter()
    with torch.inference_mode():
        out = MODEL.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True
        )
    assert out.shape[1] == prompt + new, out.shape
    return time.perf_counter() - begun


def generate(batch, prompt, new):
    # One call does it all: the first token's time is that of a call for one token.
    first = run(batch, prompt, 1)
    return first, first if new == 1 else run(batch, prompt, new)


measure(generate)
