"""Strings of every script, emoji and control characters, the same ones as tests/common/strings.rs makes."""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1


class SplitMix:
    """Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def alphabets():
    lines = (HERE / "alphabets.txt").read_text().splitlines()
    return [tuple(int(end, 16) for end in line.split(" ")[0].split("-")) for line in lines]


def pieces():
    return json.loads((HERE / "pieces.json").read_text())


def strings(seed, count):
    rng, ranges, fixed = SplitMix(seed), alphabets(), pieces()
    for _ in range(count):
        text = []
        for _ in range(rng.below(12)):
            kind = rng.below(5)
            if kind == 0:
                text.append(fixed[rng.below(len(fixed))])
            elif kind in (1, 2):
                first, last = ranges[rng.below(len(ranges))]
                text.extend(chr(first + rng.below(last - first + 1)) for _ in range(1 + rng.below(8)))
            elif kind == 3:
                text.extend(chr(97 + rng.below(26)) for _ in range(1 + rng.below(10)))
            else:
                text.append(" ")
        yield "".join(text)
