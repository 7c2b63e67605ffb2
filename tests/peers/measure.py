"""What every case measures, and how it says so: one JSON line for each figure, which run.py collects.

A case is a program that loads the weights, warms up, and prints lines like {"what": "batch", "size": 8, "value": 700.0}:

    decode       tokens/s of one sequence, from its first token on
    first_token  ms from asking to the first token, for a prompt of `size` tokens
    batch        tokens/s of `size` sequences at once, prompts included
    memory       the most MB that were resident, with `size` sequences
"""

import json
import os
import pathlib
import statistics

PROMPT = 32
NEW = 128
BATCHES = [8, 16, 32, 64]
FIRST_TOKEN_PROMPTS = [32, 512]
# First tokens take milliseconds: a few more of them cost nothing.
FIRST_TOKEN_ROUNDS = 5
THREADS = int(os.environ.get("PEERS_THREADS", os.cpu_count()))


def peers():
    """Where setup.sh put everything."""
    return pathlib.Path(os.environ["PEERS_DIR"]).resolve()


def say(what, size, value):
    print(json.dumps({"what": what, "size": size, "value": value}), flush=True)


def memory_mb():
    """The most that was resident since the process started."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6


def measure(generate):
    """Runs every row. `generate(batch, prompt, new)` gives the seconds to the first tokens and those of the whole."""
    generate(1, PROMPT, 8)
    first, whole = generate(1, PROMPT, NEW + 1)
    say("decode", 1, NEW / (whole - first))
    for prompt in FIRST_TOKEN_PROMPTS:
        say("first_token", prompt, 1e3 * statistics.median(generate(1, prompt, 1)[0] for _ in range(FIRST_TOKEN_ROUNDS)))
    say("memory", 1, memory_mb())
    for batch in BATCHES:
        generate(batch, PROMPT, 4)
        say("batch", batch, batch * NEW / generate(batch, PROMPT, NEW)[1])
    say("memory", max(BATCHES), memory_mb())
