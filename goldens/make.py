"""Makes every golden again. `python goldens/make.py [models|ops|dtypes|qarray|init|nn|static|sharded|prequantized] [name…]`"""

import os
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def apart(fn, *args) -> bool:
  """Runs fn in a child: XLA numbers what it lowers from a counter per process."""
  sys.stdout.flush()
  pid = os.fork()
  if pid == 0:
    status = 1
    try:
      fn(*args)
      status = 0
    except BaseException:  # pylint: disable=broad-except
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  ok = os.waitpid(pid, 0)[1] == 0
  if not ok:
    print('FAILED', *args[:1])
  return ok


def main():
  section, names = (sys.argv[1] if len(sys.argv) > 1 else 'all'), sys.argv[2:]
  ok = True
  if section in ('all', 'models'):
    import make_models
    import models
    import rules
    for name in names or models.MODELS:
      ok &= apart(make_models.make_model, name, [c for c in rules.CASES if c[0] == name])
  if section in ('all', 'ops'):
    import make_ops
    for name in names or make_ops.OPS:
      ok &= apart(make_ops.make, name)
    make_ops.index()
  if section in ('all', 'dtypes'):
    import make_dtypes
    ok &= apart(make_dtypes.make)
  if section in ('all', 'qarray'):
    import make_qarray
    ok &= apart(make_qarray.make_quantize)
    ok &= apart(make_qarray.make_products)
  if section in ('all', 'init'):
    import make_init
    ok &= apart(make_init.make)
  if section in ('all', 'nn'):
    import make_nn
    for name in names or make_nn.MODELS:
      ok &= apart(make_nn.make, name)
  if section in ('all', 'static'):
    import make_static
    import rules
    for name in names or dict.fromkeys(c[0] for c in rules.STATIC_CASES):
      ok &= apart(make_static.make, name, [c for c in rules.STATIC_CASES if c[0] == name])
  if section in ('all', 'sharded'):
    import make_sharded
    for name in names or make_sharded.MODELS:
      ok &= apart(make_sharded.make, name)
  if section in ('all', 'prequantized'):
    import make_prequantized
    import make_prequantized_qwix
    ok &= apart(make_prequantized.make)
    ok &= apart(make_prequantized_qwix.make)
  sys.exit(0 if ok else 1)


if __name__ == '__main__':
  main()
