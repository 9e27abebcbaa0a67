"""Models, and cases of models: what JAX says, and what Qwix says."""

import dataclasses
import functools

import common
from common import ROOT, jax, jnp, np, rng
import flax
from flax import linen as nn
from flax import nnx
import models
import qwix
from qwix._src.core import conv_general, dot_general, einsum, numerics, qarray
from qwix._src.providers import ptq
from qwix._src.utils import flax_util

EMULATED = ('nf4', 'int2', 'int3', 'int5', 'int6', 'int7', 'mxfp8', 'mxfp4', 'nvfp4')


def rule(fields):
  fields = dict(fields)
  for k in ('weight_qtype', 'act_qtype'):
    if k in fields and fields[k] not in EMULATED:
      fields[k] = jnp.dtype(fields[k])
  return qwix.QuantizationRule(**fields)


def widen(x):
  """4-bit qvalues in 8 bits: the same numbers, which XLA:CPU can multiply."""
  if isinstance(x, qarray.QArray) and numerics.can_dequant_on_output(x.qtype):
    if x.qvalue.dtype == jnp.int4:
      return dataclasses.replace(x, qvalue=x.qvalue.astype(jnp.int8), zero_point=(
          None if x.zero_point is None else x.zero_point.astype(jnp.int8)))
    if x.qvalue.dtype == jnp.float4_e2m1fn:
      return dataclasses.replace(x, qvalue=x.qvalue.astype(jnp.float8_e4m3fn))
  return x


def wide_dot_general(lhs, rhs, *args, **kw):
  return dot_general.dot_general(widen(lhs), widen(rhs), *args, **kw)


WIDE = dict(
    _dot_general_fn=wide_dot_general,
    _einsum_fn=functools.partial(einsum.einsum, _qwix_dot_general=wide_dot_general),
    _conv_general_dilated_fn=lambda lhs, rhs, *args, **kw: conv_general.conv_general_dilated(
        widen(lhs), widen(rhs), *args, **kw),
)


class Watch(qwix.PtqProvider):
  """PtqProvider that writes down each op it meets."""

  def __init__(self, rules, sites=None, **kw):
    super().__init__(rules, **kw)
    self.sites = sites

  def _side(self, x):
    path = flax_util.get_current_module_path()
    if isinstance(x, ptq.WithAux):
      return True
    try:
      name = flax_util.find_param(x)
    except ValueError as e:
      return {'ambiguous': str(e)}
    return '/'.join(map(str, (*path, name))) if name else None

  def _note(self, lhs, rhs):
    self._pending = (self._side(lhs), self._side(rhs))

  def _get_current_rule_and_op_id(self, op_name, **kw):
    r, op_id = super()._get_current_rule_and_op_id(op_name, **kw)
    if self.sites is not None and op_id is not None:
      path = '/'.join(map(str, flax_util.get_current_module_path()))
      lhs, rhs = getattr(self, '_pending', (None, None))
      site = dict(module=path, op_id=op_id, op=op_name, lhs=lhs, rhs=rhs)
      if site not in self.sites:
        self.sites.append(site)
    return r, op_id

  def dot_general(self, lhs, rhs, *args, **kw):
    self._note(lhs, rhs)
    return super().dot_general(lhs, rhs, *args, **kw)

  def conv_general_dilated(self, lhs, rhs, *args, **kw):
    self._note(lhs, rhs)
    return super().conv_general_dilated(lhs, rhs, *args, **kw)

  def einsum(self, equation, *operands, **kw):
    if len(operands) == 2:
      self._note(*operands)
    else:
      self._pending = (None, None)
    return super().einsum(equation, *operands, **kw)


def shake(path, x):
  """Biases and norms that are not all zero or one, as after training."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  r, last = rng(*path), path[-1]
  noise = r.standard_normal(x.shape).astype(np.float32)
  if last in ('bias', 'mean'):
    return jnp.asarray(0.1 * noise, x.dtype)
  if last == 'scale':
    return jnp.asarray(1 + 0.2 * noise, x.dtype)
  if last == 'var':
    return jnp.asarray(1 + 0.5 * np.abs(noise), x.dtype)
  return x


def shaken(tree):
  flat = flax.traverse_util.flatten_dict(tree)
  return flax.traverse_util.unflatten_dict({k: shake(k, v) for k, v in flat.items()})


class Oracle:
  """A model with its float side made, ready for Qwix."""

  def __init__(self, name):
    self.name = name
    self.spec = m = models.MODELS[name]()
    key = jax.random.key(0)
    if m.kind == 'linen':
      variables = m.module.init(key, *m.inputs)
      self.variables = shaken(variables)
      self.params = self.variables['params']
      self.others = {k: v for k, v in self.variables.items() if k != 'params'}
      self.fn = jax.jit(m.module.apply)
      self.args = (self.variables, *m.inputs)
    elif m.kind == 'nnx':
      module = m.module()
      graphdef, state = nnx.split(module)
      pure = shaken(nnx.to_pure_dict(state))
      nnx.replace_by_pure_dict(state, pure)
      nnx.update(module, state)
      self.module = module
      self.params = pure
      self.others = {}

      def f(state, *inputs):
        return nnx.merge(graphdef, state)(*inputs)

      self.fn = jax.jit(f)
      self.args = (state, *m.inputs)
    elif m.kind == 'raw':
      variables = m.twin.init(key, *m.inputs)
      self.params = shaken(variables)['params']
      self.others = {}
      self.fn = jax.jit(m.fn)
      self.args = (self.params, *m.inputs)
    if getattr(m, 'traces', False):
      jax.config.update('jax_traceback_in_locations_limit', 10)
    self.lowered = self.fn.lower(*self.args)
    jax.config.update('jax_traceback_in_locations_limit', 0)
    self.outputs = jax.tree.leaves(self.fn(*self.args))

  def flat(self):
    """path -> array, for the variables and for the inputs that the HLO has."""
    kept = sorted(self.lowered._lowering.compile_args['kept_var_idx'])
    if self.spec.kind == 'nnx':
      tree = (self.params, *self.args[1:])
    else:
      tree = self.args
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert len(leaves) == len(jax.tree.leaves(self.args))
    params, inputs, dropped = {}, [], []
    seen = {}
    for i, (path, x) in enumerate(leaves):
      keys = [str(getattr(k, 'key', getattr(k, 'idx', getattr(k, 'name', None)))) for k in path]
      if keys[0] == '0':
        keys = keys[2:] if self.spec.kind == 'linen' else keys[1:]
        name = '/'.join(keys)
        assert name not in params, name
        if i in kept:
          params[name] = x
        else:
          dropped.append(name)
      elif i in kept:
        inputs.append(x)
      else:
        dropped.append('input ' + '/'.join(keys))
    return params, inputs, dropped

  def quantize(self, rules, sites=None, twin=False, wide=False):
    """Qwix's parameters and outputs: (flat dict, list)."""
    m, key = self.spec, jax.random.key(0)
    back = lambda x: x
    provider = Watch([rule(r) for r in rules], sites, **(WIDE if wide else {}))
    if m.kind in ('linen', 'raw'):
      module, params = m.module if m.kind == 'linen' else m.twin, self.params
      if m.kind == 'linen' and twin:
        module, params, back = m.twin, m.to_twin(params), m.from_twin
      ptq_model = qwix.quantize_model(module, provider)
      abstract = jax.eval_shape(ptq_model.init, key, *m.inputs)['params']
      qparams = qwix.quantize_params(params, abstract)
      apply = jax.jit(ptq_model.apply)
      self.run = lambda *x: apply({'params': qparams, **self.others}, *x)
      to = m.to_twin if m.kind == 'linen' and twin else lambda p: p
      self.rerun = lambda p, *x: apply({'params': qwix.quantize_params(to(p), abstract), **self.others}, *x)
    else:
      ptq_model = qwix.quantize_model(self.module, provider, *m.inputs)
      pure = nnx.to_pure_dict(nnx.state(self.module, nnx.Param))
      new = qwix.quantize_params(pure, ptq_model)
      nnx.update(ptq_model, new)
      graphdef, state = nnx.split(ptq_model)
      qparams = nnx.to_pure_dict(nnx.state(ptq_model, nnx.Param))
      apply = jax.jit(lambda s, *x: nnx.merge(graphdef, s)(*x))
      self.run = lambda *x: apply(state, *x)

      def rerun(params, *x):
        part = jax.tree_util.tree_map_with_path(lambda path, _: functools.reduce(lambda t, k: t[k.key], path, params), pure)
        nnx.update(ptq_model, qwix.quantize_params(part, ptq_model))
        return apply(nnx.split(ptq_model)[1], *x)

      self.rerun = rerun
    unused = provider.get_unused_rules()
    self.unused = [i for i, r in enumerate(provider._rules) if any(r is u for u in unused)]
    outputs = jax.tree.leaves(self.run(*m.inputs))
    return back(flatten_quantized(qparams)), outputs


def flatten_quantized(tree):
  flat = {}
  for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    keys = [str(getattr(k, 'key', getattr(k, 'idx', getattr(k, 'name', None)))) for k in path]
    keys = [k for k in keys if k != 'array']
    flat['/'.join(keys)] = x
  return flat


def relative(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.size else 0.0


def self_noise(o, outputs):
  """How alike Qwix's errors are to its own when what it does not quantize moves by a unit in the last place.

  The least cosine of the two quantization errors and the largest ratio of their norms, over random moves.
  """
  r = rng('self_noise', o.name)

  def move(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return jnp.nextafter(x, jnp.asarray(np.where(r.rand(*x.shape) < 0.5, -np.inf, np.inf), x.dtype))

  def move_param(path, x):
    return move(x) if x.ndim < 2 or path[-1].key == 'embedding' else x

  cosine, ratio = 1.0, 1.0
  for _ in range(48):
    params = jax.tree_util.tree_map_with_path(move_param, o.params)
    inputs = jax.tree.map(move, o.spec.inputs)
    for a, b, f in zip(outputs, jax.tree.leaves(o.rerun(params, *inputs)), o.outputs):
      a, b = (np.ravel(np.asarray(x, np.float64) - np.asarray(f, np.float64)) for x in (a, b))
      n, m = np.linalg.norm(a), np.linalg.norm(b)
      if n > 0 and m > 0:
        cosine, ratio = min(cosine, a @ b / (n * m)), max(ratio, n / m, m / n)
  return float('%.3g' % cosine), float('%.3g' % ratio)


def make_model(name, cases):
  o = Oracle(name)
  m = o.spec
  folder = ROOT / 'models' / name
  common.write(folder / 'model.hlo.pb', common.hlo(o.lowered))
  params, inputs, dropped = o.flat()
  common.save_tensors(folder / 'params.safetensors', params)
  common.save_tensors(folder / 'inputs.safetensors', {str(i): x for i, x in enumerate(inputs)})
  common.save_tensors(folder / 'float.safetensors', {str(i): x for i, x in enumerate(o.outputs)})
  sites = []
  meta = dict(kind=m.kind, note=m.note, dropped=dropped)
  skip = [dict(module_path=m.skip)] if getattr(m, 'skip', '') else []
  try:
    o.quantize([*skip, dict(weight_qtype='int8', act_qtype='int8')], sites)
  except Exception as e:  # pylint: disable=broad-except
    meta['qwix_refuses'] = f'{type(e).__name__}: {e}'.splitlines()[0][:300]
  meta['sites'] = [s for s in sites if s['lhs'] is not True and s['rhs'] is not True]
  common.save_json(folder / 'meta.json', meta)

  for _, rules_name, rules, compat in cases:
    folder = ROOT / 'cases' / f'{name}__{rules_name}'
    info = dict(model=name)
    twin = getattr(m, 'twin', None) is not None and m.kind == 'linen' and not compat
    wide = False
    try:
      try:
        qparams, outputs = o.quantize(rules, twin=twin)
      except jax.errors.JaxRuntimeError as e:
        if 'custom element sizes' not in str(e):
          raise
        wide = True
        qparams, outputs = o.quantize(rules, twin=twin, wide=True)
    except Exception as e:  # pylint: disable=broad-except
      print(f'{name}__{rules_name}: Qwix refuses: {type(e).__name__}: {e}')
      info['qwix_refuses'] = f'{type(e).__name__}: {e}'.splitlines()[0][:300]
      common.save_json(folder / 'rules.json', rules)
      common.save_json(folder / 'case.json', info)
      continue
    if compat:
      info['qwix_compat'] = True
    # How far Qwix is from itself when its inputs move by one unit in the last place.
    nudged = [x if not jnp.issubdtype(x.dtype, jnp.floating) else jnp.nextafter(x, jnp.asarray(jnp.inf, x.dtype))
              for x in jax.tree.leaves(m.inputs)]
    nudged = jax.tree.unflatten(jax.tree.structure(m.inputs), nudged)
    noise = max(relative(a, b) for a, b in zip(jax.tree.leaves(o.run(*nudged)), outputs))
    narrow = any(x.dtype in (jnp.bfloat16, jnp.float16) for x in o.outputs)
    ties = any('act_qtype' in r and ',0.' not in r.get('act_calibration_method', '') for r in rules)
    info['comparison'] = 'cosine' if ties and (m.deep or noise > 1e-5 or narrow) else 'exact'
    info['noise_nudged'] = float('%.2g' % noise)
    if info['comparison'] == 'cosine':
      info['noise_cosine'], info['noise_norms'] = self_noise(o, outputs)
    info['error'] = float('%.3g' % max(relative(a, b) for a, b in zip(outputs, o.outputs)))
    notes = []
    if wide:
      notes.append('XLA:CPU does not multiply 4-bit arrays by 4-bit arrays; the qvalues were widened to 8 bits, which is exact')
    if twin:
      notes.append('Qwix cannot do this as it is written; these are its numbers for the same arithmetic written apart')
    for i, (a, b) in enumerate(zip(outputs, o.outputs)):
      if a.dtype != b.dtype:
        notes.append(f'output {i}: Qwix returns {a.dtype}, the float model says {b.dtype}')
      if not bool(jnp.isfinite(a.astype(jnp.float32)).all()):
        notes.append(f'output {i}: not finite')
    if notes:
      info['notes'] = notes
    if o.unused:
      info['unused_rules'] = o.unused
    common.save_json(folder / 'rules.json', rules)
    common.save_json(folder / 'case.json', info)
    common.save_tensors(
        folder / 'expected.safetensors',
        {**qparams, **{f'out/{i}': x for i, x in enumerate(outputs)}})
