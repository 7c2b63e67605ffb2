#!/usr/bin/env python3
"""Makes tests/golden/*.json again with Hugging Face's libraries; see README.md.

usage: make.py MODELS [NAME ...]      MODELS: the folder that fetch.sh fills; NAME: only these files
"""

import hashlib
import json
import pathlib
import struct
import sys

import gguf
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import templates
import weights
from strings import SplitMix, strings

HERE = pathlib.Path(__file__).parent
OUT = HERE.parent / "tests" / "golden"
TINY = HERE.parent / "banyan-tiny"
MODELS, ONLY = pathlib.Path(sys.argv[1]), sys.argv[2:]

STRINGS, STRINGS_SEED, PER_HASH = 4000, 2026, 50
DECODED, DECODED_SEED = 1000, 11
SAMPLE = 61  # logits per position, evenly spread over the vocabulary
GREEDY = 48
# "<s> Once upon a time" to stories15M, and SmolLM2's chat template of "What is the capital of France?".
STORY = [1, 9038, 2501, 263, 931]
CHAT = [
    *[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198],
    *[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
]


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


def random_llama(config):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights.tensor(name.removeprefix("model."), tuple(parameter.shape))))
    model.tie_weights()
    return model


def folder(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def smollm2(path):
    """The model of a llama.cpp file: dequantized, and with its rows in transformers' order of rotation."""
    reader = gguf.GGUFReader(path)
    field = lambda name: reader.fields[name].contents()
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        parts = tensor.name.split(".")
        if parts[-2] in ("attn_q", "attn_k"):
            count = heads if parts[-2] == "attn_q" else kv_heads
            values = values.reshape(count, values.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        tensors[f"{layer}{names[parts[-2]]}.weight"] = torch.from_numpy(values.copy())
    config = AutoConfig.for_model(
        "llama",
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert missing == ["lm_head.weight"], missing
    model.tie_weights()
    return model


@torch.no_grad()
def logits(name, model, lengths, prompts=()):
    """Of random tokens; greedy texts after random prompts, and after `prompts`."""
    if not wanted(f"logits-{name}"):
        return
    model = model()
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
    for prompt in [[rng.below(vocabulary) for _ in range(length)] for length in (1, 12)] + list(prompts):
        tokens, generated, margins = list(prompt), [], []
        for _ in range(GREEDY):
            top = torch.topk(model(torch.tensor([tokens])).logits[0, -1], 2)
            margins.append(round(float(top.values[0] - top.values[1]), 6))
            generated.append(int(top.indices[0]))
            tokens.append(generated[-1])
        continuations.append({"prompt": prompt, "tokens": generated, "margins": margins})
    write(f"logits-{name}.json", {"made_with": versions(), "model": name, "runs": runs, "greedy": continuations})


@torch.no_grad()
def embeddings(name, model, lengths):
    """Of random tokens: the mean over them of what the last layer's norm gives."""
    if not wanted(f"embeddings-{name}"):
        return
    model = model()
    model.eval()
    rng = SplitMix(weights.fnv1a64(f"embeddings of {name}"))
    runs = []
    for length in lengths:
        tokens = [rng.below(model.config.vocab_size) for _ in range(length)]
        states = model.base_model(torch.tensor([tokens])).last_hidden_state[0]
        runs.append({"tokens": tokens, "mean": [round(float(number), 6) for number in states.double().mean(0)]})
    write(f"embeddings-{name}.json", {"made_with": versions(), "model": name, "runs": runs})


def hashes(items, per_hash):
    """First 16 hexadecimal digits of SHA-256 over each group."""
    out = []
    for start in range(0, len(items), per_hash):
        digest = hashlib.sha256()
        for item in items[start : start + per_hash]:
            digest.update(item)
        out.append(digest.hexdigest()[:16])
    return out


def smollm2_tokenizer(path):
    """The vocabulary of a llama.cpp file in the tokenizer that SmolLM2 has: single digits, then GPT-2's words."""
    reader = gguf.GGUFReader(path)
    field = lambda name: reader.fields[f"tokenizer.ggml.{name}"].contents()
    tokens = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    hf = tokenizers.Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    hf.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    hf.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("token_type")) if kind == 3]
    hf.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return hf


def pieces_tokenizer(path):
    """What is decoded continues a text: the space before its first word stays."""
    hf = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    hf.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return hf


def tokenizer(name, hf, decoded_seed=DECODED_SEED):
    if not wanted(f"tokenizer-{name}"):
        return
    hf = hf()
    encoded = [hf.encode(text).ids for text in strings(STRINGS_SEED, STRINGS)]
    ids = [struct.pack(f"<I{len(i)}I", len(i), *i) for i in encoded]
    rng = SplitMix(decoded_seed)
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
            "decoded": {"seed": decoded_seed, "count": DECODED, "hashes": hashes(decoded, PER_HASH)},
            "samples": samples,
        },
    )


def wanted(name):
    return not ONLY or name in ONLY


def main():
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    if wanted("templates"):
        write("templates.json", {"made_with": versions(), "cases": templates.cases()})
    tokenizer("banyan-tiny", lambda: tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json")))
    tokenizer("gpt2", lambda: tokenizers.Tokenizer.from_file(str(MODELS / "gpt2-tokenizer" / "tokenizer.json")))
    tokenizer("smollm2", lambda: smollm2_tokenizer(next((MODELS / "smollm2").glob("*.gguf"))))
    # Of bytes side by side that are no text, tokenizers makes a mark each, and Banyan one of each part that could have begun
    # a character: with this seed there are none.
    tokenizer("stories15M", lambda: pieces_tokenizer(MODELS / "stories15M"), decoded_seed=12)
    logits("banyan-tiny", lambda: folder(TINY), (3, 64, 200))
    embeddings("banyan-tiny", lambda: folder(TINY), (1, 3, 64, 200))
    variants = json.loads((OUT / "llama-variants.json").read_text())
    embeddings("qwen3", lambda: random_llama(variants["qwen3"]), (1, 60))
    embeddings("mgm", lambda: folder(MODELS / "mgm"), (3, 200))
    embeddings("smollm2", lambda: smollm2(next((MODELS / "smollm2").glob("*.gguf"))), (3, 200))
    logits("mgm", lambda: folder(MODELS / "mgm"), (3, 64, 200))
    logits("random-gpt2", random_gpt2, (3, 40))
    for name, config in variants.items():
        logits(name, lambda: random_llama(config), (3, 60))
    logits("stories15M", lambda: folder(MODELS / "stories15M"), (3, 64, 200), [STORY])
    logits("smollm2", lambda: smollm2(next((MODELS / "smollm2").glob("*.gguf"))), (3, 200), [CHAT])


main()
