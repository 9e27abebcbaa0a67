//! Floats of eight and four bits, by their bits.

use bytemuck::{Pod, Zeroable};

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
