//! Work in pieces. How work is cut never changes what a piece computes.

use rayon::prelude::*;

/// Bytes of output that are worth another thread.
const GRAIN: usize = 1 << 16;

/// Fills `out` in pieces of `unit` bytes or a multiple, side by side when there is enough of it: `f` gets a piece and the unit
/// that it starts with. `weight` is how much dearer a byte is than a copy.
pub(crate) fn fill<E: Send>(
    out: &mut [u8],
    unit: usize,
    weight: usize,
    f: impl Fn(usize, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if out.is_empty() || unit == 0 {
        return Ok(());
    }
    let threads = rayon::current_num_threads();
    if threads == 1 || out.len().saturating_mul(weight) < 2 * GRAIN {
        return f(0, out);
    }
    let grain = (GRAIN / weight.max(1)).max(out.len().div_ceil(threads * 4));
    let piece = grain.div_ceil(unit) * unit;
    out.par_chunks_mut(piece).enumerate().try_for_each(|(i, out)| f(i * (piece / unit), out))
}
