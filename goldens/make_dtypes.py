"""Every bf16 and every f16 number, converted to every narrow type."""

import common
from common import ROOT, jax, jnp, ml_dtypes, np
from qwix._src.core import numerics

XLA = {
    's2': ml_dtypes.int2, 'u2': ml_dtypes.uint2, 's4': ml_dtypes.int4, 'u4': ml_dtypes.uint4,
    's8': np.int8, 'u8': np.uint8, 's16': np.int16, 'u16': np.uint16,
    'f8e4m3fn': ml_dtypes.float8_e4m3fn, 'f8e5m2': ml_dtypes.float8_e5m2, 'f4e2m1fn': ml_dtypes.float4_e2m1fn,
    'bf16': ml_dtypes.bfloat16, 'f16': np.float16,
}
QWIX = ['int2', 'int3', 'int4', 'int5', 'int6', 'int7', 'int8', 'nf4', 'float8_e4m3fn', 'float8_e5m2', 'float4_e2m1fn']


def bits(x) -> np.ndarray:
  """The stored bits, as u16; small integers as their two's complement in 8 bits."""
  x = np.asarray(x)
  name = x.dtype.name
  if name in ('int2', 'int4'):
    x = x.astype(np.int8)
  elif name in ('uint2', 'uint4'):
    x = x.astype(np.uint8)
  return x.view(np.uint16 if x.dtype.itemsize == 2 else np.uint8).astype(np.uint16)


def save(name, values):
  v = bits(values)
  starts = np.flatnonzero(np.concatenate([[True], v[1:] != v[:-1]]))
  runs = np.stack([starts, v[starts]], axis=1).astype('<u2')
  common.write(ROOT / 'dtypes' / f'{name}.runs', runs.tobytes())
  return len(starts)


def make():
  patterns = np.arange(65536, dtype=np.uint16)
  for source, d in (('bf16', ml_dtypes.bfloat16), ('f16', np.float16)):
    x = patterns.view(d)
    for target, t in XLA.items():
      if target == source or source == 'f16' and target in ('s16', 'u16'):  # 80 kB of little use
        continue
      y = np.asarray(jax.jit(lambda v: v.astype(t))(jnp.asarray(x)))
      if 'f' in target:
        # ml_dtypes says the same of every number; only the bits of a NaN differ.
        with np.errstate(all='ignore'):
          same = bits(y) == bits(x.astype(t))
        assert (same | np.isnan(x.astype(np.float32))).all(), (source, target)
      save(f'xla_{source}_{target}', y)
    for q in QWIX:
      qtype = q if q in ('int2', 'int3', 'int5', 'int6', 'int7', 'nf4') else jnp.dtype(q)
      save(f'qwix_{source}_{q}', numerics.convert_to(jnp.asarray(x), qtype))
      if source == 'bf16':
        save(f'qwix_f32_{q}', numerics.convert_to(jnp.asarray(x).astype(jnp.float32), qtype))
