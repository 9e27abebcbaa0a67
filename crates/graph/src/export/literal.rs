//! Constants.

use qwix_array::{Array, ArrayError, DType};

use super::array_shape;
use crate::ArrayType;
use crate::proto::LiteralProto;

/// The literal of an array.
pub(super) fn literal_of(array: &Array) -> Result<LiteralProto, ArrayError> {
    let ty = ArrayType::new(array.dtype(), array.shape());
    let mut literal = LiteralProto { shape: Some(array_shape(&ty)), ..LiteralProto::default() };
    let bytes = || array.bytes().to_vec();
    // Narrow values take a byte each.
    let unpacked = || array.unpack_u8().map(|values| values.into_owned());
    match array.dtype() {
        DType::Pred => literal.preds = array.bytes().iter().map(|&value| value != 0).collect(),
        DType::S2 => literal.s2s = unpacked()?,
        DType::S4 => literal.s4s = unpacked()?,
        DType::S8 => literal.s8s = bytes(),
        DType::S16 => literal.s16s = bytes(),
        DType::S32 => literal.s32s = array.values::<i32>()?.into_owned(),
        DType::S64 => literal.s64s = array.values::<i64>()?.into_owned(),
        DType::U4 => literal.u4s = unpacked()?,
        DType::U8 => literal.u8s = bytes(),
        DType::U16 => literal.u16s = bytes(),
        DType::U32 => literal.u32s = array.values::<u32>()?.into_owned(),
        DType::U64 => literal.u64s = array.values::<u64>()?.into_owned(),
        DType::F16 => literal.f16s = bytes(),
        DType::BF16 => literal.bf16s = bytes(),
        DType::F32 => literal.f32s = array.values::<f32>()?.into_owned(),
        DType::F64 => literal.f64s = array.values::<f64>()?.into_owned(),
        DType::F8E4M3FN => literal.f8e4m3fns = bytes(),
        DType::F8E5M2 => literal.f8e5m2s = bytes(),
        DType::F4E2M1FN => literal.f4e2m1fns = unpacked()?,
    }
    Ok(literal)
}
