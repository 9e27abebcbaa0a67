"""A transformer encoder of MiniLM's size, exported for the command line and timed in JAX.

    python benchmarks/encoder.py OUT

writes OUT/model.hlo.pb, OUT/params.safetensors, OUT/inputs.safetensors, OUT/float.safetensors (what JAX gives) and
OUT/jax.json: milliseconds of one call in JAX on XLA:CPU, for the float model and (when Qwix is installed) for the rules
below. Weights are random, seeded.
"""

import json
import pathlib
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

LAYERS, WIDTH, HEADS, HIDDEN, TOKENS, BATCH, WORDS = 6, 384, 12, 1536, 128, 1, 8192
RULES = {
    "int8": dict(weight_qtype="int8", act_qtype="int8"),
    "int8-weight-only": dict(weight_qtype="int8"),
    "int4-weight-only": dict(weight_qtype="int4", tile_size=32),
}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        heads = dict(features=(HEADS, WIDTH // HEADS))
        q, k, v = (nn.DenseGeneral(name=name, **heads)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(WIDTH // HEADS)
        scores = jnp.where(mask[:, None, None, :], scores, -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        x = nn.LayerNorm()(x + nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(y))
        y = nn.Dense(WIDTH)(nn.gelu(nn.Dense(HIDDEN)(x), approximate=False))
        return nn.LayerNorm()(x + y)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask):
        x = nn.Embed(WORDS, WIDTH)(tokens) + nn.Embed(TOKENS, WIDTH)(jnp.arange(TOKENS))
        x = nn.LayerNorm()(x)
        for _ in range(LAYERS):
            x = Layer()(x, mask)
        weight = mask[..., None].astype(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


def flat(tree, prefix=""):
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            yield from flat(value, path)
        else:
            yield path, np.asarray(value)


def milliseconds(f, *args):
    """The median and the best of some calls."""
    jax.block_until_ready(f(*args))
    times = []
    until = time.perf_counter() + 5
    while time.perf_counter() < until or len(times) < 5:
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append((time.perf_counter() - start) * 1e3)
    return dict(median=float(np.median(times)), best=min(times), calls=len(times))


def main(out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = Encoder()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, WORDS, (BATCH, TOKENS), dtype=np.int32)
    mask = np.arange(TOKENS)[None] < TOKENS - 16
    mask = np.repeat(mask, BATCH, 0)
    variables = model.init(jax.random.key(0), tokens, mask)
    f = jax.jit(model.apply)
    hlo = f.lower(variables, tokens, mask).compiler_ir("hlo").as_serialized_hlo_module_proto()
    (out / "model.hlo.pb").write_bytes(hlo)
    save_file(dict(flat(variables["params"])), out / "params.safetensors")
    save_file({"0": tokens, "1": mask}, out / "inputs.safetensors")
    save_file({"0": np.asarray(f(variables, tokens, mask))}, out / "float.safetensors")
    result = {"float": milliseconds(f, variables, tokens, mask)}
    try:
        import qwix
    except ImportError:
        qwix = None
    for name, rule in RULES.items() if qwix else ():
        provider = qwix.PtqProvider([qwix.QuantizationRule(module_path=".*", **rule)])
        quantized = qwix.quantize_model(model, provider)
        template = jax.eval_shape(quantized.init, jax.random.key(0), tokens, mask)["params"]
        params = qwix.quantize_params(variables["params"], template)
        result[name] = milliseconds(jax.jit(quantized.apply), {"params": params}, tokens, mask)
    (out / "jax.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
