//! Rust types of elements that take whole bytes.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::{DType, F8E4M3FN, F8E5M2};

/// A Rust type that an array of one dtype stores, element by element.
/// Packed dtypes have none: see [`Array::unpack_i8`](crate::Array::unpack_i8).
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// The dtype stored this way.
    const DTYPE: DType;
}

/// A boolean in one byte: 0 is false, anything else is true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Pred(pub u8);

impl From<bool> for Pred {
    fn from(value: bool) -> Self {
        Pred(value as u8)
    }
}

impl From<Pred> for bool {
    fn from(value: Pred) -> Self {
        value.0 != 0
    }
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {
        $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })*
    };
}

elements! {
    Pred => Pred, i8 => S8, i16 => S16, i32 => S32, i64 => S64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
    F8E4M3FN => F8E4M3FN, F8E5M2 => F8E5M2,
}
