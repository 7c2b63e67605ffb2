"""Weights that are a function of their names, so that 500 MB of them need not be committed.

Element i (row-major, as stored) of tensor `name` is made of h = mix(fnv1a64(name) + (i + 1) * 0x9E3779B97F4A7C15), where mix is
SplitMix64's: u = ((h >> 40) - 2^23) / 2^23 in [-1, 1), times a power of two by the kind of tensor, plus 1 for a norm's
weight. Every step is exact in f32, so tests/golden/weights.rs makes the same bits.
"""

import numpy as np

# The end of a name, a part of it, factor, offset: GPT-2's, then the llama family's.
SCALES = [
    (".weight", "ln_", 2.0**-3, 1.0),
    ("wte.weight", "", 2.0**-4, 0.0),
    ("attn.c_attn.weight", "", 2.0**-4, 0.0),
    ("norm.weight", "", 2.0**-3, 1.0),
    ("_proj.weight", "", 2.0**-2, 0.0),
    ("_proj.bias", "", 2.0**-2, 0.0),
    ("embed_tokens.weight", "", 2.0**-1, 0.0),
    ("lm_head.weight", "", 2.0**-2, 0.0),
]


def scale(name):
    """(factor, offset) of a tensor."""
    if "c_proj" not in name:
        for suffix, part, factor, offset in SCALES:
            if name.endswith(suffix) and part in name:
                return factor, offset
    return 2.0**-5, 0.0


def fnv1a64(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def tensor(name, shape):
    count = int(np.prod(shape))
    out = np.empty(count, np.float32)
    factor, offset = scale(name)
    with np.errstate(over="ignore"):
        for start in range(0, count, 1 << 22):
            z = np.arange(start + 1, min(count, start + (1 << 22)) + 1, dtype=np.uint64)
            z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(fnv1a64(name))
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            u = ((z >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
            out[start : start + len(z)] = u * np.float32(factor) + np.float32(offset)
    return out.reshape(shape)
