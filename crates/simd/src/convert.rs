//! Between storage and f32.

use half::{bf16, f16};

use crate::versions::versions;

/// The nearest bf16, halves to even, as an f32.
#[inline(always)]
pub(crate) fn nearest_bf16(x: f32) -> f32 {
    f32::from_bits((bf16_bits(x) as u32) << 16)
}

#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

/// The nearest f16, halves to even, as an f32.
#[inline(always)]
pub(crate) fn nearest_f16(x: f32) -> f32 {
    let bits = x.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // The unit in the last place of 0.75 is 2^-24, the smallest subnormal f16.
    let subnormal = (x.abs() + 0.75 - 0.75).copysign(x);
    let y = if x.abs() < 6.103_515_6e-5 { subnormal } else { normal };
    let y = if y.abs() >= 65536.0 { f32::INFINITY.copysign(x) } else { y };
    if x.is_nan() { x } else { y }
}

#[inline(always)]
fn round_bf16_body(values: &mut [f32]) {
    for v in values {
        *v = nearest_bf16(*v);
    }
}

#[inline(always)]
fn round_f16_body(values: &mut [f32]) {
    for v in values {
        *v = nearest_f16(*v);
    }
}

#[inline(always)]
fn widen_bf16_body(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits((from.to_bits() as u32) << 16);
    }
}

#[inline(always)]
pub(crate) fn f16_value(bits: u16) -> f32 {
    let magnitude = (bits & 0x7fff) as u32;
    // With f32's bias the exponent is 112 too small; the product mends it, subnormals included.
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let special = f32::from_bits(magnitude << 13 | 0x7f80_0000);
    let y = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(y.to_bits() | ((bits as u32) & 0x8000) << 16)
}

#[inline(always)]
fn widen_f16_body(from: &[f16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f16_value(from.to_bits());
    }
}

#[inline(always)]
fn to_bf16_body(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = bf16::from_bits(bf16_bits(*from));
    }
}

#[inline(always)]
fn decode_body(from: &[u8], table: &[f32; 256], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = table[from as usize];
    }
}

#[inline(always)]
fn decode_nibbles_body(from: &[u8], table: &[f32; 16], to: &mut [f32]) {
    let (pairs, rest) = to.as_chunks_mut::<2>();
    for ([low, high], &byte) in pairs.iter_mut().zip(from) {
        *low = table[(byte & 15) as usize];
        *high = table[(byte >> 4) as usize];
    }
    if let ([last], Some(&byte)) = (rest, from.get(pairs.len())) {
        *last = table[(byte & 15) as usize];
    }
}

versions! {
    /// Each nibble's entry in a table, the low nibble of a byte first; as many as `to` has.
    pub fn decode_nibbles(from: &[u8], table: &[f32; 16], to: &mut [f32]) = decode_nibbles_body
}
versions! {
    /// Rounds each value to the nearest bf16, halves to even.
    pub fn round_to_bf16(values: &mut [f32]) = round_bf16_body
}
versions! {
    /// Rounds each value to the nearest f16, halves to even.
    pub fn round_to_f16(values: &mut [f32]) = round_f16_body
}
versions! {
    /// bf16 to f32, exactly; as many as the shorter slice has.
    pub fn widen_bf16(from: &[bf16], to: &mut [f32]) = widen_bf16_body
}
versions! {
    /// f16 to f32, exactly; as many as the shorter slice has.
    pub fn widen_f16(from: &[f16], to: &mut [f32]) = widen_f16_body
}
versions! {
    /// f32 to the nearest bf16, halves to even; as many as the shorter slice has.
    pub fn f32_to_bf16(from: &[f32], to: &mut [bf16]) = to_bf16_body
}
versions! {
    /// Each byte's entry in a table; as many as the shorter slice has.
    pub fn decode_bytes(from: &[u8], table: &[f32; 256], to: &mut [f32]) = decode_body
}

/// f32 to the nearest f16, halves to even; as many as the shorter slice has.
pub fn f32_to_f16(from: &[f32], to: &mut [f16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f16::from_f32(*from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_come_low_first() {
        let table = std::array::from_fn(|i| i as f32);
        for count in 0..6usize {
            let mut out = vec![0.0; count];
            decode_nibbles(&[0x21, 0x43, 0x65], &table, &mut out);
            assert_eq!(out, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..count]);
        }
    }

    #[test]
    fn every_f16_and_bf16_widens_and_every_f32_rounds_as_half_does() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16_value(bits), f16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{bits:#x}");
        }
        for bits in (0..=u32::MAX)
            .step_by(1009)
            .chain((0..1 << 16).map(|i| i << 16 | 0x8000))
            .chain(0x3880_0000..0x3880_4000)
        {
            let x = f32::from_bits(bits);
            let (a, b) = (nearest_f16(x), f16::from_f32(x).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 {x:e}: {a:e} {b:e}");
            let (a, b) = (nearest_bf16(x), bf16::from_f32(x).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 {x:e}: {a:e} {b:e}");
        }
    }
}
