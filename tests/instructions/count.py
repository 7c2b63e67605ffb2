#!/usr/bin/env python3
"""Counts the instructions of the engine's passes on a small fixed case, and compares them with those of the last change.

    tests/instructions/count.py            fails where a count grew by more than the tolerance
    tests/instructions/count.py --accept   makes today's counts the ones to compare with

Instructions are the same on every machine and in every run, where times are not. valgrind has no AVX-512, so the kernels
counted are those for AVX2: what grows there has mostly grown in the others too. Needs valgrind and `cargo build --release`.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BASELINE = HERE / "baseline.json"
DTYPES = ["f32", "bf16", "q8", "q4"]
# The function whose instructions count, and those of all that it calls: no loading, no scheduler, no random hash seeds.
COUNTED = "*local::Local::pass*"
# Compilers, allocators and libc differ a little.
TOLERANCE = 0.03
# Places below this share of a count are not worth a line.
SHOWN = 0.01


def binary():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = target / "release" / "banyan"
    if not path.exists():
        sys.exit(f"{path} is missing: run `cargo build --release` first")
    return path


def rustc():
    return subprocess.run(["rustc", "--version"], capture_output=True, text=True, cwd=ROOT).stdout.split()[1]


def count(dtype):
    """The kernels that computed, and instructions by place."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={COUNTED}", f"--callgrind-out-file={out}"]
        ran = subprocess.run([*command, binary(), "bench", "count", "--dtype", dtype], capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"counting {dtype} failed:\n{ran.stderr[-2000:]}")
        places = by_place(out.read_text())
    if not places:
        sys.exit(f"nothing was counted: is there a function like {COUNTED}, which is not inlined?")
    return ran.stdout.split(" in ")[0].strip(), places


def by_place(profile):
    """Reads callgrind's format: https://valgrind.org/docs/manual/cl-format.html

    The kernels are all inlined into one function for an instruction set, so a place is one of our files, and only what comes
    from elsewhere (intrinsics, libc) is told by its function.
    """
    files, functions, sums = {}, {}, {}
    function, own, here, skip = None, None, None, False
    for line in profile.splitlines():
        if match := re.match(r"(fl|fi|fe|fn|cfn|cfi|cfl)=\((\d+)\)(?: (.*))?", line):
            what, number, name = match.groups()
            names = functions if what in ("fn", "cfn") else files
            if name is not None:
                names[number] = plain(name)
            if what == "fn":
                function, here = names[number], own
            elif what == "fl":
                own = here = names[number]
            elif what in ("fi", "fe"):
                here = names[number]
        elif line.startswith("calls="):
            # The next line is what the callee took, which is the callee's own.
            skip = True
        elif function and re.match(r"[+\-*\d]", line):
            if not skip:
                ours = re.search(r"engine/src/.*", here or "")
                place = ours.group() if ours else function
                sums[place] = sums.get(place, 0) + int(line.split()[1])
            skip = False
    return {place: cost for place, cost in sums.items() if cost}


def plain(name):
    """Without the hash that a compiler adds, and without what callgrind adds for recursion."""
    return re.sub(r"::h[0-9a-f]{16}$", "", re.sub(r"'\d+$", "", name))


def shown(places):
    total = sum(places.values())
    kept = {place: cost for place, cost in places.items() if cost >= SHOWN * total}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def compare(dtype, before, places):
    """Whether it passes; says what changed."""
    total, was = sum(places.values()), before["instructions"]
    change = total / was - 1
    verdict = "more than" if change > TOLERANCE else "within"
    print(f"{dtype:5} {total:>12,} instructions, before {was:,}: {change:+.2%}, {verdict} {TOLERANCE:.0%}")
    if abs(change) <= TOLERANCE:
        return True
    changes = {place: places.get(place, 0) - cost for place, cost in before["places"].items()}
    changes |= {place: cost for place, cost in shown(places).items() if place not in changes}
    for place, difference in sorted(changes.items(), key=lambda item: -abs(item[1]))[:10]:
        if abs(difference) > SHOWN * was:
            print(f"      {difference:>+12,}  {place[:120]}")
    if change < 0:
        print("      fewer: `tests/instructions/count.py --accept` keeps it so")
    return change <= TOLERANCE


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--accept", action="store_true", help="makes today's counts the ones to compare with")
    accept = arguments.parse_args().accept
    # valgrind runs a program on one core: on several, the dtypes don't wait for each other.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as workers:
        counted = dict(zip(DTYPES, workers.map(count, DTYPES)))
    kernels = {kernels for kernels, _ in counted.values()}
    if accept:
        counts = {
            dtype: {"instructions": sum(places.values()), "places": shown(places)}
            for dtype, (_, places) in counted.items()
        }
        baseline = {"kernels": "+".join(sorted(kernels)), "rustc": rustc(), "counts": counts}
        BASELINE.write_text(json.dumps(baseline, indent=1) + "\n")
        print("\n".join(f"{dtype:5} {counts[dtype]['instructions']:>12,} instructions" for dtype in DTYPES))
        return 0
    baseline = json.loads(BASELINE.read_text())
    if baseline["kernels"] != "+".join(sorted(kernels)):
        print(f"The counts to compare with are of {baseline['kernels']}, and this processor computes with {kernels}: not compared.")
        return 0
    if baseline["rustc"] != rustc():
        print(f"Counted with rustc {baseline['rustc']} before, and with {rustc()} now: some of a change may be its doing.")
    passes = [compare(dtype, baseline["counts"][dtype], places) for dtype, (_, places) in counted.items()]
    if all(passes):
        return 0
    print("Where more instructions are meant (they may be worth it: fewer misses, more text), run")
    print("`tests/instructions/count.py --accept`, and say in the commit why.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
