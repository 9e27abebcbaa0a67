//! Ranges of quantized arrays, and the scales and zero points that they make, in plain HLO: Qwix's `calibrate` and
//! `compute_scale_zero_point` as XLA compiles them.

use qwix_array::{Array, DType, element_count};
use qwix_quant::{
    Calibration, Codec, Granularity, HowToQuantize, QType, QuantError, Range, ScaleFactor, ScaleRounding,
    compute_scale_zero_point, scale_factors,
};

use crate::{BinaryOp, Comparison, ComputationBuilder, GraphError, NodeId, UnaryOp};

/// The nodes of a range, in the shape of the scale.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RangeNodes {
    /// From −absmax to absmax.
    Symmetric(NodeId),
    /// From min (at most 0) to max (at least 0).
    Asymmetric(NodeId, NodeId),
}

impl RangeNodes {
    /// The range with each bound replaced.
    ///
    /// # Errors
    /// What the function returns.
    pub fn map(
        self,
        mut f: impl FnMut(NodeId) -> Result<NodeId, GraphError>,
    ) -> Result<RangeNodes, GraphError> {
        Ok(match self {
            RangeNodes::Symmetric(absmax) => RangeNodes::Symmetric(f(absmax)?),
            RangeNodes::Asymmetric(min, max) => RangeNodes::Asymmetric(f(min)?, f(max)?),
        })
    }

    /// The bounds: absmax, or min and max.
    pub fn bounds(self) -> Vec<NodeId> {
        match self {
            RangeNodes::Symmetric(absmax) => vec![absmax],
            RangeNodes::Asymmetric(min, max) => vec![min, max],
        }
    }
}

/// The range of an array's values, in the array's dtype: one bound (or two) for each entry of the scale.
///
/// # Errors
/// When x is no array that can be quantized so.
pub fn calibrate(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
) -> Result<RangeNodes, GraphError> {
    let dtype = b.dtype(x)?;
    let scaled = |b: &mut ComputationBuilder, x: NodeId, factor: Option<f64>| match factor {
        Some(factor) => with_number(b, BinaryOp::Multiply, x, dtype.round(factor)),
        None => Ok(x),
    };
    Ok(match how.calibration {
        Calibration::Fixed { min, max } => {
            let ones = vec![1; b.shape(x)?.len()];
            let mut one = |value| b.constant(Array::from_f64(dtype, &ones, &[value])?);
            if how.calibration.is_asymmetric() {
                RangeNodes::Asymmetric(one(min)?, one(max)?)
            } else {
                RangeNodes::Symmetric(one(max)?)
            }
        }
        Calibration::AbsMax { scale } => {
            let absmax = absmax(b, x, how)?;
            RangeNodes::Symmetric(scaled(b, absmax, scale)?)
        }
        Calibration::Rms { scale } => {
            let rms = root_mean_square(b, x, how)?;
            RangeNodes::Symmetric(scaled(b, rms, Some(scale))?)
        }
        Calibration::MinMax { scale } => {
            let (min, max) = min_max(b, x, how)?;
            RangeNodes::Asymmetric(scaled(b, min, scale)?, scaled(b, max, scale)?)
        }
    })
}

/// The mean over some axes, which stay with size 1; taken in f32 for narrower floats, as `jnp.mean` does.
///
/// # Errors
/// When x has no such axis.
pub fn mean(b: &mut ComputationBuilder, x: NodeId, axes: &[usize]) -> Result<NodeId, GraphError> {
    let (dtype, mut shape) = (b.dtype(x)?, b.shape(x)?.to_vec());
    let mut count = 1usize;
    for &axis in axes {
        let Some(size) = shape.get_mut(axis) else {
            return Err(QuantError::Invalid(format!("the mean of {shape:?} over axis {axis}")).into());
        };
        count = count.saturating_mul(std::mem::replace(size, 1));
    }
    if count == 1 {
        return Ok(x);
    }
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let wide_x = b.convert(x, wide)?;
    let zero = scalar(b, wide, 0.0)?;
    let sum = b.reduce(BinaryOp::Add, wide_x, zero, axes)?;
    let sum = b.reshape(sum, &shape)?;
    let mean = with_number(b, BinaryOp::Multiply, sum, wide.round(1.0 / count as f64))?;
    b.convert(mean, dtype)
}

/// sum / count, where the count is a scalar s32: a product with the reciprocal, but one element is divided truly.
///
/// # Errors
/// When the sum is no float array, or the count no scalar.
pub fn average(b: &mut ComputationBuilder, sum: NodeId, count: NodeId) -> Result<NodeId, GraphError> {
    let (dtype, shape) = (b.dtype(sum)?, b.shape(sum)?.to_vec());
    let count = b.convert(count, dtype)?;
    if element_count(&shape) == Some(1) {
        let count = b.reshape(count, &shape)?;
        return b.binary(BinaryOp::Divide, sum, count);
    }
    let one = scalar(b, dtype, 1.0)?;
    let reciprocal = b.binary(BinaryOp::Divide, one, count)?;
    let reciprocal = b.broadcast(reciprocal, &shape, &[])?;
    b.binary(BinaryOp::Multiply, sum, reciprocal)
}

/// Scale and zero point of a range that is known before.
///
/// # Errors
/// When the range is asymmetric and the type has no asymmetric form.
pub fn scale_zero_point(
    b: &mut ComputationBuilder,
    range: RangeNodes,
    qtype: &'static QType,
) -> Result<(NodeId, Option<NodeId>), GraphError> {
    match range {
        RangeNodes::Symmetric(absmax) => Ok((symmetric(b, absmax, qtype, None)?, None)),
        RangeNodes::Asymmetric(min, max) => {
            let (scale, zero_point) = asymmetric(b, min, max, None, qtype)?;
            Ok((scale, Some(zero_point)))
        }
    }
}

/// Scale and zero point from the values themselves.
pub(crate) fn range(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
) -> Result<(NodeId, Option<NodeId>), GraphError> {
    match how.calibration {
        Calibration::Fixed { min, max } => fixed(b, x, how, min, max),
        Calibration::AbsMax { scale } => {
            let absmax = absmax(b, x, how)?;
            Ok((symmetric(b, absmax, how.qtype, scale)?, None))
        }
        Calibration::Rms { scale } => {
            let rms = root_mean_square(b, x, how)?;
            Ok((symmetric(b, rms, how.qtype, Some(scale))?, None))
        }
        Calibration::MinMax { scale } => {
            let (min, max) = min_max(b, x, how)?;
            let (scale, zero_point) = asymmetric(b, min, max, scale, how.qtype)?;
            Ok((scale, Some(zero_point)))
        }
    }
}

fn absmax(b: &mut ComputationBuilder, x: NodeId, how: &HowToQuantize) -> Result<NodeId, GraphError> {
    let magnitudes = b.unary(UnaryOp::Abs, x)?;
    statistic(b, BinaryOp::Maximum, magnitudes, how, 0.0)
}

/// The smallest and the largest value; the range between holds 0.
fn min_max(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
) -> Result<(NodeId, NodeId), GraphError> {
    let min = statistic(b, BinaryOp::Minimum, x, how, f64::INFINITY)?;
    let max = statistic(b, BinaryOp::Maximum, x, how, f64::NEG_INFINITY)?;
    let min = with_number(b, BinaryOp::Minimum, min, 0.0)?;
    let max = with_number(b, BinaryOp::Maximum, max, 0.0)?;
    Ok((min, max))
}

/// Scale and zero point of the range from factor · min to factor · max.
fn asymmetric(
    b: &mut ComputationBuilder,
    min: NodeId,
    max: NodeId,
    factor: Option<f64>,
    qtype: &'static QType,
) -> Result<(NodeId, NodeId), GraphError> {
    let dtype = b.dtype(min)?;
    let (low, high) = qtype.asymmetric_bounds.ok_or_else(|| {
        GraphError::from(QuantError::Invalid(format!("{qtype} has no asymmetric quantization")))
    })?;
    let (min, width) = width(b, min, max, factor)?;
    let scale = divided(b, width, dtype.round(high - low))?;
    let scale = finish(b, scale, qtype)?;
    let shift = b.binary(BinaryOp::Divide, min, scale)?;
    let low = like(b, min, low)?;
    let zero_point = b.binary(BinaryOp::Subtract, low, shift)?;
    let zero_point = to_int(b, zero_point, qtype)?;
    Ok((scale, zero_point))
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

/// x between two numbers.
pub(crate) fn clamp(b: &mut ComputationBuilder, x: NodeId, min: f64, max: f64) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let (min, max) = (scalar(b, dtype, min)?, scalar(b, dtype, max)?);
    b.clamp(min, x, max)
}

/// x rounded to an integer type.
pub(crate) fn to_int(b: &mut ComputationBuilder, x: NodeId, qtype: &QType) -> Result<NodeId, GraphError> {
    let x = b.unary(UnaryOp::RoundNearestEven, x)?;
    let x = match qtype.codec {
        Codec::Int { min, max } => clamp(b, x, min as f64, max as f64)?,
        Codec::Float | Codec::Codebook(_) => x,
    };
    b.convert(x, qtype.storage)
}

/// A scalar of a float dtype.
fn scalar(b: &mut ComputationBuilder, dtype: DType, value: f64) -> Result<NodeId, GraphError> {
    b.constant(Array::from_f64(dtype, &[], &[value])?)
}

/// A scalar, repeated into x's type.
pub(crate) fn like(b: &mut ComputationBuilder, x: NodeId, value: f64) -> Result<NodeId, GraphError> {
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
