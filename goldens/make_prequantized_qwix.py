"""What Qwix's process_prequantized_params and restore_quantization_rules make of parameters for the model nnx_mlp."""

import common
from common import jnp, ml_dtypes, np, rng
import flax
from flax import nnx
import make_prequantized
import models
import qwix

OUT = make_prequantized.OUT / 'qwix'
# Layer by layer: int4 in tiles with zero points, int8, fp8.
RULES = [
    {'module_path': 'layers/0/lin', 'weight_qtype': 'int4', 'tile_size': 8, 'weight_calibration_method': 'minmax'},
    {'module_path': 'layers/1/lin', 'weight_qtype': 'int8', 'act_qtype': 'int8'},
    {'module_path': 'out', 'weight_qtype': 'float8_e4m3fn'},
]
FIRST, SECOND, LAST = ('layers', 0, 'lin', 'kernel'), ('layers', 1, 'lin', 'kernel'), ('out', 'kernel')
BIAS = ('layers', 0, 'lin', 'bias')


def weight(name, qtype, shape, scale_shape, zero=False, scale_dtype=np.float32):
  r = rng('qwix', name)
  if qtype.startswith('int'):
    half = 2 ** (int(qtype[3:]) - 1)
    # int8 with what int4 has room for, in one case.
    narrow = 8 if name == 'narrow' else half
    draw = lambda shape: r.randint(-narrow, narrow, shape).astype(jnp.dtype(qtype))
  else:
    draw = lambda shape: (r.standard_normal(shape) * 30).astype(np.float32).astype(jnp.dtype(qtype))
  leaves = {'qvalue': draw(shape), 'scale': (r.uniform(0.5, 1.5, scale_shape) * 0.01).astype(scale_dtype)}
  if zero:
    leaves['zero_point'] = draw(scale_shape)
  return {k: jnp.asarray(v) for k, v in leaves.items()}


def cases():
  first = weight('first', 'int4', (16, 32), (2, 32), True)
  second = weight('second', 'int8', (32, 32), (1, 32))
  last = weight('last', 'float8_e4m3fn', (32, 8), (1, 8))
  bias = jnp.asarray(np.arange(32).astype(np.float32))
  f16 = np.float16
  yield 'as the template has them', {FIRST: first, SECOND: second, LAST: last, BIAS: bias}
  yield 'scales of blocks', {FIRST: weight('blocks', 'int4', (16, 32), (2, 4), True), SECOND: weight('one', 'int8', (32, 32), (1, 1))}
  yield 'scales of other dtypes', {SECOND: weight('f16', 'int8', (32, 32), (1, 32), scale_dtype=f16),
                                  LAST: weight('bf16', 'float8_e4m3fn', (32, 8), (1, 4), scale_dtype=ml_dtypes.bfloat16)}
  yield 'stored wider', {FIRST: {**weight('narrow', 'int8', (16, 32), (2, 32), True)}}
  yield 'quantized for a float', {BIAS: weight('bias', 'int8', (32,), (4,), scale_dtype=f16)}
  yield 'another float', {BIAS: bias.astype(f16)}
  # Refused.
  yield 'unknown', {('layers', 0, 'kernel'): second}
  yield 'zero point missing', {FIRST: weight('nozero', 'int4', (16, 32), (2, 32))}
  yield 'zero point too many', {SECOND: weight('zero', 'int8', (32, 32), (1, 32), True)}
  yield 'another shape', {SECOND: weight('shape', 'int8', (32, 16), (1, 16))}
  yield 'finer scales', {SECOND: weight('finer', 'int8', (32, 32), (4, 32))}
  yield 'float where quantized', {SECOND: jnp.ones((32, 32), jnp.float32)}
  yield 'float of another shape', {BIAS: bias[:16]}


def text(path):
  return '/'.join(map(str, path))


def model():
  def rule(fields):
    return qwix.QuantizationRule(**{k: jnp.dtype(v) if k.endswith('qtype') else v for k, v in fields.items()})
  provider = qwix.PtqProvider([rule(r) for r in RULES])
  return qwix.quantize_model(models.NnxMlp(nnx.Rngs(0)), provider, models.normal(4, 16))


def rules(nested, **options):
  def plain(rule):
    fields = {'module_path': rule.module_path, 'tile_size': rule.tile_size,
              'weight_calibration_method': rule.weight_calibration_method}
    for k in ('weight_qtype', 'act_qtype'):
      value = getattr(rule, k)
      fields[k] = None if value is None else jnp.dtype(value).name
    return fields
  return [plain(r) for r in qwix.restore_quantization_rules(nested, qwix.QuantizationRule, **options)]


def make():
  ptq = model()
  tensors, listed = {}, []
  for number, (name, params) in enumerate(cases()):
    case = {'name': name, 'qtypes': {}}
    for path, value in params.items():
      for leaf, array in (value.items() if isinstance(value, dict) else [(None, value)]):
        tensors[f'in/{number}/{text(path)}' + (f'/{leaf}' if leaf else '')] = array
        if leaf == 'qvalue':
          case['qtypes'][text(path)] = array.dtype.name
    nested = flax.traverse_util.unflatten_dict(params)
    try:
      done = qwix.process_prequantized_params(nested, ptq)
      for path, array in flax.traverse_util.flatten_dict(done).items():
        path = [p for p in path if p not in ('array', 'value')]
        tensors[f'out/{number}/{text(path)}'] = array
    except Exception as e:  # pylint: disable=broad-except
      case['refused'] = f'{type(e).__name__}: {e}'
    if name in ('scales of other dtypes', 'stored wider'):
      case['rules'] = rules(nested, tile_size=8)
      case['weight_only'] = rules(nested, tile_size=8, act_qtype=None)
    listed.append(case)
  common.save_tensors(OUT / 'arrays.safetensors', tensors)
  common.save_json(OUT / 'cases.json', {'rules': RULES, 'cases': listed})


if __name__ == '__main__':
  make()
