"""Our way to an XLA device against JAX with Qwix, on the same plugin: time to compile, time of a call, memory.

    python benchmarks/xla.py OUT [ROUNDS [SECONDS]]

builds `time_xla` (`cargo build --release -p qwix-pjrt --example time_xla`; TIME_XLA names another), writes three models
with random weights to OUT (the digits' CNN, the encoder of encoder.py, the decoder of examples/decoder), and runs ours
and JAX's in turn, ROUNDS times (5) for SECONDS each (2), each in a process of its own. JAX runs on the plugin that `qwix`
uses, where it takes it, else on its own of the same kind. Prints the medians of the rounds and the ratios ours / JAX's;
below 1 is better. A call takes and gives arrays of the host in both; the memory is what the process takes at the most,
and how much more that is than before the model was read.
"""

import ast
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
HOW = {
    "float": None,
    "int8": dict(weight_qtype="int8", act_qtype="int8"),
    "int8-weight-only": dict(weight_qtype="int8"),
}


def classes(file):
    """The classes and functions of a training script, without what it needs to train."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    tree = ast.parse((HERE.parent / file).read_text())
    definitions = (ast.ClassDef, ast.FunctionDef)
    plain = lambda n: isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
    tree.body = [n for n in tree.body if isinstance(n, definitions) or plain(n)]
    names = dict(nn=nn, jax=jax, jnp=jnp, np=np, dataclasses=dataclasses, __name__=__name__)
    exec(compile(tree, file, "exec"), names)
    return names


def model(name):
    """A model and its inputs."""
    import numpy as np

    rng = np.random.default_rng(0)
    if name == "digits":
        return classes("examples/digits/train.py")["DigitsNet"](), [rng.random((64, 8, 8, 1), dtype=np.float32)]
    if name == "decoder":
        names = classes("examples/decoder/train.py")
        config = names["Config"](width=256, hidden=512, layers=6)
        return names["Decoder"](config), [rng.integers(0, config.vocabulary, (1, 128), dtype=np.int32)]
    import encoder

    tokens = rng.integers(0, encoder.WORDS, (encoder.BATCH, encoder.TOKENS), dtype=np.int32)
    return encoder.Encoder(), [tokens, np.ones((encoder.BATCH, encoder.TOKENS), bool)]


def write(name, out):
    import jax
    import numpy as np
    from encoder import flat
    from safetensors.numpy import save_file

    net, inputs = model(name)
    variables = net.init(jax.random.key(0), *inputs)
    out.mkdir(parents=True, exist_ok=True)
    hlo = jax.jit(net.apply).lower(variables, *inputs).compiler_ir("hlo").as_serialized_hlo_module_proto()
    (out / "model.hlo.pb").write_bytes(hlo)
    save_file(dict(flat(variables["params"])), out / "params.safetensors")
    save_file({str(i): np.asarray(x) for i, x in enumerate(inputs)}, out / "inputs.safetensors")


def mebibytes(of):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(of))


def theirs(name, how, out, seconds):
    """As time_xla, in JAX."""
    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import load_file

    jax.devices()
    import qwix

    net, inputs = model(name)
    before = mebibytes("VmRSS")
    params = {key: jax.numpy.asarray(array) for key, array in load_file(out / "params.safetensors").items()}
    params = unflatten_dict(params, sep="/")
    if HOW[how]:
        provider = qwix.PtqProvider([qwix.QuantizationRule(module_path=".*", **HOW[how])])
        net = qwix.quantize_model(net, provider)
        template = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
        params = qwix.quantize_params(params, template)
    variables = jax.device_put({"params": params})
    jax.block_until_ready(variables)
    lowered = jax.jit(net.apply).lower(variables, *inputs)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_ms = (time.perf_counter() - start) * 1e3
    output = np.asarray(compiled(variables, *inputs))
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        start = time.perf_counter()
        np.asarray(compiled(variables, *inputs))
        times.append((time.perf_counter() - start) * 1e3)
    peak = mebibytes("VmHWM")
    output = [float(v) for v in output.ravel()[:64]]
    said = dict(compile=compile_ms, run=float(np.median(times)), best=min(times), peak=peak, before=before)
    print(json.dumps(dict(**said, output=output)))


def told(command, **environment):
    result = subprocess.run(
        [str(c) for c in command], env={**os.environ, **environment}, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{command}: status {result.returncode}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def plugin(environment):
    """Whether JAX takes the plugin."""
    check = "import jax; jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((4, 4))))"
    return subprocess.run([sys.executable, "-c", check], env={**os.environ, **environment}).returncode == 0


def main(out, rounds, seconds):
    time_xla = os.environ.get("TIME_XLA")
    root = HERE.parent
    if not time_xla:
        build = ["cargo", "build", "--release", "-p", "qwix-pjrt", "--example", "time_xla"]
        subprocess.run(build, cwd=root, check=True)
        time_xla = root / "target/release/examples/time_xla"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    library = os.environ.get("QWIX_PJRT_PLUGIN_CPU") or cache / "qwix/plugins/cpu/pjrt_c_api_cpu_plugin.so"
    same = dict(PJRT_NAMES_AND_LIBRARY_PATHS=f"same:{library}", JAX_PLATFORMS="same")
    if not plugin(same):
        print("JAX does not take the plugin: it runs on its own")
        same = dict(JAX_PLATFORMS="cpu")
    print(f"{'model':24} {'':8} {'ours':>9} {'JAX':>9} {'ratio':>6}")
    for name in ["digits", "encoder", "decoder"]:
        folder = out / name
        if not (folder / "inputs.safetensors").exists():
            subprocess.run([sys.executable, __file__, "--write", name, str(folder)], check=True)
        for how in HOW:
            if (name, how) == ("digits", "int8-weight-only"):
                continue  # Qwix has no convolution whose kernel alone is quantized.
            pairs = []
            for _ in range(rounds):
                ours = told([time_xla, folder, how, seconds])
                jax = told([sys.executable, __file__, "--theirs", name, how, folder, seconds], **same)
                pairs.append((ours, jax))
            largest = max(map(abs, jax["output"]))
            far = max(abs(a - b) for a, b in zip(ours["output"], jax["output"])) / largest
            if not far < 0.05:
                sys.exit(f"{name}, {how}: the outputs are {far:.2g} apart; these are two models")
            for what, unit, of in [
                ("compile", "ms", lambda x: x["compile"]),
                ("call", "ms", lambda x: x["run"]),
                ("memory", "MiB", lambda x: x["peak"]),
                ("  more", "MiB", lambda x: x["peak"] - x["before"]),
            ]:
                a, b = (sorted(of(pair[i]) for pair in pairs)[rounds // 2] for i in (0, 1))
                title = f"{name}, {how}" if what == "compile" else ""
                print(f"{title:24} {what:8} {a:9.2f} {b:9.2f} {a / b:6.2f} {unit}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", name, out]:
            write(name, pathlib.Path(out))
        case ["--theirs", name, how, out, seconds]:
            theirs(name, how, pathlib.Path(out), float(seconds))
        case [out, *rest]:
            rounds, seconds = [*rest, *["5", "2"][len(rest) :]]
            main(pathlib.Path(out), int(rounds), float(seconds))
        case _:
            sys.exit(__doc__)
