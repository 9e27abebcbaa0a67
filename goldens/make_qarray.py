"""Eager Qwix on arrays: quantize, dequantize, dot_general, einsum, conv_general_dilated."""

import common
from common import ROOT, jax, jnp, ml_dtypes, np, rng
from make_models import EMULATED, widen
import qwix
from qwix._src.core import conv_general, dot_general, einsum, qarray

DTYPES = {'f32': np.float32, 'bf16': ml_dtypes.bfloat16, 'f16': np.float16, 'f64': np.float64}
QTYPES = ['int2', 'int3', 'int4', 'int5', 'int6', 'int7', 'int8', 'nf4', 'float8_e4m3fn', 'float8_e5m2',
          'float4_e2m1fn', 'mxfp8', 'mxfp4', 'nvfp4']


def qtype(q):
  return q if q in EMULATED else jnp.dtype(q)


def matrix(d):
  """8 × 64: plain channels, a channel of zeros, huge ones, tiny ones, ties."""
  x = rng('matrix').standard_normal((8, 64))
  big, small = (6e4, 1e-6) if d == np.float16 else (3e38, 1e-38)
  x[1] *= 30
  x[2] = 0
  x[3] *= 1e-3
  x[4, ::3] = 0.0
  x[4, 5] = -4.0
  x[5] = (np.arange(64) - 32) / 4  # ties
  x[6] *= big / 4
  x[6, 7] = -big
  x[7] *= small * 8
  with np.errstate(all='ignore'):
    return np.nan_to_num(x.astype(d).astype(np.float64)).astype(d)


def cube(d):
  return (rng('cube').standard_normal((3, 7, 5)) * 2).astype(d)


def powers(d):
  """Rows whose largest value puts the scale on, below or above a power of two."""
  lo, hi = (-3, 12) if d == np.float16 else (-17, 8)
  one = np.array([6 * 2.0**k for k in range(lo, hi)] + [448 * 2.0**k for k in range(lo + 2, hi - 4, 4)])
  one = np.repeat(one, 3) * np.tile([1, 1 + 2.0**-7, 1 - 2.0**-8], len(one))
  return (one[:, None] * np.array([-0.9, 0.1, 0.5, -0.33] * 7 + [0.01, 0, -0.7, 1])[None, :]).astype(d)


def positive(d):
  return np.abs(rng('positive').standard_normal((5, 6)) + 0.5).astype(d)


# name of the input -> (channelwise_axes, tiled_axes)
WAYS = {
    'matrix': {'tensor': ((), {}), 'rows': ((0,), {}), 'columns': ((1,), {}), 'all': ((0, 1), {}),
               'tiles': ((0,), {1: 32}), 'tiles16': ((0,), {1: 16}), 'count': ((0,), {1: 0.25}), 'both': ((), {0: 2, 1: 16}),
               'whole': ((0,), {1: 1.0}), 'single': ((0,), {1: 1})},
    'cube': {'middle': ((1,), {}), 'ends': ((0, 2), {}), 'third': ((0,), {1: 7, 2: 5})},
    'positive': {'rows': ((0,), {}), 'tensor': ((), {})},
    'powers': {'tiles': ((0,), {1: 32}), 'tiles16': ((0,), {1: 16})},
}
MX = {'mxfp8': 32, 'mxfp4': 32, 'nvfp4': 16}


def cases():
  for d in ('f32', 'bf16', 'f16'):
    for q in QTYPES:
      for name, ways in WAYS.items():
        for way, (channel, tiled) in ways.items():
          if name == 'powers' and q not in MX:
            continue
          if q in MX and (not tiled or set(tiled.values()) != {MX[q]}):
            continue
          if name == 'cube' and (d != 'f32' or q in ('int5', 'int6', 'int7', 'float8_e5m2')):
            continue
          if way == 'columns' and q in ('int2', 'int5', 'int6', 'int7', 'float8_e5m2'):
            continue
          if way in ('count', 'both') and q not in ('int8', 'int4', 'float8_e4m3fn'):
            continue
          if name == 'positive' or way in ('whole', 'single') and q not in ('int8', 'nf4', 'float4_e2m1fn'):
            continue
          yield d, q, name, way, 'absmax'
    for q in ('int8', 'int4', 'int3', 'nf4', 'float8_e4m3fn', 'mxfp4', 'nvfp4'):
      for way in ('tensor', 'rows', 'tiles' if q != 'nvfp4' else 'tiles16', 'all'):
        if q in MX and not way.startswith('tiles'):
          continue
        for c in ('absmax,0.9', 'rms,3', 'fixed,2.5'):
          if c.startswith('fixed') and way != 'tensor':
            continue
          yield d, q, 'matrix', way, c
    for q in ('int8', 'int4'):
      for way in ('tensor', 'rows', 'columns', 'tiles', 'all', 'both'):
        for c in ('minmax', 'minmax,0.8', 'fixed,-1,3', 'FIXED,0,2'):
          if c.lower().startswith('fixed') and way != 'tensor' or c == 'minmax,0.8' and way not in ('rows', 'tiles'):
            continue
          yield d, q, 'matrix', way, c
      yield d, q, 'positive', 'rows', 'minmax'
      yield d, q, 'positive', 'tensor', 'minmax'
  for d in ('f32', 'bf16', 'f16'):
    for q, way, method in (('int8', 'tensor', 'absmax'), ('int4', 'tensor', 'minmax'), ('int8', 'tensor', 'fixed,2.5'),
                           ('int8', 'tensor', 'fixed,-1,3'), ('float8_e4m3fn', 'tensor', 'absmax'), ('int8', 'rows', 'absmax'),
                           ('int8', 'all', 'absmax'), ('int8', 'rows', 'minmax')):
      yield d, q, 'matrix', way, method + ' compiled'
  for q in ('int8', 'int4', 'float8_e4m3fn', 'nf4'):
    yield 'f64', q, 'matrix', 'rows', 'absmax'
    yield 'f64', q, 'matrix', 'tiles', 'rms,2'
  yield 'f64', 'int8', 'matrix', 'rows', 'minmax'


REFUSED = [
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[], tiled_axes={'1': 7}),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[1], tiled_axes={'1': 16}),
    dict(input='f32/matrix', qtype='int16', channelwise_axes=[], tiled_axes={}),
    dict(input='f32/matrix', qtype='bfloat16', channelwise_axes=[], tiled_axes={}),
    dict(input='f32/matrix', qtype='mxfp8', channelwise_axes=[0], tiled_axes={}),
    dict(input='f32/matrix', qtype='mxfp8', channelwise_axes=[0], tiled_axes={'1': 16}),
    dict(input='f32/matrix', qtype='nvfp4', channelwise_axes=[0], tiled_axes={'1': 32}),
    dict(input='f32/matrix', qtype='mxfp8_16', channelwise_axes=[0], tiled_axes={'1': 16}),
    dict(input='f32/matrix', qtype='int3', channelwise_axes=[0], tiled_axes={}, calibration_method='minmax'),
    dict(input='f32/matrix', qtype='float8_e4m3fn', channelwise_axes=[0], tiled_axes={}, calibration_method='minmax'),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[0], tiled_axes={}, calibration_method='rms'),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[0], tiled_axes={}, calibration_method='fixed'),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[0], tiled_axes={}, calibration_method='fixed,1,2'),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[0], tiled_axes={}, calibration_method='fixed,0,0'),
    dict(input='f32/matrix', qtype='int8', channelwise_axes=[0], tiled_axes={}, calibration_method='percentile,99'),
]


def quantize(x, q, channel=(), tiled=None, method='absmax'):
  return qwix.quantize(x, qtype(q), channelwise_axes=tuple(channel), tiled_axes=dict(tiled or {}), calibration_method=method)


def put(tensors, key, a):
  tensors[f'{key}/qvalue'], tensors[f'{key}/scale'] = a.qvalue, a.scale
  if a.zero_point is not None:
    tensors[f'{key}/zero_point'] = a.zero_point


def make_quantize():
  inputs = {'matrix': matrix, 'cube': cube, 'positive': positive, 'powers': powers}
  tensors, entries = {}, []
  for d, q, name, way, method in cases():
    with jax.enable_x64(d == 'f64'):
      x = jnp.asarray(inputs[name](DTYPES[d]))
      tensors[f'in/{d}/{name}'] = np.asarray(x)
      channel, tiled = WAYS[name][way]
      method, *compiled = method.split()
      call = lambda v: quantize(v, q, channel, tiled, method)
      a = (jax.jit(call) if compiled else call)(x)
      key = str(len(entries))
      put(tensors, key, a)
      # The way back is one line of arithmetic: kept for one calibration.
      back = method in ('absmax', 'minmax') and d != 'f16' and way in ('rows', 'tiles', 'tiles16') and name != 'powers'
      if back:
        tensors[f'{key}/dequantized'] = qwix.dequantize(a)
      entries.append(dict(input=f'{d}/{name}', qtype=q, channelwise_axes=list(channel),
                          tiled_axes={str(k): v for k, v in tiled.items()}, calibration_method=method, **({'compiled': True} if compiled else {})))
  refused = []
  for r in REFUSED:
    d, name = r['input'].split('/')
    try:
      q = r['qtype'] if r['qtype'] in ('mxfp8_16',) else qtype(r['qtype'])
      qwix.quantize(jnp.asarray(inputs[name](DTYPES[d])), q, channelwise_axes=r['channelwise_axes'],
                    tiled_axes={int(k): v for k, v in r['tiled_axes'].items()},
                    calibration_method=r.get('calibration_method', 'absmax'))
      error = None
    except Exception as e:  # pylint: disable=broad-except
      error = f'{type(e).__name__}: {e}'.splitlines()[0]
    refused.append({**r, 'error': error})
  common.save_tensors(ROOT / 'qarray' / 'quantize.safetensors', tensors)
  save_index('quantize', dict(cases=entries, refused=refused))


def save_index(name, value):
  """One case a line."""
  import json
  lines = []
  for k, rows in value.items():
    body = ',\n'.join('  ' + json.dumps(r, ensure_ascii=False) for r in rows)
    lines.append(f' "{k}": [\n{body}\n ]')
  common.write(ROOT / 'qarray' / f'{name}.json', ('{\n' + ',\n'.join(lines) + '\n}\n').encode())


def arr(*shape, name='', d='f32', scale=1.0):
  return (rng('prod', name, *shape).standard_normal(shape) * scale).astype(DTYPES[d])


def make_products():
  tensors, entries = {}, []

  def operand(x, how):
    """An array, or what quantize makes of it; a plain int8 array with 'raw'."""
    x = jnp.asarray(x)
    return x if how is None else quantize(x, **how)

  def case(fn, call, lhs, lq, rhs, rq, **args):
    entry = dict(fn=fn, lhs_how=lq, rhs_how=rq, **args)
    key = str(len(entries))
    names = []
    for side, x in (('lhs', lhs), ('rhs', rhs)):
      h = f'in/{x.dtype.name}{list(x.shape)}'.replace(' ', '')
      n = h
      while n in tensors and tensors[n].tobytes() != x.tobytes():
        n += "'"
      tensors[n] = x
      entry[side] = n
    fix = lambda how: how and {**how, 'tiled': {int(k): v for k, v in how.get('tiled', {}).items()}}
    try:
      a, b = operand(lhs, fix(lq)), operand(rhs, fix(rq))
      try:
        out = call(a, b)
      except jax.errors.JaxRuntimeError as e:
        if 'custom element sizes' not in str(e):
          raise
        out = call(widen(a), widen(b))
        entry['note'] = 'qvalues widened to 8 bits: XLA:CPU does not multiply 4-bit arrays by 4-bit arrays'
      tensors[f'{key}/out'] = out
    except Exception as e:  # pylint: disable=broad-except
      entry['error'] = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
    entries.append(entry)

  def dot(lhs, lq, rhs, rq, dims, pet=None):
    (lc, rc), (lb, rb) = dims
    case('dot_general', lambda a, b: dot_general.dot_general(a, b, dims, preferred_element_type=pet and jnp.dtype(pet)),
         lhs, lq, rhs, rq, dimension_numbers=[[list(lc), list(rc)], [list(lb), list(rb)]], **({'preferred_element_type': pet} if pet else {}))

  mm = (((1,), (0,)), ((), ()))
  how = lambda q, channel=(), method='absmax', **tiled: dict(
      q=q, channel=list(channel), method=method, tiled={k[1:]: v for k, v in tiled.items()})
  for d in ('f32', 'bf16', 'f16'):
    a, b = arr(5, 64, name='a', d=d), arr(64, 3, name='b', d=d)
    for q in QTYPES:
      t = MX.get(q)
      la = how(q, [0], **({'_1': t} if t else {}))
      rb = how(q, [1], **({'_0': t} if t else {}))
      dot(a, la, b, rb, mm)
      if d != 'f16':
        dot(a, None, b, rb, mm)
    i8l, i8r = how('int8', [0]), how('int8', [1])
    dot(a, i8l, b, how('int4', [1]), mm)
    dot(a, i8l, b, how('float8_e4m3fn', [1]), mm)
    dot(a, how('float8_e5m2', [0]), b, how('float8_e4m3fn', [1]), mm)
    dot(a, i8l, b, how('nf4', [1]), mm)
    dot(a, how('int8', [0], 'minmax'), b, i8r, mm)
    dot(a, i8l, b, how('int8', [1], 'minmax'), mm)
    dot(a, how('int8', [0], 'minmax'), b, how('int8', [1], 'minmax'), mm)
    dot(a, None, b, how('int8', [1], 'minmax'), mm)
    dot(a, how('int8'), b, how('int8'), mm)
    dot(a, i8l, b, how('int8', [1], _0=16), mm)
    dot(a, how('int8', [0], _1=32), b, how('int8', [1], _0=16), mm)
    dot(a, i8l, b, i8r, mm, 'float32')
    dot(a, i8l, b, i8r, mm, 'bfloat16')
    wa, wb = arr(3, 384, name='a', d=d), arr(384, 4, name='b', d=d)
    dot(wa, how('int8', [0], _1=128), wb, how('int8', [1], _0=128), mm)
    dot(wa, i8l, wb, how('int4', [1], _0=128), mm)
    dot(wa, how('int8', [0], 'minmax', _1=128), wb, how('int8', [1], _0=128), mm)
    dot(wa, i8l, wb, how('int8', [1], 'minmax', _0=192), mm)
    dot(wa, how('int8', [0], _1=0.5), wb, how('float8_e4m3fn', [1], _0=0.5), mm)
    dot(wa, how('int8', [0], _1=128), wb, how('int8', [1], _0=192), mm)
  x, y = arr(2, 3, 4, 6), arr(6, 2, 4, 5, name='y')
  for q in ('int8', 'float8_e4m3fn', 'int4'):
    dot(x, how(q, [0, 1, 2]), y, how(q, [1, 2, 3]), (((3,), (0,)), ((0,), (1,))))
    dot(x, how(q, [0, 1]), y, how(q, [1, 3]), (((3, 2), (0, 2)), ((0,), (1,))))
    dot(x, how(q, [0, 1], 'minmax') if q != 'float8_e4m3fn' else how(q, [0, 1]), y, how(q, [3]), (((2, 3, 0), (2, 0, 1)), ((), ())))
  dot(x, how('int8', [0, 1, 2]), arr(6, name='v'), how('int8'), (((3,), (0,)), ((), ())))
  ti, tj = arr(2, 128, 3, name='ti'), arr(128, 3, 4, name='tj')
  dot(ti, how('int8', [0], _1=0.5), tj, how('int8', [2]), (((2, 1), (1, 0)), ((), ())))

  mixed = arr(64, 3, name='b', d='bf16')
  dot(arr(5, 64, name='a'), how('int8', [0]), mixed, how('int8', [1]), mm)
  dot(arr(5, 64, name='a'), None, mixed, how('int8', [1]), mm)
  raw = rng('raw').randint(-128, 128, (5, 64)).astype(np.int8)
  dot(raw, None, arr(64, 3, name='b'), how('int8', [1]), mm)

  def ein(eq, lhs, lq, rhs, rq):
    case('einsum', lambda a, b: einsum.einsum(eq, a, b), lhs, lq, rhs, rq, equation=eq)

  e1, e2 = arr(2, 3, 8, name='e1'), arr(2, 8, 5, name='e2')
  for q in ('int8', 'nf4', 'float4_e2m1fn'):
    ein('bsd,hdk->bhsk', e1, how(q, [0, 1]), e2, how(q, [0, 2]))
    ein('bsd,bdk->kbs', e1, how(q, [0, 1]), e2, how(q, [0, 2]))
  ein('bsd,hdk->bhsk', e1, None, e2, how('int4', [0, 2], _1=4))
  ein('...d,hdk->...hk', e1, how('int8', [0, 1]), e2, how('int8', [0, 2]))
  ein('bsd,bdk', e1, how('int8', [0, 1]), e2, how('int8', [0, 2]))
  ein('bsd,bdk->sk', e1, how('int8', [1]), e2, how('int8', [2]))
  ein('bsd,hdk->bs', e1, how('int8', [0, 1]), e2, how('int8', []))

  nhwc = ('NHWC', 'HWIO', 'NHWC')

  def conv(lhs, lq, rhs, rq, strides=(1, 1), padding='SAME', numbers=nhwc, **kw):
    case('conv_general_dilated',
         lambda a, b: conv_general.conv_general_dilated(a, b, strides, padding, dimension_numbers=numbers, **kw),
         lhs, lq, rhs, rq, window_strides=list(strides), padding=padding, dimension_numbers=list(numbers), **kw)

  for d in ('f32', 'bf16'):
    img, ker = arr(2, 6, 5, 4, name='img', d=d), arr(3, 3, 4, 6, name='ker', d=d)
    for q in ('int8', 'int4', 'int6', 'float8_e4m3fn', 'float8_e5m2', 'float4_e2m1fn'):
      conv(img, how(q, [0]), ker, how(q, [3]))
    conv(img, None, ker, how('int8', [3]))
    conv(img, None, ker, how('nf4', [3]))
    conv(img, how('int8', [0], 'minmax'), ker, how('int8', [3]))
    conv(img, how('int8', [0], 'minmax'), ker, how('int8', [3]), strides=(2, 1), padding='VALID')
    conv(img, how('int8', [0]), ker, how('int8', [3], 'minmax'))
    conv(img, how('int8', [0]), ker, how('int8', [3]), strides=(2, 2), padding='VALID', rhs_dilation=[2, 1])
    conv(img, how('int8', [0]), ker, how('int8', [3]), padding=((2, 1), (0, 2)), lhs_dilation=[2, 2])
    conv(img, how('int8', [0]), ker[:, :, :2], how('int8', [3]), feature_group_count=2)
    conv(img, how('int8', [0]), ker[:, :, :1, :4], how('int8', [3]), feature_group_count=4)
    conv(img.transpose(0, 3, 1, 2), how('int8', [0]), ker.transpose(3, 2, 0, 1), how('int8', [0]), numbers=('NCHW', 'OIHW', 'NCHW'))
  common.save_tensors(ROOT / 'qarray' / 'products.safetensors', tensors)
  save_index('products', dict(cases=entries))
