"""Small checkpoints in the formats that quantized weights are published in, and what they dequantize to.

Each format's definition is written out here in NumPy, from its public description: how integers are packed, and what a
weight is. The tests read the checkpoints and compare bit for bit.
"""

import json
import struct

import common
from common import ROOT, ml_dtypes, np, rng

OUT = ROOT / 'prequantized'
BF16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
NAMES = {
    'int8': 'I8', 'int16': 'I16', 'int32': 'I32', 'int64': 'I64', 'uint8': 'U8', 'float16': 'F16', 'bfloat16': 'BF16',
    'float32': 'F32', 'float8_e4m3fn': 'F8_E4M3', 'float8_e5m2': 'F8_E5M2',
}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def save(path, tensors):
  """A safetensors file, fp8 as fp8; the widest elements first, so that all are aligned."""
  header, blobs, offset = {}, [], 0
  for key in sorted(tensors, key=lambda k: (-np.asarray(tensors[k]).dtype.itemsize, k)):
    array = np.asarray(tensors[key])
    blob = np.ascontiguousarray(array).tobytes()
    header[key] = {'dtype': NAMES[array.dtype.name], 'shape': list(array.shape),
                   'data_offsets': [offset, offset + len(blob)]}
    blobs.append(blob)
    offset += len(blob)
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  common.write(path, struct.pack('<Q', len(text)) + text + b''.join(blobs))


# What is packed.


def pack_rows(q, bits):
  """Unsigned [rows, columns] into int32 [rows * bits / 32, columns], consecutive rows from the lowest bits on."""
  per = 32 // bits
  q = np.pad(q, ((0, -len(q) % per), (0, 0))).astype(np.uint32)
  words = np.zeros((len(q) // per, q.shape[1]), np.uint32)
  for i in range(per):
    words |= q[i::per] << np.uint32(bits * i)
  return words.view(np.int32)


def pack_columns(q, bits, order=None):
  per = 32 // bits
  order = order or list(range(per))
  q = np.pad(q, ((0, 0), (0, -q.shape[1] % per))).astype(np.uint32)
  words = np.zeros((len(q), q.shape[1] // per), np.uint32)
  for i, column in enumerate(order):
    words |= q[:, column::per] << np.uint32(bits * i)
  return words.view(np.int32)


def unpack(words, bits, axis):
  """As the definitions unpack: every word shifted by every multiple of bits, and masked."""
  shifts = np.arange(0, 32, bits)
  if axis == 0:
    q = (words[:, None, :].view(np.uint32) >> shifts[None, :, None].astype(np.uint32)) & (2**bits - 1)
    return q.reshape(-1, words.shape[1]).astype(np.int32)
  q = (words[:, :, None].view(np.uint32) >> shifts[None, None, :].astype(np.uint32)) & (2**bits - 1)
  return q.reshape(len(words), -1).astype(np.int32)


def fp4_bytes(codes):
  return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def fp4_codes(packed):
  return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def scales(r, shape, dtype):
  return (np.exp(r.standard_normal(shape)) * 0.02).astype(dtype)


def blocks(scale, block, shape):
  """A scale for each block, for each element."""
  for axis, size in enumerate(block):
    scale = np.repeat(scale, size, axis)
  return scale[: shape[0], : shape[1]]


# GPTQ and AWQ.


def gptq(name, module, rows, columns, bits, group_size, version, sym, scattered=False, dtype=np.float16):
  r = rng('gptq', name, module)
  groups = -(-rows // group_size)
  q = r.randint(0, 2**bits, (rows, columns))
  # Version 1 holds zero - 1, and has no room for a zero of 0.
  zeros = np.full((groups, columns), 2**(bits - 1)) if sym else r.randint(version == 1, 2**bits, (groups, columns))
  g_idx = np.arange(rows) // group_size
  if scattered:
    g_idx = g_idx[r.permutation(rows)]
  return {
      f'{module}.qweight': pack_rows(q, bits),
      f'{module}.qzeros': pack_columns(zeros - (version == 1), bits),
      f'{module}.scales': scales(r, (groups, columns), dtype),
      f'{module}.g_idx': g_idx.astype(np.int32),
  }


def gptq_dequantized(tensors, module, bits, version):
  w = unpack(tensors[f'{module}.qweight'], bits, 0)
  z = unpack(tensors[f'{module}.qzeros'], bits, 1) + (version == 1)
  s, g = tensors[f'{module}.scales'], tensors[f'{module}.g_idx']
  return s[g] * (w - z[g]).astype(s.dtype)


def gptq_case(name, layers, bits, group_size, version, sym, scattered=False, **options):
  tensors, expected = {}, {}
  for module, (rows, columns) in layers.items():
    tensors |= gptq(name, module, rows, columns, bits, group_size, version, sym, scattered)
    expected[f'{module}.weight'] = gptq_dequantized(tensors, module, bits, version)
  tensors['model.norm.weight'] = np.arange(1, 6).astype(BF16)
  tensors['model.fc1.bias'] = np.arange(3).astype(np.float16)
  config = {'quant_method': 'gptq', 'bits': bits, 'group_size': group_size, 'desc_act': scattered, 'sym': sym,
            'damp_percent': 0.1, 'true_sequential': True}
  if version == 2:
    config['checkpoint_format'] = 'gptq_v2'
  return tensors, expected, {'quantization_config': config}, options


def mlp(name, scattered, **options):
  """Two layers for a model of the tests."""
  tensors, expected, config, options = gptq_case(name, {'fc1': (32, 16), 'fc2': (16, 8)}, 4, 8, 1, False, scattered, **options)
  del tensors['model.norm.weight'], tensors['model.fc1.bias']
  for module in expected:
    # So few bits that the f16 of the definition has every product exactly, and other engines are held to it.
    key = module.replace('weight', 'scales')
    tensors[key] = (rng('mlp', key).randint(8, 64, tensors[key].shape) * 2.0**-11).astype(np.float16)
    expected[module] = gptq_dequantized(tensors, module.removesuffix('.weight'), 4, 1)
  tensors['fc1.bias'] = (np.arange(16) / 16 - 0.5).astype(np.float16)
  return tensors, expected, config, options


def awq():
  r = rng('awq')
  rows, columns, group = 32, 24, 8
  q, z = r.randint(0, 16, (rows, columns)), r.randint(0, 16, (rows // group, columns))
  tensors = {
      'a.b.qweight': pack_columns(q, 4, AWQ_ORDER), 'a.b.qzeros': pack_columns(z, 4, AWQ_ORDER),
      'a.b.scales': scales(r, (rows // group, columns), np.float16), 'a.b.bias': np.ones(columns, np.float16),
  }
  # Unpacked in the order of the bits, then brought into the order of the columns.
  reverse = np.arange(columns).reshape(-1, 8)[:, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(-1)
  w = unpack(tensors['a.b.qweight'], 4, 1)[:, reverse]
  zeros = unpack(tensors['a.b.qzeros'], 4, 1)[:, reverse]
  assert (w == q).all() and (zeros == z).all()
  dequantized = (w - np.repeat(zeros, group, 0)).astype(np.float16) * np.repeat(tensors['a.b.scales'], group, 0)
  config = {'quant_method': 'awq', 'bits': 4, 'group_size': group, 'version': 'gemm', 'zero_point': True}
  return tensors, {'a.b.weight': dequantized}, {'quantization_config': config}, {}


# compressed-tensors.


def ct_config(form, weights, act=None, **more):
  group = {'targets': ['Linear'], 'weights': weights, 'input_activations': act, 'output_activations': None}
  return {'quantization_config': {'quant_method': 'compressed-tensors', 'format': form, 'config_groups': {'group_0': group},
                                  'ignore': ['lm_head'], 'kv_cache_scheme': None, 'quantization_status': 'compressed', **more}}


def ct_group_scale(shape, strategy, size):
  return {'tensor': (1,), 'channel': (shape[0], 1), 'group': (shape[0], -(-shape[1] // max(size, 1)))}[strategy]


def ct_pack(name, shape, bits, strategy, size=-1, symmetric=True, scattered=False, dtype=BF16, **options):
  r = rng('ct', name)
  half = 2**(bits - 1)
  q = r.randint(-half, half, shape)
  scale = scales(r, ct_group_scale(shape, strategy, size), dtype)
  tensors = {'m.fc.weight_packed': pack_columns(q + half, bits), 'm.fc.weight_shape': np.array(shape, np.int64),
             'm.fc.weight_scale': scale, 'lm_head.weight': r.standard_normal((2, 3)).astype(BF16)}
  weights = {'num_bits': bits, 'type': 'int', 'symmetric': symmetric, 'strategy': strategy, 'dynamic': False}
  zero = np.zeros(scale.shape, np.int64)
  if strategy == 'group':
    weights['group_size'] = size
  if not symmetric:
    zero = r.randint(-half, half, scale.shape)
    tensors['m.fc.weight_zero_point'] = pack_rows(zero + half, bits)
    unpacked = unpack(tensors['m.fc.weight_zero_point'], bits, 0)[: len(zero)] - half
    assert (unpacked == zero).all()
  g = np.arange(shape[1]) // size if strategy == 'group' else np.zeros(shape[1], int)
  if scattered:
    g = g[r.permutation(shape[1])]
    tensors['m.fc.weight_g_idx'] = g.astype(np.int32)
    weights['actorder'] = 'group'
  w = unpack(tensors['m.fc.weight_packed'], bits, 1)[:, : shape[1]] - half
  assert (w == q).all()
  dequantized = (w.astype(dtype) - zero[:, g].astype(dtype)) * scale[:, g]
  return tensors, {'m.fc.weight': dequantized}, ct_config('pack-quantized', weights), options


def ct_int8(name, shape, strategy, symmetric=True, act=None, bits=8, **options):
  r = rng('ct', name)
  half = 2**(bits - 1)
  q = r.randint(-half, half, shape).astype(np.int8)
  scale = scales(r, ct_group_scale(shape, strategy, -1), BF16)
  tensors = {'m.fc.weight': q, 'm.fc.weight_scale': scale}
  weights = {'num_bits': bits, 'type': 'int', 'symmetric': symmetric, 'strategy': strategy}
  zero = np.zeros(scale.shape, np.int8)
  if not symmetric:
    zero = tensors['m.fc.weight_zero_point'] = r.randint(-half, half, scale.shape).astype(np.int8)
  if act is not None and not act.get('dynamic'):
    tensors['m.fc.input_scale'] = np.array([0.03125], BF16)
  return tensors, {'m.fc.weight': (q.astype(BF16) - zero.astype(BF16)) * scale}, ct_config('int-quantized', weights, act), options


def floats8(r, shape, dtype=E4M3):
  return (r.standard_normal(shape) * 40).astype(np.float32).astype(dtype)


def ct_float8(name, shape, strategy, scale_dtype, block=None):
  r = rng('ct', name)
  w = floats8(r, shape)
  scale = {'tensor': (1,), 'channel': (shape[0], 1)}.get(strategy) or tuple(-(-a // b) for a, b in zip(shape, block))
  scale = scales(r, scale, scale_dtype)
  weights = {'num_bits': 8, 'type': 'float', 'symmetric': True, 'strategy': strategy}
  if block:
    weights['block_structure'] = list(block)
  each = blocks(scale, block, shape) if block else scale
  act = {'num_bits': 8, 'type': 'float', 'dynamic': True, 'strategy': 'token', 'symmetric': True}
  return ({'m.fc.weight': w, 'm.fc.weight_scale': scale}, {'m.fc.weight': w.astype(scale_dtype) * each},
          ct_config('float-quantized', weights, act), {})


def nvfp4(r, shape):
  codes = r.randint(0, 16, shape)
  packed = fp4_bytes(codes)
  assert (fp4_codes(packed) == codes).all()
  scale = np.abs(floats8(r, (shape[0], shape[1] // 16)).astype(np.float32)).astype(E4M3)
  return packed, scale, np.repeat(scale.astype(np.float32), 16, 1)


def ct_nvfp4():
  r = rng('ct', 'nvfp4')
  packed, scale, each = nvfp4(r, (3, 32))
  tensors = {'m.fc.weight_packed': packed, 'm.fc.weight_scale': scale, 'm.fc.weight_global_scale': np.array([2731.3], np.float32),
             'm.fc.input_global_scale': np.array([17.0], np.float32)}
  dequantized = FP4[fp4_codes(packed)] * (each / tensors['m.fc.weight_global_scale'])
  weights = {'num_bits': 4, 'type': 'float', 'symmetric': True, 'strategy': 'tensor_group', 'group_size': 16}
  act = {**weights, 'dynamic': 'local'}
  return tensors, {'m.fc.weight': dequantized}, ct_config('nvfp4-pack-quantized', weights, act), {'weights_only': True}


def exponents(r, shape):
  e = r.randint(100, 140, shape).astype(np.uint8)
  e.flat[0] = 0
  e.flat[-1] = 254
  return e


def mx(packed, e):
  """In bf16, as gpt-oss's own code has it: fp4 values scaled by powers of two."""
  values = FP4[fp4_codes(packed)].astype(np.float64) * np.repeat(2.0**(e.astype(np.float64) - 127), 32, -1)
  with np.errstate(over='ignore'):
    return values.astype(np.float32).astype(BF16)


def ct_mxfp4():
  r = rng('ct', 'mxfp4')
  packed, e = fp4_bytes(r.randint(0, 16, (3, 64))), exponents(r, (3, 2))
  packed[-1, -16:] &= 0x33  # 2^127 times 2 and more is infinite
  weights = {'num_bits': 4, 'type': 'float', 'symmetric': True, 'strategy': 'group', 'group_size': 32}
  return ({'m.fc.weight_packed': packed, 'm.fc.weight_scale': e}, {'m.fc.weight': mx(packed, e)},
          ct_config('mxfp4-pack-quantized', weights), {})


def ct_mixed():
  """Two groups, told apart by name; one is asked for by the class of its modules."""
  tensors, expected = {}, {}
  first, a, config, _ = ct_pack('mixed4', (5, 16), 4, 'group', 8)
  second, b, other, _ = ct_int8('mixed8', (4, 6), 'channel')
  rename = lambda d, to: {k.replace('m.fc', to): v for k, v in d.items()}
  tensors |= rename(first, 'm.layers.0.mlp.up_proj') | rename(second, 'm.layers.0.self_attn.q_proj')
  expected |= rename(a, 'm.layers.0.mlp.up_proj') | rename(b, 'm.layers.0.self_attn.q_proj')
  group = other['quantization_config']['config_groups']['group_0']
  config['quantization_config']['config_groups']['group_1'] = {**group, 'targets': ['re:.*self_attn'], 'format': 'int-quantized'}
  config['quantization_config']['format'] = 'mixed-precision'
  config['quantization_config']['config_groups']['group_0']['format'] = 'pack-quantized'
  return tensors, expected, config, {}


# FP8, ModelOpt, MXFP4.


def fp8_block():
  r = rng('fp8')
  tensors, expected = {}, {}
  for name, shape, dtype in (('whole', (130, 4), np.float32), ('narrow', (3, 258), BF16)):
    w = floats8(r, shape)
    s = scales(r, tuple(-(-n // 128) for n in shape), dtype)
    tensors |= {f'{name}.weight': w, f'{name}.weight_scale_inv': s}
    expected[f'{name}.weight'] = w.astype(dtype) * blocks(s, (128, 128), shape)
  tensors['embed.weight'] = r.standard_normal((3, 2)).astype(BF16)
  config = {'quant_method': 'fp8', 'fmt': 'e4m3', 'activation_scheme': 'dynamic', 'weight_block_size': [128, 128]}
  return tensors, expected, {'quantization_config': config}, {}


def fp8_tensor():
  r = rng('fp8 tensor')
  w = floats8(r, (3, 5))
  tensors = {'fc.weight': w, 'fc.weight_scale': np.float32(0.037), 'fc.input_scale': np.float32(0.5)}
  config = {'quant_method': 'fp8', 'activation_scheme': 'static'}
  return tensors, {'fc.weight': w.astype(np.float32) * np.float32(0.037)}, {'quantization_config': config}, {}


def modelopt(algo):
  r = rng('modelopt', algo)
  config = {'producer': {'name': 'modelopt', 'version': '0.23.0'},
            'quantization': {'quant_algo': algo, 'kv_cache_quant_algo': None, 'exclude_modules': ['lm_head']}}
  if algo == 'FP8':
    w = floats8(r, (4, 6))
    tensors = {'fc.weight': w, 'fc.weight_scale': np.float32(0.011), 'fc.input_scale': np.float32(0.02)}
    return tensors, {'fc.weight': w.astype(np.float32) * np.float32(0.011)}, config, {'file': 'hf_quant_config.json'}
  packed, scale, each = nvfp4(r, (2, 48))
  tensors = {'fc.weight': packed, 'fc.weight_scale': scale, 'fc.weight_scale_2': np.float32(1.7e-4), 'fc.input_scale': np.float32(0.02)}
  config['quantization']['group_size'] = 16
  options = {'file': 'hf_quant_config.json', 'weights_only': True}
  return tensors, {'fc.weight': FP4[fp4_codes(packed)] * (each * tensors['fc.weight_scale_2'])}, config, options


def gpt_oss():
  r = rng('gpt oss')
  packed, e = fp4_bytes(r.randint(0, 16, (2, 3, 64))), exponents(r, (2, 3, 2))
  packed[-1, -1, -16:] &= 0x33
  tensors = {'mlp.experts.up_proj_blocks': packed.reshape(2, 3, 2, 16), 'mlp.experts.up_proj_scales': e,
             'mlp.experts.up_proj_bias': np.zeros((2, 3), BF16)}
  config = {'quantization_config': {'quant_method': 'mxfp4', 'modules_to_not_convert': ['lm_head']}}
  return tensors, {'mlp.experts.up_proj': mx(packed, e)}, config, {}


def cases():
  dynamic = {'num_bits': 8, 'type': 'int', 'dynamic': True, 'strategy': 'token', 'symmetric': True}
  yield 'gptq_sym', gptq_case('sym', {'model.fc1': (32, 8), 'model.fc2': (16, 16)}, 4, 8, 1, True)
  yield 'gptq_asym', gptq_case('asym', {'model.fc1': (32, 8)}, 4, 16, 1, False)
  yield 'gptq_v2', gptq_case('v2', {'model.fc1': (32, 8)}, 4, 16, 2, False)
  yield 'gptq_8bit', gptq_case('8bit', {'model.fc1': (16, 12)}, 8, 8, 1, False)
  yield 'gptq_8bit_v2', gptq_case('8bit_v2', {'model.fc1': (16, 12)}, 8, 8, 2, False)
  yield 'gptq_ragged', gptq_case('ragged', {'model.fc1': (40, 8)}, 4, 16, 1, False)
  yield 'gptq_act_order', gptq_case('act_order', {'model.fc1': (32, 8)}, 4, 8, 1, False, True, act_order='permute')
  yield 'gptq_act_order_expanded', gptq_case('act_order', {'model.fc1': (32, 8)}, 4, 8, 1, False, True, act_order='expand')
  yield 'gptq_mlp', mlp('mlp', False)
  yield 'gptq_mlp_act_order', mlp('mlp', True, act_order='expand')
  yield 'awq', awq()
  yield 'ct_pack4_group', ct_pack('pack4', (6, 32), 4, 'group', 8)
  yield 'ct_pack4_asym', ct_pack('pack4_asym', (11, 24), 4, 'group', 8, symmetric=False)
  yield 'ct_pack4_channel', ct_pack('pack4_channel', (5, 13), 4, 'channel', dtype=np.float16)
  yield 'ct_pack4_act_order', ct_pack('pack4_act', (4, 32), 4, 'group', 8, scattered=True, act_order='permute')
  yield 'ct_pack8_asym', ct_pack('pack8', (7, 10), 8, 'channel', symmetric=False)
  yield 'ct_int8', ct_int8('int8', (6, 7), 'channel', act=dynamic)
  yield 'ct_int8_static', ct_int8('int8_static', (6, 7), 'tensor', False, {**dynamic, 'dynamic': False, 'strategy': 'tensor'})
  yield 'ct_int4_plain', ct_int8('int4', (3, 5), 'channel', False, bits=4)
  yield 'ct_float8', ct_float8('float8', (5, 6), 'channel', BF16)
  yield 'ct_float8_tensor', ct_float8('float8_tensor', (5, 6), 'tensor', np.float32)
  yield 'ct_float8_block', ct_float8('float8_block', (12, 20), 'block', BF16, (8, 8))
  yield 'ct_nvfp4', ct_nvfp4()
  yield 'ct_mxfp4', ct_mxfp4()
  yield 'ct_mixed', ct_mixed()
  yield 'fp8_block', fp8_block()
  yield 'fp8_tensor', fp8_tensor()
  yield 'modelopt_fp8', modelopt('FP8')
  yield 'modelopt_nvfp4', modelopt('NVFP4')
  yield 'gpt_oss', gpt_oss()


def make():
  index = []
  for name, (tensors, expected, config, options) in cases():
    options = dict(options)
    save(OUT / name / 'model.safetensors', tensors)
    save(OUT / f'{name}.safetensors', expected)
    common.write(OUT / name / options.pop('file', 'config.json'), (json.dumps(config) + '\n').encode())
    index.append({'name': name, **options})
  common.write(OUT / 'index.json', ('[\n' + ',\n'.join(json.dumps(case) for case in index) + '\n]\n').encode())


if __name__ == '__main__':
  make()
