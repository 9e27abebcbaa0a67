//! One number of any dtype, and the rounding that brings it into its dtype.
//!
//! Floats of every width are carried as f64: sums, products, quotients and square roots of f32 values that are
//! computed in f64 and rounded to f32 are the correctly rounded ones, and the narrower floats round from there.

use half::{bf16, f16};
use qwix_array::{DType, F4E2M1FN, F8E4M3FN, F8E5M2};

/// A number; its dtype is known from where it came.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Scalar {
    Float(f64),
    Int(i64),
    Uint(u64),
    Pred(bool),
}

/// Which kind of [`Scalar`] carries a dtype.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Float,
    Int,
    Uint,
    Pred,
}

impl Class {
    pub(crate) fn of(dtype: DType) -> Class {
        use DType::*;
        match dtype {
            F16 | BF16 | F32 | F64 | F8E4M3FN | F8E5M2 | F4E2M1FN => Class::Float,
            S2 | S4 | S8 | S16 | S32 | S64 => Class::Int,
            U4 | U8 | U16 | U32 | U64 => Class::Uint,
            Pred => Class::Pred,
        }
    }
}

/// The nearest value of a float dtype. XLA goes from f64 to the 16-bit floats by way of f32, and so do we.
pub(crate) fn round_float(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F64 => x,
        DType::F32 => f64::from(x as f32),
        DType::BF16 => bf16::from_f32(x as f32).to_f64(),
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::F8E4M3FN => f64::from(F8E4M3FN::from_f64(x).to_f32()),
        DType::F8E5M2 => f64::from(F8E5M2::from_f64(x).to_f32()),
        DType::F4E2M1FN => f64::from(F4E2M1FN::from_f64(x).to_f32()),
        DType::Pred
        | DType::S2
        | DType::S4
        | DType::S8
        | DType::S16
        | DType::S32
        | DType::S64
        | DType::U4
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64 => x,
    }
}

/// The low `bits` of an integer, sign-extended.
pub(crate) fn wrap_int(bits: u32, x: i64) -> i64 {
    let shift = 64 - bits.clamp(1, 64);
    (x << shift) >> shift
}

/// The low `bits` of an integer.
pub(crate) fn wrap_uint(bits: u32, x: u64) -> u64 {
    let shift = 64 - bits.clamp(1, 64);
    (x << shift) >> shift
}

/// Width of a dtype, for the functions above.
pub(crate) fn bits(dtype: DType) -> u32 {
    dtype.bits() as u32
}

impl Scalar {
    pub(crate) fn class(self) -> Class {
        match self {
            Scalar::Float(_) => Class::Float,
            Scalar::Int(_) => Class::Int,
            Scalar::Uint(_) => Class::Uint,
            Scalar::Pred(_) => Class::Pred,
        }
    }

    /// HLO's `convert`: floats to integers saturate and NaN becomes 0; integers wrap; anything but 0 is true.
    /// Integers become floats by way of f32, unless the float is an f64.
    pub(crate) fn convert(self, to: DType) -> Scalar {
        match Class::of(to) {
            Class::Float => {
                let wide = to == DType::F64;
                let x = match self {
                    Scalar::Float(x) => x,
                    Scalar::Int(x) if wide => x as f64,
                    Scalar::Int(x) => f64::from(x as f32),
                    Scalar::Uint(x) if wide => x as f64,
                    Scalar::Uint(x) => f64::from(x as f32),
                    Scalar::Pred(x) => f64::from(u8::from(x)),
                };
                Scalar::Float(round_float(to, x))
            }
            Class::Int => {
                let bits = bits(to);
                Scalar::Int(match self {
                    Scalar::Float(x) => {
                        let (low, high) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
                        (x as i64).clamp(low, high)
                    }
                    Scalar::Int(x) => wrap_int(bits, x),
                    Scalar::Uint(x) => wrap_int(bits, x as i64),
                    Scalar::Pred(x) => wrap_int(bits, i64::from(x)),
                })
            }
            Class::Uint => {
                let bits = bits(to);
                Scalar::Uint(match self {
                    Scalar::Float(x) => (x as u64).min(u64::MAX >> (64 - bits)),
                    Scalar::Int(x) => wrap_uint(bits, x as u64),
                    Scalar::Uint(x) => wrap_uint(bits, x),
                    Scalar::Pred(x) => u64::from(x),
                })
            }
            Class::Pred => Scalar::Pred(match self {
                Scalar::Float(x) => x != 0.0,
                Scalar::Int(x) => x != 0,
                Scalar::Uint(x) => x != 0,
                Scalar::Pred(x) => x,
            }),
        }
    }
}
