"""Random weights in the exact shape of gpt2 (124M), for all peers: Hugging Face's layout and GGUF.

Speed does not depend on the values. The vocabulary is made up too: bytes, and names for the other tokens.
"""

import json

import gguf
import numpy
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from measure import peers

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 12, 768, 12, 1024, 50257
TENSORS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tokens():
    """GPT-2's names of bytes, and as many others as there are to be."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    bytes_ = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    return bytes_ + [f"tok{at}" for at in range(VOCABULARY - 257)] + ["<|endoftext|>"]


def hugging_face(folder):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=CONTEXT, vocab_size=VOCABULARY)
    GPT2LMHeadModel(config).save_pretrained(folder, safe_serialization=True)
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens())}))
    (folder / "merges.txt").write_text("#version: 0.2\nt o\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def write_gguf(folder):
    out = gguf.GGUFWriter(str(folder / "gpt2-f32.gguf"), "gpt2")
    out.add_name("gpt2-rand")
    out.add_block_count(LAYERS)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(4 * WIDTH)
    out.add_head_count(HEADS)
    out.add_layer_norm_eps(1e-5)
    out.add_file_type(0)
    out.add_vocab_size(VOCABULARY)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens())
    out.add_token_types([1] * (VOCABULARY - 1) + [3])
    out.add_token_merges(["t o"])
    out.add_bos_token_id(VOCABULARY - 1)
    out.add_eos_token_id(VOCABULARY - 1)
    names = {
        "wte.weight": "token_embd.weight",
        "wpe.weight": "position_embd.weight",
        "ln_f.weight": "output_norm.weight",
        "ln_f.bias": "output_norm.bias",
    }
    for layer in range(LAYERS):
        for ours, theirs in TENSORS.items():
            for part in ("weight", "bias"):
                names[f"h.{layer}.{ours}.{part}"] = f"blk.{layer}.{theirs}.{part}"
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        if name not in names:
            continue
        # Conv1D weights are [in, out], GGUF's are [out, in].
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = numpy.ascontiguousarray(tensor.T)
        out.add_tensor(names[name], tensor.astype(numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    folder = peers() / "gpt2-rand"
    hugging_face(folder)
    write_gguf(folder)
