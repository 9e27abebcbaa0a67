"""How much memory quantizing takes: a chain of large products, quantized while it is read.

    python benchmarks/load.py OUT QWIX [LAYERS [WIDTH [BACKEND]]]

writes OUT/model.hlo.pb and OUT/params.safetensors (LAYERS weights of WIDTH x WIDTH in f32; 32 of 4096: 2.1 GB), runs
`QWIX quantize` in several amounts of memory and `QWIX run --rules`, and prints time and the most memory of each. With a BACKEND
(`xla:cpu`, say) both ways to run are measured on that too; the memory of xla:cpu's device is the process's. The weights are
written one by one and the model is lowered from shapes, so this takes little memory itself.
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time


def write(out, layers, width):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file

    paths = [f"layer_{i:03}/kernel" for i in range(layers)]

    def chain(variables, x):
        for path in paths:
            x = x @ variables["params"][path.split("/")[0]]["kernel"]
        return x

    weight = jax.ShapeDtypeStruct((width, width), jnp.float32)
    variables = {"params": {path.split("/")[0]: {"kernel": weight} for path in paths}}
    lowered = jax.jit(chain).lower(variables, jax.ShapeDtypeStruct((2, width), jnp.float32))
    hlo = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
    (out / "model.hlo.pb").write_bytes(hlo)
    rng, size = np.random.default_rng(0), width * width * 4
    header = {
        path: {"dtype": "F32", "shape": [width, width], "data_offsets": [i * size, (i + 1) * size]}
        for i, path in enumerate(paths)
    }
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    base = rng.standard_normal((width, width), dtype=np.float32) / width**0.5
    with open(out / "params.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for i in range(layers):
            file.write(np.roll(base, i).tobytes())
    save_file({"0": rng.standard_normal((2, width), dtype=np.float32)}, out / "in.safetensors")
    (out / "rules.json").write_text('[{"weight_qtype": "int8"}]')


def measured(*args):
    """Runs the command; seconds of the wall and MiB at the most."""
    start = time.perf_counter()
    child = subprocess.Popen([qwix, *map(str, args)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{args}: status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


if sys.argv[1] == "--write":
    write(pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.exit()
out, qwix = pathlib.Path(sys.argv[1]), sys.argv[2]
layers, width = (sys.argv[i] if len(sys.argv) > i else n for i, n in [(3, "32"), (4, "4096")])
out.mkdir(parents=True, exist_ok=True)
if not (out / "in.safetensors").exists():
    # In a process of its own: a child counts the memory of the process that it is forked from as its own.
    subprocess.run([sys.executable, __file__, "--write", str(out), layers, width], check=True)
model = [out / "model.hlo.pb", "--params", out / "params.safetensors", "--rules", out / "rules.json"]
for bound in ["64MiB", "256MiB", "1GiB"]:
    shutil.rmtree(out / "package", ignore_errors=True)
    seconds, most = measured("quantize", *model, "--max-memory", bound, "-o", out / "package")
    print(f"quantize --max-memory {bound}: {seconds:.1f} s, {most:.0f} MiB")
backends = ["cpu", *sys.argv[5:]]
if backends[1:]:
    # What a plugin takes without a model.
    tiny = out / "tiny"
    tiny.mkdir(exist_ok=True)
    subprocess.run([sys.executable, __file__, "--write", str(tiny), "1", "8"], check=True)
for backend in backends:
    common = ["--inputs", out / "in.safetensors", "-o", out / "outputs.safetensors", "--backend", backend]
    seconds, most = measured("run", *model, "--float-memory", "64MiB", *common)
    print(f"run --rules --float-memory 64MiB --backend {backend}: {seconds:.1f} s, {most:.0f} MiB")
    seconds, most = measured("run", out / "package", *common)
    print(f"run of the package --backend {backend}: {seconds:.1f} s, {most:.0f} MiB")
for backend in backends[1:]:
    small = ["--params", tiny / "params.safetensors", "--rules", tiny / "rules.json"]
    small += ["--inputs", tiny / "in.safetensors", "-o", tiny / "outputs.safetensors", "--backend", backend]
    seconds, most = measured("run", tiny / "model.hlo.pb", *small)
    print(f"run --rules of a tiny model --backend {backend}: {seconds:.1f} s, {most:.0f} MiB")
