"""What JAX and Flax say about layers, functions and a cache, for models written in Rust."""

import common
from common import ROOT, jax, jnp, np, rng
import flax
from flax import linen as nn

MODELS = {}


def model(fn):
  MODELS[fn.__name__] = fn
  return fn


def normal(*shape, name='x', scale=1.0, dtype=jnp.float32):
  return jnp.asarray(scale * rng('nn', name, *shape).standard_normal(shape), dtype)


def integers(low, high, *shape, name='i', dtype=jnp.int32):
  return jnp.asarray(rng('nn', name, *shape).randint(low, high, shape), dtype)


# Each function returns f, its variables (None for a function without) and its inputs; or a module and its inputs.


@model
def activations():

  def f(x):
    return (
        nn.relu(x), nn.relu6(x), nn.gelu(x), nn.gelu(x, approximate=False), nn.silu(x), nn.sigmoid(x),
        nn.tanh(x), nn.elu(x), nn.elu(x, 0.7), nn.celu(x), nn.celu(x, 1.5), nn.selu(x), nn.leaky_relu(x),
        nn.leaky_relu(x, 0.2), nn.softplus(x), nn.log_sigmoid(x), nn.soft_sign(x), nn.hard_tanh(x),
        nn.hard_sigmoid(x), nn.hard_silu(x), nn.glu(x), nn.softmax(x), nn.softmax(x, axis=0),
        nn.log_softmax(x), nn.logsumexp(x, axis=-1))

  x = np.array(normal(6, 8, name='activations', scale=3.0))
  x[0, :6] = [0.0, -0.0, 100.0, -100.0, 1e-4, -1e-4]
  return f, None, (jnp.asarray(x),)


@model
def activations_bf16():
  f, _, (x,) = activations()
  return f, None, (x.astype(jnp.bfloat16),)


class Layers(nn.Module):

  @nn.compact
  def __call__(self, image, x, tokens):
    bf16 = jnp.bfloat16
    conv = lambda *a, **kw: nn.Conv(4, *a, **kw)
    return (
        conv((3, 3), padding='CIRCULAR')(image),
        conv((3, 2), padding='REFLECT', strides=(2, 1))(image),
        conv((3, 3), padding='VALID', kernel_dilation=2, use_bias=False)(image),
        conv((2, 3), padding='SAME', strides=(3, 2))(image),
        conv((3, 3), padding=((1, 2), (0, 1)), input_dilation=(2, 1))(image),
        conv((3,), padding='CAUSAL', kernel_dilation=2)(x),
        conv((3,))(x[0]),
        conv((2,), feature_group_count=2, dtype=bf16)(x[None]),
        nn.ConvTranspose(3, (3, 2), strides=(2, 3), padding='VALID', use_bias=False)(image),
        nn.ConvTranspose(3, (2, 3), strides=(3, 1), kernel_dilation=(1, 2), transpose_kernel=True)(image),
        nn.ConvTranspose(3, (4,), padding=((1, 2),))(x),
        nn.max_pool(image, (3, 2), strides=(2, 2), padding='SAME'),
        nn.pooling.min_pool(image, (2, 2), padding=((1, 0), (0, 1))),
        nn.avg_pool(image, (3, 3), strides=(2, 2), padding='SAME', count_include_pad=False),
        nn.avg_pool(image, (2, 3), strides=(1, 2), padding='SAME'),
        nn.LayerNorm(use_fast_variance=False, epsilon=1e-3)(x),
        nn.LayerNorm(use_bias=False, reduction_axes=(-2, -1), feature_axes=(-2, -1))(x),
        nn.LayerNorm(use_scale=False, dtype=bf16)(x),
        nn.LayerNorm()(x.astype(bf16)),
        nn.RMSNorm(use_scale=False)(x),
        nn.RMSNorm(param_dtype=bf16, dtype=bf16)(x),
        nn.BatchNorm(use_running_average=True, axis=1, use_scale=False)(image),
        nn.BatchNorm(use_running_average=True, dtype=bf16)(image),
        nn.Dense(5, dtype=bf16)(x),
        nn.Dense(5, use_bias=False)(x[0, 0]),
        nn.DenseGeneral((2, 3), axis=(1, -1))(image),
        nn.DenseGeneral(3, axis=-1, batch_dims=(0,))(x),
        nn.DenseGeneral((3,), axis=(-2, -1), use_bias=False)(image),
        nn.Einsum((6, 2, 4), '...d,dhk->...hk')(x),
        nn.Einsum((2, 6, 4), 'bsd,hdk->bhsk')(x),
        nn.Embed(7, 4)(tokens),
        nn.Embed(1, 4)(tokens),
        nn.Embed(7, 4, dtype=bf16)(tokens),
        nn.MultiHeadDotProductAttention(3, qkv_features=12, out_features=5, use_bias=False)(x, x[:, :2]),
        nn.MultiHeadDotProductAttention(2, normalize_qk=True)(x, mask=nn.make_causal_mask(x[..., 0])),
        nn.MultiHeadDotProductAttention(2, dtype=bf16)(x),
        nn.MultiHeadDotProductAttention(2, dtype=bf16, force_fp32_for_softmax=True)(x, x, x + 1.0),
        nn.Dropout(0.5, deterministic=True)(x),
    )


@model
def layers():
  inputs = (normal(2, 7, 6, 4, name='image'), normal(2, 5, 6), jnp.array([[0, 6, -1], [7, 3, -8]]))
  return Layers(), inputs


@model
def functions():

  def f(x, y, i, u, b):
    p = x > 0
    return (
        jnp.where(p, x, y), jnp.where(p, 1.0, x), jnp.where(p, 2, 3), p & (y < 1), ~p | (y >= 2), p ^ (x != y),
        x + i[:4, :1], i // 3, i // -2, i % 4 == 0, jnp.mod(i, 4), jax.lax.rem(i, 4), i / 2, x / i[0, 0], 2 / y, 3 - i, -i,
        x ** 2.5, 10000.0 ** x, jnp.clip(x, -0.5, 0.5), jnp.maximum(x, y), jnp.minimum(x, 0),
        jnp.take(x, i, axis=1), jnp.take(i, i, axis=0), jnp.take_along_axis(x, i[:4, :2] % 6, axis=1),
        x[1], x[:, -1], x[:, 1:5:2], x[::-1],
        jnp.cumsum(x, axis=1), jnp.cumsum(i, axis=0), jnp.argmax(x, axis=-1), jnp.argmin(x, axis=0), jnp.argmax(i, axis=1),
        *jax.lax.top_k(x, 3), jax.nn.one_hot(i, 5), jax.nn.one_hot(i, 5, dtype=jnp.bfloat16),
        x.sum(), x.sum(0), x.mean(-1), x.mean(-1, keepdims=True), i.mean(), x.var(-1, ddof=0), x.max(0), x.min(-1, keepdims=True),
        i.max(), x.prod(-1), p.all(-1), p.any(0), p.sum(), b.sum(-1), b.mean(), b.max(-1),
        jnp.concatenate([x, y, i[:4, :2]], axis=1), jnp.stack([x, y], axis=1), jnp.pad(x, ((1, 0), (0, 2)), constant_values=3.0),
        jnp.tril(x), jnp.tril(x, 1), jnp.matmul(u, x.T), jnp.matmul(u[:, None], u.swapaxes(1, 2)), jnp.dot(x, y[0]),
        jnp.dot(u, u[0].T), jnp.einsum('ij,kj', x, y), jnp.einsum('aij,ij->a', u[:, :3], x[:3]),
        jnp.einsum('aij,kj->ki', u, x), jnp.einsum('aij,abj->bi', u[:, :1], u), jnp.einsum('...j,kj->...k', u, x),
        x + b, b * 2, b / 3, x.astype(jnp.int32), i.astype(bool), p.astype(jnp.bfloat16) + b,
        jnp.exp(x), jnp.expm1(x), jnp.log(jnp.abs(x)), jnp.log1p(jnp.abs(x)), jnp.sqrt(jnp.abs(x)), jax.lax.rsqrt(jnp.abs(x)),
        jnp.sin(x), jnp.cos(x), jnp.tanh(x), jax.lax.erf(x), jnp.floor(x), jnp.ceil(x), jnp.round(x * 4) / 4, jnp.sign(x), jnp.abs(i),
        jnp.cbrt(x), jnp.isfinite(x / 0), jnp.square(x), jnp.square(i), jnp.full((2, 3), 7), jnp.arange(5, dtype=jnp.float32),
        jax.lax.dynamic_slice(x, (i[0, 0], 1), (2, 3)), jax.lax.dynamic_update_slice(x, y[:2, :2], (1, i[0, 1])),
        x.reshape(2, 2, 6), u.reshape(2, 24), u.transpose(2, 0, 1), jnp.expand_dims(x, -1), x[None, :1].squeeze(1),
        jnp.broadcast_to(x[:, :1], (3, 4, 6)), jnp.equal(i, 2), jnp.less_equal(x, y), *jnp.split(x, 3, axis=1),
    )

  return f, None, (normal(4, 6), normal(4, 6, name='y'), integers(-3, 6, 5, 6), normal(2, 4, 6, name='u'),
                   normal(4, 6, name='b', dtype=jnp.bfloat16))


class Decoder(nn.Module):
  """One token a call; Flax keeps keys, values and the position in the collection `cache`."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(13, 8)(tokens)
    for _ in range(2):
      h = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)(nn.LayerNorm()(x))
      x = x + h
      x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
    return nn.Dense(13)(x)


@model
def decode():
  module, prompt = Decoder(), integers(0, 13, 2, 4, name='prompt')
  # Initialised with all positions at once, the cache has that length.
  variables = module.init(jax.random.key(3), jnp.zeros((2, 6), jnp.int32))
  params, cache = shaken(variables['params']), variables['cache']

  def f(variables, cache, tokens):
    logits, new = module.apply({**variables, 'cache': cache}, tokens, mutable=['cache'])
    return logits, new['cache']

  for n in range(3):
    _, cache = f({'params': params}, cache, prompt[:, n:n + 1])
  return f, {'params': params}, (cache, prompt[:, 3:4])


def shaken(tree):
  """Biases and norms that are not all zero or one."""
  flat = flax.traverse_util.flatten_dict(tree)
  for path, x in flat.items():
    if path[-1] in ('bias', 'scale', 'mean', 'var'):
      noise = rng('nn', *path).standard_normal(x.shape)
      start = 1 + 0.2 * np.abs(noise) if path[-1] in ('scale', 'var') else 0.1 * noise
      flat[path] = jnp.asarray(start, x.dtype)
  return flax.traverse_util.unflatten_dict(flat)


def make(name):
  f, *rest = MODELS[name]()
  if isinstance(f, nn.Module):
    module, (inputs,) = f, rest
    variables = shaken(module.init(jax.random.key(1), *inputs))
    f = module.apply
  else:
    variables, inputs = rest
  args = inputs if variables is None else (variables, *inputs)
  fn = jax.jit(f)
  folder = ROOT / 'nn' / name
  common.write(folder / 'model.hlo.pb', common.hlo(fn.lower(*args)))
  flat = flax.traverse_util.flatten_dict(variables or {})
  common.save_tensors(folder / 'params.safetensors', {'/'.join(k[1:]): v for k, v in flat.items()})
  numbered = lambda tree: {str(i): x for i, x in enumerate(jax.tree.leaves(tree))}
  common.save_tensors(folder / 'inputs.safetensors', numbered(inputs))
  common.save_tensors(folder / 'float.safetensors', numbered(fn(*args)))
