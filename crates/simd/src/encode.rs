//! From floats to codes: magnitudes by their bits, scaling, the nearest entry of a codebook, and packing.

use crate::versions::versions;

const LANES: usize = 128;

/// The largest magnitude among floats by their bits: NaNs are beyond infinity.
#[inline(always)]
fn largest_16_body(bits: &[u16]) -> u16 {
    let mut lanes = [0u16; LANES];
    let (chunks, rest) = bits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(v & 0x7fff);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max(v & 0x7fff);
    }
    lanes.into_iter().fold(0, u16::max)
}

#[inline(always)]
fn largest_32_body(bits: &[u32]) -> u32 {
    let mut lanes = [0u32; LANES];
    let (chunks, rest) = bits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(v & 0x7fff_ffff);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max(v & 0x7fff_ffff);
    }
    lanes.into_iter().fold(0, u32::max)
}

#[inline(always)]
fn largest_rows_16_body(totals: &mut [u16], bits: &[u16]) {
    for (total, &v) in totals.iter_mut().zip(bits) {
        *total = (*total).max(v & 0x7fff);
    }
}

#[inline(always)]
fn largest_rows_32_body(totals: &mut [u32], bits: &[u32]) {
    for (total, &v) in totals.iter_mut().zip(bits) {
        *total = (*total).max(v & 0x7fff_ffff);
    }
}

#[inline(always)]
fn scale_body(values: &mut [f32], factor: f32) {
    for v in values {
        *v *= factor;
    }
}

#[inline(always)]
fn count_above_body(values: &[f32], steps: &[f32; 15], counts: &mut [u8]) {
    for (count, &v) in counts.iter_mut().zip(values) {
        let mut above = 0;
        for &step in steps {
            above += (v > step) as i32;
        }
        *count = above as u8;
    }
}

#[inline(always)]
fn pack_nibbles_body(codes: &[u8], bytes: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    for (byte, &pair) in bytes.iter_mut().zip(pairs) {
        let pair = u16::from_le_bytes(pair);
        *byte = (pair & 0x0f | pair >> 4 & 0xf0) as u8;
    }
    if let (&[last], Some(byte)) = (rest, bytes.get_mut(pairs.len())) {
        *byte = last & 0x0f;
    }
}

versions! {
    /// The largest magnitude among 16-bit floats, as bits without a sign: NaNs are beyond infinity, and 0 is that of none.
    pub fn largest_magnitude_16(bits: &[u16]) -> u16 = largest_16_body
}
versions! {
    /// [`largest_magnitude_16`] of f32.
    pub fn largest_magnitude_32(bits: &[u32]) -> u32 = largest_32_body
}
versions! {
    /// Folds the magnitudes of a row of 16-bit floats into a row of the largest.
    pub fn largest_magnitudes_16(totals: &mut [u16], bits: &[u16]) = largest_rows_16_body
}
versions! {
    /// [`largest_magnitudes_16`] of f32.
    pub fn largest_magnitudes_32(totals: &mut [u32], bits: &[u32]) = largest_rows_32_body
}
versions! {
    /// Multiplies each value by one factor.
    pub fn scale_f32(values: &mut [f32], factor: f32) = scale_body
}
versions! {
    /// For each value, how many of the steps it is above; none for NaN.
    pub fn count_above(values: &[f32], steps: &[f32; 15], counts: &mut [u8]) = count_above_body
}
versions! {
    /// Joins the low four bits of each two codes into a byte, the first lowest; a last one alone is filled up with zeros.
    pub fn pack_nibbles(codes: &[u8], bytes: &mut [u8]) = pack_nibbles_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_are_found_anywhere() {
        for count in [0, 1, 127, 128, 129, 300] {
            for at in 0..count {
                let mut bits = vec![0x0102u16; count];
                bits[at] = 0xff81;
                assert_eq!(largest_magnitude_16(&bits), 0x7f81);
                let mut totals = vec![0x7000; count];
                largest_magnitudes_16(&mut totals, &bits);
                assert_eq!(totals.iter().position(|&t| t == 0x7f81), Some(at));
                let wide: Vec<u32> = bits.iter().map(|&b| (b as u32) << 16 | 1).collect();
                assert_eq!(largest_magnitude_32(&wide), 0x7f81_0001);
                let mut totals = vec![0x7000_0000; count];
                largest_magnitudes_32(&mut totals, &wide);
                assert_eq!(totals.iter().position(|&t| t == 0x7f81_0001), Some(at));
            }
        }
    }

    #[test]
    fn counts_and_nibbles() {
        let steps = std::array::from_fn(|i| i as f32);
        let values: Vec<f32> = (0..70).map(|i| i as f32 * 0.5 - 10.0).chain([f32::NAN]).collect();
        let mut counts = vec![9; values.len()];
        count_above(&values, &steps, &mut counts);
        let expected: Vec<u8> = values.iter().map(|v| steps.iter().filter(|s| v > s).count() as u8).collect();
        assert_eq!(counts, expected);
        for count in 0..70 {
            let codes: Vec<u8> = (0..count as u8).map(|i| i.wrapping_mul(37)).collect();
            let mut bytes = vec![0; codes.len().div_ceil(2)];
            pack_nibbles(&codes, &mut bytes);
            let expected: Vec<u8> =
                codes.chunks(2).map(|c| c[0] & 15 | (c.get(1).copied().unwrap_or(0) & 15) << 4).collect();
            assert_eq!(bytes, expected);
        }
        let mut values = [1.5, -2.0];
        scale_f32(&mut values, 3.0);
        assert_eq!(values, [4.5, -6.0]);
    }
}
