"""Trains a small causal decoder on Python's own manual, and saves it.

    pip install -r requirements.txt
    python train.py

The text is `pydoc_data/topics.py` of Python 3.11, what `help('topics')` shows: the reference manual of the
language, Copyright (c) 2001-2023 Python Software Foundation, under the PSF License Version 2
(https://docs.python.org/3.11/license.html). Of its words this folder keeps the excerpt in heldout.txt.

Writes, beside this file: the pieces of text that are tokens, in the order of their numbers (vocab.json), the
parameters (params.safetensors), text that the model has not seen (heldout.txt), and what JAX and Qwix make of it
(reference.safetensors, reference.json). Takes a few minutes on two cores.
"""

import collections
import dataclasses
import json
import pathlib
import re
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax.traverse_util import flatten_dict
from optax.contrib import MuonDimensionNumbers, muon
from pydoc_data.topics import topics
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
SEED = 0
STEPS = 600
BATCH = 16
CONTEXT = 128
HELD_OUT_WINDOWS = 32
PROMPT = 'The following statement'
CONTINUED = 64
# A line feed and the printable characters of ASCII are tokens; what often stands together becomes one.
CHARACTERS = '\n' + ''.join(map(chr, range(32, 127)))
VOCABULARY = 512


@dataclasses.dataclass(frozen=True)
class Config:
  vocabulary: int = VOCABULARY
  width: int = 128
  heads: int = 4
  hidden: int = 192
  layers: int = 4


def rotate(x):
  """Turns each pair of features by an angle that grows with the position (rotary embedding); x [batch, position, head, feature]."""
  half = x.shape[-1] // 2
  frequencies = 10000.0 ** (-jnp.arange(half) / half)
  angles = jnp.arange(x.shape[1])[:, None, None] * frequencies
  first, second = x[..., :half], x[..., half:]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
  """Each position looks at itself and at what came before."""

  config: Config

  @nn.compact
  def __call__(self, x):
    heads, width = self.config.heads, self.config.width

    def split(name):
      return nn.DenseGeneral((heads, width // heads), use_bias=False, name=name)(x)

    query, key, value = rotate(split('query')), rotate(split('key')), split('value')
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(width // heads)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = nn.softmax(jnp.where(causal, scores, -1e9))
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    return nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name='out')(mixed)


class Mlp(nn.Module):
  """SwiGLU: one projection gates the other."""

  config: Config

  @nn.compact
  def __call__(self, x):
    gate = nn.Dense(self.config.hidden, use_bias=False, name='gate')(x)
    up = nn.Dense(self.config.hidden, use_bias=False, name='up')(x)
    return nn.Dense(self.config.width, use_bias=False, name='down')(nn.silu(gate) * up)


class Block(nn.Module):
  """Attention, then the MLP; each adds to its input."""

  config: Config

  @nn.compact
  def __call__(self, x):
    x = x + Attention(self.config, name='attention')(nn.RMSNorm()(x))
    return x + Mlp(self.config, name='mlp')(nn.RMSNorm()(x))


class Decoder(nn.Module):
  """Tokens [batch, length] in, logits of the token that follows each [batch, length, vocabulary] out."""

  config: Config

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(self.config.vocabulary, self.config.width, name='tokens')(tokens)
    for _ in range(self.config.layers):
      x = Block(self.config)(x)
    x = nn.RMSNorm()(x)
    return nn.Dense(self.config.vocabulary, use_bias=False, name='logits')(x)


def manual():
  """The manual as one text. Topics repeat one another; each paragraph is kept once."""
  paragraphs = dict.fromkeys(p for name in sorted(topics) for p in topics[name].split('\n\n') if p.strip())
  text = '\n\n'.join(paragraphs)
  return ''.join(c for c in text if c in CHARACTERS)


def vocabulary(text):
  """Byte-pair encoding: the commonest pair of neighbours inside a word becomes a token, until there are enough."""
  words = collections.Counter(re.findall(r' ?[A-Za-z]+| +|\n+|[^A-Za-z \n]', text))
  words = {tuple(word): count for word, count in words.items()}
  vocab = list(CHARACTERS)
  while len(vocab) < VOCABULARY:
    pairs = collections.Counter()
    for word, count in words.items():
      for pair in zip(word, word[1:]):
        pairs[pair] += count
    first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
    vocab.append(first + second)
    merged = {}
    for word, count in words.items():
      parts = []
      for part in word:
        if parts and parts[-1] == first and part == second:
          parts[-1] = first + second
        else:
          parts.append(part)
      merged[tuple(parts)] = merged.get(tuple(parts), 0) + count
    words = merged
  return vocab


def encode(vocab, text):
  """Numbers of tokens: always the longest that the text goes on with."""
  numbers = {token: number for number, token in enumerate(vocab)}
  longest = max(map(len, vocab))
  tokens, at = [], 0
  while at < len(text):
    size = next(n for n in range(longest, 0, -1) if text[at:at + n] in numbers)
    tokens.append(numbers[text[at:at + size]])
    at += size
  return np.array(tokens, np.int32)


def decode(vocab, tokens):
  return ''.join(vocab[t] for t in tokens)


def windows(tokens, starts):
  """Inputs and targets: each target is the token after its input."""
  cut = np.stack([tokens[s:s + CONTEXT + 1] for s in starts])
  return cut[:, :-1], cut[:, 1:]


def cross_entropy(logits, targets):
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def matrices(params):
  """Which axes of a kernel are its rows and columns, for the optimizer; embeddings, logits and norms are no such matrices."""

  def axes(path, leaf):
    *_, module, name = (key.key for key in path)
    if name != 'kernel' or module == 'logits':
      return None
    rows = leaf.ndim - 1 if module == 'out' else 1
    return MuonDimensionNumbers(tuple(range(rows)), tuple(range(rows, leaf.ndim)))

  return jax.tree_util.tree_map_with_path(axes, params)


def train(model, tokens):
  variables = model.init(jax.random.key(SEED), tokens[None, :CONTEXT])
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 30, STEPS, 0.01)
  optimizer = muon(
      lambda i: 2e-2 * schedule(i), adam_learning_rate=lambda i: 6e-3 * schedule(i),
      muon_weight_dimension_numbers=matrices, weight_decay=0.05)
  state = optimizer.init(variables)

  @jax.jit
  def step(variables, state, inputs, targets):
    loss, grads = jax.value_and_grad(lambda v: cross_entropy(model.apply(v, inputs), targets))(variables)
    updates, state = optimizer.update(grads, state, variables)
    return optax.apply_updates(variables, updates), state, loss

  rng = np.random.RandomState(SEED)
  began, losses = time.time(), []
  for i in range(STEPS):
    inputs, targets = windows(tokens, rng.randint(0, len(tokens) - CONTEXT, BATCH))
    variables, state, loss = step(variables, state, inputs, targets)
    losses.append(loss)
    if (i + 1) % 100 == 0:
      print(f'{i + 1:5} steps, {time.time() - began:4.0f} s: loss {np.mean(losses[-100:]):.3f}', flush=True)
  return variables


def greedy(model, variables, prompt, count):
  """The prompt continued by the likeliest token, `count` times; and how close the closest race was."""
  apply = jax.jit(model.apply)
  tokens, margin = list(prompt), np.inf
  for _ in range(count):
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, :len(tokens)] = tokens
    logits = np.asarray(apply(variables, padded))[0, len(tokens) - 1]
    second, first = np.sort(logits)[-2:]
    margin = min(margin, float(first - second))
    tokens.append(int(logits.argmax()))
  return tokens[len(prompt):], margin


def rules(**fields):
  return [qwix.QuantizationRule(module_path='.*', **fields)]


QUANTIZED = {
    'int8 weight-only': rules(weight_qtype=jnp.int8),
    'int8 dynamic': rules(weight_qtype=jnp.int8, act_qtype=jnp.int8),
    'int4 tiled': rules(weight_qtype=jnp.int4, tile_size=32),
}


def main():
  text = manual()
  vocab = vocabulary(text)
  tokens = encode(vocab, text)
  # From the middle: the end of the alphabet repeats much of what stands before it.
  start, count = len(tokens) * 3 // 5, HELD_OUT_WINDOWS * CONTEXT + 1
  held_out = tokens[start:start + count]
  seen = np.concatenate([tokens[:start], tokens[start + count:]])
  print(f'{len(text)} characters, {len(seen)} tokens to learn from, {count} held out', flush=True)

  model = Decoder(Config())
  variables = train(model, seen)
  inputs, targets = windows(held_out, range(0, HELD_OUT_WINDOWS * CONTEXT, CONTEXT))
  loss = {'float': float(cross_entropy(jax.jit(model.apply)(variables, inputs), targets))}

  for name, rule in QUANTIZED.items():
    ptq_model = qwix.quantize_model(model, qwix.PtqProvider(rule))
    template = jax.eval_shape(ptq_model.init, jax.random.key(0), inputs)
    params = qwix.quantize_params(variables['params'], template['params'])
    loss[name] = float(cross_entropy(jax.jit(ptq_model.apply)({'params': params}, inputs), targets))
  print('held-out loss:', ', '.join(f'{name} {value:.4f}' for name, value in loss.items()))
  assert loss['float'] < 3.2, loss

  prompt = encode(vocab, PROMPT)
  continuation, margin = greedy(model, variables, prompt, CONTINUED)
  print(f'closest race {margin:.4f}\n{PROMPT}{decode(vocab, continuation)}')

  (HERE / 'vocab.json').write_text(json.dumps(vocab, indent=0) + '\n')
  (HERE / 'heldout.txt').write_text(decode(vocab, held_out))
  params = {'/'.join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables['params']).items()}
  save_file(params, HERE / 'params.safetensors')
  save_file({
      'prompt': prompt,
      'logits': np.asarray(jax.jit(model.apply)(variables, prompt[None])),
      'continuation': np.array(continuation, np.int32),
      'heldout': held_out,
  }, HERE / 'reference.safetensors')
  report = {'prompt': PROMPT, 'loss': loss, 'closest_race': margin}
  (HERE / 'reference.json').write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
