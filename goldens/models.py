"""The models: tiny, one for each way of writing that a user may choose.

`MODELS` maps a name to a function that returns a `Linen`, an `Nnx` or a `Raw`.
"""

import dataclasses
import functools
from typing import Any, Callable

from common import jax, jnp, np, rng
from flax import linen as nn
from flax import nnx

MODELS: dict[str, Callable[[], Any]] = {}


def model(fn):
  MODELS[fn.__name__] = fn
  return fn


@dataclasses.dataclass
class Linen:
  module: Any
  inputs: tuple
  # Several layers with norms and attention between them: rounding ties turn.
  deep: bool = False
  note: str = ''
  # Modules that Qwix cannot quantize: left out when sites are listed.
  skip: str = ''
  # With stack frames in the metadata, as JAX writes by default.
  traces: bool = False
  # Where Qwix cannot do the model as it is written: the same arithmetic in a
  # way that it can, the way from our parameters to the twin's, and back from
  # the twin's quantized parameters.
  twin: Any = None
  to_twin: Callable[[dict], dict] = lambda p: p
  from_twin: Callable[[dict], dict] = lambda p: p
  kind = 'linen'


@dataclasses.dataclass
class Nnx:
  module: Callable[[], Any]
  inputs: tuple
  deep: bool = False
  note: str = ''
  kind = 'nnx'


@dataclasses.dataclass
class Raw:
  """A function of a pytree; `twin` says the same thing to Qwix in Linen."""

  fn: Callable[..., Any]
  twin: Any
  inputs: tuple
  deep: bool = False
  note: str = ''
  kind = 'raw'


def normal(*shape, name='x', dtype=np.float32):
  return jnp.asarray(rng(name, *shape).standard_normal(shape), dtype)


def integers(high, *shape, name='i'):
  return jnp.asarray(rng(name, *shape).randint(0, high, shape), jnp.int32)


# --- multi-layer perceptrons -------------------------------------------------


class Mlp(nn.Module):
  features: tuple = (32, 32, 8)
  dtype: Any = None
  param_dtype: Any = jnp.float32
  act: Callable = nn.relu

  @nn.compact
  def __call__(self, x):
    for i, f in enumerate(self.features):
      if i:
        x = self.act(x)
      x = nn.Dense(f, dtype=self.dtype, param_dtype=self.param_dtype)(x)
    return x


@model
def linen_mlp():
  return Linen(Mlp(), (normal(4, 16),))


@model
def linen_mlp_traced():
  return Linen(Mlp((8, 4)), (normal(2, 6),), traces=True, note='with stack frames in the metadata, as JAX writes by default')


@model
def linen_mlp_wide():
  return Linen(Mlp((16, 8)), (normal(3, 256),), note='K = 256: two tiles of 128')


@model
def linen_mlp_64():
  return Linen(Mlp((64, 32, 8)), (normal(4, 64),), note='every K is a multiple of 32')


@model
def linen_mlp_64_bf16():
  return Linen(Mlp((64, 32, 8), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
               (normal(4, 64, dtype=jnp.bfloat16),), note='the same in bf16')


@model
def linen_mlp_bf16():
  return Linen(Mlp(dtype=jnp.bfloat16), (normal(4, 16),), note='bf16 compute, f32 parameters')


@model
def linen_mlp_bf16_params():
  return Linen(
      Mlp(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
      (normal(4, 16, dtype=jnp.bfloat16),), note='everything in bf16')


@model
def linen_mlp_f16():
  return Linen(
      Mlp(dtype=jnp.float16, param_dtype=jnp.float16), (normal(4, 16, dtype=jnp.float16),),
      note='everything in f16')


@model
def linen_mlp_3d():
  return Linen(Mlp((32, 16), act=nn.gelu), (normal(2, 3, 16),), note='batch and position; GELU (tanh)')


class NnxBlock(nnx.Module):

  def __init__(self, din, dout, rngs):
    self.lin = nnx.Linear(din, dout, rngs=rngs)

  def __call__(self, x):
    return jax.nn.relu(self.lin(x))


class NnxMlp(nnx.Module):

  def __init__(self, rngs):
    self.layers = nnx.List([NnxBlock(16, 32, rngs), NnxBlock(32, 32, rngs)])
    self.out = nnx.Linear(32, 8, use_bias=False, rngs=rngs)

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.out(x)


@model
def nnx_mlp():
  return Nnx(lambda: NnxMlp(nnx.Rngs(0)), (normal(4, 16),))


# --- convolutions ------------------------------------------------------------


class Cnn(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), strides=(2, 2), padding='SAME')(x)
    x = nn.BatchNorm(use_running_average=True)(x)
    x = nn.relu(x)
    x = nn.Conv(8, (3, 3), kernel_dilation=(2, 2), padding='SAME')(x)
    x = nn.relu(x)
    x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = nn.Conv(16, (3, 3), feature_group_count=2, padding='SAME', use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=True, use_bias=False)(x)
    x = nn.relu(x)
    x = nn.Conv(16, (3, 3), feature_group_count=16, padding=((1, 0), (0, 1)), name='depthwise')(x)
    x = nn.swish(x)
    x = nn.avg_pool(x, (2, 2), strides=(1, 1), padding='SAME')
    x = x.reshape((x.shape[0], -1))
    return nn.Dense(10)(x)


@model
def linen_cnn():
  return Linen(Cnn(), (normal(2, 12, 12, 3),),
               note='strides, SAME, dilation, groups, depthwise, max and mean pooling, batch norm')


class NnxCnn(nnx.Module):

  def __init__(self, rngs):
    self.conv1 = nnx.Conv(1, 6, (3, 3), padding='VALID', rngs=rngs)
    self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
    self.conv2 = nnx.Conv(6, 8, (3, 3), strides=2, rngs=rngs)
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv1(x)))
    x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
    x = nnx.relu(self.conv2(x))
    return self.head(x.mean(axis=(1, 2)))


@model
def nnx_cnn():
  return Nnx(lambda: NnxCnn(nnx.Rngs(1)), (normal(2, 10, 10, 1),))


class Conv1d(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Conv(12, (5,), padding='CAUSAL')(x), approximate=False)
    x = nn.ConvTranspose(8, (4,), strides=(2,))(x)
    x = nn.tanh(x)
    return nn.Conv(4, (3,), padding='CIRCULAR')(x)


@model
def linen_conv1d():
  return Linen(Conv1d(), (normal(2, 16, 6),), note='causal, transposed (lhs dilation), circular; exact GELU')


# --- transformers ------------------------------------------------------------


class EinsumAttention(nn.Module):
  heads: int = 2
  dim: int = 8

  @nn.compact
  def __call__(self, x):
    d, shape = x.shape[-1], (x.shape[-1], self.heads, self.dim)
    init = nn.initializers.lecun_normal()
    q = jnp.einsum('bsd,dhk->bshk', x, self.param('wq', init, shape))
    k = jnp.einsum('bsd,dhk->bshk', x, self.param('wk', init, shape))
    v = jnp.einsum('bsd,dhk->bshk', x, self.param('wv', init, shape))
    logits = jnp.einsum('bqhk,bthk->bhqt', q, k) * self.dim ** -0.5
    probs = jax.nn.softmax(logits, axis=-1)
    o = jnp.einsum('bhqt,bthk->bqhk', probs, v)
    return jnp.einsum('bqhk,hkd->bqd', o, self.param('wo', init, (self.heads, self.dim, d)))


class EinsumEncoder(nn.Module):
  layers: int = 2

  @nn.compact
  def __call__(self, x):
    for i in range(self.layers):
      x = x + EinsumAttention(name=f'attn_{i}')(nn.LayerNorm(name=f'ln1_{i}')(x))
      h = nn.LayerNorm(name=f'ln2_{i}')(x)
      h = nn.Dense(32, name=f'up_{i}')(h)
      x = x + nn.Dense(16, name=f'down_{i}')(nn.gelu(h))
    return x


@model
def encoder_einsum():
  return Linen(EinsumEncoder(), (normal(2, 5, 16),), deep=True)


class MhaEncoder(nn.Module):
  layers: int = 2
  dtype: Any = None

  @nn.compact
  def __call__(self, tokens, lengths):
    x = nn.Embed(40, 16, dtype=self.dtype)(tokens)
    x = x + nn.Embed(12, 16, dtype=self.dtype, name='positions')(jnp.arange(tokens.shape[1]))
    valid = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    mask = nn.make_attention_mask(valid, valid)
    for _ in range(self.layers):
      h = nn.MultiHeadDotProductAttention(num_heads=2, dtype=self.dtype)(x, x, mask=mask)
      x = nn.LayerNorm(dtype=self.dtype)(x + h)
      h = nn.gelu(nn.Dense(32, dtype=self.dtype)(x), approximate=False)
      x = nn.LayerNorm(dtype=self.dtype)(x + nn.Dense(16, dtype=self.dtype)(h))
    return x, nn.tanh(nn.Dense(16, dtype=self.dtype, name='pooler')(x[:, 0]))


@model
def encoder_mha():
  return Linen(MhaEncoder(), (integers(40, 2, 6), jnp.array([6, 4])), deep=True,
               note='a BERT: MultiHeadDotProductAttention, mask, exact GELU; ids and lengths in')


@model
def encoder_mha_bf16():
  return Linen(MhaEncoder(layers=1, dtype=jnp.bfloat16), (integers(40, 2, 6), jnp.array([6, 4])),
               deep=True, note='bf16 compute, f32 parameters')


def rotary(x, positions):
  half = x.shape[-1] // 2
  angles = positions[:, None] * 10000.0 ** (-jnp.arange(half) / half)
  sin, cos = jnp.sin(angles)[None, :, None, :], jnp.cos(angles)[None, :, None, :]
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class DecoderAttention(nn.Module):
  heads: int = 4
  kv_heads: int = 2
  dim: int = 8

  @nn.compact
  def __call__(self, x, cache_k, cache_v, index):
    b, s, d = x.shape
    q = nn.DenseGeneral((self.heads, self.dim), use_bias=False, name='q')(x)
    k = nn.DenseGeneral((self.kv_heads, self.dim), use_bias=False, name='k')(x)
    v = nn.DenseGeneral((self.kv_heads, self.dim), use_bias=False, name='v')(x)
    positions = index + jnp.arange(s)
    q, k = rotary(q, positions), rotary(k, positions)
    cache_k = jax.lax.dynamic_update_slice(cache_k, k, (0, index, 0, 0))
    cache_v = jax.lax.dynamic_update_slice(cache_v, v, (0, index, 0, 0))
    q = q.reshape(b, s, self.kv_heads, self.heads // self.kv_heads, self.dim)
    logits = jnp.einsum('bsngk,btnk->bngst', q, cache_k) / np.sqrt(self.dim).astype(np.float32)
    causal = jnp.arange(cache_k.shape[1])[None, :] <= positions[:, None]
    logits = jnp.where(causal, logits, -1e30)
    o = jnp.einsum('bngst,btnk->bsngk', jax.nn.softmax(logits), cache_v)
    o = o.reshape(b, s, self.heads, self.dim)
    return nn.DenseGeneral(d, axis=(-2, -1), use_bias=False, name='o')(o), cache_k, cache_v


class SwiGlu(nn.Module):

  @nn.compact
  def __call__(self, x):
    gate = nn.Dense(32, use_bias=False, name='gate')(x)
    up = nn.Dense(32, use_bias=False, name='up')(x)
    return nn.Dense(x.shape[-1], use_bias=False, name='down')(nn.silu(gate) * up)


class Decoder(nn.Module):
  layers: int = 2

  @nn.compact
  def __call__(self, tokens, cache, index):
    embed = nn.Embed(24, 16, name='embedder')
    x = embed(tokens) * 4.0
    new = []
    for i in range(self.layers):
      h = nn.RMSNorm(name=f'attn_norm_{i}')(x)
      h, ck, cv = DecoderAttention(name=f'attn_{i}')(h, cache[i]['k'], cache[i]['v'], index)
      new.append({'k': ck, 'v': cv})
      x = x + h
      x = x + SwiGlu(name=f'mlp_{i}')(nn.RMSNorm(name=f'mlp_norm_{i}')(x))
    x = nn.RMSNorm(name='final_norm')(x)
    return embed.attend(x), new


def decoder_inputs(s, index):
  cache = [
      {n: normal(1, 8, 2, 8, name=f'{n}{i}') * (jnp.arange(8) < index)[None, :, None, None] for n in 'kv'}
      for i in range(2)
  ]
  return integers(24, 1, s), cache, jnp.int32(index)


@model
def decoder_prefill():
  return Linen(Decoder(), decoder_inputs(5, 0), deep=True,
               note='rotary, RMSNorm, SwiGLU, grouped queries, KV cache, tied logits; five tokens',
               skip='embedder')


@model
def decoder_step():
  return Linen(Decoder(), decoder_inputs(1, 4), deep=True, note='the same, one token at position 4',
               skip='embedder')


class NnxEncoder(nnx.Module):

  def __init__(self, rngs):
    self.embed = nnx.Embed(20, 16, rngs=rngs)
    self.attn = nnx.MultiHeadAttention(num_heads=2, in_features=16, decode=False, rngs=rngs)
    self.norm1 = nnx.LayerNorm(16, rngs=rngs)
    self.norm2 = nnx.RMSNorm(16, rngs=rngs)
    self.up = nnx.Linear(16, 32, rngs=rngs)
    self.down = nnx.Linear(32, 16, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.down(nnx.gelu(self.up(x))))


@model
def nnx_encoder():
  return Nnx(lambda: NnxEncoder(nnx.Rngs(2)), (integers(20, 2, 5),), deep=True)


def unstack(names, n):
  """Splits the leading axis of params[name] into name_0, name_1, …"""

  def split(params):
    out = {k: v for k, v in params.items() if k not in names}
    for name in names:
      for i in range(n):
        out[f'{name}_{i}'] = jax.tree.map(lambda x: x[i], params[name])
    return out

  return split


def stack(names, n):
  """The way back, on a flat dict of quantized parameters."""

  def join(flat):
    out = dict(flat)
    for name in names:
      for key in [k for k in flat if k.split('/')[0] == f'{name}_0']:
        rest = key[len(f'{name}_0'):]
        out[name + rest] = jnp.stack([out.pop(f'{name}_{i}{rest}') for i in range(n)])
    return out

  return join


# --- mixture of experts ------------------------------------------------------


class Moe(nn.Module):
  experts: int = 4
  top: int = 2

  @nn.compact
  def __call__(self, x):
    d, e, f = x.shape[-1], self.experts, 24
    init = nn.initializers.lecun_normal()
    probs = jax.nn.softmax(nn.Dense(e, use_bias=False, name='router')(x))
    weights, chosen = jax.lax.top_k(probs, self.top)
    weights = weights / weights.sum(-1, keepdims=True)
    hot = jax.nn.one_hot(chosen, e)
    dispatch = hot.sum(-2)
    combine = jnp.einsum('tk,tke->te', weights, hot)
    xe = jnp.einsum('te,td->etd', dispatch, x)
    h = jnp.einsum('etd,edf->etf', xe, self.param('up', init, (e, d, f)))
    y = jnp.einsum('etf,efd->etd', nn.relu(h), self.param('down', init, (e, f, d)))
    return jnp.einsum('etd,te->td', y, combine)


@model
def moe():
  return Linen(Moe(), (normal(6, 16),), deep=True, note='top_k, one-hot dispatch and combination by einsum')


# --- loops, branches, transforms ---------------------------------------------


class ScanBlock(nn.Module):

  @nn.compact
  def __call__(self, x, _):
    h = nn.LayerNorm()(x)
    h = nn.Dense(24, name='up')(h)
    return x + nn.Dense(16, name='down')(nn.relu(h)), None


class Scan(nn.Module):

  @nn.compact
  def __call__(self, x):
    blocks = nn.scan(ScanBlock, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    x, _ = blocks(name='layers')(x, None)
    return nn.Dense(4, name='head')(x)


class Unrolled(nn.Module):

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      x, _ = ScanBlock(name=f'layers_{i}')(x, None)
    return nn.Dense(4, name='head')(x)


@model
def scan_layers():
  return Linen(Scan(), (normal(4, 16),), note='nn.scan: a while over stacked parameters',
               twin=Unrolled(), to_twin=unstack(['layers'], 3), from_twin=stack(['layers'], 3))


class Remat(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.remat(Mlp)((24, 16), name='first')(x)
    return nn.jit(Mlp)((16, 4), name='second')(x)


@model
def remat_jit():
  return Linen(Remat(), (normal(4, 8),), note='nn.remat and nn.jit modules')


@jax.jit
def normalise(x):
  return x / (1e-3 + jnp.sqrt((x * x).mean(-1, keepdims=True)))


class Control(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = normalise(nn.Dense(16, name='a')(x))
    x = nn.relu(x)
    x = normalise(nn.Dense(16, name='b')(x))
    x = jax.vmap(lambda row: jnp.where(row > 0, row, 0.1 * row))(x)
    x = jax.lax.cond(x.sum() > 0, lambda v: v + 1.0, lambda v: v * 2.0, x)
    _, x = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 0.5 + 0.25), (0, x))
    y = jnp.sort(x, axis=-1)[:, ::-1]
    order = jnp.argsort(x, axis=-1)
    best = jnp.argmax(x, axis=-1)
    logits = nn.Dense(4, name='c')(jnp.concatenate([x, y], axis=-1))
    return logits, order, best, jnp.cumsum(x, axis=-1)


@model
def control_flow():
  return Linen(Control(), (normal(4, 8),), note='nested jit, vmap, cond, while_loop, sort, argsort, argmax, cumsum')


class Vmapped(nn.Module):

  @nn.compact
  def __call__(self, x):
    mlp = nn.vmap(Mlp, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=0, out_axes=0)
    return mlp((12, 4), name='experts')(x)


class OneByOne(nn.Module):

  @nn.compact
  def __call__(self, x):
    return jnp.stack([Mlp((12, 4), name=f'experts_{i}')(x[i]) for i in range(3)])


@model
def vmap_modules():
  return Linen(Vmapped(), (normal(3, 5, 8),), note='nn.vmap over parameters: batched dots',
               twin=OneByOne(), to_twin=unstack(['experts'], 3), from_twin=stack(['experts'], 3))


class Rnn(nn.Module):

  @nn.compact
  def __call__(self, x):
    x = nn.RNN(nn.GRUCell(8), name='gru')(x)
    return nn.Dense(4, name='head')(x)


@model
def rnn():
  return Linen(Rnn(), (normal(2, 4, 6),), note='a GRU in nn.scan: broadcast parameters in a while')


# --- unusual uses of weights -------------------------------------------------


class Left(nn.Module):

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.lecun_normal(), (12, 16))
    v = self.param('v', nn.initializers.lecun_normal(), (12, 6))
    y = jnp.dot(w, x)
    return jnp.einsum('cb,ck->bk', y, v)


class Right(nn.Module):

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.lecun_normal(), (12, 16))
    v = self.param('v', nn.initializers.lecun_normal(), (12, 6))
    y = jax.lax.dot_general(x, w, (((0,), (1,)), ((), ()))).T
    return jnp.einsum('cb,ck->bk', y, v)


@model
def left_weight():
  return Linen(Left(), (normal(16, 3),), twin=Right(),
               note='Qwix sees a weight only on the right: on the left it is an activation')


class Views(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    flat = self.param('flat', init, (16, 24))
    turned = self.param('turned', init, (20, 24))
    half = self.param('half', init, (20, 12), jnp.bfloat16)
    x = jax.lax.dot_general(x, flat.reshape(16, 4, 6), (((1,), (0,)), ((), ())))
    x = nn.relu(x.reshape(-1, 24))
    x = nn.relu(jnp.dot(x, turned.T))
    return jnp.dot(x, half.astype(jnp.float32))


class Turned(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    flat = self.param('flat', init, (16, 24))
    turned = self.param('turned', init, (24, 20))
    half = self.param('half', init, (20, 12), jnp.bfloat16)
    x = jax.lax.dot_general(x, flat.reshape(16, 4, 6), (((1,), (0,)), ((), ())))
    x = nn.relu(x.reshape(-1, 24))
    x = nn.relu(jnp.dot(x, turned))
    return jnp.dot(x, half)  # Qwix cannot convert a quantized weight


@model
def weight_views():
  return Linen(Views(), (normal(4, 16),), note='weights through reshape, transpose and convert',
               twin=Turned(), to_twin=lambda p: {**p, 'turned': p['turned'].T})


class Stacked(nn.Module):

  @nn.compact
  def __call__(self, x):
    w = self.param('stack', nn.initializers.lecun_normal(), (3, 16, 16))
    for i in range(3):
      x = nn.relu(jnp.dot(x, w[i]))
    return x


class Apart(nn.Module):

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      w = self.param(f'stack_{i}', nn.initializers.lecun_normal(), (16, 16))
      x = nn.relu(jnp.dot(x, w))
    return x


@model
def weight_stack():
  return Linen(Stacked(), (normal(4, 16),), note='slices of one stacked parameter',
               twin=Apart(), to_twin=unstack(['stack'], 3), from_twin=stack(['stack'], 3))


class Einsums(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.normal(0.2)
    a = jnp.einsum('bsd,hdk->bhsk', x, self.param('a', init, (3, 8, 4)))
    b = jnp.einsum('bhsk,hkf->fbs', a, self.param('b', init, (3, 4, 6)))
    c = jnp.einsum('fbs,sfg->gb', b, self.param('c', init, (5, 6, 7)))
    d = jnp.einsum('...b,...o', c, self.param('d', init, (7, 4)))
    return a, b, c, d


@model
def einsums():
  return Linen(Einsums(), (normal(2, 5, 8),),
               note='permuted outputs, several contracted dimensions, ellipsis, an implied output')


class RawTwin(nn.Module):
  """The same arithmetic and the same tree as `raw_fn`, for Qwix."""

  class Block(nn.Module):
    dout: int

    @nn.compact
    def __call__(self, x):
      w = self.param('w', nn.initializers.lecun_normal(), (x.shape[-1], self.dout))
      b = self.param('bias', nn.initializers.zeros, (self.dout,))
      return jnp.dot(x, w) + b

  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(self.Block(20, name='enc')(x))
    return self.Block(6, name='dec')(x)


def raw_fn(params, x):
  x = jnp.tanh(jnp.dot(x, params['enc']['w']) + params['enc']['bias'])
  return jnp.dot(x, params['dec']['w']) + params['dec']['bias']


@model
def raw_params():
  return Raw(raw_fn, RawTwin(), (normal(4, 10),), note='f(params, x) without Flax; Qwix sees the same in Linen')


class Noisy(nn.Module):

  @nn.compact
  def __call__(self, x, key):
    x = nn.Dense(16)(x)
    keep = jax.random.bernoulli(jax.random.wrap_key_data(key), 0.8, x.shape)
    x = jnp.where(keep, x / 0.8, 0.0)
    noise = jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(key), 1), x.shape)
    return nn.Dense(4)(x + 0.1 * noise)


@model
def threefry():
  return Linen(Noisy(), (normal(3, 8), jnp.array([7, 42], jnp.uint32)), note='random bits inside the model')
