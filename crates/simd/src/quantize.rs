//! From f32 to int8 and back from int32.

use crate::versions::versions;

const LANES: usize = 64;

/// The larger; NaN when either is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller; NaN when either is NaN.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn absmax_body(values: &[f32]) -> f32 {
    // Absolute values are ordered as their bits are, and NaN's bits are above all numbers'.
    let mut lanes = [0u32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(v.to_bits() & 0x7fff_ffff);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max(v.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(lanes.iter().copied().fold(0, u32::max))
}

#[inline(always)]
fn minmax_body(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(chunk) {
            *low = smaller(*low, v);
            *high = larger(*high, v);
        }
    }
    for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(rest) {
        *low = smaller(*low, v);
        *high = larger(*high, v);
    }
    (low.into_iter().fold(f32::INFINITY, smaller), high.into_iter().fold(f32::NEG_INFINITY, larger))
}

/// Adding this to a number of small magnitude rounds it to an integer, half to even, which is then in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer between bounds that are integers of int8's range, half to even; NaN becomes 0.
#[inline(always)]
fn to_i8(q: f32, low: f32, high: f32) -> i8 {
    // Between the bounds before it is rounded is between them after.
    let q = if q < low { low } else { q };
    let q = if q > high { high } else { q };
    let q = if q.is_nan() { 0.0 } else { q };
    (q + MAGIC).to_bits() as i8
}

#[inline(always)]
fn quantize_body(values: &[f32], reciprocal: f32, zero_point: f32, low: f32, high: f32, out: &mut [i8]) {
    for (out, &v) in out.iter_mut().zip(values) {
        *out = to_i8(v * reciprocal + zero_point, low, high);
    }
}

#[inline(always)]
fn absmax_rows_body(totals: &mut [f32], values: &[f32]) {
    for (total, &v) in totals.iter_mut().zip(values) {
        *total = f32::from_bits(total.to_bits().max(v.to_bits() & 0x7fff_ffff));
    }
}

#[inline(always)]
fn quantize_columns_body(values: &[f32], reciprocals: &[f32], low: f32, high: f32, out: &mut [i8]) {
    for ((out, &v), &reciprocal) in out.iter_mut().zip(values).zip(reciprocals) {
        *out = to_i8(v * reciprocal, low, high);
    }
}

#[inline(always)]
fn multiply_rows_body(values: &mut [f32], factors: &[f32]) {
    for (v, &factor) in values.iter_mut().zip(factors) {
        *v *= factor;
    }
}

#[inline(always)]
fn multiply_add_f32_body(totals: &mut [f32], a: &[f32], b: &[f32]) {
    for ((total, &a), &b) in totals.iter_mut().zip(a).zip(b) {
        *total += a * b;
    }
}

#[inline(always)]
fn multiply_add_i8_body(totals: &mut [i32], a: &[i8], b: &[i8]) {
    for ((total, &a), &b) in totals.iter_mut().zip(a).zip(b) {
        *total = total.wrapping_add(a as i32 * b as i32);
    }
}

#[inline(always)]
fn axpy_i32_body(totals: &mut [i32], factor: i32, values: &[i32]) {
    for (total, &v) in totals.iter_mut().zip(values) {
        *total = total.wrapping_add(v.wrapping_mul(factor));
    }
}

#[inline(always)]
fn widen_i8_body(from: &[i8], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from as f32;
    }
}

#[inline(always)]
fn rescale_body(sums: &[i32], left: f32, right: &[f32], add: bool, out: &mut [f32]) {
    if add {
        for ((out, &sum), &right) in out.iter_mut().zip(sums).zip(right) {
            *out += sum as f32 * left * right;
        }
    } else {
        for ((out, &sum), &right) in out.iter_mut().zip(sums).zip(right) {
            *out = sum as f32 * left * right;
        }
    }
}

versions! {
    /// The largest absolute value, 0 when there is none; NaN when any value is.
    pub fn absmax_f32(values: &[f32]) -> f32 = absmax_body
}
versions! {
    /// The smallest and the largest value, ∞ and −∞ when there is none; NaN when any value is.
    pub fn minmax_f32(values: &[f32]) -> (f32, f32) = minmax_body
}
versions! {
    /// value · reciprocal + zero_point, rounded half to even, then held between `low` and `high`, which are integers of int8's
    /// range; NaN becomes 0.
    pub fn quantize_i8(values: &[f32], reciprocal: f32, zero_point: f32, low: f32, high: f32, out: &mut [i8]) = quantize_body
}
versions! {
    /// Folds the absolute values of a row into a row of maxima, none negative; NaN wins.
    pub fn absmax_rows_f32(totals: &mut [f32], values: &[f32]) = absmax_rows_body
}
versions! {
    /// [`quantize_i8`] with a reciprocal for each value, and no zero point.
    pub fn quantize_columns_i8(values: &[f32], reciprocals: &[f32], low: f32, high: f32, out: &mut [i8]) = quantize_columns_body
}
versions! {
    /// Multiplies each value by its factor.
    pub fn multiply_f32(values: &mut [f32], factors: &[f32]) = multiply_rows_body
}
versions! {
    /// Adds products of pairs to totals; each product is rounded first.
    pub fn multiply_add_f32(totals: &mut [f32], a: &[f32], b: &[f32]) = multiply_add_f32_body
}
versions! {
    /// Adds products of pairs to totals, modulo 2^32.
    pub fn multiply_add_i8(totals: &mut [i32], a: &[i8], b: &[i8]) = multiply_add_i8_body
}
versions! {
    /// Adds a multiple of a row to totals, modulo 2^32.
    pub fn axpy_i32(totals: &mut [i32], factor: i32, values: &[i32]) = axpy_i32_body
}
versions! {
    /// int8 to f32, exactly; as many as the shorter slice has.
    pub fn widen_i8(from: &[i8], to: &mut [f32]) = widen_i8_body
}
versions! {
    /// sum · left · right for a row of int32 sums, one `right` a column, in this order; added to `out` or set.
    pub fn rescale_i32(sums: &[i32], left: f32, right: &[f32], add: bool, out: &mut [f32]) = rescale_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let values =
            [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 128.5, -127.5, -128.5, -129.0, f32::NAN, 1e30, -1e30];
        let mut out = [0; 14];
        quantize_i8(&values, 1.0, 0.0, -128.0, 127.0, &mut out);
        assert_eq!(out, [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128, 0, 127, -128]);
        quantize_i8(&values, 1.0, 1.0, -8.0, 7.0, &mut out);
        assert_eq!(out, [2, 2, 4, 0, 0, 7, 7, 7, -8, -8, -8, 0, 7, -8]);
    }

    #[test]
    fn extremes_are_found_anywhere() {
        for count in [1, 2, 63, 64, 65, 200] {
            for at in 0..count {
                let mut values = vec![0.25f32; count];
                values[at] = -3.0;
                assert_eq!(absmax_f32(&values), 3.0);
                assert_eq!(minmax_f32(&values), (-3.0, if count == 1 { -3.0 } else { 0.25 }));
                values[at] = f32::NAN;
                assert!(absmax_f32(&values).is_nan() && minmax_f32(&values).0.is_nan());
            }
        }
        assert_eq!(absmax_f32(&[]), 0.0);
    }

    #[test]
    fn scales_multiply_left_first() {
        let mut out = [1.0; 2];
        rescale_i32(&[3, -7], 0.1, &[0.3, 0.7], false, &mut out);
        assert_eq!(out, [3.0 * 0.1 * 0.3, -7.0 * 0.1 * 0.7]);
        rescale_i32(&[3, -7], 0.1, &[0.3, 0.7], true, &mut out);
        assert_eq!(out, [2.0 * (3.0f32 * 0.1 * 0.3), 2.0 * (-7.0f32 * 0.1 * 0.7)]);
    }
}
