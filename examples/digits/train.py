"""Trains a small CNN on scikit-learn's handwritten digits and exports it.

    pip install -r requirements.txt
    python train.py

Writes, beside this file: the model (model.hlo.pb), its float parameters
(params.safetensors), 450 held-out images with their labels
(images.safetensors, labels.safetensors), and two batches of training images to
calibrate with (calibration.safetensors). Takes about half a minute on a CPU.
"""

import pathlib

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = pathlib.Path(__file__).resolve().parent
SEED = 0
EPOCHS = 60
BATCH = 64
CALIBRATION_BATCHES = 2

# The exported file must not depend on where this folder lies.
jax.config.update('jax_hlo_source_file_canonicalization_regex', r'.*/')
jax.config.update('jax_traceback_in_locations_limit', 0)


class DigitsNet(nn.Module):
  """Two convolutions and two dense layers: 8x8 pixels in, ten logits out."""

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(16, (3, 3))(images))
    x = nn.relu(nn.Conv(32, (3, 3))(x))
    x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.relu(nn.Dense(128)(x))
    return nn.Dense(10)(x)


def shifted(rng, images):
  """Each image moved by up to one pixel: more to learn from than 1347 images."""
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, cols = rng.randint(0, 3, (2, len(images)))
  return np.stack([p[r:r + 8, c:c + 8] for p, r, c in zip(padded, rows, cols)])


def main():
  digits = load_digits()
  images = (digits.images / 16.0).astype(np.float32)[..., None]
  labels = digits.target.astype(np.int32)
  train_x, test_x, train_y, test_y = train_test_split(
      images, labels, test_size=0.25, random_state=SEED, stratify=labels)

  model = DigitsNet()
  variables = model.init(jax.random.key(SEED), train_x[:1])
  steps = EPOCHS * (len(train_x) // BATCH)
  optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-3)
  state = optimizer.init(variables)

  @jax.jit
  def step(variables, state, x, y):
    def loss(variables):
      logits = model.apply(variables, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss)(variables)
    updates, state = optimizer.update(grads, state, variables)
    return optax.apply_updates(variables, updates), state

  rng = np.random.RandomState(SEED)
  for _ in range(EPOCHS):
    order = rng.permutation(len(train_x))
    for i in range(len(train_x) // BATCH):
      batch = order[i * BATCH:(i + 1) * BATCH]
      variables, state = step(variables, state, shifted(rng, train_x[batch]), train_y[batch])

  @jax.jit
  def digits(variables, images):
    return model.apply(variables, images)

  accuracy = float((digits(variables, test_x).argmax(-1) == test_y).mean())
  print(f'{len(test_x)} held-out images, {100 * accuracy:.2f} % right')
  assert accuracy >= 0.97, accuracy

  hlo = digits.lower(variables, test_x).compiler_ir('hlo').as_serialized_hlo_module_proto()
  (HERE / 'model.hlo.pb').write_bytes(hlo)
  params = {'/'.join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables['params']).items()}
  save_file(params, HERE / 'params.safetensors')
  save_file({'images': test_x}, HERE / 'images.safetensors')
  save_file({'labels': test_y}, HERE / 'labels.safetensors')
  # The model takes as many images at once as there are held-out ones. Keys: <batch>/<input>.
  calibration = train_x[:CALIBRATION_BATCHES * len(test_x)].reshape(-1, *test_x.shape)
  save_file({f'{i}/images': batch for i, batch in enumerate(calibration)}, HERE / 'calibration.safetensors')
  # What JAX makes of them, for the tests.
  save_file({'0': np.asarray(digits(variables, test_x))}, HERE / 'logits.safetensors')


if __name__ == '__main__':
  main()
