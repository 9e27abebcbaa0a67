"""What all the makers of goldens share: files, dtypes and settings of JAX."""

import json
import os
import pathlib
import struct

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
from jax import numpy as jnp
import ml_dtypes
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent

# The files must not depend on where this folder lies nor on line numbers.
jax.config.update('jax_hlo_source_file_canonicalization_regex', r'.*/')
jax.config.update('jax_traceback_in_locations_limit', 0)

_SAFETENSORS = {
    'bool': 'BOOL', 'uint8': 'U8', 'int8': 'I8', 'uint16': 'U16', 'int16': 'I16',
    'uint32': 'U32', 'int32': 'I32', 'uint64': 'U64', 'int64': 'I64',
    'float16': 'F16', 'bfloat16': 'BF16', 'float32': 'F32', 'float64': 'F64',
    'complex64': 'C64',
}


def storable(x) -> np.ndarray:
  """Sub-byte ints become I8 or U8, fp8 and fp4 become F32: all exact."""
  if jax.dtypes.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  x = np.asarray(x)
  name = x.dtype.name
  if name in _SAFETENSORS:
    return x
  if name.startswith('uint'):
    return x.astype(np.uint8)
  if name.startswith('int'):
    return x.astype(np.int8)
  return x.astype(np.float32)


def save_tensors(path, tensors) -> None:
  """A safetensors file with a fixed order of keys: the same bytes each time."""
  header, blobs, offset = {}, [], 0
  arrays = {k: storable(v) for k, v in tensors.items()}
  # Widest element first, so that every tensor is aligned, as safetensors does.
  for key in sorted(arrays, key=lambda k: (-arrays[k].dtype.itemsize, k)):
    a = arrays[key]
    blob = np.ascontiguousarray(a).tobytes()
    header[key] = {
        'dtype': _SAFETENSORS[a.dtype.name],
        'shape': list(a.shape),
        'data_offsets': [offset, offset + len(blob)],
    }
    blobs.append(blob)
    offset += len(blob)
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  write(path, struct.pack('<Q', len(text)) + text + b''.join(blobs))


def save_json(path, value) -> None:
  write(path, (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode())


def write(path, data: bytes) -> None:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_bytes() != data:
    path.write_bytes(data)


def rng(*names) -> np.random.RandomState:
  """A generator that depends on its name alone."""
  seed = 7
  for c in '/'.join(map(str, names)).encode():
    seed = (seed * 131 + c) % (2**32)
  return np.random.RandomState(seed)


def hlo(lowered) -> bytes:
  return lowered.compiler_ir('hlo').as_serialized_hlo_module_proto()
