//! The arithmetic of quantizing, a chunk of elements at a time: widened to f32 (f64 for f64 arrays), each step rounded
//! back to the array's dtype.

use std::ops::{Add, Mul, Sub};

use half::slice::HalfFloatSliceExt;
use qwix_array::{Element, F4E2M1FN, F8E4M3FN, F8E5M2, bf16, f16};

/// Elements of a chunk: a few buffers of it fit the first cache.
pub(crate) const CHUNK: usize = 1024;

/// The type that arithmetic is done in.
pub(crate) trait Real:
    Copy + Default + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + 'static
{
    /// Adding this to a number of small magnitude rounds it to an integer, half to even, which is then in the low bits.
    const MAGIC: Self;
    const ZERO: Self;
    fn from_f64(x: f64) -> Self;
    fn divide(self, by: Self) -> Self;
    fn low_bits(self) -> u16;
    fn to_e4m3(self) -> u8;
    fn to_e5m2(self) -> u8;
    fn to_e2m1(self) -> u8;
    /// For each pair of neighbours in an ascending codebook, the largest number that is assigned the lower one. The
    /// distances are rounded, so these are not exactly the midpoints; found by bisection.
    fn steps(codebook: &'static [f32]) -> Vec<Self>;
    /// The index of the first value at the smallest distance.
    fn nearest(x: Self, codebook: &[f32]) -> u8;
    /// Multiplies each value by one factor.
    fn scale(values: &mut [Self], factor: Self);
    /// Multiplies each value by its factor.
    fn scale_each(values: &mut [Self], factors: &[Self]);
    /// Writes codes of at most eight bits for integers.
    fn encode_int8(values: &[Self], min: Self, max: Self, codes: &mut [u8]);
    /// For each value, how many of the steps it is above.
    fn count_above(values: &[Self], steps: &[Self], counts: &mut [u8]);
}

macro_rules! real {
    ($real:ty, $signed:ty, $magic:expr, $from:ident { $($kernels:tt)* }) => {
        impl Real for $real {
            $($kernels)*
            const MAGIC: Self = $magic;
            const ZERO: Self = 0.0;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $real
            }
            #[inline(always)]
            fn divide(self, by: Self) -> Self {
                self / by
            }
            #[inline(always)]
            fn low_bits(self) -> u16 {
                self.to_bits() as u16
            }
            #[inline(always)]
            fn to_e4m3(self) -> u8 {
                F8E4M3FN::$from(self).0
            }
            #[inline(always)]
            fn to_e5m2(self) -> u8 {
                F8E5M2::$from(self).0
            }
            #[inline(always)]
            fn to_e2m1(self) -> u8 {
                F4E2M1FN::$from(self).0
            }
            fn nearest(x: Self, codebook: &[f32]) -> u8 {
                let distance = |i: usize| (codebook[i] as $real - x).abs();
                (1..codebook.len()).fold(0, |best, i| if distance(i) < distance(best) { i } else { best })
                    as u8
            }
            fn steps(codebook: &'static [f32]) -> Vec<Self> {
                // Signed integers in the order of the numbers, in place of the numbers themselves.
                let ordered = |x: $real| {
                    let bits = x.to_bits() as $signed;
                    bits ^ (bits >> (<$signed>::BITS - 1) & <$signed>::MAX)
                };
                let number = |bits: $signed| {
                    <$real>::from_bits((bits ^ (bits >> (<$signed>::BITS - 1) & <$signed>::MAX)) as _)
                };
                let lower_is_nearest =
                    |x: $real, pair: &[f32]| (pair[0] as $real - x).abs() <= (pair[1] as $real - x).abs();
                let step = |pair: &[f32]| {
                    let (mut low, mut high) = (ordered(pair[0] as $real), ordered(pair[1] as $real));
                    while low + 1 < high {
                        let middle = (low & high) + ((low ^ high) >> 1);
                        if lower_is_nearest(number(middle), pair) { low = middle } else { high = middle }
                    }
                    number(low)
                };
                codebook.windows(2).map(step).collect()
            }
        }
    };
}

real! { f32, i32, 12_582_912.0, from_f32 {
    fn scale(values: &mut [f32], factor: f32) {
        qwix_simd::scale_f32(values, factor);
    }
    fn scale_each(values: &mut [f32], factors: &[f32]) {
        qwix_simd::multiply_f32(values, factors);
    }
    fn encode_int8(values: &[f32], min: f32, max: f32, codes: &mut [u8]) {
        qwix_simd::quantize_i8(values, 1.0, 0.0, min, max, bytemuck::cast_slice_mut(codes));
    }
    fn count_above(values: &[f32], steps: &[f32], counts: &mut [u8]) {
        match steps.try_into() {
            Ok(steps) => qwix_simd::count_above(values, steps, counts),
            Err(_) => count_above(values, steps, counts),
        }
    }
} }
real! { f64, i64, 6_755_399_441_055_744.0, from_f64 {
    fn scale(values: &mut [f64], factor: f64) {
        values.iter_mut().for_each(|x| *x *= factor);
    }
    fn scale_each(values: &mut [f64], factors: &[f64]) {
        values.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
    fn encode_int8(values: &[f64], min: f64, max: f64, codes: &mut [u8]) {
        codes.iter_mut().zip(values).for_each(|(code, &x)| *code = to_int(x, min, max) as u8);
    }
    fn count_above(values: &[f64], steps: &[f64], counts: &mut [u8]) {
        count_above(values, steps, counts);
    }
} }

fn count_above<R: Real>(values: &[R], steps: &[R], counts: &mut [u8]) {
    for (count, &x) in counts.iter_mut().zip(values) {
        *count = steps.iter().filter(|&&step| x > step).count() as u8;
    }
}

/// An array's element beside the type that arithmetic on it is done in.
pub(crate) trait Wide: Element {
    type Real: Real;
    /// Brings a scale's reciprocal to the precision that XLA has it in. It computes in bf16 by way of f32 and drops
    /// roundings in between, so there it stays an f32; the product, rounded to bf16, is then the true quotient.
    fn round_reciprocals(values: &mut [Self::Real]);
    fn load(from: &[Self], to: &mut [Self::Real]);
    fn store(from: &[Self::Real], to: &mut Vec<Self>);
    /// Rounds to this type, in place.
    fn round(values: &mut [Self::Real]);
}

impl Wide for f32 {
    type Real = f32;
    fn round_reciprocals(_: &mut [f32]) {}
    fn load(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn store(from: &[f32], to: &mut Vec<f32>) {
        to.extend_from_slice(from);
    }
    fn round(_: &mut [f32]) {}
}

impl Wide for f64 {
    type Real = f64;
    fn round_reciprocals(_: &mut [f64]) {}
    fn load(from: &[f64], to: &mut [f64]) {
        to.copy_from_slice(from);
    }
    fn store(from: &[f64], to: &mut Vec<f64>) {
        to.extend_from_slice(from);
    }
    fn round(_: &mut [f64]) {}
}

impl Wide for bf16 {
    type Real = f32;
    fn round_reciprocals(_: &mut [f32]) {}
    fn load(from: &[bf16], to: &mut [f32]) {
        qwix_simd::widen_bf16(from, to);
    }
    fn store(from: &[f32], to: &mut Vec<bf16>) {
        to.extend(from.iter().map(|x| bf16::from_bits((x.to_bits() >> 16) as u16)));
    }
    fn round(values: &mut [f32]) {
        qwix_simd::round_to_bf16(values);
    }
}

impl Wide for f16 {
    type Real = f32;
    fn round_reciprocals(values: &mut [f32]) {
        Self::round(values);
    }
    fn load(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn store(from: &[f32], to: &mut Vec<f16>) {
        let start = to.len();
        to.resize(start + from.len(), f16::ZERO);
        to[start..].convert_from_f32_slice(from);
    }
    fn round(values: &mut [f32]) {
        let mut halves = [f16::ZERO; CHUNK];
        for values in values.chunks_mut(CHUNK) {
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            halves.convert_to_f32_slice(values);
        }
    }
}

/// Rounds to integers between bounds, half to even; NaN becomes 0.
#[inline(always)]
fn to_int<R: Real>(x: R, min: R, max: R) -> u16 {
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    let x = if x == x { x } else { R::ZERO };
    let x = if x < min { min } else { x };
    let x = if x > max { max } else { x };
    (x + R::MAGIC).low_bits()
}

/// Writes 16-bit integers.
pub(crate) fn encode_int16<R: Real>(values: &[R], min: R, max: R, codes: &mut Vec<i16>) {
    codes.extend(values.iter().map(|&x| to_int(x, min, max) as i16));
}

/// Clips, keeping NaN, and writes what `code` makes of it.
pub(crate) fn encode_float<R: Real>(values: &[R], max: R, code: impl Fn(R) -> u8, codes: &mut [u8]) {
    let min = R::ZERO - max;
    for (to, &x) in codes.iter_mut().zip(values) {
        let x = if x < min { min } else { x };
        *to = code(if x > max { max } else { x });
    }
}

/// Writes the index of the nearest value, the lower one on a tie; NaN is 0.
pub(crate) fn encode_codebook<R: Real>(values: &[R], codebook: &[f32], steps: &[R], codes: &mut [u8]) {
    R::count_above(values, steps, codes);
    // Far from the codebook the distances to several of its values round to one, and the first of them is taken.
    let far = R::from_f64(65536.0);
    if values.iter().fold(false, |any, &x| any | (x > far) | (x < R::ZERO - far)) {
        for (code, &x) in codes.iter_mut().zip(values) {
            if x > far || x < R::ZERO - far {
                *code = R::nearest(x, codebook);
            }
        }
    }
}
