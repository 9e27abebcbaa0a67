//! Ops that move elements to places known when the graph is made.

use qwix_array::{Array, strides};
use qwix_graph::{ArrayType, PadDim, SliceDim};

use crate::EvalError;
use crate::cells::{Cells, walk};

/// Counts along an axis.
pub(crate) fn iota(ty: &ArrayType, dimension: usize) -> Result<Array, EvalError> {
    let Some(&size) = ty.shape.get(dimension) else {
        return Err(EvalError::reason(format!("iota along axis {dimension} of {ty}")));
    };
    let size = i64::try_from(size).map_err(|_| EvalError::reason(format!("iota of {ty} is too large")))?;
    let counts: Vec<i64> = (0..size).collect();
    Ok(Array::from_i64(ty.dtype, &[counts.len()], &counts)?.broadcast_in_dim(&ty.shape, &[dimension])?)
}

/// A part with static bounds.
pub(crate) fn slice(x: &Array, dims: &[SliceDim]) -> Result<Array, EvalError> {
    let start: Vec<usize> = dims.iter().map(|d| d.start).collect();
    let limit: Vec<usize> = dims.iter().map(|d| d.limit).collect();
    let stride: Vec<usize> = dims.iter().map(|d| d.stride).collect();
    Ok(x.slice(&start, &limit, &stride)?)
}

/// More elements around and between, or fewer around.
pub(crate) fn pad(x: &Array, value: &Array, dims: &[PadDim], ty: &ArrayType) -> Result<Array, EvalError> {
    let wrong = || EvalError::reason(format!("pad of {x:?} with {value:?} into {ty}"));
    if dims.len() != x.rank() || ty.shape.len() != x.rank() || value.dtype() != x.dtype() || value.rank() != 0
    {
        return Err(wrong());
    }
    // Of each axis: the operand's elements that stay, where the first of them goes, how far apart they go.
    let (mut start, mut limit, mut first, mut step) = (vec![], vec![], vec![], vec![]);
    for ((dim, &size), &padded) in dims.iter().zip(x.shape()).zip(&ty.shape) {
        let spread = dim.interior as i128 + 1;
        let low = i128::from(dim.low);
        let spread_size = (size as i128).checked_mul(spread).ok_or_else(wrong)?;
        let total =
            (spread_size - dim.interior.min(spread_size as usize) as i128) + low + i128::from(dim.high);
        if total.max(0) != padded as i128 {
            return Err(wrong());
        }
        let from = if low < 0 { (-low + spread - 1) / spread } else { 0 }.min(size as i128);
        let until = ((padded as i128 - low + spread - 1) / spread).clamp(from, size as i128);
        start.push(from as usize);
        limit.push(until as usize);
        first.push((low + from * spread).max(0) as usize);
        step.push(dim.interior.saturating_add(1));
    }
    let kept = x.slice(&start, &limit, &vec![1; x.rank()])?;
    let mut out = Cells::filled(value, &ty.shape)?;
    place(&mut out, &ty.shape, &kept, &first, &step)?;
    Ok(out.write(ty.dtype, &ty.shape)?)
}

/// Writes `source` into cells of a shape, its first element at `first`, the others `step` apart; all inside.
pub(crate) fn place(
    out: &mut Cells<'_>,
    shape: &[usize],
    source: &Array,
    first: &[usize],
    step: &[usize],
) -> Result<(), EvalError> {
    if source.is_empty() {
        return Ok(());
    }
    let cells = Cells::read(source)?;
    let to = strides(shape);
    let offset = first.iter().zip(&to).map(|(f, s)| f * s).sum();
    // A step past the axis is never taken.
    let steps: Vec<usize> = to.iter().zip(step).map(|(s, n)| s.saturating_mul(*n)).collect();
    let width = cells.width;
    let bytes = out.bytes.to_mut();
    let mut chunks = cells.bytes.chunks_exact(width);
    walk(source.shape(), &steps, offset, &mut |at| {
        if let (Some(chunk), Some(to)) = (chunks.next(), bytes.get_mut(at * width..(at + 1) * width)) {
            to.copy_from_slice(chunk);
        }
    });
    Ok(())
}
