"""Banyan's engine by its own benchmark, with its own random weights of the same shape. usage: case_banyan.py f32|bf16|q8|q4"""

import json
import subprocess
import sys

from measure import BATCHES, FIRST_TOKEN_PROMPTS, FIRST_TOKEN_ROUNDS, NEW, PROMPT, THREADS, say
from run import banyan

DTYPE = sys.argv[1]


def bench(*words):
    command = [banyan(), "bench", "engine", "--random", "--dtype", DTYPE, "--threads", THREADS, "-o", "json", *words]
    return json.loads(subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True).stdout)["runs"][0]


prompts = ",".join(map(str, FIRST_TOKEN_PROMPTS))
short = bench("--batch", 1, "--new", 8, "--rounds", FIRST_TOKEN_ROUNDS, "--first-token", prompts)
for row in short["first_token"]:
    say("first_token", row["prompt_tokens"], row["ms"])
batches = ",".join(map(str, [1, *BATCHES]))
whole = bench("--batch", batches, "--prompt", PROMPT, "--new", NEW, "--rounds", 1, "--first-token", 1)
say("decode", 1, whole["decode"][0]["tokens_per_s"])
for row in whole["decode"][1:]:
    say("batch", row["batch"], row["tokens_per_s_with_prompts"])
say("memory", 1, whole["memory"]["first_batch_peak"] / 1e6)
say("memory", max(BATCHES), whole["memory"]["peak"] / 1e6)
