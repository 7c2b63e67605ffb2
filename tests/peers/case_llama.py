"""llama.cpp by its own tools, llama-bench and llama-batched-bench. usage: case_llama.py F32|BF16|Q8_0|Q4_0

Defaults otherwise: the KV cache in f16, flash attention as it decides.
"""

import json
import resource
import statistics
import subprocess
import sys

from measure import BATCHES, FIRST_TOKEN_PROMPTS, FIRST_TOKEN_ROUNDS, NEW, PROMPT, THREADS, peers, say

TYPE = sys.argv[1]
MODEL = peers() / "gpt2-rand" / f"gpt2-{'f32' if TYPE == 'F32' else TYPE}.gguf"
BIN = peers() / "llama-build" / "bin"


def run(tool, *words):
    done = subprocess.run([BIN / tool, "-m", MODEL, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def memory_mb():
    """The most of any of the tools so far: they come in the order of what they need."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


decode = run("llama-bench", "-t", THREADS, "-p", 0, "-n", NEW, "-d", PROMPT, "-r", 1, "-o", "jsonl")
say("decode", 1, statistics.median(decode[0]["samples_ts"]))
say("memory", 1, memory_mb())
prompts = ",".join(map(str, FIRST_TOKEN_PROMPTS))
for row in run("llama-bench", "-t", THREADS, "-p", prompts, "-n", 0, "-r", FIRST_TOKEN_ROUNDS, "-o", "jsonl"):
    say("first_token", row["n_prompt"], statistics.median(row["samples_ns"]) / 1e6)
for batch in BATCHES:
    rows = run(
        "llama-batched-bench", "-c", batch * (PROMPT + NEW + 96), "-npp", PROMPT, "-ntg", NEW, "-npl", batch,
        "-t", THREADS, "-tb", THREADS, "--output-format", "jsonl",
    )
    row = next(row for row in rows if row.get("pl") == batch)
    say("batch", batch, batch * NEW / (row["t_pp"] + row["t_tg"]))
say("memory", max(BATCHES), memory_mb())
