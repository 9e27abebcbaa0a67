//! From a range to scale and zero point: Qwix's `compute_scale_zero_point`, with XLA's arithmetic.
//!
//! # What "/" means
//! Qwix writes `absmax / bound`. XLA makes a product with the reciprocal of it, `absmax · (1/bound)`, each step rounded
//! in the array's dtype, for f16, f32 and f64; in bf16 it stays a division. Which divisions turn into products depends
//! on whether XLA sees the divisor as a broadcast or a constant, and so on [`Arithmetic`]. Established with jax 0.10.2
//! on XLA:CPU.

use qwix_array::{Array, DType};

use crate::calibrate::{Statistics, scaled, statistics};
use crate::{Calibration, HowToQuantize, QType, QuantError, Range, ScaleRounding};

/// How XLA came to see a quantization: the last bit of scales differs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Arithmetic {
    /// Operation by operation, as Qwix quantizes weights: a scale of one element is divided truly.
    #[default]
    Eager,
    /// Under `jit`, as activations are quantized: all divisors are constants, and constant factors are multiplied
    /// with each other first.
    Compiled,
}

/// Scale and zero point of a range, as Qwix computes them eagerly.
///
/// A scale below the root of the dtype's smallest normal number becomes 1. The zero point is of the type's storage.
///
/// # Errors
/// When the range is asymmetric and the type has no asymmetric form.
pub fn compute_scale_zero_point(
    range: &Range,
    qtype: &'static QType,
) -> Result<(Array, Option<Array>), QuantError> {
    let entries = match range {
        Range::Symmetric { absmax } => absmax.len(),
        Range::Asymmetric { min, .. } => min.len(),
    };
    scale_of(range, qtype, entries == 1)
}

/// [`compute_scale_zero_point`] of some of the ranges of an array; `one` when it has no other.
pub(crate) fn scale_of(
    range: &Range,
    qtype: &'static QType,
    one: bool,
) -> Result<(Array, Option<Array>), QuantError> {
    match range {
        Range::Symmetric { absmax } => {
            let scale = divided(absmax, qtype.symmetric_bound, one)?;
            Ok((finish(scale, qtype)?, None))
        }
        Range::Asymmetric { min, max } => asymmetric(min, &width(max, min, None)?, qtype, one),
    }
}

/// Range, scale and zero point in one, as XLA computes them for `how` in the given way.
pub(crate) fn scale_zero_point(
    array: &Array,
    how: &HowToQuantize,
    arithmetic: Arithmetic,
) -> Result<(Array, Option<Array>), QuantError> {
    let range = match arithmetic {
        Arithmetic::Eager => return compute_scale_zero_point(&crate::calibrate(array, how)?, how.qtype),
        Arithmetic::Compiled => statistics(array, how, arithmetic)?,
    };
    let factor = match how.calibration {
        Calibration::AbsMax { scale } | Calibration::MinMax { scale } => scale,
        Calibration::Rms { scale } => Some(scale),
        Calibration::Fixed { .. } => None,
    };
    match range {
        Statistics::AbsMax(statistic) | Statistics::RootMeanSquare(statistic) => {
            let scale = scaled_by(&statistic, &scale_factors(how.qtype, statistic.dtype(), factor))?;
            Ok((finish(scale, how.qtype)?, None))
        }
        Statistics::MinMax(min, max) => {
            let Some(factor) = factor else {
                return asymmetric(&min, &width(&max, &min, None)?, how.qtype, false);
            };
            let min = scaled(&min, factor)?;
            asymmetric(&min, &width(&max, &min, Some(factor))?, how.qtype, false)
        }
        Statistics::Fixed { .. } => {
            let range = crate::calibrate(array, how)?;
            match &range {
                Range::Symmetric { absmax } => {
                    Ok((finish(divided(absmax, how.qtype.symmetric_bound, true)?, how.qtype)?, None))
                }
                Range::Asymmetric { min, max } => asymmetric(min, &width(max, min, None)?, how.qtype, true),
            }
        }
    }
}

/// sum / count, as Qwix averages statistics, eager or compiled: a product with the rounded reciprocal, but a sum of one
/// element is divided truly.
///
/// # Errors
/// When the sum is no array of floats.
pub fn average(sum: &Array, count: i32) -> Result<Array, QuantError> {
    if !sum.dtype().is_wide_float() {
        return Err(QuantError::NotFloat { dtype: sum.dtype() });
    }
    divided(sum, count as f64, sum.len() == 1)
}

/// A step from a symmetric statistic (the largest magnitude, the root mean square) to its scale under `jit`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ScaleFactor {
    /// Multiply by this constant, which is a number of the dtype, and round.
    Multiply(f64),
    /// Divide by this constant, which is a number of the dtype, and round.
    Divide(f64),
}

/// The steps that XLA compiles `statistic · factor / bound` to: one product with a constant, where in bf16 they stay a
/// product and a division. Lowering writes these out, so that every engine computes the same.
pub fn scale_factors(qtype: &QType, dtype: DType, factor: Option<f64>) -> Vec<ScaleFactor> {
    let bound = dtype.round(qtype.symmetric_bound);
    let factor = factor.map(|factor| dtype.round(factor));
    if dtype == DType::BF16 {
        let divide = ScaleFactor::Divide(bound);
        return match factor {
            Some(factor) => vec![ScaleFactor::Multiply(factor), divide],
            None => vec![divide],
        };
    }
    let reciprocal = dtype.round(1.0 / bound);
    vec![ScaleFactor::Multiply(factor.map_or(reciprocal, |factor| dtype.round(factor * reciprocal)))]
}

fn scaled_by(statistic: &Array, factors: &[ScaleFactor]) -> Result<Array, QuantError> {
    factors.iter().try_fold(statistic.clone(), |x, factor| match *factor {
        ScaleFactor::Multiply(by) => scaled(&x, by),
        ScaleFactor::Divide(by) => divided(&x, by, true),
    })
}

/// `array / divisor`: truly, or as a product with the reciprocal, by the rules above.
fn divided(array: &Array, divisor: f64, truly: bool) -> Result<Array, QuantError> {
    let dtype = array.dtype();
    let divisor = dtype.round(divisor);
    if !truly && dtype != DType::BF16 {
        return scaled(array, dtype.round(1.0 / divisor));
    }
    let quotients: Vec<f64> = array.to_f64_vec().into_iter().map(|x| x / divisor).collect();
    Ok(Array::from_f64(dtype, array.shape(), &quotients)?)
}

/// The width of a range: factor · max − min. The product is not rounded: XLA lets the machine do it in one instruction.
fn width(max: &Array, min: &Array, factor: Option<f64>) -> Result<Array, QuantError> {
    let dtype = min.dtype();
    if max.dtype() != dtype || max.shape() != min.shape() {
        return Err(QuantError::Invalid(format!("a range from {min:?} to {max:?}")));
    }
    let factor = dtype.round(factor.unwrap_or(1.0));
    let difference = |(max, min): (f64, f64)| match dtype {
        DType::F64 => max.mul_add(factor, -min),
        // f64 holds the product exactly.
        DType::F32 => max * factor - min,
        _ => dtype.round(max * factor) - min,
    };
    let widths: Vec<f64> = max.to_f64_vec().into_iter().zip(min.to_f64_vec()).map(difference).collect();
    Ok(Array::from_f64(dtype, min.shape(), &widths)?)
}

/// Scale and zero point of ranges that begin at `min` and are `widths` wide.
fn asymmetric(
    min: &Array,
    widths: &Array,
    qtype: &'static QType,
    truly: bool,
) -> Result<(Array, Option<Array>), QuantError> {
    let dtype = min.dtype();
    let Some((low, high)) = qtype.asymmetric_bounds else {
        return Err(QuantError::Invalid(format!("{qtype} has no asymmetric quantization")));
    };
    let scale = finish(divided(widths, high - low, truly)?, qtype)?;
    let low = dtype.round(low);
    let zero_points: Vec<f64> = min
        .to_f64_vec()
        .into_iter()
        .zip(scale.to_f64_vec())
        .map(|(min, scale)| dtype.round(low - dtype.round(min / scale)).round_ties_even())
        .collect();
    let zero_point = Array::from_f64(dtype, min.shape(), &zero_points)?.convert(qtype.storage);
    Ok((scale, Some(zero_point)))
}

/// Replaces scales that are too small and rounds them as the type asks.
fn finish(scale: Array, qtype: &QType) -> Result<Array, QuantError> {
    let dtype = scale.dtype();
    // The roots of the smallest normal numbers are powers of two.
    let smallest = match dtype {
        DType::F16 => -7,
        DType::F64 => -511,
        _ => -63,
    };
    let smallest = 2f64.powi(smallest);
    let values: Vec<f64> = scale
        .to_f64_vec()
        .into_iter()
        .map(|x| if x < smallest { 1.0 } else { x })
        .map(|x| match qtype.scale {
            ScaleRounding::None | ScaleRounding::E4M3 => x,
            ScaleRounding::PowerOfTwo => power_of_two(dtype, x),
        })
        .collect();
    let scale = Array::from_f64(dtype, scale.shape(), &values)?;
    Ok(match qtype.scale {
        ScaleRounding::None | ScaleRounding::PowerOfTwo => scale,
        ScaleRounding::E4M3 => {
            let clipped: Vec<f64> = values.iter().map(|x| x.clamp(-448.0, 448.0)).collect();
            Array::from_f64(dtype, scale.shape(), &clipped)?.convert(DType::F8E4M3FN).convert(dtype)
        }
    })
}

/// `2 ** ceil(log2(x))` as Qwix computes it: not always the next power of two, because the logarithm is rounded.
///
/// JAX computes log2(x) as log(x) / log(2), each rounded to the dtype (and the division a product with the reciprocal,
/// except in bf16). A few dozen f32 numbers above each power of two (fewer near 1) are therefore rounded down to it;
/// powers of two below 1, and some numbers before them, may be rounded up to the next. In bf16 ln 2 itself is off by
/// 2.6e-3, and up to a third of a binade far from 1 goes down. Exact for every bf16 and f16 scale, and for the f32
/// scales within 200 steps of every power of two; in f64, XLA's logarithm is not always the nearest one, and one scale
/// in ten thousand of those near a power of two comes out differently.
fn power_of_two(dtype: DType, x: f64) -> f64 {
    let ln2 = dtype.round(std::f64::consts::LN_2);
    let narrow = |x: f64| if dtype == DType::F64 { x } else { dtype.round(x as f32 as f64) };
    let ln = narrow(x.ln());
    let log2 =
        if dtype == DType::BF16 { dtype.round(ln / ln2) } else { dtype.round(ln * dtype.round(1.0 / ln2)) };
    dtype.round(log2.ceil().exp2())
}
