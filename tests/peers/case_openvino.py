"""OpenVINO's CPU plugin with a stateful KV cache.

usage: case_openvino.py f32|bf16|int8|bf16-int8    (int8: weights alone)
       case_openvino.py convert                    (setup.sh does: from a plain torch GPT-2)
"""

import sys
import time

import numpy
import openvino

from measure import THREADS, measure, peers

FOLDER = peers() / "ov"
LAYERS, WIDTH, HEADS, EPSILON = 12, 768, 12, 1e-5
HEAD = WIDTH // HEADS


def network():
    """GPT-2 whose KV cache comes in and goes out, as an IR without state can have it."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    tensors = load_file(peers() / "gpt2-rand" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        # Conv1D weights are [in, out].
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensors[name] = tensor.t().contiguous()

    class Gpt2(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name.replace(".", "_"), tensor)

        def get(self, name):
            return getattr(self, name.replace(".", "_"))

        def linear(self, x, name):
            return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

        def norm(self, x, name):
            return F.layer_norm(x, (WIDTH,), self.get(f"{name}.weight"), self.get(f"{name}.bias"), EPSILON)

        def forward(self, ids, positions, mask, *past):
            batch, rows = ids.shape
            x = F.embedding(ids, self.get("wte.weight")) + F.embedding(positions, self.get("wpe.weight"))
            present = []
            for layer in range(LAYERS):
                name = f"h.{layer}"
                parts = self.linear(self.norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn").split(WIDTH, dim=2)
                q, k, v = (part.reshape(batch, rows, HEADS, HEAD).transpose(1, 2) for part in parts)
                k, v = torch.cat([past[2 * layer], k], 2), torch.cat([past[2 * layer + 1], v], 2)
                present += [k, v]
                seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                x = x + self.linear(seen.transpose(1, 2).reshape(batch, rows, WIDTH), f"{name}.attn.c_proj")
                wide = F.gelu(self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"), approximate="tanh")
                x = x + self.linear(wide, f"{name}.mlp.c_proj")
            x = self.norm(x[:, -1:], "ln_f")
            return (F.linear(x, self.get("wte.weight"))[:, 0].argmax(-1, keepdim=True), *present)

    batch, rows, before = 2, 3, 4
    ids = torch.zeros(batch, rows, dtype=torch.long)
    past = [torch.zeros(batch, HEADS, before, HEAD) for _ in range(2 * LAYERS)]
    return Gpt2().eval(), (ids, ids, torch.zeros(batch, 1, rows, before + rows), *past)


def convert():
    import nncf
    import openvino.opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    module, example = network()
    model = openvino.convert_model(module, example_input=example)
    past = [f"past.{at}" for at in range(2 * LAYERS)]
    present = [f"present.{at}" for at in range(2 * LAYERS)]
    shapes = [[-1, -1], [-1, -1], [-1, 1, -1, -1]] + [[-1, HEADS, -1, HEAD]] * len(past)
    model.reshape({port: openvino.PartialShape(shape) for port, shape in zip(model.inputs, shapes)})
    for port, name in zip(model.inputs, ["ids", "positions", "mask", *past]):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["next", *present]):
        port.get_tensor().set_names({name})
    # The plugin fuses a cache into its attention where a Gather by `beam_idx` stands before it, as in exported models.
    beam = ops.parameter([-1], dtype=numpy.int32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam])
    for name in past:
        port = next(port for port in model.inputs if name in port.get_names())
        users = port.get_target_inputs()
        gathered = ops.gather(port.get_node(), beam, ops.constant(0))
        for user in users:
            user.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(zip(past, present)))
    # The state begins empty, for as many sequences as there are ids.
    batch = ops.gather(ops.shape_of(model.input("ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [ops.constant(numpy.array([size], dtype=numpy.int64)) for size in (HEADS, 0, HEAD)]
            empty = ops.broadcast(ops.constant(0.0, dtype=numpy.float32), ops.concat([batch, *sizes], axis=0))
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()
    FOLDER.mkdir(exist_ok=True)
    openvino.save_model(model, FOLDER / "gpt2.xml", compress_to_fp16=False)
    compressed = nncf.compress_weights(openvino.Core().read_model(FOLDER / "gpt2.xml"), mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, FOLDER / "gpt2_int8.xml", compress_to_fp16=False)


def main(precision):
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision.startswith("bf16") else "f32",
    }
    file = "gpt2_int8.xml" if precision.endswith("int8") else "gpt2.xml"
    request = openvino.Core().compile_model(FOLDER / file, "CPU", settings).create_infer_request()

    # A model that an earlier setup converted calls its positions by another name.
    positions = "positions" if any("positions" in port.get_names() for port in request.model_inputs) else "posids"

    def generate(batch, prompt, new):
        request.reset_state()
        inputs = {
            "ids": numpy.random.randint(0, 50000, (batch, prompt)).astype(numpy.int64),
            positions: numpy.tile(numpy.arange(prompt, dtype=numpy.int64), (batch, 1)),
            "mask": numpy.tile(numpy.triu(numpy.full((prompt, prompt), -1e9, numpy.float32), 1), (batch, 1, 1, 1)),
            "beam_idx": numpy.arange(batch, dtype=numpy.int32),
        }
        begun = time.perf_counter()
        inputs["ids"] = request.infer(inputs)[0].copy()
        first = time.perf_counter() - begun
        for at in range(prompt, prompt + new - 1):
            inputs[positions] = numpy.full((batch, 1), at, numpy.int64)
            inputs["mask"] = numpy.zeros((batch, 1, 1, at + 1), numpy.float32)
            inputs["ids"] = request.infer(inputs)[0].copy()
        return first, time.perf_counter() - begun

    measure(generate)


if __name__ == "__main__":
    convert() if sys.argv[1] == "convert" else main(sys.argv[1])
