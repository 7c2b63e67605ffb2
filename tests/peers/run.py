#!/usr/bin/env python3
"""Measures Banyan's engine and its peers in turn, in rounds, with the machine's own limits between the cases.

    PEERS_DIR=some/folder tests/peers/run.py [--rounds 3] [--only NAME,NAME] [--threads N]
    PEERS_DIR=some/folder tests/peers/run.py --table results.jsonl      the table again, of an earlier run

Every figure goes to $PEERS_DIR/results-DATE.jsonl, with the limits before and after its case; the table has the medians.
setup.sh installs the peers; `cargo build --release` makes ours.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A case takes a minute or two; one that takes this long hangs.
CASE_S_MAX = 1200
# Beside a limit so far below the best of the run, a figure says more about the machine's neighbours.
CONTENDED = 0.85
LIMITS = ["memory_gb_per_s", "f32_gop_per_s", "bf16_gop_per_s", "int8_gop_per_s"]

CASES = {
    "banyan f32": ["case_banyan.py", "f32"],
    "banyan bf16": ["case_banyan.py", "bf16"],
    "banyan q8": ["case_banyan.py", "q8"],
    "banyan q4": ["case_banyan.py", "q4"],
    "transformers f32": ["case_transformers.py", "f32"],
    "transformers bf16": ["case_transformers.py", "bf16"],
    "llama.cpp F32": ["case_llama.py", "F32"],
    "llama.cpp BF16": ["case_llama.py", "BF16"],
    "llama.cpp Q8_0": ["case_llama.py", "Q8_0"],
    "llama.cpp Q4_0": ["case_llama.py", "Q4_0"],
    "ctranslate2 f32": ["case_ctranslate2.py", "f32"],
    "ctranslate2 int8": ["case_ctranslate2.py", "int8"],
    "openvino f32": ["case_openvino.py", "f32"],
    "openvino bf16": ["case_openvino.py", "bf16"],
    "openvino int8": ["case_openvino.py", "int8"],
    "openvino bf16, int8": ["case_openvino.py", "bf16-int8"],
}
ROWS = [("decode", 1), ("batch", 8), ("batch", 16), ("batch", 32), ("batch", 64), ("first_token", 32), ("first_token", 512),
        ("memory", 1), ("memory", 64)]  # fmt: skip
HEADINGS = ["tok/s", "b8", "b16", "b32", "b64", "first 32 ms", "first 512 ms", "MB", "MB b64"]


def banyan():
    if path := os.environ.get("BANYAN"):
        return path
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = target / "release" / "banyan"
    if not path.exists():
        sys.exit(f"{path} is missing: run `cargo build --release` first, or say where it is with BANYAN=path")
    return path


def limits(threads):
    command = [banyan(), "bench", "limits", "--threads", str(threads), "--rounds", "1", "-o", "json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)[0]


def environment(threads):
    return os.environ | {
        "PEERS_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_case(words, threads):
    """The figures of a case; none where it failed, which is said."""
    python = pathlib.Path(os.environ["PEERS_DIR"]) / "venv" / "bin" / "python"
    python = python if python.exists() else sys.executable
    command = [python, HERE / words[0], *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(threads), timeout=CASE_S_MAX)
    except subprocess.TimeoutExpired:
        print(f"    took longer than {CASE_S_MAX} s", file=sys.stderr)
        return []
    if done.returncode != 0:
        print(f"    failed with {done.returncode}: {done.stderr.strip()[-600:]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"what"')]


def run(arguments):
    os.environ.setdefault("PEERS_DIR", "peers")
    folder = pathlib.Path(os.environ["PEERS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    wanted = [name for name in CASES if any(part in name for part in arguments.only.split(","))]
    if not wanted:
        sys.exit(f"--only {arguments.only} is in none of the names: {', '.join(CASES)}")
    before = limits(arguments.threads)
    with path.open("w") as out:
        for number in range(arguments.rounds):
            for name in wanted:
                begun = time.time()
                figures = run_case(CASES[name], arguments.threads)
                after = limits(arguments.threads)
                for figure in figures:
                    record = {"case": name, "round": number, **figure, "before": before, "after": after, "at": int(begun)}
                    out.write(json.dumps(record) + "\n")
                out.flush()
                found = " ".join(f"{key.split('_')[0]} {after[key]:.0f}" for key in LIMITS if after[key])
                print(f"round {number + 1} of {arguments.rounds}  {name:20} {time.time() - begun:5.0f} s  {found}", file=sys.stderr)
                before = after
    return path


def contended(record, best):
    """Whether the machine had less to give beside this figure than at its best."""
    mean = {key: (record["before"][key] + record["after"][key]) / 2 for key in best}
    return any(mean[key] < CONTENDED * best[key] for key in best)


def table(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if not records:
        return "nothing was measured"
    known = [key for key in LIMITS if all(record["before"][key] and record["after"][key] for record in records)]
    best = {key: max(record[when][key] for record in records for when in ("before", "after")) for key in known}
    # The median: one burst must not make every other case look contended.
    usual = {key: statistics.median(record["after"][key] for record in records) for key in known}
    lines = ["| | " + " | ".join(HEADINGS) + " |", "|---" * (len(HEADINGS) + 1) + "|"]
    void = set()
    for name in dict.fromkeys(record["case"] for record in records):
        cells = []
        for what, size in ROWS:
            here = [record for record in records if (record["case"], record["what"], record["size"]) == (name, what, size)]
            quiet = [record["value"] for record in here if not contended(record, usual)]
            values = quiet or [record["value"] for record in here]
            if not values:
                cells.append("–")
                continue
            digits = 1 if what == "first_token" else 0
            cell = f"{statistics.median(values):.{digits}f}"
            if len(values) > 1 and what != "memory":
                cell += f" ({min(values):.{digits}f}–{max(values):.{digits}f})"
            if not quiet:
                void.add(name)
                cell += " !"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    said = ", ".join(f"{key.removesuffix('_per_s').replace('_', ' ')}/s {usual[key]:.0f} (at best {best[key]:.0f})" for key in known)
    lines += ["", f"Limits beside the cases, median: {said}."]
    if void:
        lines.append("!: measured while the machine had less than "
                     f"{CONTENDED:.0%} of that to give: measure again ({', '.join(sorted(void))}).")  # fmt: skip
    return "\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default="", help="parts of the names of the cases to measure")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--table", type=pathlib.Path, help="shows the results of an earlier run")
    arguments = arguments.parse_args()
    path = arguments.table or run(arguments)
    print(table(path))
    if not arguments.table:
        print(f"\n{path}", file=sys.stderr)


if __name__ == "__main__":
    main()
