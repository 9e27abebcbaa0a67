"""What Flax's initializers give: one by one, and in a model of many layers."""

import common
from common import ROOT, jax, jnp, np
import flax
from flax import linen as nn

I = nn.initializers
OUT = ROOT / 'init'

# name -> how it is made, and the shapes and dtypes to make it in
INITIALIZERS = {
    'zeros': I.zeros,
    'ones': I.ones,
    'constant': I.constant(0.3),
    'uniform': I.uniform(0.2),
    'normal': I.normal(0.05),
    'truncated_normal': I.truncated_normal(0.7, lower=-1.5, upper=2.5),
    'lecun_normal': I.lecun_normal(),
    'lecun_uniform': I.lecun_uniform(),
    'he_normal': I.he_normal(),
    'he_uniform': I.he_uniform(),
    'xavier_normal': I.xavier_normal(),
    'xavier_uniform': I.xavier_uniform(),
    'embedding': nn.linear.default_embed_init,
    'geometric': I.variance_scaling(0.5, 'fan_geo_avg', 'truncated_normal'),
    'fan_out': I.variance_scaling(3.0, 'fan_out', 'normal', in_axis=(0, 1), out_axis=2),
}
SHAPES = [(16, 24), (3, 5, 8)]


class Block(nn.Module):
  """Named and counted submodules, one of them called twice."""

  @nn.compact
  def __call__(self, x):
    shared = nn.Dense(6, name='shared')
    x = shared(nn.LayerNorm()(x))
    x = shared(nn.relu(x))
    w = self.param('w', I.xavier_uniform(), (6, 6))
    x = jnp.dot(x, w) + self.param('b', I.normal(0.5), (6,))
    return nn.Dense(6)(x)


class Zoo(nn.Module):

  @nn.compact
  def __call__(self, tokens, image):
    embed = nn.Embed(11, 6)
    x = embed(tokens)
    x = Block()(x)
    x = Block(name='named')(x)
    x = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6, use_bias=False)])(x)
    x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, normalize_qk=True)(x)
    x = nn.DenseGeneral((2, 3), axis=(-1,), batch_dims=(0,), bias_init=I.normal(0.1))(x)
    x = nn.DenseGeneral(6, axis=(-2, -1), name='joined')(x)
    x = nn.Einsum((6, 2, 4), 'bsd,dhk->bshk')(x)
    x = nn.RMSNorm()(x)
    y = nn.Conv(4, (3, 3), feature_group_count=2)(image)
    y = nn.BatchNorm(use_running_average=True)(y)
    y = nn.Conv(3, (2,), param_dtype=jnp.bfloat16, padding='VALID')(y.reshape(2, 16, 4))
    return embed.attend(nn.Dense(6)(x.reshape(2, 3, 8))), y


def make():
  values, cases = {}, []
  for name, init in INITIALIZERS.items():
    for shape in SHAPES:
      if name == 'fan_out' and len(shape) == 2:
        continue
      for dtype in ('float32', 'bfloat16', 'float16'):
        key = f'{len(cases)}'
        values[key] = init(jax.random.key(42 + len(cases)), shape, jnp.dtype(dtype))
        cases.append(dict(initializer=name, seed=42 + len(cases), shape=list(shape), dtype=dtype))
  common.save_json(OUT / 'initializers.json', dict(cases=cases))
  common.save_tensors(OUT / 'initializers.safetensors', values)

  key = jax.random.key(3_000_000_007)
  keys = {'key': key, 'fold_in': jax.random.fold_in(key, 77)}
  keys.update({f'split/{i}': k for i, k in enumerate(jax.random.split(key, 3))})
  keys['uniform'] = jax.random.uniform(key, (7,), minval=-0.3, maxval=0.9)
  common.save_tensors(OUT / 'random.safetensors', keys)

  tokens, image = jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 4, 4, 2))
  variables = Zoo().init(jax.random.key(5), tokens, image)
  flat = flax.traverse_util.flatten_dict(variables, sep='/')
  common.save_tensors(OUT / 'zoo.safetensors', flat)
