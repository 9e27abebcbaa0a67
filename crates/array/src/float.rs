//! Floats of eight and four bits, by their bits.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

/// Four exponent bits, three of mantissa, no infinities; largest 448.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E4M3FN(pub u8);

/// Five exponent bits, two of mantissa, with infinities; largest finite 57344.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E5M2(pub u8);

/// Two exponent bits, one of mantissa, in the low four bits; largest 6, neither NaN nor infinity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct F4E2M1FN(pub u8);

/// Rounds the magnitude of a number that is not NaN to a float of `MANTISSA` bits and this exponent bias, to nearest
/// and ties to even, as if its exponent had no upper end; the result is exponent and mantissa side by side, sign left off.
#[inline(always)]
fn round_magnitude<const MANTISSA: u32, const BIAS: i32>(x: f64) -> u64 {
    let x = x.abs();
    let smallest_normal = f64::from_bits(((1023 + 1 - BIAS) as u64) << 52);
    if x < smallest_normal {
        // One unit in the last place of this number is the target's smallest step, so the addition rounds to it.
        let magic = f64::from_bits(((1023 + 1 - BIAS - MANTISSA as i32 + 52) as u64) << 52);
        return (x + magic).to_bits() - magic.to_bits();
    }
    let drop = 52 - MANTISSA;
    let bits = x.to_bits();
    let rounded = (bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop;
    rounded - (((1023 - BIAS) as u64) << MANTISSA)
}

/// The same from f32; narrower arithmetic, which the compiler can do several at a time.
#[inline(always)]
fn round_magnitude_f32<const MANTISSA: u32, const BIAS: i32>(x: f32) -> u32 {
    let x = x.abs();
    let smallest_normal = f32::from_bits(((127 + 1 - BIAS) as u32) << 23);
    let magic = f32::from_bits(((127 + 1 - BIAS - MANTISSA as i32 + 23) as u32) << 23);
    let subnormal = (x + magic).to_bits().wrapping_sub(magic.to_bits());
    let drop = 23 - MANTISSA;
    let bits = x.to_bits();
    let rounded = (bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop;
    let normal = rounded.wrapping_sub(((127 - BIAS) as u32) << MANTISSA);
    if x < smallest_normal { subnormal } else { normal }
}

/// The value of a float of `MANTISSA` bits and this bias; the pattern is finite.
const fn value<const MANTISSA: u32, const BIAS: i32>(magnitude: u8) -> f32 {
    let fraction = (magnitude & ((1 << MANTISSA) - 1)) as f32;
    let exponent = (magnitude >> MANTISSA) as i32;
    let unit = f32::from_bits(
        ((127 - BIAS - MANTISSA as i32 + if exponent == 0 { 1 } else { exponent }) as u32) << 23,
    );
    if exponent == 0 { fraction * unit } else { (fraction + (1u32 << MANTISSA) as f32) * unit }
}

const fn table<const MANTISSA: u32, const BIAS: i32>(infinity: u8, first_nan: u8) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let magnitude = code as u8 & 0x7f;
        let positive = if magnitude >= first_nan {
            f32::NAN
        } else if magnitude == infinity {
            f32::INFINITY
        } else {
            value::<MANTISSA, BIAS>(magnitude)
        };
        values[code] = if code < 128 { positive } else { -positive };
        code += 1;
    }
    values
}

static E4M3FN: [f32; 256] = table::<3, 7>(0x7f, 0x7f);
static E5M2: [f32; 256] = table::<2, 15>(0x7c, 0x7d);

impl F8E4M3FN {
    /// The largest value, 448.
    pub const MAX: f32 = 448.0;

    /// Rounds to nearest even; what does not fit becomes NaN.
    #[inline]
    pub fn from_f32(x: f32) -> Self {
        let code = if x.is_nan() { 0x7f } else { round_magnitude_f32::<3, 7>(x).min(0x7f) as u8 };
        F8E4M3FN(code | sign_f32(x))
    }

    /// Rounds once, to nearest even; what does not fit becomes NaN.
    #[inline]
    pub fn from_f64(x: f64) -> Self {
        let code = if x.is_nan() { 0x7f } else { round_magnitude::<3, 7>(x).min(0x7f) as u8 };
        F8E4M3FN(code | sign(x))
    }

    /// The value, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        E4M3FN[self.0 as usize]
    }
}

impl F8E5M2 {
    /// The largest finite value, 57344.
    pub const MAX: f32 = 57344.0;

    /// Rounds to nearest even; what does not fit becomes an infinity.
    #[inline]
    pub fn from_f32(x: f32) -> Self {
        let code = if x.is_nan() { 0x7e } else { round_magnitude_f32::<2, 15>(x).min(0x7c) as u8 };
        F8E5M2(code | sign_f32(x))
    }

    /// Rounds once, to nearest even; what does not fit becomes an infinity.
    #[inline]
    pub fn from_f64(x: f64) -> Self {
        let code = if x.is_nan() { 0x7e } else { round_magnitude::<2, 15>(x).min(0x7c) as u8 };
        F8E5M2(code | sign(x))
    }

    /// The value, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        E5M2[self.0 as usize]
    }
}

impl F4E2M1FN {
    /// The largest value, 6.
    pub const MAX: f32 = 6.0;

    /// Rounds to nearest even; what does not fit becomes ±6. The type has no NaN: one becomes −0, as in XLA.
    #[inline]
    pub fn from_f32(x: f32) -> Self {
        let sign = sign_f32(x) >> 4;
        let code = round_magnitude_f32::<1, 1>(x).min(7) as u8;
        F4E2M1FN(if x.is_nan() { 8 } else { code | sign })
    }

    /// Rounds once, to nearest even; otherwise as [`from_f32`](Self::from_f32).
    #[inline]
    pub fn from_f64(x: f64) -> Self {
        let sign = sign(x) >> 4;
        if x.is_nan() {
            return F4E2M1FN(8);
        }
        F4E2M1FN(round_magnitude::<1, 1>(x).min(7) as u8 | sign)
    }

    /// The value, exactly; the high four bits do not count.
    #[inline]
    pub fn to_f32(self) -> f32 {
        const VALUES: [f32; 16] =
            [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        VALUES[(self.0 & 15) as usize]
    }
}

fn sign(x: f64) -> u8 {
    (x.to_bits() >> 63 << 7) as u8
}

fn sign_f32(x: f32) -> u8 {
    (x.to_bits() >> 31 << 7) as u8
}

/// f64 to f16 with one rounding, to nearest even.
pub(crate) fn f16_from_f64(x: f64) -> f16 {
    if x.is_nan() {
        return f16::from_f32(x as f32);
    }
    f16::from_bits(round_magnitude::<10, 15>(x).min(0x7c00) as u16 | ((x.to_bits() >> 63) as u16) << 15)
}

/// f64 to bf16 with one rounding, to nearest even.
pub(crate) fn bf16_from_f64(x: f64) -> bf16 {
    if x.is_nan() {
        return bf16::from_f32(x as f32);
    }
    bf16::from_bits(round_magnitude::<7, 127>(x).min(0x7f80) as u16 | ((x.to_bits() >> 63) as u16) << 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow, obvious way: the nearest of all values, the even code on a tie.
    fn nearest(x: f64, values: &[f64]) -> usize {
        let mut best = 0;
        for (code, &value) in values.iter().enumerate() {
            let (d, b) = ((value - x).abs(), (values[best] - x).abs());
            if d < b || (d == b && code % 2 == 0) {
                best = code;
            }
        }
        best
    }

    /// Values, midpoints, and both neighbours of midpoints.
    fn probes(values: &[f64]) -> Vec<f64> {
        let mids = values.windows(2).map(|w| (w[0] + w[1]) / 2.0);
        values
            .iter()
            .copied()
            .chain(mids)
            .flat_map(|x| [x, x.next_up(), x.next_down(), x * (1.0 + 1e-7), x * (1.0 - 1e-7)])
            .filter(|x| *x >= 0.0)
            .collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_value_and_to_even_on_ties() {
        let e4m3: Vec<f64> = (0..0x7f).map(|c| F8E4M3FN(c).to_f32() as f64).chain([480.0]).collect();
        let e5m2: Vec<f64> = (0..0x7c).map(|c| F8E5M2(c).to_f32() as f64).chain([65536.0]).collect();
        let e2m1: Vec<f64> = (0..8).map(|c| F4E2M1FN(c).to_f32() as f64).collect();
        let mut wrong = Vec::new();
        for (name, values, f32_code, f64_code) in [
            (
                "e4m3fn",
                &e4m3,
                (|x| F8E4M3FN::from_f32(x).0) as fn(f32) -> u8,
                (|x| F8E4M3FN::from_f64(x).0) as fn(f64) -> u8,
            ),
            ("e5m2", &e5m2, |x| F8E5M2::from_f32(x).0, |x| F8E5M2::from_f64(x).0),
            ("e2m1fn", &e2m1, |x| F4E2M1FN::from_f32(x).0, |x| F4E2M1FN::from_f64(x).0),
        ] {
            let negative = if name == "e2m1fn" { 8 } else { 128 };
            for x in probes(values) {
                let want = nearest(x, values) as u8;
                let narrow = nearest(x as f32 as f64, values) as u8;
                let found = [f64_code(x), f64_code(-x), f32_code(x as f32), f32_code(-x as f32)];
                if found != [want, want | negative, narrow, narrow | negative] {
                    wrong.push((name, x, want, narrow, found));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn f64_is_rounded_once() {
        let mut wrong = Vec::new();
        for bits in 0..0x7f80u16 {
            let (a, b) = (bf16::from_bits(bits).to_f64(), bf16::from_bits(bits + 1).to_f64());
            let mid = if b.is_finite() { (a + b) / 2.0 } else { a * (1.0 + 1.0 / 510.0) };
            for (x, want) in
                [(a, bits), (mid.next_up(), bits + 1), (mid.next_down(), bits), (mid, bits + bits % 2)]
            {
                if b.is_finite() && bf16_from_f64(x).to_bits() != want {
                    wrong.push((x, want));
                }
            }
        }
        for bits in 0..0x7bffu16 {
            let (a, b) = (f16::from_bits(bits).to_f64(), f16::from_bits(bits + 1).to_f64());
            let mid = (a + b) / 2.0;
            for (x, want) in
                [(a, bits), (mid.next_up(), bits + 1), (mid.next_down(), bits), (mid, bits + bits % 2)]
            {
                if f16_from_f64(x).to_bits() != want || f16_from_f64(-x).to_bits() != want | 0x8000 {
                    wrong.push((x, want));
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong, first {:?}", wrong.len(), wrong.first());
        assert_eq!(f16_from_f64(65520.0), f16::INFINITY);
        assert_eq!(bf16_from_f64(f64::MAX), bf16::INFINITY);
        assert!(f16_from_f64(f64::NAN).is_nan() && bf16_from_f64(-f64::NAN).is_nan());
    }
}
