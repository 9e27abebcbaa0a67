"""Compiles exported models with jaxlib and runs them: `run_exported.py FLAT INPUTS OUT MODEL [SAME_MODEL_INLINE]`.

FLAT is what `qwix dump` wrote, INPUTS has the inputs by name; OUT gets the first output's bytes. The module goes the way
of jaxlib's own tools: HLO, StableHLO with its composites, and the compiler. With a second file, both must give the same
bits. The first module comes back out of StableHLO as OUT.hlo.pb. Prints how many composites it has.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jaxlib import _jax, xla_client


def tensors(path):
    """A safetensors file of dtypes that NumPy has."""
    names = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "BOOL": "?"}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = file.read()
    read = lambda e: np.frombuffer(data[slice(*e["data_offsets"])], names[e["dtype"]]).reshape(e["shape"])
    return {key: read(entry) for key, entry in header.items() if key != "__metadata__"}


def parameters(text):
    """Of each parameter its key in the files, and whether it is of 4 bits; and how many composites there are."""
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        main = next(op for op in module.body.operations if ir.StringAttr(op.attributes["sym_name"]).value == "main")
        found = []
        types = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value).inputs
        for ty, attributes in zip(types, ir.ArrayAttr(main.attributes["arg_attrs"])):
            ours = ir.DictAttr(ir.DictAttr(attributes)["mhlo.frontend_attributes"])
            text = lambda key: ir.StringAttr(ours[f"qwix.{key}"]).value if f"qwix.{key}" in ours else None
            parts = [text("path")] + ([text("quantized_part")] if text("quantized_part") else [])
            found.append(("/".join(parts), "i4" in str(ty)))
        return found, str(module).count("stablehlo.composite")


def run(text, arguments):
    device = jax.devices("cpu")[0]
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    executable = device.client.compile_and_load(text, _jax.DeviceList((device,)), options)
    results = executable.execute_sharded([jax.device_put(a, device) for a in arguments])
    return np.asarray(results.disassemble_into_single_device_arrays()[0][0])


def main(flat, inputs, out, *models):
    stablehlo = [xla_client._xla.mlir.hlo_to_stablehlo(open(model, "rb").read()) for model in models]
    values = tensors(flat) | tensors(inputs)
    found, composites = parameters(stablehlo[0])
    arguments = [jnp.asarray(values[key]) for key, _ in found]
    arguments = [a.astype(jnp.int4) if narrow else a for a, (_, narrow) in zip(arguments, found)]
    first, *others = [run(text, arguments) for text in stablehlo]
    for other in others:
        assert first.dtype == other.dtype and first.tobytes() == other.tobytes(), "other bits"
    open(out, "wb").write(first.tobytes())
    convert = xla_client._xla.mlir.mlir_module_to_xla_computation
    back = convert(stablehlo[0], use_tuple_args=False, return_tuple=False)
    open(f"{out}.hlo.pb", "wb").write(back.as_serialized_hlo_module_proto())
    print(composites)


main(*sys.argv[1:])
