#!/usr/bin/env python3
"""Makes tests/golden/*.json again with Hugging Face's libraries; see README.md.

usage: make.py MODELS      MODELS: the folder that fetch.sh fills (mgm/, gpt2-tokenizer/)
"""

import hashlib
import json
import pathlib
import struct
import sys

import tokenizers
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

import templates
import weights
from strings import SplitMix, strings

HERE = pathlib.Path(__file__).parent
OUT = HERE.parent / "tests" / "golden"
TINY = HERE.parent / "banyan-tiny"
MODELS = pathlib.Path(sys.argv[1])

STRINGS, STRINGS_SEED, PER_HASH = 4000, 2026, 50
DECODED, DECODED_SEED = 1000, 11
SAMPLE = 61  # logits per position, evenly spread over the vocabulary
GREEDY = 48


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}


def write(name, value):
    path = OUT / name
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


def random_gpt2():
    model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parameter.copy_(torch.from_numpy(weights.tensor(name, tuple(parameter.shape))))
    model.tie_weights()
    return model


def folder(path):
    return GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def logits(name, model, lengths):
    model.eval()
    vocabulary = model.config.vocab_size
    rng = SplitMix(weights.fnv1a64(name))
    runs = []
    for length in lengths:
        tokens = [rng.below(vocabulary) for _ in range(length)]
        out = model(torch.tensor([tokens])).logits[0]
        positions = []
        for position in sorted({0, 1, length // 2, length - 1}):
            row = out[position]
            top = torch.topk(row, 10)
            stride = vocabulary // SAMPLE
            positions.append(
                {
                    "position": position,
                    "top": [[int(i), round(float(v), 6)] for v, i in zip(top.values, top.indices)],
                    "sample": [round(float(row[i * stride]), 6) for i in range(SAMPLE)],
                }
            )
        runs.append({"tokens": tokens, "positions": positions})
    # Greedy continuations, with how far the second choice was away.
    continuations = []
    for length in (1, 12):
        prompt = [rng.below(vocabulary) for _ in range(length)]
        tokens, generated, margins = list(prompt), [], []
        for _ in range(GREEDY):
            top = torch.topk(model(torch.tensor([tokens])).logits[0, -1], 2)
            margins.append(round(float(top.values[0] - top.values[1]), 6))
            generated.append(int(top.indices[0]))
            tokens.append(generated[-1])
        continuations.append({"prompt": prompt, "tokens": generated, "margins": margins})
    write(f"logits-{name}.json", {"made_with": versions(), "model": name, "runs": runs, "greedy": continuations})


def hashes(items, per_hash):
    """First 16 hexadecimal digits of SHA-256 over each group."""
    out = []
    for start in range(0, len(items), per_hash):
        digest = hashlib.sha256()
        for item in items[start : start + per_hash]:
            digest.update(item)
        out.append(digest.hexdigest()[:16])
    return out


def tokenizer(name, path):
    hf = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    encoded = [hf.encode(text).ids for text in strings(STRINGS_SEED, STRINGS)]
    ids = [struct.pack(f"<I{len(i)}I", len(i), *i) for i in encoded]
    rng = SplitMix(DECODED_SEED)
    size = hf.get_vocab_size()
    decoded = []
    for _ in range(DECODED):
        text = hf.decode([rng.below(size) for _ in range(rng.below(24))], skip_special_tokens=True).encode()
        decoded.append(struct.pack("<I", len(text)) + text)
    text = [hf.decode(i, skip_special_tokens=True).encode() for i in encoded]
    samples = [[t, i] for t, i in list(zip(strings(STRINGS_SEED, STRINGS), encoded))[:40]]
    write(
        f"tokenizer-{name}.json",
        {
            "made_with": versions(),
            "strings": {"seed": STRINGS_SEED, "count": STRINGS, "per_hash": PER_HASH},
            "tokens": sum(map(len, encoded)),
            "encoded": hashes(ids, PER_HASH),
            "decoded_back": hashes([struct.pack("<I", len(t)) + t for t in text], PER_HASH),
            "decoded": {"seed": DECODED_SEED, "count": DECODED, "hashes": hashes(decoded, PER_HASH)},
            "samples": samples,
        },
    )


def main():
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    write("templates.json", {"made_with": versions(), "cases": templates.cases()})
    tokenizer("banyan-tiny", TINY)
    tokenizer("gpt2", MODELS / "gpt2-tokenizer")
    logits("banyan-tiny", folder(TINY), (3, 64, 200))
    logits("mgm", folder(MODELS / "mgm"), (3, 64, 200))
    logits("random-gpt2", random_gpt2(), (3, 40))


main()
