//! `quantize` and `dequantize` in plain HLO.

use qwix_array::{Array, DType};
use qwix_quant::{
    Calibration, Codec, Granularity, HowToQuantize, QType, Range, ScaleFactor, ScaleRounding,
    broadcast_views, compute_scale_zero_point, promote, scale_factors,
};

use super::Parts;
use crate::{BinaryOp, Comparison, ComputationBuilder, GatherDims, GraphError, NodeId, Op, Type, UnaryOp};

/// A scalar of a float dtype.
fn scalar(b: &mut ComputationBuilder, dtype: DType, value: f64) -> Result<NodeId, GraphError> {
    b.constant(Array::from_f64(dtype, &[], &[value])?)
}

/// A scalar, repeated into x's type.
fn like(b: &mut ComputationBuilder, x: NodeId, value: f64) -> Result<NodeId, GraphError> {
    let (dtype, shape) = (b.dtype(x)?, b.shape(x)?.to_vec());
    let value = scalar(b, dtype, value)?;
    b.broadcast(value, &shape, &[])
}

/// x op a number, in x's dtype.
fn with_number(
    b: &mut ComputationBuilder,
    op: BinaryOp,
    x: NodeId,
    value: f64,
) -> Result<NodeId, GraphError> {
    let value = like(b, x, value)?;
    b.binary(op, x, value)
}

/// Axes of size 1 repeated: a view of `broadcast_views` into the common shape.
fn spread(
    b: &mut ComputationBuilder,
    x: NodeId,
    view: &[usize],
    shape: &[usize],
) -> Result<NodeId, GraphError> {
    if view == shape {
        return b.reshape(x, view);
    }
    let kept: Vec<usize> = (0..shape.len()).filter(|&axis| view[axis] == shape[axis]).collect();
    let sizes: Vec<usize> = kept.iter().map(|&axis| view[axis]).collect();
    let x = b.reshape(x, &sizes)?;
    b.broadcast(x, shape, &kept)
}

/// An op of two arrays of one rank, each entry of the smaller serving a tile of the larger, in the wider dtype.
pub(super) fn generic(
    b: &mut ComputationBuilder,
    op: BinaryOp,
    x: NodeId,
    y: NodeId,
) -> Result<NodeId, GraphError> {
    let dtype = promote(b.dtype(x)?, b.dtype(y)?);
    let (x, y) = (b.convert(x, dtype)?, b.convert(y, dtype)?);
    let views = broadcast_views(b.shape(x)?, b.shape(y)?)?;
    let shape: Vec<usize> = views.x.iter().zip(&views.y).map(|(&x, &y)| if x == 1 { y } else { x }).collect();
    let (x, y) = (spread(b, x, &views.x, &shape)?, spread(b, y, &views.y, &shape)?);
    let result = b.binary(op, x, y)?;
    b.reshape(result, &views.output)
}

/// Scale and zero point from the values themselves.
pub(super) fn range(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
) -> Result<(NodeId, Option<NodeId>), GraphError> {
    let dtype = b.dtype(x)?;
    match how.calibration {
        Calibration::Fixed { min, max } => fixed(b, x, how, min, max),
        Calibration::AbsMax { scale } => {
            let magnitudes = b.unary(UnaryOp::Abs, x)?;
            let absmax = statistic(b, BinaryOp::Maximum, magnitudes, how, 0.0)?;
            Ok((symmetric(b, absmax, how.qtype, scale)?, None))
        }
        Calibration::Rms { scale } => {
            let rms = root_mean_square(b, x, how)?;
            Ok((symmetric(b, rms, how.qtype, Some(scale))?, None))
        }
        Calibration::MinMax { scale } => {
            let min = statistic(b, BinaryOp::Minimum, x, how, f64::INFINITY)?;
            let max = statistic(b, BinaryOp::Maximum, x, how, f64::NEG_INFINITY)?;
            // The range holds 0.
            let min = with_number(b, BinaryOp::Minimum, min, 0.0)?;
            let max = with_number(b, BinaryOp::Maximum, max, 0.0)?;
            let (low, high) = how.qtype.asymmetric_bounds.ok_or_else(|| {
                GraphError::from(qwix_quant::QuantError::Invalid(format!(
                    "{} has no asymmetric quantization",
                    how.qtype
                )))
            })?;
            let (min, width) = width(b, min, max, scale)?;
            let scale = divided(b, width, dtype.round(high - low))?;
            let scale = finish(b, scale, how.qtype)?;
            let shift = b.binary(BinaryOp::Divide, min, scale)?;
            let low = like(b, min, low)?;
            let zero_point = b.binary(BinaryOp::Subtract, low, shift)?;
            let zero_point = to_int(b, zero_point, how.qtype)?;
            Ok((scale, Some(zero_point)))
        }
    }
}

/// The range is known now: scale and zero point are constants, computed as XLA folds them.
fn fixed(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
    min: f64,
    max: f64,
) -> Result<(NodeId, Option<NodeId>), GraphError> {
    let (dtype, ones) = (b.dtype(x)?, vec![1; b.shape(x)?.len()]);
    let one = |value| Array::from_f64(dtype, &ones, &[value]);
    let range = if how.calibration.is_asymmetric() {
        Range::Asymmetric { min: one(min)?, max: one(max)? }
    } else {
        Range::Symmetric { absmax: one(max)? }
    };
    let (scale, zero_point) = compute_scale_zero_point(&range, how.qtype)?;
    Ok((b.constant(scale)?, zero_point.map(|z| b.constant(z)).transpose()?))
}

/// x reduced to the shape of the scale. The initial value must be the op's neutral element: XLA ignores it when there is
/// nothing to reduce.
fn statistic(
    b: &mut ComputationBuilder,
    op: BinaryOp,
    x: NodeId,
    how: &HowToQuantize,
    initial: f64,
) -> Result<NodeId, GraphError> {
    let shape = b.shape(x)?.to_vec();
    let (tiles, result) = (how.tiles(&shape)?, how.scale_shape(&shape)?);
    let (mut split, mut reduced) = (Vec::new(), Vec::new());
    for (axis, &size) in shape.iter().enumerate() {
        match how.granularity[axis] {
            Granularity::Channelwise => split.push(size),
            Granularity::Shared => {
                reduced.push(split.len());
                split.push(size);
            }
            Granularity::Tiled(_) => {
                split.extend([result[axis], tiles[axis]]);
                reduced.push(split.len() - 1);
            }
        }
    }
    let x = b.reshape(x, &split)?;
    let initial = scalar(b, b.dtype(x)?, initial)?;
    let x = b.reduce(op, x, initial, &reduced)?;
    b.reshape(x, &result)
}

/// The mean is taken in f32 for narrower floats, as `jnp.mean` does.
fn root_mean_square(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let elements: usize = b.shape(x)?.iter().product();
    // XLA computes bf16 in f32 and drops the rounding between square and sum; an f16 square is rounded.
    let x = if dtype == DType::BF16 { b.convert(x, wide)? } else { x };
    let squares = b.binary(BinaryOp::Multiply, x, x)?;
    let squares = b.convert(squares, wide)?;
    let sums = statistic(b, BinaryOp::Add, squares, how, 0.0)?;
    let count = elements.checked_div(b.shape(sums)?.iter().product()).unwrap_or(0);
    let mean = with_number(b, BinaryOp::Multiply, sums, wide.round(1.0 / count as f64))?;
    let mean = b.convert(mean, dtype)?;
    b.unary(UnaryOp::Sqrt, mean)
}

/// The scale of a range from −statistic · factor to statistic · factor.
fn symmetric(
    b: &mut ComputationBuilder,
    statistic: NodeId,
    qtype: &QType,
    factor: Option<f64>,
) -> Result<NodeId, GraphError> {
    let mut scale = statistic;
    for step in scale_factors(qtype, b.dtype(statistic)?, factor) {
        scale = match step {
            ScaleFactor::Multiply(by) => with_number(b, BinaryOp::Multiply, scale, by)?,
            ScaleFactor::Divide(by) => with_number(b, BinaryOp::Divide, scale, by)?,
        };
    }
    finish(b, scale, qtype)
}

/// factor · min, and factor · max − factor · min.
///
/// XLA's CPU fuses the product with max and the subtraction; so that every engine rounds the difference once, it is
/// written in f64 for f32 arrays, where the product is exact.
fn width(
    b: &mut ComputationBuilder,
    min: NodeId,
    max: NodeId,
    factor: Option<f64>,
) -> Result<(NodeId, NodeId), GraphError> {
    let Some(factor) = factor else {
        let width = b.binary(BinaryOp::Subtract, max, min)?;
        return Ok((min, width));
    };
    let dtype = b.dtype(min)?;
    let factor = dtype.round(factor);
    let min = with_number(b, BinaryOp::Multiply, min, factor)?;
    let (wide_min, wide_max) = if dtype == DType::F32 {
        (b.convert(min, DType::F64)?, b.convert(max, DType::F64)?)
    } else {
        (min, max)
    };
    let product = with_number(b, BinaryOp::Multiply, wide_max, factor)?;
    let width = b.binary(BinaryOp::Subtract, product, wide_min)?;
    Ok((min, b.convert(width, dtype)?))
}

/// x / a number: a true division in bf16, else a product with the rounded reciprocal.
fn divided(b: &mut ComputationBuilder, x: NodeId, by: f64) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    if dtype == DType::BF16 {
        with_number(b, BinaryOp::Divide, x, by)
    } else {
        with_number(b, BinaryOp::Multiply, x, dtype.round(1.0 / by))
    }
}

/// Replaces scales that are too small and rounds them as the type asks.
fn finish(b: &mut ComputationBuilder, scale: NodeId, qtype: &QType) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(scale)?;
    // The root of the dtype's smallest normal number.
    let smallest = 2f64.powi(match dtype {
        DType::F16 => -7,
        DType::F64 => -511,
        _ => -63,
    });
    let (smallest, one) = (like(b, scale, smallest)?, like(b, scale, 1.0)?);
    let tiny = b.compare(Comparison::Lt, scale, smallest)?;
    let scale = b.select(tiny, one, scale)?;
    match qtype.scale {
        ScaleRounding::None => Ok(scale),
        ScaleRounding::PowerOfTwo => {
            let log = b.unary(UnaryOp::Log, scale)?;
            let log2 = divided(b, log, dtype.round(std::f64::consts::LN_2))?;
            let exponent = b.unary(UnaryOp::Ceil, log2)?;
            let two = like(b, scale, 2.0)?;
            b.binary(BinaryOp::Power, two, exponent)
        }
        ScaleRounding::E4M3 => {
            let scale = clamp(b, scale, -448.0, 448.0)?;
            let rounded = b.convert(scale, DType::F8E4M3FN)?;
            b.convert(rounded, dtype)
        }
    }
}

fn clamp(b: &mut ComputationBuilder, x: NodeId, min: f64, max: f64) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let (min, max) = (scalar(b, dtype, min)?, scalar(b, dtype, max)?);
    b.clamp(min, x, max)
}

fn to_int(b: &mut ComputationBuilder, x: NodeId, qtype: &QType) -> Result<NodeId, GraphError> {
    let x = b.unary(UnaryOp::RoundNearestEven, x)?;
    let x = match qtype.codec {
        Codec::Int { min, max } => clamp(b, x, min as f64, max as f64)?,
        Codec::Float | Codec::Codebook(_) => x,
    };
    b.convert(x, qtype.storage)
}

/// convert(x / scale + zero point).
pub(super) fn encode(
    b: &mut ComputationBuilder,
    x: NodeId,
    qtype: &QType,
    scale: NodeId,
    zero_point: Option<NodeId>,
) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let mut x = if dtype == DType::BF16 || b.shape(x)? == b.shape(scale)? {
        generic(b, BinaryOp::Divide, x, scale)?
    } else {
        let one = like(b, scale, 1.0)?;
        let reciprocal = b.binary(BinaryOp::Divide, one, scale)?;
        generic(b, BinaryOp::Multiply, x, reciprocal)?
    };
    if let Some(zero_point) = zero_point {
        let zero_point = b.convert(zero_point, dtype)?;
        x = generic(b, BinaryOp::Add, x, zero_point)?;
    }
    match qtype.codec {
        Codec::Int { .. } => to_int(b, x, qtype),
        Codec::Float => {
            let x = clamp(b, x, -qtype.symmetric_bound, qtype.symmetric_bound)?;
            b.convert(x, qtype.storage)
        }
        Codec::Codebook(values) => nearest(b, x, values, qtype.storage),
    }
}

/// The index of the nearest of some values, the lowest one on a tie; in f32 for narrower floats.
fn nearest(
    b: &mut ComputationBuilder,
    x: NodeId,
    values: &[f32],
    storage: DType,
) -> Result<NodeId, GraphError> {
    let wide = if b.dtype(x)? == DType::F64 { DType::F64 } else { DType::F32 };
    let x = b.convert(x, wide)?;
    let shape = b.shape(x)?.to_vec();
    let mut best: Option<(NodeId, NodeId)> = None;
    for (index, &value) in values.iter().enumerate() {
        let value = like(b, x, value as f64)?;
        let distance = b.binary(BinaryOp::Subtract, value, x)?;
        let distance = b.unary(UnaryOp::Abs, distance)?;
        let index = b.constant(Array::scalar(index as i32))?;
        let index = b.broadcast(index, &shape, &[])?;
        best = Some(match best {
            None => (distance, index),
            Some((least, at)) => {
                let nearer = b.compare(Comparison::Lt, distance, least)?;
                (b.select(nearer, distance, least)?, b.select(nearer, index, at)?)
            }
        });
    }
    let (_, index) = best.ok_or_else(|| {
        GraphError::from(qwix_quant::QuantError::Invalid("a codebook without values".to_owned()))
    })?;
    b.convert(index, storage)
}

/// (qvalue − zero point) · scale.
pub(super) fn dequantize(
    b: &mut ComputationBuilder,
    parts: &Parts,
    qtype: &QType,
) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(parts.scale)?;
    let mut x = match qtype.codec {
        Codec::Int { .. } | Codec::Float => b.convert(parts.qvalue, dtype)?,
        Codec::Codebook(values) => {
            let x = look_up(b, parts.qvalue, values)?;
            b.convert(x, dtype)?
        }
    };
    if let Some(zero_point) = parts.zero_point {
        let zero_point = b.convert(zero_point, dtype)?;
        x = generic(b, BinaryOp::Subtract, x, zero_point)?;
    }
    generic(b, BinaryOp::Multiply, x, parts.scale)
}

/// values[index], of f32.
fn look_up(b: &mut ComputationBuilder, index: NodeId, values: &[f32]) -> Result<NodeId, GraphError> {
    let rank = b.shape(index)?.len();
    let table = b.constant(Array::from_vec(&[values.len()], values.to_vec())?)?;
    let index = b.convert(index, DType::S32)?;
    let dims = GatherDims {
        offset_dims: vec![],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        operand_batching_dims: vec![],
        start_indices_batching_dims: vec![],
        index_vector_dim: rank,
        slice_sizes: vec![1],
        indices_are_sorted: false,
    };
    b.add_as(Op::Gather(dims), &[table, index], Type::Token)
}
