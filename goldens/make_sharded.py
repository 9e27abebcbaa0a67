"""Models whose parameters and inputs JAX spreads over 4 and 8 devices, and what they give."""

import os

import common
from common import ROOT, jax, jnp, np, rng
import flax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

MODELS = {}


def model(fn):
  MODELS[fn.__name__] = fn
  return fn


def constrain(x, *spec):
  """Only where there is a mesh: parameters are made without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(*spec))


class Mlp(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(64)(x))
    x = constrain(x, 'data', 'model')
    x = nn.relu(nn.Dense(64)(x))
    # The second axis is the partitioner's choice.
    x = constrain(x, 'data', P.UNCONSTRAINED)
    return nn.Dense(16)(x)


class Block(nn.Module):
  heads: int = 8
  size: int = 4

  @nn.compact
  def __call__(self, x, mask):
    d = x.shape[-1]
    dense = lambda name: nn.DenseGeneral((self.heads, self.size), use_bias=False, name=name)
    h = nn.LayerNorm()(x)
    q, k, v = dense('query')(h), dense('key')(h), dense('value')(h)
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) / self.size**0.5
    weights = nn.softmax(jnp.where(mask, scores, -1e9))
    h = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    h = constrain(h, 'data', None, 'model', None)
    x = x + nn.DenseGeneral(d, axis=(-2, -1), use_bias=False, name='out')(h)
    h = nn.gelu(nn.Dense(64, name='up')(nn.LayerNorm()(x)))
    return x + nn.Dense(d, name='down')(h)


class Decoder(nn.Module):

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(64, 32)
    x = embed(tokens) + self.param('positions', nn.initializers.normal(0.2), (tokens.shape[1], 32))
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    x = Block()(x, mask)
    # The table again, transposed and constrained.
    table = constrain(self.variables['params']['Embed_0']['embedding'], 'model', None)
    return nn.LayerNorm()(x) @ table.T


@model
def mlp():
  x = jnp.asarray(rng('sharded', 'mlp').standard_normal((8, 32)), jnp.float32)
  # No out_shardings: the result is gathered.
  return Mlp(), x, None


class Stack:
  """Layers in one array, of which a loop takes one at a time."""

  def init(self, key, x):
    return {'params': {'layers': {'kernel': 0.2 * jax.random.normal(key, (3, 32, 32))}}}

  def apply(self, variables, x):

    def body(h, kernel):
      return constrain(nn.tanh(h @ kernel), 'data', None), None

    return jax.lax.scan(body, x, variables['params']['layers']['kernel'])[0]


@model
def stack():
  x = jnp.asarray(rng('sharded', 'stack').standard_normal((8, 32)), jnp.float32)
  return Stack(), x, P('data')


@model
def decoder():
  tokens = jnp.asarray(rng('sharded', 'decoder').randint(0, 64, (8, 6)), jnp.int32)
  return Decoder(), tokens, P('data', None, 'model')


def tensor_parallel(path):
  """Megatron's way: what widens is spread by its columns, what narrows by its rows."""
  return {
      'Dense_0/kernel': P(None, 'model'),
      'Dense_0/bias': P('model'),
      'Dense_1/kernel': P('model', None),
      'Dense_2/kernel': P(None, 'model'),
      'layers/kernel': P(None, None, 'model'),
      'Embed_0/embedding': P('model', None),
      'Block_0/query/kernel': P(None, 'model', None),
      'Block_0/key/kernel': P(None, 'model', None),
      'Block_0/value/kernel': P(None, 'model', None),
      'Block_0/out/kernel': P('model', None, None),
      'Block_0/up/kernel': P(None, 'model'),
      'Block_0/up/bias': P('model'),
      'Block_0/down/kernel': P('model', None),
  }.get('/'.join(path[1:]), P())


# Of a name, the sizes of the axes `data` and `model`.
MESHES = {
    'tp4': (1, 4), 'tp8': (1, 8), 'dp4': (4, 1), 'dp8': (8, 1), 'both8': (2, 4), 'gspmd8': (2, 4),
}


def make(name):
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
  module, x, out = MODELS[name]()
  variables = module.init(jax.random.key(0), x)
  flat = {
      k: v + jnp.asarray(0.1 * rng(name, *k).standard_normal(v.shape), v.dtype)
      for k, v in flax.traverse_util.flatten_dict(variables).items()
  }
  variables = flax.traverse_util.unflatten_dict(flat)
  folder = ROOT / 'sharded' / name
  common.save_tensors(folder / 'params.safetensors', {'/'.join(k[1:]): v for k, v in flat.items()})
  common.save_tensors(folder / 'inputs.safetensors', {'0': x})
  expected = jax.jit(module.apply)(variables, x)
  common.save_tensors(folder / 'float.safetensors', {'0': expected})
  for spread, shape in MESHES.items():
    jax.config.update('jax_use_shardy_partitioner', spread != 'gspmd8')
    mesh = Mesh(np.array(jax.devices()[:np.prod(shape)]).reshape(shape), ('data', 'model'))
    to = lambda spec: NamedSharding(mesh, spec)
    params = flax.traverse_util.unflatten_dict({k: to(tensor_parallel(k)) for k in flat})
    with jax.set_mesh(mesh):
      fn = jax.jit(module.apply, in_shardings=(params, to(P('data'))), out_shardings=out and to(out))
      args = jax.device_put(variables, params), jax.device_put(x, to(P('data')))
      lowered = fn.lower(*args)
      found = fn(*args)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    common.write(folder / f'{spread}.hlo.pb', common.hlo(lowered))
