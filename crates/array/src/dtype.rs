//! How a number is stored.

use std::fmt;
use std::str::FromStr;

use crate::ArrayError;

/// The element types that arrays can have; names are XLA's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// A boolean, one byte, 0 or 1.
    Pred,
    /// Signed, two bits.
    S2,
    /// Signed, four bits.
    S4,
    /// Signed, eight bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Signed, 64 bits.
    S64,
    /// Unsigned, four bits.
    U4,
    /// Unsigned, eight bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Eight bits, four of exponent, no infinities (largest 448).
    F8E4M3FN,
    /// Eight bits, five of exponent, with infinities (largest finite 57344).
    F8E5M2,
    /// Four bits, two of exponent, neither NaN nor infinity (largest 6).
    F4E2M1FN,
}

use DType::*;

const NAMES: [(DType, &str, usize, &str); 19] = [
    (Pred, "pred", 8, "bool"),
    (S2, "s2", 2, "int2"),
    (S4, "s4", 4, "int4"),
    (S8, "s8", 8, "int8"),
    (S16, "s16", 16, "int16"),
    (S32, "s32", 32, "int32"),
    (S64, "s64", 64, "int64"),
    (U4, "u4", 4, "uint4"),
    (U8, "u8", 8, "uint8"),
    (U16, "u16", 16, "uint16"),
    (U32, "u32", 32, "uint32"),
    (U64, "u64", 64, "uint64"),
    (F16, "f16", 16, "float16"),
    (BF16, "bf16", 16, "bfloat16"),
    (F32, "f32", 32, "float32"),
    (F64, "f64", 64, "float64"),
    (F8E4M3FN, "f8e4m3fn", 8, "float8_e4m3fn"),
    (F8E5M2, "f8e5m2", 8, "float8_e5m2"),
    (F4E2M1FN, "f4e2m1fn", 4, "float4_e2m1fn"),
];

impl DType {
    /// Every dtype.
    pub fn all() -> impl Iterator<Item = DType> {
        NAMES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, usize, &'static str) {
        &NAMES[self as usize]
    }

    /// XLA's name: `f32`, `s8`, `f8e4m3fn`, …
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// JAX's (NumPy's) name: `float32`, `int8`, `float8_e4m3fn`, …
    pub fn jax_name(self) -> &'static str {
        self.row().3
    }

    /// Bits of one element; a `pred` takes a whole byte.
    pub fn bits(self) -> usize {
        self.row().2
    }

    /// Whether elements are narrower than a byte and therefore stored packed.
    pub fn is_packed(self) -> bool {
        self.bits() < 8
    }

    /// Bytes that `count` elements take, or `None` when that does not fit a `usize`.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        if self.is_packed() {
            Some(count.div_ceil(8 / self.bits()))
        } else {
            count.checked_mul(self.bits() / 8)
        }
    }

    /// Any floating-point type, the narrow ones included.
    pub fn is_float(self) -> bool {
        matches!(self, F16 | BF16 | F32 | F64 | F8E4M3FN | F8E5M2 | F4E2M1FN)
    }

    /// The floating-point types of at least 16 bits: those that can be quantized, and that scales can have.
    pub fn is_wide_float(self) -> bool {
        matches!(self, F16 | BF16 | F32 | F64)
    }

    /// A signed integer.
    pub fn is_signed_int(self) -> bool {
        matches!(self, S2 | S4 | S8 | S16 | S32 | S64)
    }

    /// An unsigned integer (`pred` is none).
    pub fn is_unsigned_int(self) -> bool {
        matches!(self, U4 | U8 | U16 | U32 | U64)
    }

    /// Any integer (`pred` is none).
    pub fn is_int(self) -> bool {
        self.is_signed_int() || self.is_unsigned_int()
    }

    /// Smallest and largest value of an integer type.
    pub fn int_bounds(self) -> Option<(i128, i128)> {
        let bits = self.bits() as u32;
        if self.is_signed_int() {
            Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1))
        } else if self.is_unsigned_int() {
            Some((0, (1i128 << bits) - 1))
        } else {
            None
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = ArrayError;

    /// Reads XLA's names and JAX's.
    fn from_str(name: &str) -> Result<Self, ArrayError> {
        NAMES
            .iter()
            .find(|row| row.1 == name || row.3 == name)
            .map(|row| row.0)
            .ok_or_else(|| ArrayError::UnknownDType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_enum() {
        for (index, row) in NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
            assert_eq!(row.1.parse::<DType>().unwrap(), row.0);
            assert_eq!(row.3.parse::<DType>().unwrap(), row.0);
        }
    }

    #[test]
    fn packed_bytes_round_up() {
        for (dtype, count, bytes) in
            [(S4, 0, 0), (S4, 1, 1), (S4, 3, 2), (S2, 5, 2), (Pred, 3, 3), (F32, 2, 8)]
        {
            assert_eq!(dtype.byte_len(count), Some(bytes), "{dtype} x {count}");
        }
        assert_eq!(F64.byte_len(usize::MAX), None);
    }
}
