//! Types of `quantize` and `dequantize`, and of the data movement that quantized arrays pass through.
//!
//! A quantized array may be sliced, and have unit axes added or dropped; both act on values, scales and zero points
//! alike. An axis in tiles is cut between tiles only.

use qwix_quant::{Granularity, HowToQuantize, Tile};

use super::{Reason, count, plain};
use crate::{ArrayType, QArrayType, SliceDim, Type};

pub(super) fn quantize(operands: &[&Type], how: &HowToQuantize) -> Result<Type, Reason> {
    if operands.is_empty() || operands.len() > 3 {
        return Err(format!(
            "takes an array, and a scale, and a zero point; found {} operands",
            operands.len()
        ));
    }
    let x = plain(0, operands[0])?;
    if !x.dtype.is_wide_float() {
        return Err(format!("takes floats of 16 bits or more, found {x}"));
    }
    let q = QArrayType { array: x.clone(), how: how.clone() };
    let scale_shape = q.scale_shape().map_err(|e| e.to_string())?;
    // A static range: its zero point decides whether the result has one, and `how` must say the same.
    if let Some(&scale) = operands.get(1) {
        let expected = ArrayType::new(x.dtype, scale_shape.clone());
        if *plain(1, scale)? != expected {
            return Err(format!("the scale should be {expected}, found {scale}"));
        }
        if q.has_zero_point() != (operands.len() == 3) {
            return Err(format!("{q} with {} operands: a zero point is missing or too many", operands.len()));
        }
    }
    if let Some(&zero_point) = operands.get(2) {
        let expected = ArrayType::new(how.qtype.storage, scale_shape);
        if *plain(2, zero_point)? != expected {
            return Err(format!("the zero point should be {expected}, found {zero_point}"));
        }
    }
    Ok(q.into())
}

pub(super) fn dequantize(operands: &[&Type]) -> Result<Type, Reason> {
    count(operands, 1)?;
    match operands[0] {
        Type::QArray(q) => Ok(q.array.clone().into()),
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Err(format!("takes a quantized array, found {}", operands[0]))
        }
    }
}

/// The size of a tile along an axis, `None` when the axis is not in tiles.
fn tile(q: &QArrayType, axis: usize) -> Result<Option<usize>, Reason> {
    let scales = q.scale_shape().map_err(|e| e.to_string())?;
    match q.how.granularity[axis] {
        Granularity::Shared | Granularity::Channelwise => Ok(None),
        Granularity::Tiled(_) if scales[axis] <= 1 => Ok(None),
        Granularity::Tiled(_) => Ok(Some(q.array.shape[axis] / scales[axis])),
    }
}

/// Part of an axis in a single tile has the one scale still, and is no whole tile any more.
fn share(how: &mut HowToQuantize, axis: usize) {
    if let Granularity::Tiled(_) = how.granularity[axis] {
        how.granularity[axis] = Granularity::Shared;
    }
}

pub(super) fn slice(q: &QArrayType, dims: &[SliceDim], shape: Vec<usize>) -> Result<QArrayType, Reason> {
    let mut how = q.how.clone();
    for (axis, dim) in dims.iter().enumerate() {
        let size = q.array.shape[axis];
        let whole = dim.start == 0 && dim.limit == size && dim.stride == 1;
        if let Some(tile) = tile(q, axis)?.filter(|_| !whole) {
            if dim.stride != 1 || dim.start % tile != 0 || (dim.limit - dim.start) % tile != 0 {
                return Err(format!(
                    "[{}:{}] of axis {axis} cuts a tile of {tile} of {q}",
                    dim.start, dim.limit
                ));
            }
            how.granularity[axis] = Granularity::Tiled(Tile::Size(tile));
        } else if !whole {
            share(&mut how, axis);
        }
    }
    Ok(QArrayType { array: ArrayType::new(q.array.dtype, shape), how })
}

pub(super) fn dynamic_slice(q: &QArrayType, sizes: &[usize]) -> Result<QArrayType, Reason> {
    let mut how = q.how.clone();
    for (axis, (&taken, &size)) in sizes.iter().zip(&q.array.shape).enumerate() {
        if taken != size {
            if tile(q, axis)?.is_some() {
                return Err(format!(
                    "axis {axis} of {q} is in tiles; a dynamic slice of {taken} may cut one"
                ));
            }
            share(&mut how, axis);
        }
    }
    Ok(QArrayType { array: ArrayType::new(q.array.dtype, sizes), how })
}

pub(super) fn reshape(q: &QArrayType, shape: &[usize]) -> Result<QArrayType, Reason> {
    let array = ArrayType::new(q.array.dtype, shape);
    if q.array.shape == shape {
        return Ok(QArrayType { array, how: q.how.clone() });
    }
    let kept: Vec<usize> = (0..q.array.shape.len()).filter(|&a| q.array.shape[a] != 1).collect();
    if !kept.iter().map(|&a| q.array.shape[a]).eq(shape.iter().copied().filter(|&d| d != 1)) {
        return Err(format!("{q} can only gain or lose axes of size 1, not become {shape:?}"));
    }
    let mut kept = kept.into_iter().filter_map(|a| q.how.granularity.get(a).copied());
    let granularity = shape
        .iter()
        .map(|&d| if d == 1 { Granularity::Shared } else { kept.next().unwrap_or(Granularity::Shared) })
        .collect();
    Ok(QArrayType { array, how: HowToQuantize { granularity, ..q.how.clone() } })
}
