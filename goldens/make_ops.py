"""One tiny function for each family of HLO ops: what XLA:CPU answers."""

import functools

import common
from common import ROOT, jax, jnp, ml_dtypes, np, rng
from jax import lax

OPS = {}


def op(name, fn, *inputs, out=None, ulp=0, rel=0.0, x64=False, note=''):
  """Registers a golden. `inputs` may be a function that makes them.

  out: names of the outputs; ulp: how many units in the last place an output
  may be away (a number, or one per name); rel: for sums in another order,
  relative to the largest value.
  """
  assert name not in OPS, name
  OPS[name] = dict(fn=fn, inputs=inputs, out=out, ulp=ulp, rel=rel, x64=x64, note=note)


def table(name, functions, *inputs, **kw):
  """One golden of many functions of the same inputs."""
  ulps = {}
  fns = {}
  for key, f in functions.items():
    if isinstance(f, tuple):
      f, ulps[key] = f
    fns[key] = f
  op(name, lambda *x: tuple(f(*x) for f in fns.values()), *inputs, out=list(fns),
     ulp=[ulps.get(k, 0) for k in fns], **kw)


def make(name):
  spec = OPS[name]
  if spec['x64']:
    jax.config.update('jax_enable_x64', True)
  # x64 also for making 64-bit inputs; nothing else asks for them.
  inputs = [jnp.asarray(x) for x in spec['inputs']]
  fn = jax.jit(spec['fn'], keep_unused=True)
  lowered = fn.lower(*inputs)
  outputs = jax.tree.leaves(fn(*inputs))
  common.write(ROOT / 'ops' / f'{name}.hlo.pb', common.hlo(lowered))
  common.save_tensors(
      ROOT / 'ops' / f'{name}.safetensors',
      {**{f'in/{i}': x for i, x in enumerate(inputs)}, **{f'out/{i}': x for i, x in enumerate(outputs)}})


def index():
  out = {}
  for name, s in OPS.items():
    entry = {}
    if s['out']:
      entry['outputs'] = s['out']
    for k in ('ulp', 'rel', 'note'):
      v = s[k]
      if v and v != [0] * len(v if isinstance(v, list) else []):
        entry[k] = v
    out[name] = entry
  common.save_json(ROOT / 'ops' / 'index.json', out)


BF16, F16, F32, F64 = ml_dtypes.bfloat16, np.float16, np.float32, np.float64
FLOATS = {'f32': F32, 'bf16': BF16, 'f16': F16, 'f64': F64}
INTS = {'s8': np.int8, 'u8': np.uint8, 's16': np.int16, 'u16': np.uint16, 's32': np.int32,
        'u32': np.uint32, 's64': np.int64, 'u64': np.uint64}
SMALL = {'s2': ml_dtypes.int2, 'u2': ml_dtypes.uint2, 's4': ml_dtypes.int4, 'u4': ml_dtypes.uint4}
FP8 = {'f8e4m3fn': ml_dtypes.float8_e4m3fn, 'f8e5m2': ml_dtypes.float8_e5m2,
       'f4e2m1fn': ml_dtypes.float4_e2m1fn}
INF, NAN = np.inf, np.nan


def normal(*shape, dtype=F32, name='', scale=1.0):
  return (rng('op', name, *shape).standard_normal(shape) * scale).astype(dtype)


def ints(lo, hi, *shape, dtype=np.int32, name=''):
  return rng('op', name, *shape).randint(lo, hi, shape).astype(dtype)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5, INF, -INF, NAN, 1e-3, -1e-3,
                    0.1, -0.7, 0.99, 7.75, -12.25, 88.0, -88.0, 127.5, -127.5, 1000.5, -1e4, 65504.0, 1e6])
HUGE = np.array([3.4e38, -3.4e38, 1e30, 1e-30, -1e-30, 2.0**31, -2.0**31, 2.0**63, 1.2e-38])


def floats(d):
  extra = HUGE if d is not F16 else np.array([6e4, -6.1e4, 6.2e-5])
  with np.errstate(all='ignore'):
    return np.concatenate([SPECIAL, extra, rng('floats').standard_normal(26) * 3]).astype(d)


# --- elementwise ---------------------------------------------------------------


def inside(f, lo=-INF, hi=INF):
  """Keeps the argument where the function is defined and not steep."""
  return lambda x: f(jnp.clip(x, jnp.asarray(lo, x.dtype), jnp.asarray(hi, x.dtype)))


for n, d in FLOATS.items():
  t = 1 if n in ('bf16', 'f16') else 4
  table(f'unary_{n}', {
      'abs': lax.abs, 'neg': lax.neg, 'sign': lax.sign, 'floor': lax.floor, 'ceil': lax.ceil,
      'round_away': lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
      'round_even': lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
      'is_finite': lax.is_finite, 'square': lambda x: lax.integer_pow(x, 2),
      'cube': lambda x: lax.integer_pow(x, 3), 'inverse': lambda x: lax.integer_pow(x, -1),
      'not_zero': lambda x: lax.ne(x, jnp.zeros_like(x)), 'copy': lambda x: lax.optimization_barrier(x),
  }, floats(d), x64=n == 'f64')
  table(f'transcendental_{n}', {
      'sqrt': (lax.sqrt, 0 if n != 'bf16' else 1), 'rsqrt': (lax.rsqrt, t), 'cbrt': (lax.cbrt, t), 'exp': (lax.exp, t),
      'exp2': (lax.exp2, t), 'expm1': (lax.expm1, t), 'log': (lax.log, t), 'log1p': (lax.log1p, t),
      'tanh': (lax.tanh, t), 'logistic': (lax.logistic, t),
      'sin': (inside(lax.sin, -1e4, 1e4), t), 'cos': (inside(lax.cos, -1e4, 1e4), t),
      'tan': (inside(lax.tan, -1.5, 1.5), t),
  }, floats(d), x64=n == 'f64')
  table(f'special_{n}', {
      'erf': (lax.erf, t), 'erfc': (inside(lax.erfc, -4, 4), 4 * t), 'erf_inv': (inside(lax.erf_inv, -0.99, 0.99), 4 * t),
      'acos': (inside(lax.acos, -1, 1), t), 'asin': (inside(lax.asin, -1, 1), t), 'atan': (lax.atan, t),
      'sinh': (inside(lax.sinh, -8, 8), t), 'cosh': (inside(lax.cosh, -8, 8), t),
      'asinh': (inside(lax.asinh, -1e4, 1e4), 2 * t), 'acosh': (inside(lax.acosh, 1, 1e4), 2 * t),
      'atanh': (inside(lax.atanh, -0.99, 0.99), 2 * t),
      'lgamma': (inside(lax.lgamma, 2.5, 50), 16 * t), 'digamma': (inside(lax.digamma, 2.5, 50), 16 * t),
  }, floats(d), x64=n == 'f64')
  pick = np.concatenate([SPECIAL[:16], [3.0, 1e30 if n != 'f16' else 6e4]]).astype(d)
  a, b = np.repeat(pick, len(pick)), np.tile(pick, len(pick))
  table(f'binary_{n}', {
      'add': lax.add, 'sub': lax.sub, 'mul': lax.mul, 'div': (lax.div, 0), 'rem': lax.rem,
      'max': lax.max, 'min': lax.min, 'nextafter': lax.nextafter,
      'pow': (lax.pow, 2 * t), 'atan2': (lax.atan2, t),
  }, a, b, x64=n == 'f64', note='max and min of NaN are NaN')
  table(f'compare_{n}', {
      'eq': lax.eq, 'ne': lax.ne, 'lt': lax.lt, 'le': lax.le, 'gt': lax.gt, 'ge': lax.ge,
      'select': lambda x, y: lax.select(lax.lt(x, y), x, y),
      'clamp': lambda x, y: lax.clamp(jnp.asarray(-1, x.dtype), x, jnp.asarray(1.5, x.dtype)),
      'clamp_array': lambda x, y: lax.clamp(lax.min(y, -y), x, lax.max(y, -y)),
  }, a[::2], b[::2], x64=n == 'f64')

table('denormals_f32', {
    'add': lax.add, 'mul': lax.mul, 'max': lax.max, 'is_zero': lambda x, y: lax.eq(x, jnp.zeros_like(x)),
    'to_bf16': lambda x, y: x.astype(jnp.bfloat16), 'bits': lambda x, y: lax.bitcast_convert_type(x, jnp.uint32),
}, np.array([1e-40, -1e-40, 1e-45, 1.1754944e-38, 1e-39, 0, 2e-38], F32),
      np.array([1e-40, 2e-40, 1.0, 0.5, -1e-39, 1e-45, -1.5e-38], F32),
      note='XLA:CPU runs with denormals flushed to zero; another engine may keep them')

for n, d in INTS.items():
  i = np.iinfo(d)
  pick = np.array([0, 1, 2, 3, 5, 7, 8, 31, 64, 100, i.max, i.max - 1, i.max // 3, i.min, i.min + 1]
                  + ([-1, -2, -7, -100] if i.min else [i.max - 6]), dtype=object).astype(d)
  x64 = '64' in n
  few = pick[::2] if x64 else pick
  a, b = np.repeat(few, len(few)), np.tile(few, len(few))
  functions = {
      'add': lax.add, 'sub': lax.sub, 'mul': lax.mul, 'div': lax.div, 'rem': lax.rem, 'max': lax.max, 'min': lax.min,
      'and': lax.bitwise_and, 'or': lax.bitwise_or, 'xor': lax.bitwise_xor, 'shl': lax.shift_left,
      'shr_arithmetic': lax.shift_right_arithmetic, 'shr_logical': lax.shift_right_logical,
      'eq': lax.eq, 'lt': lax.lt, 'ge': lax.ge, 'floor_divide': jnp.floor_divide, 'mod': jnp.mod,
  }
  table(f'binary_{n}', functions, a, b, x64=x64, note='division by zero, min / -1 and long shifts included')
  table(f'unary_{n}', {
      'abs': lax.abs if i.min else lambda x: x, 'neg': lax.neg, 'sign': lax.sign, 'not': lax.bitwise_not,
      'clz': lax.clz, 'popcnt': lax.population_count, 'cube': lambda x: lax.integer_pow(x, 3),
      'clamp': lambda x: lax.clamp(jnp.asarray(3, x.dtype), x, jnp.asarray(90, x.dtype)),
  }, np.arange(i.min, i.max + 1).astype(d) if i.bits == 8 else pick, x64=x64)

for n, d in SMALL.items():
  i = ml_dtypes.iinfo(d)
  v = np.arange(int(i.min), int(i.max) + 1)
  a, b = np.repeat(v, len(v)).astype(d), np.tile(v, len(v)).astype(d)
  table(f'binary_{n}', {
      'add': lax.add, 'sub': lax.sub, 'mul': lax.mul, 'max': lax.max, 'min': lax.min, 'eq': lax.eq, 'lt': lax.lt,
  }, a, b)

P = np.array([True, False])
table('pred', {
    'and': lax.bitwise_and, 'or': lax.bitwise_or, 'xor': lax.bitwise_xor, 'not': lambda x, y: lax.bitwise_not(x),
    'eq': lax.eq, 'ne': lax.ne, 'lt': lax.lt, 'max': lax.max, 'min': lax.min,
    'to_f32': lambda x, y: x.astype(jnp.float32), 'to_s32': lambda x, y: x.astype(jnp.int32),
    'all': lambda x, y: lax.reduce_and(x, (0,)), 'any': lambda x, y: lax.reduce_or(x, (0,)),
    'count': lambda x, y: jnp.sum(x),
}, np.repeat(P, 2), np.tile(P, 2))

table('select', {
    'scalar': lambda p, x, y: lax.select(p[0, 0], x, y),
    'array': lax.select,
    'cases': lambda p, x, y: lax.select_n(p.astype(jnp.int32) + lax.select(p, jnp.ones(p.shape, jnp.int32), jnp.zeros(p.shape, jnp.int32)), x, y, x + y),
}, ints(0, 2, 3, 4).astype(bool), normal(3, 4, name='a'), normal(3, 4, name='b'))

# --- conversions -----------------------------------------------------------------

KINDS = {'pred': np.bool_, **SMALL, **INTS, **FP8, 'bf16': BF16, 'f16': F16, 'f32': F32, 'f64': F64}


def samples(n, d):
  if n == 'pred':
    return P
  if n in SMALL:
    i = ml_dtypes.iinfo(d)
    return np.arange(int(i.min), int(i.max) + 1).astype(d)
  if n in INTS:
    i = np.iinfo(d)
    return np.array([0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 127, 100, i.max, i.max - 1, i.max // 2 + 1, i.max // 3,
                     i.min, i.min + 1] + ([-1, -2, -8, -9, -100] if i.min else []), dtype=object).astype(d)
  if n in FP8:
    bits = 16 if n == 'f4e2m1fn' else 256
    return np.arange(bits, dtype=np.uint8).view(d)
  with np.errstate(all='ignore'):
    return np.concatenate([floats(d).astype(np.float64), [
        7.5, 8.0, -8.5, -9.0, 1.25, 1.75, 0.25, 0.75, 5.0, 5.9, 6.1, 127.0, 128.0, -128.5, -129.0, 255.0, 255.5, 256.0,
        448.0, 464.0, 465.0, 480.0, 57344.0, 61440.0, 61439.0, 0.001953125, 0.0009765625, 0.0009, 1.0625, 1.1875,
        2.0**31 - 1, 2.0**32, -2.0**63, 2.0**64, 1.00390625, 1.01171875]]).astype(d)


for n, d in KINDS.items():
  for part, targets in (('', [k for k in KINDS if '64' not in k]), ('_64', [k for k in KINDS if '64' in k])):
    if '64' in n and not part:
      targets = list(KINDS)
    elif '64' in n:
      continue
    table(f'convert_{n}{part}', {
        k: functools.partial(lambda x, t: lax.convert_element_type(x, t), t=KINDS[k]) for k in targets
    }, samples(n, d), x64=bool(part) or '64' in n)

F = floats(F32)
table('bitcast', {
    'f32_u32': lambda x, y, z: lax.bitcast_convert_type(x, jnp.uint32),
    'f32_s32': lambda x, y, z: lax.bitcast_convert_type(x, jnp.int32),
    'f32_u16': lambda x, y, z: lax.bitcast_convert_type(x, jnp.uint16),
    'f32_u8': lambda x, y, z: lax.bitcast_convert_type(x, jnp.uint8),
    'bf16_s16': lambda x, y, z: lax.bitcast_convert_type(y, jnp.int16),
    'u8_f32': lambda x, y, z: lax.bitcast_convert_type(z, jnp.float32),
    'u8_bf16': lambda x, y, z: lax.bitcast_convert_type(z[:, :2], jnp.bfloat16),
    'u8_f8': lambda x, y, z: lax.bitcast_convert_type(z, jnp.float8_e4m3fn),
}, F, F.astype(BF16), ints(0, 120, 6, 4, dtype=np.uint8))
table('reduce_precision', {
    f'e{e}m{m}': functools.partial(lambda x, e, m: lax.reduce_precision(x, e, m), e=e, m=m)
    for e, m in ((8, 7), (5, 10), (4, 3), (5, 2), (8, 23), (8, 0), (2, 3))
}, np.concatenate([F, np.array([1.00390625, 1.01171875, 65519.0, 65520.0, 448.0, 464.0, 6e-8, 3e-8, 1.5e-5], F32)]))

# --- shapes -----------------------------------------------------------------------

table('iota', {
    's32': lambda: lax.iota(jnp.int32, 7), 'f32': lambda: lax.broadcasted_iota(jnp.float32, (3, 4), 1),
    'u8': lambda: lax.broadcasted_iota(jnp.uint8, (3, 4, 2), 0), 'bf16': lambda: lax.broadcasted_iota(jnp.bfloat16, (300,), 0),
    's8': lambda: lax.broadcasted_iota(jnp.int8, (2, 5), 1), 's4': lambda: lax.iota(jnp.int4, 8),
})
table('constants', {
    'f32': lambda: jnp.asarray(np.array([[1.5, -0.0], [INF, NAN]], F32)),
    'bf16': lambda: jnp.asarray(np.array([1.5, -2.25], BF16)), 's4': lambda: jnp.asarray(np.array([1, -8, 7], ml_dtypes.int4)),
    'u4': lambda: jnp.asarray(np.array([1, 15, 7, 9, 3], ml_dtypes.uint4)),
    's2': lambda: jnp.asarray(np.array([1, -2, 0, -1, 1], ml_dtypes.int2)),
    'pred': lambda: jnp.asarray(np.array([True, False, True])), 's8': lambda: jnp.asarray(np.array([-128, 127], np.int8)),
    'f8': lambda: jnp.asarray(np.array([448, -0.5], ml_dtypes.float8_e4m3fn)),
    'f4': lambda: jnp.asarray(np.array([6, -0.5, 1.5], ml_dtypes.float4_e2m1fn)),
    'f16': lambda: jnp.asarray(np.array([6.1e-5, -7], F16)), 'u32': lambda: jnp.asarray(np.array([2**32 - 1], np.uint32)),
    'empty': lambda: jnp.zeros((0, 3), jnp.float32),
})
X = normal(2, 3, 4, name='shape')
table('broadcast', {
    'scalar': lambda x: lax.broadcast_in_dim(x[0, 0, 0], (2, 3), ()), 'leading': lambda x: lax.broadcast(x, (2,)),
    'middle': lambda x: lax.broadcast_in_dim(x[:, 0], (2, 5, 4), (0, 2)),
    'ones': lambda x: lax.broadcast_in_dim(x[:, :1], (2, 3, 4), (0, 1, 2)),
}, X)
table('reshape', {
    'flat': lambda x: x.reshape(-1), 'split': lambda x: x.reshape(3, 2, 2, 2), 'unit': lambda x: x[0, :1, :1].reshape(()),
    'transpose': lambda x: lax.transpose(x, (2, 0, 1)), 'swap': lambda x: lax.transpose(x, (1, 0, 2)),
    'reshape_dims': lambda x: lax.reshape(x, (4, 6), dimensions=(2, 0, 1)), 'rev': lambda x: lax.rev(x, (0, 2)),
}, X)
table('slice', {
    'plain': lambda x: lax.slice(x, (0, 1, 1), (2, 3, 3)), 'strided': lambda x: lax.slice(x, (0, 0, 0), (2, 3, 4), (1, 2, 3)),
    'empty': lambda x: lax.slice(x, (1, 1, 1), (1, 2, 2)), 'index': lambda x: lax.index_in_dim(x, 1, 1),
}, X)
I = np.array([0, 1, -3, 9, 2], np.int32)
op('dynamic_slice', lambda x, i: (
    lax.dynamic_slice(x, (i[0], i[1], i[1]), (1, 2, 2)), lax.dynamic_slice(x, (i[2], i[3], i[4]), (2, 1, 3)),
    lax.dynamic_slice_in_dim(x, i[3], 2, 2), lax.dynamic_index_in_dim(x, i[1], 1, keepdims=False)), X, I,
   note='start indices are clamped')
op('dynamic_update_slice', lambda x, u, i: (
    lax.dynamic_update_slice(x, u, (i[0], i[1], i[1])), lax.dynamic_update_slice(x, u, (i[2], i[3], i[4])),
    lax.dynamic_update_slice_in_dim(x, u[:, :1], i[3], 1)),
   X, normal(1, 2, 2, name='u'), I)
op('concatenate', lambda x, y, z: (lax.concatenate([x, y, x], 1), lax.concatenate([x, z], 2), jnp.stack([x, x], 1)),
   X, normal(2, 2, 4, name='y'), normal(2, 3, 1, name='z'))
table('pad', {
    'plain': lambda x: lax.pad(x, 0.5, [(1, 0, 0), (0, 2, 0), (1, 1, 0)]),
    'interior': lambda x: lax.pad(x, -1.0, [(0, 0, 1), (0, 1, 2), (2, 0, 0)]),
    'negative': lambda x: lax.pad(x, 0.0, [(0, 0, 0), (-1, 0, 0), (-1, -2, 0)]),
    'mixed': lambda x: lax.pad(x, 9.0, [(1, -1, 1), (-1, 2, 1), (2, -3, 0)]),
}, X)
op('pad_s8', lambda x: lax.pad(x, jnp.int8(-7), [(1, 1, 1)]), np.array([1, 2, 3], np.int8))

# --- gather and scatter -----------------------------------------------------------

T = normal(6, 5, 4, name='t')
J = np.array([[0, 5], [2, 2], [-1, 7]], np.int32)
table('gather', {
    'rows': lambda t, j: t[j], 'clip': lambda t, j: jnp.take(t, j, axis=1, mode='clip'),
    'fill': lambda t, j: jnp.take(t, j, axis=2, mode='fill'), 'wrap': lambda t, j: jnp.take(t, j, axis=0, mode='wrap'),
    'middle': lambda t, j: t[:, jnp.abs(j[:, 0]), 1:3], 'two': lambda t, j: t[j[:, 0], :, j[:, 1]],
    'pairs': lambda t, j: t[j[:, 0], j[:, 1]],
    'along': lambda t, j: jnp.take_along_axis(t[:3, 0, :2], jnp.clip(j, 0, 1), axis=1),
    'batched': lambda t, j: jax.vmap(lambda a, i: a[i])(t[:3], j),
    'batched_along': lambda t, j: jax.vmap(jax.vmap(lambda a, i: a[i], (0, None)), (0, 0))(t[:3], jnp.clip(j[:, 0], 0, 3)),
}, T, J)
op('gather_windows', lambda t, i: tuple(
    lax.gather(t, i, lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(1,), start_index_map=(0, 2)),
               slice_sizes=(3, 1, 2), mode=m)
    for m in (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP, lax.GatherScatterMode.PROMISE_IN_BOUNDS)),
   T, np.array([[0, 0], [2, 1], [3, 2], [4, 3]], np.int32), out=['clip', 'fill', 'promise'])
op('gather_types', lambda a, b, c, i: (a[i], b[i], c[i], jnp.take(a, i, mode='fill'), jnp.take(b, i, mode='fill'), jnp.take(c, i, mode='fill')),
   ints(-9, 9, 5), normal(5, dtype=BF16), np.array([1, 0, 1, 1, 0], bool), np.array([0, 4, 9, -2], np.int32))
op('embedding', lambda t, i: (t[i], jnp.take(t, i, axis=0)), normal(10, 4, name='e'), ints(0, 10, 2, 3))

U = normal(3, 2, 5, 4, name='su')
table('scatter', {
    'add': lambda t, j, u: t.at[j].add(u), 'set': lambda t, j, u: t.at[jnp.array([4, 0, 2])].set(u[:, 0]),
    'mul': lambda t, j, u: t.at[j].mul(u), 'min': lambda t, j, u: t.at[j].min(u), 'max': lambda t, j, u: t.at[j].max(u),
    'clip': lambda t, j, u: t.at[j].add(u, mode='clip'), 'drop': lambda t, j, u: t.at[j].add(u, mode='drop'),
    'points': lambda t, j, u: t.at[jnp.array([0, 1, 0]), jnp.array([1, 2, 1]), 3].add(jnp.array([1.0, 2.0, 4.0])),
    'columns': lambda t, j, u: t.at[:, jnp.array([1, 3])].set(0.25),
    'batched': lambda t, j, u: jax.vmap(lambda a, i, v: a.at[i].add(v))(t[:3], j, u[:, :, 0]),
    'apply': lambda t, j, u: t.at[jnp.array([1, 3])].apply(jnp.tanh),
    'subtract': lambda t, j, u: t.at[0].add(-u[0, 0]),
}, T, J, U, rel=1e-6, note='repeated indices: sums in any order')
op('scatter_windows', lambda t, i, u: tuple(
    lax.scatter_add(t, i, u, lax.ScatterDimensionNumbers(update_window_dims=(1, 2), inserted_window_dims=(1,),
                                                         scatter_dims_to_operand_dims=(0, 2)), mode=m)
    for m in (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP)),
   T, np.array([[0, 0], [2, 1], [4, 2], [-1, 3]], np.int32), normal(4, 3, 2, name='w'), rel=1e-6, out=['clip', 'drop'])
op('scatter_ints', lambda t, i, u: (t.at[i].add(u), t.at[i].min(u), t.at[i].max(u), t.at[i].mul(u)),
   ints(-50, 50, 6), np.array([0, 3, 3, 5], np.int32), ints(-9, 9, 4, name='u'))

# --- dot and convolution ----------------------------------------------------------


def dot(lc, rc, lb=(), rb=(), pet=None):
  return lambda x, y: lax.dot_general(x, y, ((lc, rc), (lb, rb)), preferred_element_type=pet)


A, B = normal(2, 3, 4, 5, name='A'), normal(5, 3, 4, 6, name='B')
table('dot_f32', {
    'one': lambda x, y: dot((1,), (0,))(x[0, 0], y[:, 0, 0]), 'two': dot((3, 1), (0, 1)), 'all': lambda x, y: dot((0, 1, 2), (1, 2, 0))(x[0], y[..., 0]),
    'batch': dot((3,), (0,), (1, 2), (1, 2)), 'batch_free_first': dot((3,), (0,), (2,), (2,)),
    'vectors': lambda x, y: jnp.dot(x[0, 0, 0], y[:, 0, 0, 0]), 'outer': lambda x, y: dot((), ())(x[0, 0, 0], y[0, 0]),
    'matvec': lambda x, y: x[0, 0] @ y[:, 0, 0, 0], 'vecmat': lambda x, y: x[0, 0, 0] @ y[:, 0, 0],
    'left_first': lambda x, y: dot((0,), (1,))(x[0, 0].T, y[:, 0, 0].T), 'empty': lambda x, y: x[0, 0][:, :0] @ y[:0, 0, 0],
    'highest': lambda x, y: lax.dot(x[0, 0], y[:, 0, 0], precision='highest'),
}, A, B, rel=1e-6)
Q, R = ints(-128, 128, 6, 20, dtype=np.int8), ints(-128, 128, 20, 7, dtype=np.int8, name='r')
table('dot_s8', {
    's32': dot((1,), (0,), pet=np.int32), 's8': dot((1,), (0,)), 'f32': dot((1,), (0,), pet=np.float32),
    'u8': lambda x, y: lax.dot_general(x.astype(jnp.uint8), y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32),
    'edge': lambda x, y: dot((1,), (0,), pet=np.int32)(jnp.full((2, 600), -128, jnp.int8), jnp.full((600, 2), -128, jnp.int8)),
    's32_in': lambda x, y: x.astype(jnp.int32) @ y.astype(jnp.int32),
}, Q, R)
table('dot_small', {
    's4_s8': lambda a, b: dot((1,), (0,), pet=np.int32)(a, b.astype(jnp.int4)),
    's2': lambda a, b: dot((1,), (0,), pet=np.int32)(lax.clamp(jnp.int8(-2), a, jnp.int8(1)).astype(jnp.int2), b),
    'f8_f32': lambda a, b: dot((1,), (0,), pet=np.float32)(a.astype(jnp.float8_e4m3fn), b.astype(jnp.float8_e4m3fn)),
    'f8_mixed': lambda a, b: dot((1,), (0,), pet=np.float32)(a.astype(jnp.float8_e4m3fn), b.astype(jnp.float8_e5m2)),
    'f4_f32': lambda a, b: dot((1,), (0,), pet=np.float32)(a.astype(jnp.float4_e2m1fn), b.astype(jnp.float32)),
    's8_f32': lambda a, b: dot((1,), (0,), pet=np.float32)(a, b.astype(jnp.float32)),
}, ints(-8, 8, 4, 12, dtype=np.int8), ints(-8, 8, 12, 3, dtype=np.int8, name='b'),
      note='XLA:CPU does not compile a product of two 4-bit arrays')
for n in ('bf16', 'f16'):
  d = FLOATS[n]
  table(f'dot_{n}', {
      'same': dot((1,), (0,)), 'f32': dot((1,), (0,), pet=np.float32),
      'batch': lambda x, y: lax.dot_general(x.reshape(3, 2, 16), y.reshape(16, 5), (((2,), (0,)), ((), ()))),
  }, normal(6, 16, dtype=d), normal(16, 5, dtype=d), rel=8e-3 if n == 'bf16' else 1e-3)
op('dot_f64', lambda x, y: x @ y, normal(3, 9, dtype=F64), normal(9, 2, dtype=F64), x64=True, rel=1e-14)
op('dot_mixed', lambda x, y: (lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32),),
   normal(3, 8), normal(8, 4, dtype=BF16), rel=1e-6)
op('einsum', lambda x, y, z: (jnp.einsum('bsd,hdk->bhsk', x, y), jnp.einsum('bsd,bsd->s', x, x), jnp.einsum('bsd->db', x),
                              jnp.einsum('ii->i', z), jnp.einsum('ij,jk,kl->il', z, z, z), jnp.einsum('...d,hdk->...k', x, y)),
   normal(2, 3, 4), normal(2, 4, 5), normal(4, 4, name='z'), rel=1e-6)

conv = lax.conv_general_dilated
IMG, KER = normal(2, 7, 8, 4, name='img'), normal(3, 3, 4, 6, name='ker')
NHWC = ('NHWC', 'HWIO', 'NHWC')
table('conv2d', {
    'valid': lambda x, k: conv(x, k, (1, 1), 'VALID', dimension_numbers=NHWC),
    'same_stride': lambda x, k: conv(x, k, (2, 3), 'SAME', dimension_numbers=NHWC),
    'pads': lambda x, k: conv(x, k, (1, 2), ((2, 0), (0, 3)), dimension_numbers=NHWC),
    'negative_pad': lambda x, k: conv(x, k, (1, 1), ((-1, 2), (1, -2)), dimension_numbers=NHWC),
    'rhs_dilation': lambda x, k: conv(x, k, (1, 1), 'SAME', rhs_dilation=(2, 2), dimension_numbers=NHWC),
    'lhs_dilation': lambda x, k: conv(x, k, (1, 1), ((2, 2), (1, 2)), lhs_dilation=(2, 3), dimension_numbers=NHWC),
    'transpose': lambda x, k: lax.conv_transpose(x, k, (2, 2), 'SAME', dimension_numbers=NHWC),
    'groups': lambda x, k: conv(x, k[:, :, :2], (1, 1), 'SAME', dimension_numbers=NHWC, feature_group_count=2),
    'depthwise': lambda x, k: conv(x, k[:, :, :1, :4], (1, 1), 'SAME', dimension_numbers=NHWC, feature_group_count=4),
    'batch_groups': lambda x, k: conv(x, k, (1, 1), 'VALID', dimension_numbers=NHWC, batch_group_count=2),
}, IMG, KER, rel=2e-6)
table('conv_layouts', {
    'nchw': lambda x, k: conv(x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), 'SAME', dimension_numbers=('NCHW', 'OIHW', 'NCHW')),
    'hwnc': lambda x, k: conv(x.transpose(1, 2, 0, 3), k.transpose(2, 0, 3, 1), (2, 1), 'SAME', dimension_numbers=('HWNC', 'IHOW', 'CNWH')),
    'flip': lambda x, k: jax.vjp(lambda v: conv(v, k, (1, 1), 'SAME', dimension_numbers=NHWC), x)[1](jnp.ones((2, 7, 8, 6)))[0],
    'kernel_grad': lambda x, k: jax.vjp(lambda v: conv(x, v, (2, 2), 'SAME', dimension_numbers=NHWC), k)[1](jnp.ones((2, 4, 4, 6)))[0],
}, IMG, KER, rel=3e-6, note='flip: window_reversal')
op('conv1d', lambda x, k: (conv(x, k, (2,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')),
                           conv(x, k, (1,), ((4, 0),), rhs_dilation=(2,), dimension_numbers=('NWC', 'WIO', 'NWC'))),
   normal(2, 9, 3), normal(3, 3, 5, name='k'), rel=1e-6)
op('conv3d', lambda x, k: conv(x, k, (1, 2, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')),
   normal(1, 3, 4, 4, 2), normal(2, 2, 3, 2, 3, name='k'), rel=1e-6)
op('conv0d', lambda x, k: conv(x, k, (), ()), normal(3, 4), normal(5, 4, name='k'), rel=1e-6)
op('conv_s8', lambda x, k: (conv(x, k, (1, 1), 'SAME', dimension_numbers=NHWC, preferred_element_type=jnp.int32),
                            conv(x, k[:, :, :1], (2, 2), 'VALID', dimension_numbers=NHWC, feature_group_count=3, preferred_element_type=jnp.int32)),
   ints(-128, 128, 2, 6, 5, 3, dtype=np.int8), ints(-128, 128, 3, 3, 3, 6, dtype=np.int8, name='k'))
op('conv_bf16', lambda x, k: conv(x, k, (1, 1), 'SAME', dimension_numbers=NHWC),
   IMG[:1].astype(BF16), KER.astype(BF16), rel=8e-3)

# --- reductions -------------------------------------------------------------------

V = normal(3, 5, 4, name='red')
V2 = V.copy()
V2[0, 1, 2], V2[2, 3, 0], V2[1, 0, 0] = NAN, INF, -INF


def fold(x, init, f, dims):
  return lax.reduce(x, jnp.asarray(init, x.dtype), f, dims)


for n, d in {**FLOATS, 's32': np.int32, 's8': np.int8, 'u8': np.uint8}.items():
  v = V.astype(d) if n in FLOATS else ints(0 if n[0] == 'u' else -60, 60, 3, 5, 4, dtype=d)
  table(f'reduce_{n}', {
      'sum': lambda x: fold(x, 0, lax.add, (1,)), 'sum_all': lambda x: fold(x, 0, lax.add, (0, 1, 2)),
      'prod': lambda x: fold(x, 1, lax.mul, (0, 2)), 'max': lambda x: fold(x, -100 if x.dtype != np.uint8 else 0, lax.max, (2,)),
      'min': lambda x: fold(x, 100, lax.min, (0,)), 'init': lambda x: fold(x, 7, lax.add, (1, 2)),
      'argmax': lambda x: lax.argmax(x, 1, np.int32), 'argmin': lambda x: lax.argmin(x, 2, np.int32),
      'jnp_sum': lambda x: jnp.sum(x, axis=(0, 2)), 'jnp_mean': lambda x: jnp.mean(x, axis=1),
  }, v, x64=n == 'f64', rel={'bf16': 8e-3, 'f16': 1e-3, 'f64': 1e-14}.get(n, 1e-6))
op('reduce_nan', lambda x: (jnp.max(x, 1), jnp.min(x, 1), jnp.argmax(x, 1), jnp.argmin(x, 2), jnp.nansum(jnp.where(jnp.isinf(x), 0, x))),
   V2, out=['max', 'min', 'argmax', 'argmin', 'nansum'], rel=1e-6)
op('reduce_bits', lambda x, y: (lax.reduce_and(x, (0,)), lax.reduce_or(x, (1,)), lax.reduce_xor(x, (0, 1)),
                                lax.reduce_and(y, (0,)), lax.reduce_or(y, (1,)), lax.reduce_xor(y, (1,))),
   ints(0, 255, 4, 3), ints(0, 2, 4, 3).astype(bool))
op('reduce_tuple', lambda x, i: lax.reduce((x, i), (jnp.float32(-INF), jnp.int32(-1)), lambda a, b: (
    lax.max(a[0], b[0]), lax.select(lax.ge(a[0], b[0]), a[1], b[1])), (1,)), normal(3, 6), np.tile(np.arange(6, dtype=np.int32), (3, 1)))
op('reduce_body', lambda x: lax.reduce(x, jnp.float32(0), lambda a, b: lax.max(a, lax.abs(b)), (0,)), normal(5, 3))

window = lax.reduce_window
W = normal(1, 6, 7, 2, name='win')
table('reduce_window', {
    'max': lambda x: window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'),
    'max_same': lambda x: window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME'),
    'min': lambda x: window(x, jnp.inf, lax.min, (1, 2, 3, 1), (1, 1, 1, 1), 'SAME'),
    'sum': lambda x: window(x, 0.0, lax.add, (1, 3, 2, 2), (1, 1, 2, 1), ((0, 0), (1, 2), (0, 1), (1, 0))),
    'dilated': lambda x: window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), 'VALID', window_dilation=(1, 2, 3, 1)),
    'base_dilated': lambda x: window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), 'VALID', base_dilation=(1, 2, 2, 1)),
    'mul': lambda x: window(x, 1.0, lax.mul, (1, 2, 2, 1), (1, 1, 1, 1), 'VALID'),
}, W, rel=1e-6)
C = normal(3, 6, name='cum')
table('cumulative', {
    'sum': lambda x: lax.cumsum(x, 1), 'sum_reverse': lambda x: lax.cumsum(x, 0, reverse=True), 'prod': lambda x: lax.cumprod(x, 1),
    'max': lambda x: lax.cummax(x, 1), 'min': lambda x: lax.cummin(x, 0), 'logsumexp': lambda x: lax.cumlogsumexp(x, 1),
    'int': lambda x: jnp.cumsum(lax.gt(x, 0.0), 1), 'scan': lambda x: lax.associative_scan(jnp.maximum, x, axis=1),
}, C, rel=2e-6)
op('select_and_scatter', lambda x: jax.grad(lambda v: (window(v, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID') * 1.5).sum()
                                            + (window(v, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME') * 2.0).sum())(x), W, rel=1e-6)

# --- sorting ----------------------------------------------------------------------

S = np.array([[3, 1, 2, 1, 3, -0.0, 0.0, INF], [-1, NAN, -INF, 5, 5, 2, -2, 0.5]], F32)
K = np.array([[2, 1, 2, 1, 0, 0, 2, 1], [1, 1, 0, 0, 2, 2, 1, 0]], np.int32)
table('sort', {
    'rows': lambda s, k: lax.sort(s, dimension=1), 'columns': lambda s, k: lax.sort(s, dimension=0),
    'descending': lambda s, k: jnp.sort(s, axis=1, descending=True), 'argsort': lambda s, k: jnp.argsort(s, axis=1),
    'argsort_descending': lambda s, k: jnp.argsort(s, axis=1, descending=True),
    'ints': lambda s, k: lax.sort(k, dimension=1), 'bf16': lambda s, k: lax.sort(s.astype(jnp.bfloat16), dimension=1),
    'u8': lambda s, k: lax.sort(k.astype(jnp.uint8), dimension=1), 'pred': lambda s, k: lax.sort(k > 0, dimension=1),
}, S, K)
op('sort_keys', lambda s, k: (*lax.sort((k, s), dimension=1, num_keys=2), *lax.sort((k, s), dimension=1, num_keys=1, is_stable=True)), S, K)
op('lexsort', lambda s, k: jnp.lexsort((s[0], k[0])), S, K)
table('top_k', {
    'values': lambda s, k: lax.top_k(s, 3)[0], 'indices': lambda s, k: lax.top_k(s, 3)[1], 'ints': lambda s, k: lax.top_k(k, 5)[1],
    'all': lambda s, k: lax.top_k(s, 8)[1],
}, S, K, note='ties: the lower index first; NaN is largest')
op('median_unique', lambda k: (jnp.median(k), jnp.searchsorted(jnp.sort(k), k), jnp.bincount(k, length=4)), K[0])

# --- control flow -----------------------------------------------------------------

op('while', lambda x, n: lax.while_loop(lambda c: (c[0] < n) & (c[1].sum() < 100), lambda c: (c[0] + 1, c[1] * 2 + 1), (0, x)),
   normal(4), np.int32(5))
op('fori', lambda x: (lax.fori_loop(0, 4, lambda i, c: c.at[i].set(c[i] + i), x), lax.fori_loop(2, 2, lambda i, c: c * 0, x)), normal(5))
op('scan', lambda c, xs: lax.scan(lambda c, x: (c * 0.5 + x, (c.sum(), x * c)), c, xs), normal(3), normal(4, 3), rel=1e-6)
op('scan_reverse', lambda c, xs: lax.scan(lambda c, x: (c + x, c), c, xs, reverse=True, unroll=2), np.float32(0.5), normal(5), rel=1e-6)
op('cond', lambda p, x: (lax.cond(p > 0, lambda v: v + 1, lambda v: v * 3, x), lax.cond(p < 0, lambda v: (v, v.sum()), lambda v: (-v, 0.0), x)),
   np.int32(1), normal(3), rel=1e-6)
op('switch', lambda i, x: tuple(lax.switch(i[k], [lambda v: v + 1, lambda v: v * 2, lambda v: -v], x) for k in range(4)),
   np.array([0, 2, 7, -3], np.int32), normal(3), note='the index is clamped by JAX; beyond the range the last branch')
op('cond_nested', lambda i, x: lax.fori_loop(0, i, lambda k, c: lax.cond(k % 2 == 0, lambda v: v + k, lambda v: jax.jit(jnp.tanh)(v) * 2, c), x),
   np.int32(5), normal(4), ulp=16)
op('map', lambda x: (lax.map(lambda r: jnp.sort(r)[::-1], x), jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sin, jnp.cos, r))(x)), normal(4, 3), ulp=4)
op('composite', lambda x: lax.composite(lambda v, scale: v * scale + 1, 'golden.affine')(x, scale=np.float32(2)), normal(4))
op('custom_jvp', lambda x: (jax.nn.relu(x), jax.nn.relu6(x), jax.nn.silu(x), jax.checkpoint(jnp.tanh)(x)), normal(6, scale=4), ulp=4)
op('barrier', lambda x, y: lax.optimization_barrier((x + 1, y)), normal(3), ints(0, 9, 2))
op('unused', lambda x, y: x + 1, normal(3), normal(2))
op('passthrough', lambda x, y: (y, x, x, jnp.float32(3)), normal(3), normal(2))

# --- random bits ------------------------------------------------------------------

KEY = np.array([13, 37], np.uint32)
wrap = functools.partial(jax.random.wrap_key_data, impl='threefry2x32')
op('threefry', lambda k: (
    jax.random.key_data(jax.random.split(wrap(k), 3)), jax.random.bits(wrap(k), (7,), jnp.uint32), jax.random.bits(wrap(k), (5,), jnp.uint8),
    jax.random.uniform(wrap(k), (6,)), jax.random.randint(wrap(k), (6,), -5, 9), jax.random.key_data(jax.random.fold_in(wrap(k), 3)),
    jax.random.permutation(wrap(k), 6), jax.random.bernoulli(wrap(k), 0.4, (6,))), KEY,
   out=['split', 'bits32', 'bits8', 'uniform', 'randint', 'fold_in', 'permutation', 'bernoulli'])
op('random_normal', lambda k: (jax.random.normal(wrap(k), (9,)), jax.random.gumbel(wrap(k), (5,)), jax.random.categorical(wrap(k), jnp.arange(4.0)),
                               jax.random.truncated_normal(wrap(k), -2, 2, (5,)), jax.random.normal(wrap(k), (5,), jnp.bfloat16)), KEY, ulp=16)
K4 = np.array([1, 2, 3, 4], np.uint32)
op('rng_bit_generator', lambda k: tuple(
    y for a in (lax.RandomAlgorithm.RNG_THREE_FRY, lax.RandomAlgorithm.RNG_PHILOX, lax.RandomAlgorithm.RNG_DEFAULT)
    for d in (jnp.uint32, jnp.uint8, jnp.uint16)
    for y in lax.rng_bit_generator(k, (3, 3), d, algorithm=a)), K4,
   note='per algorithm (threefry, philox, default) and dtype (u32, u8, u16): new state, bits')
op('rbg', lambda k: (jax.random.uniform(jax.random.wrap_key_data(k, impl='rbg'), (5,)),), K4)

# --- what models are made of ------------------------------------------------------

H = normal(3, 8, name='nn', scale=2)
table('activations', {
    'relu': jax.nn.relu, 'gelu': (lambda x: jax.nn.gelu(x), 4), 'gelu_exact': (lambda x: jax.nn.gelu(x, approximate=False), 4),
    'silu': (jax.nn.silu, 4), 'softplus': (jax.nn.softplus, 4), 'softmax': (jax.nn.softmax, 8), 'log_softmax': (jax.nn.log_softmax, 16),
    'elu': (jax.nn.elu, 4), 'selu': (jax.nn.selu, 4), 'leaky': jax.nn.leaky_relu, 'hard_swish': jax.nn.hard_swish,
    'sigmoid': (jax.nn.sigmoid, 4), 'mish': (jax.nn.mish, 8), 'logsumexp': (lambda x: jax.nn.logsumexp(x, axis=-1), 4),
    'one_hot': lambda x: jax.nn.one_hot(jnp.argmax(x, -1), 8), 'standardize': (lambda x: jax.nn.standardize(x), 32),
    'glu': (jax.nn.glu, 4), 'var': (lambda x: jnp.var(x, -1), 8), 'norm': (lambda x: jnp.linalg.norm(x, axis=-1), 4),
}, H)
op('bf16_chain', lambda x: (x * x + x, jax.nn.softmax(x), jnp.mean(x, -1), x.astype(jnp.float32) / 3, jnp.exp(x) - 1, x / 3 * 5),
   H.astype(BF16), rel=8e-3, note='each step rounds to bf16 in the graph; XLA may keep f32 inside a fusion')
op('tril', lambda x: (jnp.tril(x), jnp.triu(x, 1), jnp.eye(4), jnp.where(jnp.arange(8)[None] <= jnp.arange(3)[:, None], x, -INF),
                      jnp.roll(x, 2, 1), jnp.flip(x, 0), jnp.repeat(x, 2, axis=0), jnp.tile(x, (1, 2)), jnp.linspace(0, 1, 5),
                      jnp.diff(x), jnp.outer(x[0], x[1]), jnp.clip(x, -1, 1), jnp.arange(3, 9, 2)), H, ulp=1)
op('ragged_dot', lambda x, w, g: lax.ragged_dot(x, w, g), normal(6, 4), normal(3, 4, 5), np.array([2, 0, 4], np.int32), rel=1e-6)
op('attention', lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), normal(1, 4, 2, 8, name='q'), normal(1, 4, 2, 8, name='k'),
   normal(1, 4, 2, 8, name='v'), rel=2e-6)
op('quantize_like_qwix', lambda x: (jnp.round(x / (jnp.max(jnp.abs(x), -1, keepdims=True) / 127.5)).astype(jnp.int8),
                                    (x.astype(jnp.bfloat16) / (jnp.max(jnp.abs(x.astype(jnp.bfloat16)), -1, keepdims=True) / 7.5)).astype(jnp.int4)), H)
