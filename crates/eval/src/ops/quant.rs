//! Ops of quantized arrays.

use qwix_array::Array;
use qwix_graph::{ArrayType, ConvDims, DotDims, SliceDim};
use qwix_quant::{Arithmetic, HowToQuantize, Operand, QArray};

use crate::ops::indexing::clamped_starts;
use crate::ops::shape;
use crate::{EvalError, Value};

/// Quantizes into the range of the array's own values, or with a scale (and a zero point) that is known. The
/// arithmetic is that of a compiled graph.
pub(crate) fn quantize(how: &HowToQuantize, operands: &[Array]) -> Result<QArray, EvalError> {
    Ok(match operands {
        [x] => qwix_quant::quantize_as(x, how, Arithmetic::Compiled)?,
        [x, scale] => qwix_quant::quantize_with_scale_zero_point(x, how.qtype, scale, None)?,
        [x, scale, zero_point] => {
            qwix_quant::quantize_with_scale_zero_point(x, how.qtype, scale, Some(zero_point))?
        }
        _ => return Err(EvalError::reason(format!("quantize with {} operands", operands.len()))),
    })
}

/// The same function of qvalue, scale and zero point.
fn each_part(q: &QArray, f: impl Fn(&Array) -> Result<Array, EvalError>) -> Result<QArray, EvalError> {
    let zero_point = q.zero_point().map(&f).transpose()?;
    Ok(QArray::new(f(q.qvalue())?, f(q.scale())?, zero_point, q.qtype())?)
}

/// A part with static bounds; it begins and ends between tiles.
pub(crate) fn slice(q: &QArray, dims: &[SliceDim]) -> Result<QArray, EvalError> {
    if dims.len() != q.shape().len() {
        return Err(EvalError::reason(format!("slice of shape {:?} by {dims:?}", q.shape())));
    }
    let shape = q.shape();
    each_part(q, |part| {
        let dims = dims
            .iter()
            .zip(shape.iter().zip(part.shape()))
            .map(|(dim, (&size, &scales))| scaled(dim, size, scales))
            .collect::<Result<Vec<_>, _>>()?;
        shape::slice(part, &dims)
    })
}

/// The slice of `scales` entries that goes with a slice of `size` elements.
fn scaled(dim: &SliceDim, size: usize, scales: usize) -> Result<SliceDim, EvalError> {
    if scales == size || dim.start >= dim.limit {
        return Ok(*dim);
    }
    let tile = size.checked_div(scales).unwrap_or(1);
    if scales == 1 {
        return Ok(SliceDim { start: 0, limit: 1, stride: 1 });
    }
    if dim.stride != 1 || !dim.start.is_multiple_of(tile) || !dim.limit.is_multiple_of(tile) {
        return Err(EvalError::reason(format!(
            "a slice from {} to {} by {} cuts through tiles of {tile}",
            dim.start, dim.limit, dim.stride
        )));
    }
    Ok(SliceDim { start: dim.start / tile, limit: dim.limit / tile, stride: 1 })
}

/// A slice of `sizes` that starts at the operands.
pub(crate) fn dynamic_slice(q: &QArray, starts: &[Array], sizes: &[usize]) -> Result<QArray, EvalError> {
    let start = clamped_starts(q.shape(), sizes, starts)?;
    let dims: Vec<SliceDim> = start
        .iter()
        .zip(sizes)
        .map(|(&start, size)| SliceDim { start, limit: start + size, stride: 1 })
        .collect();
    slice(q, &dims)
}

/// A side of a product.
fn side(value: &Value) -> Result<Operand<'_>, EvalError> {
    match value {
        Value::Array(array) => Ok(Operand::Array(array)),
        Value::QArray(q) => Ok(Operand::QArray(q)),
        Value::Tuple(_) => Err(EvalError::reason("a product takes arrays, found a tuple")),
    }
}

/// A dot of which a side is quantized, as Qwix computes it; the result is converted to the node's dtype.
pub(crate) fn dot(lhs: &Value, rhs: &Value, dims: &DotDims, ty: &ArrayType) -> Result<Array, EvalError> {
    Ok(qwix_quant::dot_general(side(lhs)?, side(rhs)?, dims, None)?.convert(ty.dtype))
}

/// A convolution of which a side is quantized, as Qwix computes it; the result is converted to the node's dtype.
pub(crate) fn convolution(
    input: &Value,
    kernel: &Value,
    dims: &ConvDims,
    ty: &ArrayType,
) -> Result<Array, EvalError> {
    Ok(qwix_quant::conv_general_dilated(side(input)?, side(kernel)?, dims, None)?.convert(ty.dtype))
}
