"""Quantizing checkpoints of any size: rate, memory, crashes, damage, plans.

    python benchmarks/quantize.py OUT QWIX rate    [--gib 8] [--shards 40]   # against `cp` of the same bytes, to the disk
    python benchmarks/quantize.py OUT QWIX memory  [--gib 20]                # most resident memory under several budgets
    python benchmarks/quantize.py OUT QWIX kill    [--times 100]             # kill -9 at random moments, then resume
    python benchmarks/quantize.py OUT QWIX flip    [--times 10000]           # random bits flipped, each found by verify
    python benchmarks/quantize.py OUT QWIX plan                              # 70 billion parameters, by names and shapes
    python benchmarks/quantize.py OUT QWIX python  [--gib 1]                 # against real Qwix's quantize_params

OUT is a folder for the files that this writes (up to 24 GiB for `rate`, sparse ones for `memory` and `plan`), and removes.
Only `python` needs qwix and jax; `rate` needs numpy.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

WIDTH = {"BF16": 2, "F32": 4}


def header(tensors):
    """A safetensors header of {key: (dtype, shape)}, and the bytes of the tensors."""
    at, entries = 0, {}
    for key, (dtype, shape) in tensors.items():
        size = WIDTH[dtype]
        for n in shape:
            size *= n
        entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def write(folder, shards, fill=None):
    """Shards and their index; sparse unless `fill(file, bytes)` writes the tensors."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {}
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        head, size = header(tensors)
        with open(folder / name, "wb") as file:
            file.write(head)
            if fill:
                fill(file, size)
            else:
                file.truncate(len(head) + size)
        weights.update({key: name for key in tensors})
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def numbers(seed=0):
    """Writes bf16 numbers as weights have them, made once and rotated."""
    import numpy as np

    rng = np.random.default_rng(seed)
    block = (rng.standard_normal(1 << 25, dtype=np.float32) * 0.02).view(np.uint32)
    block = ((block + 0x8000) >> 16).astype(np.uint16).tobytes()

    def fill(file, size):
        while size:
            file.write(block[: min(size, len(block))])
            size -= min(size, len(block))

    return fill


def measured(args):
    """Seconds of the wall and of the processors, and MiB at the most, of a command."""
    # A child counts the memory of the process that it is forked from as its own; a small one stands between.
    code = (
        "import os,sys,resource,subprocess,json;"
        "status=subprocess.call(sys.argv[1:],stdout=subprocess.DEVNULL);"
        "u=resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([status,u.ru_utime+u.ru_stime,u.ru_maxrss/1024]))"
    )
    start = time.perf_counter()
    said = subprocess.check_output([sys.executable, "-S", "-c", code, *map(str, args)])
    status, cpu, most = json.loads(said)
    if status:
        sys.exit(f"{args}: status {status}")
    return time.perf_counter() - start, cpu, most


def quantize(params, target, *more):
    return [qwix, "quantize", "--params", params, "-o", target, "--weights-only", ".*/kernel", *more]


def digest(folder):
    files = sorted(p for p in folder.iterdir())
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def rate(out, args):
    total = int(args.gib * 2**30)
    # Square matrices of 4096, 32 MiB each, spread over the shards.
    each = max(1, total // args.shards // (4096 * 4096 * 2))
    shards = [
        {f"layer_{i:03}_{j}/kernel": ("BF16", [4096, 4096]) for j in range(each)} for i in range(args.shards)
    ]
    params = out / "params"
    if not params.exists():
        write(params, shards, numbers())
    size = sum(p.stat().st_size for p in params.iterdir())
    print(f"{size / 2**30:.2f} GiB of bf16 in {args.shards} shards; load average {os.getloadavg()[0]:.1f}")

    def once(args):
        shutil.rmtree(out / "copy", ignore_errors=True)
        subprocess.run(["sync"])
        start = time.perf_counter()
        _, cpu, most = measured(args)
        subprocess.run(["sync", "-f", str(out)])
        return time.perf_counter() - start, cpu, most

    ways = [
        ("cp", ["cp", "-r", params, out / "copy"]),
        ("int8 per channel, [in, out]", quantize(params, out / "copy", "--weight-qtype", "int8")),
        ("int8 per channel, [out, in]", quantize(params, out / "copy", "--weight-qtype", "int8", "--layout", "hf")),
        ("int4 tiles of 128", quantize(params, out / "copy", "--weight-qtype", "int4", "--tile-size", "128")),
        ("nf4 tiles of 128", quantize(params, out / "copy", "--weight-qtype", "nf4", "--tile-size", "128")),
    ]
    best = {}
    # Each in turn, several times: the machine's mood is shared by all.
    for _ in range(args.times or 3):
        for name, command in ways:
            found = once(command)
            if name not in best or found < best[name]:
                best[name] = found
    for name, (seconds, cpu, most) in best.items():
        ratio = best["cp"][0] / seconds
        print(
            f"{name:30} {seconds:7.2f} s {size / seconds / 1e6:7.0f} MB/s  {ratio:5.2f} of cp;"
            f"  {cpu:6.2f} s of the processors, {most:5.0f} MiB"
        )


def memory(out, args):
    big = 6 * 2**30 // 2 // 8192
    shards = [{"embed/kernel": ("BF16", [big, 8192])}]
    rest = int((args.gib - 6) * 2**30) // (8192 * 8192 * 2)
    shards += [{f"layer_{i:03}/kernel": ("BF16", [8192, 8192])} for i in range(rest)]
    params = out / "sparse"
    write(params, shards)
    wrong = 0
    first = None
    for qtype in [["--weight-qtype", "int8"], ["--weight-qtype", "int4", "--tile-size", "128"]]:
        for budget in [256, 1024, 4096]:
            target = out / "package"
            shutil.rmtree(target, ignore_errors=True)
            seconds, _, most = measured(quantize(params, target, *qtype, "--max-memory", f"{budget}MiB"))
            manifest = hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()
            first = manifest if budget == 256 else first
            ok = most <= budget and manifest == first
            wrong += not ok
            print(f"{' '.join(qtype)} --max-memory {budget}MiB: {most:.0f} MiB, {seconds:.1f} s, {'ok' if ok else 'WRONG'}")
            shutil.rmtree(target)
    sys.exit(wrong)


def kill(out, args):
    params, target = out / "small", out / "package"
    shards = [{f"l{i}_{j}/kernel": ("BF16", [1024, 1024 + 128 * j]) for j in range(4)} for i in range(16)]
    write(params, shards, numbers())
    command = quantize(params, target, "--weight-qtype", "int4", "--tile-size", "128", "--shard-size", "8MiB")
    shutil.rmtree(target, ignore_errors=True)
    seconds, _, _ = measured(command)
    expected = digest(target)
    rng = random.Random(0)
    wrong, kills, resumed = 0, 0, 0
    for _ in range(args.times or 100):
        shutil.rmtree(target, ignore_errors=True)
        while True:
            child = subprocess.Popen([str(a) for a in command], stdout=subprocess.PIPE, text=True)
            time.sleep(rng.uniform(0, seconds * 1.1))
            child.send_signal(signal.SIGKILL)
            said, _ = child.communicate()
            if child.returncode == 0 or target.exists():
                break
            kills += 1
            # Nothing at the target may open.
            if subprocess.run([qwix, "verify", target], capture_output=True).returncode == 0:
                wrong += 1
            if rng.random() < 0.5:
                break
        said = subprocess.run([str(a) for a in command], capture_output=True, text=True)
        resumed += "done before" in said.stdout
        if said.returncode and not target.exists():
            wrong += 1
            print(said.stderr)
        leftover = [p.name for p in out.iterdir() if p.name.startswith(".package")]
        if digest(target) != expected or (said.returncode == 0 and leftover):
            wrong += 1
            print("differs", leftover)
    print(f"{kills} kills in {args.times or 100} runs ({resumed} went on from what was done): {wrong} wrong")
    sys.exit(wrong)


def flip(out, args):
    params, target = out / "tiny", out / "package"
    shards = [{f"l{i}/kernel": ("BF16", [64, 48]), f"l{i}/bias": ("BF16", [48])} for i in range(6)]
    write(params, shards, numbers())
    shutil.rmtree(target, ignore_errors=True)
    measured(quantize(params, target, "--weight-qtype", "int4", "--tile-size", "32", "--shard-size", "4kB"))
    files = sorted(target.iterdir())
    rng = random.Random(0)
    missed = 0
    for _ in range(args.times or 10000):
        file = rng.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        at = rng.randrange(len(bad) * 8)
        bad[at // 8] ^= 1 << at % 8
        file.write_bytes(bad)
        for words in [["verify", target], ["dump", target, "-o", out / "flat.safetensors"]]:
            ran = subprocess.run([qwix, *map(str, words)], capture_output=True, text=True)
            if ran.returncode != 1 or "panicked" in ran.stderr:
                missed += 1
                print("missed", words[0], file.name, at, ran.returncode, ran.stderr)
        file.write_bytes(good)
    print(f"{args.times or 10000} flips in {[f.name for f in files]}: {missed} missed")
    sys.exit(missed)


def plan(out, args):
    # A decoder of 70 billion parameters: 80 layers of 8192, 28672 hidden, 8 of 64 heads for keys and values.
    layers = []
    for i in range(80):
        at = f"model.layers.{i}."
        shapes = {"q_proj": [8192, 8192], "k_proj": [1024, 8192], "v_proj": [1024, 8192], "o_proj": [8192, 8192]}
        shapes |= {"gate_proj": [28672, 8192], "up_proj": [28672, 8192], "down_proj": [8192, 28672]}
        layers.append({f"{at}{name}.weight": ("BF16", shape) for name, shape in shapes.items()})
    layers.append({"model.embed_tokens.weight": ("BF16", [128256, 8192]), "lm_head.weight": ("BF16", [128256, 8192])})
    params = out / "huge"
    write(params, layers)
    for more in [["--weight-qtype", "int8"], ["--weight-qtype", "int4", "--tile-size", "128"]]:
        command = [qwix, "quantize", "--params", params, "--weights-only", ".*/weight", *more, "--layout", "hf"]
        seconds, _, most = measured([*command, "-o", out / "package", "--plan", "--json"])
        print(f"plan of 70 billion parameters, {' '.join(more)}: {seconds:.2f} s, {most:.0f} MiB")


def python(out, args):
    count = int(args.gib * 2**30) // (4096 * 4096 * 2)
    params = out / "params-python"
    write(params, [{f"layer_{i:03}/kernel": ("BF16", [4096, 4096])} for i in range(count)], numbers())
    size = sum(p.stat().st_size for p in params.iterdir())
    shutil.rmtree(out / "copy", ignore_errors=True)
    ours, _, _ = measured(quantize(params, out / "copy", "--weight-qtype", "int8"))
    example = pathlib.Path(qwix).parent / "examples" / "time_params"
    in_memory = float(subprocess.check_output([example, params, "int8"]))
    theirs = float(subprocess.check_output([sys.executable, __file__, str(params), "-", "--in-python"]))
    print(f"{size / 2**30:.2f} GiB in memory: here {in_memory:.2f} s; Qwix {theirs:.2f} s: {theirs / in_memory:.1f}x")
    print(f"here, read, hashed and written as well: {ours:.2f} s, {theirs / ours:.1f}x")


def in_python(params):
    """Real Qwix: quantize_params of a model with these weights, which are in memory already."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import qwix as q
    from safetensors.flax import load_file

    weights = {}
    for file in sorted(pathlib.Path(params).glob("*.safetensors")):
        weights.update({key.split("/")[0]: {"kernel": array} for key, array in load_file(file).items()})

    class Chain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in sorted(weights):
                x = nn.Dense(4096, use_bias=False, name=name, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)(x)
            return x

    rules = [q.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)]
    model = q.quantize_model(Chain(), q.PtqProvider(rules))
    x = jnp.zeros((1, 4096), jnp.bfloat16)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)["params"]

    def run():
        start = time.perf_counter()
        jax.block_until_ready(q.quantize_params(weights, abstract))
        return time.perf_counter() - start

    run()
    print(min(run() for _ in range(2)))


if __name__ == "__main__":
    if sys.argv[3] == "--in-python":
        in_python(sys.argv[1])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("qwix")
    parser.add_argument("what", choices=["rate", "memory", "kill", "flip", "plan", "python"])
    parser.add_argument("--gib", type=float)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--times", type=int)
    args = parser.parse_args()
    args.gib = args.gib or {"memory": 20, "python": 1}.get(args.what, 8)
    args.out.mkdir(parents=True, exist_ok=True)
    qwix = os.path.abspath(args.qwix)
    try:
        globals()[args.what](args.out, args)
    finally:
        for name in ["params", "sparse", "small", "tiny", "huge", "params-python", "copy", "package"]:
            shutil.rmtree(args.out / name, ignore_errors=True)
