"""Static ranges: statistics, scales and outputs of Qwix's QtProvider and PtqProvider over several batches."""

import contextlib
import dataclasses
import functools
import types

import common
from common import ROOT, jax, jnp, np, rng
import flax
import make_models
import models
import qwix
from qwix._src.core import conv_general_qt, dot_general, dot_general_qt
from rules import STATIC_CASES

BATCHES = 3


def rule(fields):
  fields = dict(fields)
  for k in ('weight_qtype', 'act_qtype'):
    if k in fields and fields[k] not in make_models.EMULATED:
      fields[k] = jnp.dtype(fields[k])
  for k in ('act_batch_axes',):
    if k in fields:
      fields[k] = tuple(fields[k])
  return qwix.QtRule(**fields)


class ByOperand(qwix.QtProvider):
  """QtProvider that names the statistics of an einsum by the author's operands, as PtqProvider names its scales.

  Qwix names them by the operands of the dot that the einsum becomes, which are the other way round where `jnp.einsum`
  exchanges them.
  """

  def __init__(self, rules):
    super().__init__(rules)
    self._operands = None
    self.exchanged = set()

  def einsum(self, equation, *operands, **kw):
    self._operands = operands
    try:
      return super().einsum(equation, *operands, **kw)
    finally:
      self._operands = None

  def _create_dot_general_qt_config(self, rule, op_id, lhs, rhs):
    config = super()._create_dot_general_qt_config(rule, op_id, lhs, rhs)
    if self._operands is None:
      return config
    first, second = self._operands
    kept = lhs is first or rhs is second
    exchanged = lhs is second or rhs is first
    if kept == exchanged:
      shapes = (lhs.shape, rhs.shape)
      kept, exchanged = shapes == (first.shape, second.shape), shapes == (second.shape, first.shape)
      assert kept != exchanged, (op_id, shapes)
    if kept:
      return config
    self.exchanged.add(op_id)
    collect = lambda old, side: old and functools.partial(
        self._update_and_get_quant_stat, f'{op_id}_{side}', rule.act_batch_axes)
    return dataclasses.replace(
        config,
        lhs_collect_quant_stat=collect(config.lhs_collect_quant_stat, 'rhs'),
        rhs_collect_quant_stat=collect(config.rhs_collect_quant_stat, 'lhs'))


@contextlib.contextmanager
def forward_alone(wide):
  """QT without its backward pass, in which convolutions leak the statistics they collect (a tracer); with `wide`, 4-bit
  products in 8 bits."""
  conv, dot = conv_general_qt.conv_general_qt, dot_general_qt.dot_general
  conv_general_qt.conv_general_qt = lambda *args: conv_general_qt.conv_general_qt_fwd(*args)[0]
  if wide:
    dot_general_qt.dot_general = types.SimpleNamespace(
        dot_general=make_models.wide_dot_general, get_how_to_quantize=dot_general.get_how_to_quantize)
  try:
    yield
  finally:
    conv_general_qt.conv_general_qt, dot_general_qt.dot_general = conv, dot


def batch(name, number, inputs):
  """Inputs like the model's own: floats anew, integers in another order."""
  def one(i, x):
    r = rng('static', name, number, i)
    if jnp.issubdtype(x.dtype, jnp.floating):
      spread = 1 + 0.25 * number
      return jnp.asarray(spread * r.standard_normal(x.shape).astype(np.float32), x.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer) and x.ndim > 0:
      return jnp.asarray(r.permutation(np.ravel(x)).reshape(x.shape), x.dtype)
    return x
  return jax.tree.unflatten(jax.tree.structure(inputs), [one(i, x) for i, x in enumerate(jax.tree.leaves(inputs))])


def forward(o, rules, batches):
  """What QT says: statistics after all batches, outputs of the last calibration and of an evaluation."""
  provider = ByOperand([rule(r) for r in rules])
  qt = qwix.quantize_model(o.spec.module, provider)
  stats = qt.init(jax.random.key(0), *o.spec.inputs)['quant_stats']
  variables = {'params': o.params, **o.others}
  # Variables are arguments: as constants XLA would fold their quantization, with other last bits.
  train = jax.jit(lambda v, s, *x: qt.apply({**v, 'quant_stats': s}, *x, mutable='quant_stats'))
  expected = {}
  for b in batches:
    out, new = train(variables, stats, *b)
    stats = new['quant_stats']
  expected.update({f'calibrate/{i}': x for i, x in enumerate(jax.tree.leaves(out))})
  flat = flax.traverse_util.flatten_dict(stats, sep='/')
  expected.update({f'stats/{k}': v for k, v in flat.items()})
  evaluate = jax.jit(lambda v, s, *x: qt.apply({**v, 'quant_stats': s}, *x))
  outputs = jax.tree.leaves(evaluate(variables, stats, *batches[0]))
  expected.update({f'qt/{i}': x for i, x in enumerate(outputs)})
  return expected, stats, provider


def make(name, cases):
  o = make_models.Oracle(name)
  m, key = o.spec, jax.random.key(0)
  module, params = m.module, o.params
  batches = [batch(name, i, m.inputs) for i in range(BATCHES)]
  kept = sorted(o.lowered._lowering.compile_args['kept_var_idx'])
  count = len(jax.tree.leaves(o.args)) - len(jax.tree.leaves(m.inputs))
  used = [i - count for i in kept if i >= count]
  inputs = {f'{n}/{j}': jax.tree.leaves(b)[i] for n, b in enumerate(batches) for j, i in enumerate(used)}
  common.save_tensors(ROOT / 'static' / name / 'batches.safetensors', inputs)
  for _, rules_name, rules in cases:
    folder = ROOT / 'static' / name / rules_name
    common.save_json(folder / 'rules.json', rules)
    for wide in (False, True):
      try:
        with forward_alone(wide):
          expected, stats, provider = forward(o, rules, batches)
        break
      except jax.errors.JaxRuntimeError as e:
        if wide or 'custom element sizes' not in str(e):
          raise

    info = dict(model=name, exchanged=sorted(provider.exchanged))
    refusal = None
    for wide in (False, True):
      try:
        ptq_model = qwix.quantize_model(
            module, qwix.PtqProvider([rule(r) for r in rules], **(make_models.WIDE if wide else {})))
        abstract = jax.eval_shape(ptq_model.init, key, *m.inputs)['params']
        qparams = qwix.quantize_params(params, abstract, stats)
        apply = jax.jit(lambda p, *x: ptq_model.apply({'params': p, **o.others}, *x))
        outputs = jax.tree.leaves(apply(qparams, *batches[0]))
        refusal = None
        break
      except Exception as e:  # pylint: disable=broad-except
        refusal = f'{type(e).__name__}: {e}'.splitlines()[0][:300]
    if refusal:
      print(f'{name}/{rules_name}: Qwix refuses as PTQ: {refusal}')
      info['ptq_refuses'] = refusal
    else:
      if wide:
        info['wide'] = True
      scales = {k: v for k, v in make_models.flatten_quantized(qparams).items()
                if k.endswith(('_scale', '_zero_point'))}
      expected.update({f'params/{k}': v for k, v in scales.items()})
      expected.update({f'ptq/{i}': x for i, x in enumerate(outputs)})
      # How far Qwix is from itself when its inputs move by one unit in the last place.
      nudged = jax.tree.map(
          lambda x: jnp.nextafter(x, jnp.asarray(jnp.inf, x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x, batches[0])
      noise = max(make_models.relative(a, b) for a, b in zip(jax.tree.leaves(apply(qparams, *nudged)), outputs))
      info['noise_nudged'] = float('%.2g' % noise)
      float_outputs = jax.tree.leaves(o.fn(*o.args[:len(o.args) - len(m.inputs)], *batches[0]))
      info['error'] = float('%.3g' % max(make_models.relative(a, b) for a, b in zip(outputs, float_outputs)))
    print(name, rules_name, info)
    common.save_json(folder / 'case.json', info)
    common.save_tensors(folder / 'expected.safetensors', expected)
