//! Finding the range of an array's values: Qwix's `calibrate`.

use qwix_array::{Array, DType, Element, bf16, f16};
use qwix_simd::{largest_magnitude_16, largest_magnitude_32, largest_magnitudes_16, largest_magnitudes_32};

use crate::runs::Runs;
use crate::{Arithmetic, Calibration, Granularity, HowToQuantize, QuantError};

/// The range that values are quantized into; entries as the scale will have.
#[derive(Clone, PartialEq, Debug)]
pub enum Range {
    /// From −absmax to absmax.
    Symmetric {
        /// The bound.
        absmax: Array,
    },
    /// From min (at most 0) to max (at least 0).
    Asymmetric {
        /// The lower bound.
        min: Array,
        /// The upper bound.
        max: Array,
    },
}

/// Finds the range as the calibration method says, one for each entry of the scale, in the array's own dtype.
///
/// A NaN in the values makes the range NaN that it falls into.
///
/// # Errors
/// When the dtype cannot be quantized or `how` does not fit the shape.
pub fn calibrate(array: &Array, how: &HowToQuantize) -> Result<Range, QuantError> {
    how.validate(array.shape())?;
    apply_factor(&raw_range(array, how, array.len())?, how.calibration)
}

/// The range before the calibration's factor. `elements` are those of the whole array that `array` is a piece of.
pub(crate) fn raw_range(array: &Array, how: &HowToQuantize, elements: usize) -> Result<Range, QuantError> {
    Ok(match measured(array, how, Arithmetic::Eager, elements)? {
        Statistics::AbsMax(absmax) | Statistics::RootMeanSquare(absmax) => Range::Symmetric { absmax },
        Statistics::MinMax(min, max) => Range::Asymmetric { min, max },
        Statistics::Fixed { min, max } => fixed(array.dtype(), array.rank(), min, max)?,
    })
}

/// A range times the factor of its calibration method.
pub(crate) fn apply_factor(range: &Range, calibration: Calibration) -> Result<Range, QuantError> {
    let factor = match calibration {
        Calibration::AbsMax { scale } | Calibration::MinMax { scale } => scale,
        Calibration::Rms { scale } => Some(scale),
        Calibration::Fixed { .. } => None,
    };
    let Some(factor) = factor else { return Ok(range.clone()) };
    Ok(match range {
        Range::Symmetric { absmax } => Range::Symmetric { absmax: scaled(absmax, factor)? },
        Range::Asymmetric { min, max } => {
            Range::Asymmetric { min: scaled(min, factor)?, max: scaled(max, factor)? }
        }
    })
}

fn fixed(dtype: DType, rank: usize, min: f64, max: f64) -> Result<Range, QuantError> {
    let one = |x: f64| Array::from_f64(dtype, &vec![1; rank], &[x]);
    Ok(if min + max == 0.0 {
        Range::Symmetric { absmax: one(max)? }
    } else {
        Range::Asymmetric { min: one(min)?, max: one(max)? }
    })
}

/// Each element times a number that is rounded to the array's dtype first, and the product as well.
///
/// Here and elsewhere, sums, products, quotients and square roots of f32 or narrower numbers are computed in f64 and
/// then rounded: f64 has more than twice the digits, so it is as if rounded once.
pub(crate) fn scaled(array: &Array, factor: f64) -> Result<Array, QuantError> {
    let dtype = array.dtype();
    let factor = dtype.round(factor);
    let products: Vec<f64> = array.to_f64_vec().into_iter().map(|x| x * factor).collect();
    Ok(Array::from_f64(dtype, array.shape(), &products)?)
}

/// What is found in an array before any factor is applied.
pub(crate) enum Statistics {
    AbsMax(Array),
    MinMax(Array, Array),
    RootMeanSquare(Array),
    Fixed { min: f64, max: f64 },
}

pub(crate) fn statistics(
    array: &Array,
    how: &HowToQuantize,
    arithmetic: Arithmetic,
) -> Result<Statistics, QuantError> {
    how.validate(array.shape())?;
    measured(array, how, arithmetic, array.len())
}

/// [`statistics`] of a piece of an array of so many elements.
fn measured(
    array: &Array,
    how: &HowToQuantize,
    arithmetic: Arithmetic,
    elements: usize,
) -> Result<Statistics, QuantError> {
    let dtype = array.dtype();
    if !dtype.is_wide_float() {
        return Err(QuantError::NotFloat { dtype });
    }
    let shape = how.scale_shape(array.shape())?;
    if let Calibration::Fixed { min, max } = how.calibration {
        return Ok(Statistics::Fixed { min, max });
    }
    let runs = Runs::new(array.shape(), &shape)
        .ok_or_else(|| QuantError::Invalid(format!("{shape:?} does not divide {:?}", array.shape())))?;
    match dtype {
        DType::F32 => measure::<f32>(array, how, arithmetic, elements, &shape, &runs),
        DType::F64 => measure::<f64>(array, how, arithmetic, elements, &shape, &runs),
        DType::BF16 => measure::<bf16>(array, how, arithmetic, elements, &shape, &runs),
        DType::F16 => measure::<f16>(array, how, arithmetic, elements, &shape, &runs),
        dtype => Err(QuantError::NotFloat { dtype }),
    }
}

/// A float whose bits, read as integers, can be compared in its place, and so several at a time.
trait Float: Element {
    /// Magnitudes, unsigned: NaNs are beyond infinity.
    type Magnitude: Copy + Ord + Default;
    /// Values, signed and in order: NaNs are beyond both infinities.
    type Ordered: Copy + Ord + Default;

    fn magnitude(self) -> Self::Magnitude;
    /// The largest magnitude, 0 of none.
    fn largest(values: &[Self]) -> Self::Magnitude;
    /// Folds the magnitudes of a row into a row of the largest.
    fn largest_each(totals: &mut [Self::Magnitude], values: &[Self]);
    fn from_magnitude(bits: Self::Magnitude) -> Self;
    fn ordered(self) -> Self::Ordered;
    fn from_ordered(bits: Self::Ordered) -> Self;
    fn nan() -> Self;
    fn is_nan(self) -> bool;
    /// The square, rounded to this type.
    fn square(self) -> f64;
    /// The square under `jit`: in bf16, XLA widens for the sum and drops the rounding in between.
    fn fused_square(self) -> f64;
    /// The mean is computed in f32 for narrower types.
    fn root_mean(sum: f64, count: usize) -> f64;
}

macro_rules! float {
    ($float:ty, $unsigned:ty, $signed:ty, $largest:expr, $largest_each:expr, $square:expr, $fused_square:expr, $mean:expr) => {
        impl Float for $float {
            type Magnitude = $unsigned;
            type Ordered = $signed;

            #[inline(always)]
            fn magnitude(self) -> $unsigned {
                self.to_bits() & <$signed>::MAX as $unsigned
            }
            fn largest(values: &[Self]) -> $unsigned {
                let largest: fn(&[$unsigned]) -> $unsigned = $largest;
                largest(bytemuck::cast_slice(values))
            }
            fn largest_each(totals: &mut [$unsigned], values: &[Self]) {
                let largest_each: fn(&mut [$unsigned], &[$unsigned]) = $largest_each;
                largest_each(totals, bytemuck::cast_slice(values))
            }
            fn from_magnitude(bits: $unsigned) -> Self {
                Self::from_bits(bits)
            }
            #[inline(always)]
            fn ordered(self) -> $signed {
                let bits = self.to_bits() as $signed;
                bits ^ (bits >> (<$signed>::BITS - 1) & <$signed>::MAX)
            }
            fn from_ordered(bits: $signed) -> Self {
                Self::from_bits((bits ^ (bits >> (<$signed>::BITS - 1) & <$signed>::MAX)) as $unsigned)
            }
            fn nan() -> Self {
                <$float>::NAN
            }
            fn is_nan(self) -> bool {
                <$float>::is_nan(self)
            }
            #[inline(always)]
            fn square(self) -> f64 {
                let square: fn($float) -> f64 = $square;
                square(self)
            }
            #[inline(always)]
            fn fused_square(self) -> f64 {
                let square: fn($float) -> f64 = $fused_square;
                square(self)
            }
            fn root_mean(sum: f64, count: usize) -> f64 {
                let mean: fn(f64, usize) -> f64 = $mean;
                mean(sum, count)
            }
        }
    };
}

float!(
    f32,
    u32,
    i32,
    largest_magnitude_32,
    largest_magnitudes_32,
    |x| (x * x) as f64,
    |x| (x * x) as f64,
    |sum, n| { (sum as f32 * mean_factor(n)).sqrt() as f64 }
);
float!(f64, u64, i64, largest_64, largest_each_64, |x| x * x, |x| x * x, |sum, n| (sum * (1.0 / n as f64))
    .sqrt());
float!(
    bf16,
    u16,
    i16,
    largest_magnitude_16,
    largest_magnitudes_16,
    |x| (x * x).to_f64(),
    |x| x.to_f64() * x.to_f64(),
    |sum, n| { bf16::from_f32(bf16::from_f32(sum as f32 * mean_factor(n)).to_f32().sqrt()).to_f64() }
);
float!(
    f16,
    u16,
    i16,
    largest_magnitude_16,
    largest_magnitudes_16,
    |x| (x * x).to_f64(),
    |x| (x * x).to_f64(),
    |sum, n| { f16::from_f32(f16::from_f32(sum as f32 * mean_factor(n)).to_f32().sqrt()).to_f64() }
);

fn largest_64(bits: &[u64]) -> u64 {
    bits.iter().fold(0, |largest, &bits| largest.max(bits << 1 >> 1))
}

fn largest_each_64(totals: &mut [u64], bits: &[u64]) {
    totals.iter_mut().zip(bits).for_each(|(total, &bits)| *total = (*total).max(bits << 1 >> 1));
}

/// XLA multiplies a sum by the reciprocal of the count.
fn mean_factor(count: usize) -> f32 {
    1.0 / count as f32
}

fn measure<T: Float>(
    array: &Array,
    how: &HowToQuantize,
    arithmetic: Arithmetic,
    elements: usize,
    shape: &[usize],
    runs: &Runs,
) -> Result<Statistics, QuantError> {
    let values = array.values::<T>()?;
    let values = values.as_ref();
    let entries: usize = shape.iter().product();
    Ok(match how.calibration {
        Calibration::AbsMax { .. } | Calibration::Fixed { .. } => {
            let found = largest::<T>(values, runs, entries);
            Statistics::AbsMax(Array::from_vec(shape, found.into_iter().map(T::from_magnitude).collect())?)
        }
        Calibration::MinMax { .. } => {
            // Starting from 0 clips the range to contain it.
            let min = fold(values, runs, entries, T::ordered, |a, b| a.min(b));
            let max = fold(values, runs, entries, T::ordered, |a, b| a.max(b));
            let (min, max): (Vec<T>, Vec<T>) = min
                .into_iter()
                .zip(max)
                .map(|(min, max)| {
                    let (min, max) = (T::from_ordered(min), T::from_ordered(max));
                    if min.is_nan() || max.is_nan() { (T::nan(), T::nan()) } else { (min, max) }
                })
                .unzip();
            Statistics::MinMax(Array::from_vec(shape, min)?, Array::from_vec(shape, max)?)
        }
        Calibration::Rms { .. } => {
            let square = match arithmetic {
                Arithmetic::Eager => T::square,
                Arithmetic::Compiled => T::fused_square,
            };
            let sums = if elements <= SMALL {
                let squares = values.iter().map(|&x| square(x)).collect();
                windowed_sums::<T>(squares, statistics_axes(array.shape(), how)?)
            } else {
                fold(values, runs, entries, square, |a, b| a + b)
            };
            let count = array.len().checked_div(entries).unwrap_or(0);
            let roots: Vec<f64> = sums.into_iter().map(|sum| T::root_mean(sum, count)).collect();
            Statistics::RootMeanSquare(Array::from_f64(T::DTYPE, shape, &roots)?)
        }
    })
}

/// Up to so many elements XLA's CPU backend sums in an order of its own ([`windowed_sums`]); beyond, in that of a
/// library that depends on the machine, and the sum here is the exact one (in f64): the two differ in the last digits.
const SMALL: usize = 4095;

/// The axes after the split into tiles: sizes, and whether statistics reduce over them.
fn statistics_axes(shape: &[usize], how: &HowToQuantize) -> Result<Vec<(usize, bool)>, QuantError> {
    let tiles = how.tiles(shape)?;
    let axes = shape.iter().zip(tiles).zip(&how.granularity);
    Ok(axes
        .flat_map(|((&size, tile), granularity)| match granularity {
            Granularity::Shared => vec![(size, true)],
            Granularity::Channelwise => vec![(size, false)],
            Granularity::Tiled(_) => vec![(size / tile, false), (tile, true)],
        })
        .collect())
}

/// Sums as XLA's CPU backend rewrites them: over windows of up to 32 along each reduced axis (the padding split evenly
/// between both ends), then over the windows' sums, one element after the other and in f32 (in f64 for f64 arrays).
fn windowed_sums<T: Float>(mut values: Vec<f64>, mut axes: Vec<(usize, bool)>) -> Vec<f64> {
    const WINDOW: usize = 32;
    loop {
        let last = axes.iter().all(|&(size, reduced)| !reduced || size <= WINDOW);
        // Sizes of windows, elements of padding before the first one, and how many there are.
        let windows: Vec<(usize, usize, usize)> = axes
            .iter()
            .map(|&(size, reduced)| {
                let window = if reduced { size.clamp(1, WINDOW) } else { 1 };
                let count = size.div_ceil(window).max(usize::from(reduced));
                (window, (count * window - size) / 2, count)
            })
            .collect();
        let mut sums = vec![0.0; windows.iter().map(|w| w.2).product()];
        for (i, &x) in values.iter().enumerate() {
            let (mut rest, mut step, mut at) = (i, 1, 0);
            for (&(size, _), &(window, before, count)) in axes.iter().zip(&windows).rev() {
                at += (rest % size + before) / window * step;
                rest /= size;
                step *= count;
            }
            let sum: f64 = sums[at] + x;
            sums[at] = if T::DTYPE == DType::F64 { sum } else { sum as f32 as f64 };
        }
        if last {
            return sums;
        }
        values = sums;
        axes.iter_mut().zip(&windows).for_each(|(axis, window)| axis.0 = window.2);
    }
}

/// The largest magnitude of the elements that meet an entry.
fn largest<T: Float>(values: &[T], runs: &Runs, entries: usize) -> Vec<T::Magnitude> {
    let mut found = vec![T::Magnitude::default(); entries];
    runs.for_each(|start, entry| {
        let run = &values[start..start + runs.len];
        if runs.each {
            T::largest_each(&mut found[entry..entry + runs.len], run);
        } else {
            found[entry] = found[entry].max(T::largest(run));
        }
    });
    found
}

/// Reduces the elements that meet an entry, beginning with `B`'s default.
fn fold<T: Copy, B: Copy + Default>(
    values: &[T],
    runs: &Runs,
    entries: usize,
    key: impl Fn(T) -> B,
    pick: impl Fn(B, B) -> B,
) -> Vec<B> {
    const LANES: usize = 16;
    let mut found = vec![B::default(); entries];
    runs.for_each(|start, entry| {
        let run = &values[start..start + runs.len];
        if runs.each {
            for (found, &x) in found[entry..entry + runs.len].iter_mut().zip(run) {
                *found = pick(*found, key(x));
            }
            return;
        }
        let mut lanes = [B::default(); LANES];
        let (blocks, rest) = run.as_chunks::<LANES>();
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane = pick(*lane, key(x));
            }
        }
        let blocks = lanes.into_iter().fold(found[entry], &pick);
        found[entry] = rest.iter().fold(blocks, |a, &x| pick(a, key(x)));
    });
    found
}

/// Refuses values that have no range to be quantized into.
///
/// # Errors
/// [`QuantError::NotFinite`] with the place of the first NaN or infinity of a float array.
pub fn check_finite(array: &Array) -> Result<(), QuantError> {
    fn first<T: Float>(
        array: &Array,
        infinity: T::Magnitude,
    ) -> Result<Option<(usize, &'static str)>, QuantError> {
        let values = array.values::<T>()?;
        // The common case in one pass without a branch an element.
        if T::largest(&values) < infinity {
            return Ok(None);
        }
        let at = values.iter().position(|x| x.magnitude() >= infinity);
        Ok(at.map(|at| (at, if values[at].is_nan() { "a NaN" } else { "an infinity" })))
    }
    let found = match array.dtype() {
        DType::F32 => first::<f32>(array, f32::INFINITY.to_bits())?,
        DType::F64 => first::<f64>(array, f64::INFINITY.to_bits())?,
        DType::BF16 => first::<bf16>(array, bf16::INFINITY.to_bits())?,
        DType::F16 => first::<f16>(array, f16::INFINITY.to_bits())?,
        _ => None,
    };
    match found {
        None => Ok(()),
        Some((at, what)) => {
            let steps = qwix_array::strides(array.shape());
            let index = array.shape().iter().zip(&steps).map(|(&size, &step)| at / step % size).collect();
            Err(QuantError::NotFinite { what, index })
        }
    }
}
