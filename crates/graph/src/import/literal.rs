//! Constants.

use qwix_array::{Array, ArrayError, DType};

use super::shape::{type_of, unusual_layout};
use crate::proto::LiteralProto;
use crate::{ArrayType, Type};

/// The array that a constant's literal holds; its type must be the instruction's.
pub(super) fn array_of(literal: LiteralProto, ty: &ArrayType) -> Result<Array, String> {
    let shape = literal.shape.as_ref().ok_or("its literal has no shape")?;
    let found = type_of(shape)?;
    if found != Type::Array(ty.clone()) {
        return Err(format!("its literal is {found}, expected {ty}"));
    }
    let order = unusual_layout(shape.layout.as_ref(), ty.shape.len())?;
    // Elements come in the layout's order: an array whose axes are permuted. A literal says how many there are.
    let stored: Vec<usize> = match &order {
        Some(order) => order.iter().rev().filter_map(|&axis| ty.shape.get(axis).copied()).collect(),
        None => ty.shape.clone(),
    };
    let array = read(literal, ty.dtype, &stored).map_err(|error| format!("literal: {error}"))?;
    match order {
        Some(order) => row_major(&array, ty, &order).map_err(|error| format!("literal: {error}")),
        None => Ok(array),
    }
}

fn read(literal: LiteralProto, dtype: DType, shape: &[usize]) -> Result<Array, ArrayError> {
    match dtype {
        DType::Pred => {
            Array::from_bytes(dtype, shape, literal.preds.iter().map(|&value| u8::from(value)).collect())
        }
        DType::S2 => Array::pack(dtype, shape, &literal.s2s),
        DType::S4 => Array::pack(dtype, shape, &literal.s4s),
        DType::S8 => Array::from_bytes(dtype, shape, literal.s8s),
        DType::S16 => Array::from_bytes(dtype, shape, literal.s16s),
        DType::S32 => Array::from_vec(shape, literal.s32s),
        DType::S64 => Array::from_vec(shape, literal.s64s),
        DType::U4 => Array::pack(dtype, shape, &literal.u4s),
        DType::U8 => Array::from_bytes(dtype, shape, literal.u8s),
        DType::U16 => Array::from_bytes(dtype, shape, literal.u16s),
        DType::U32 => Array::from_vec(shape, literal.u32s),
        DType::U64 => Array::from_vec(shape, literal.u64s),
        DType::F16 => Array::from_bytes(dtype, shape, literal.f16s),
        DType::BF16 => Array::from_bytes(dtype, shape, literal.bf16s),
        DType::F32 => Array::from_vec(shape, literal.f32s),
        DType::F64 => Array::from_vec(shape, literal.f64s),
        DType::F8E4M3FN => Array::from_bytes(dtype, shape, literal.f8e4m3fns),
        DType::F8E5M2 => Array::from_bytes(dtype, shape, literal.f8e5m2s),
        DType::F4E2M1FN => Array::pack(dtype, shape, &literal.f4e2m1fns),
    }
}

/// An array whose elements lie in another order than row-major, in that order.
fn row_major(stored: &Array, ty: &ArrayType, minor_to_major: &[usize]) -> Result<Array, ArrayError> {
    let mut strides = vec![0; ty.shape.len()];
    let mut stride = 1usize;
    for &axis in minor_to_major {
        strides[axis] = stride;
        stride = stride.saturating_mul(ty.shape[axis]);
    }
    let packed = ty.dtype.is_packed();
    let bytes = if packed { stored.unpack_u8()? } else { stored.bytes().into() };
    let width = if packed { 1 } else { ty.dtype.bits() / 8 };
    let mut ordered = Vec::with_capacity(bytes.len());
    let mut index = vec![0; ty.shape.len()];
    for _ in 0..stored.len() {
        let at = width * index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>();
        ordered.extend_from_slice(&bytes[at..at + width]);
        for (i, &size) in index.iter_mut().zip(&ty.shape).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    if packed {
        Array::pack(ty.dtype, &ty.shape, &ordered)
    } else {
        Array::from_bytes(ty.dtype, &ty.shape, ordered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::shape::primitive_of;
    use crate::proto::{LayoutProto, ShapeProto};

    fn literal(dtype: DType, dimensions: &[i64], minor_to_major: &[i64]) -> LiteralProto {
        LiteralProto {
            shape: Some(ShapeProto {
                element_type: primitive_of(dtype),
                dimensions: dimensions.to_vec(),
                layout: Some(LayoutProto {
                    minor_to_major: minor_to_major.to_vec(),
                    ..LayoutProto::default()
                }),
                ..ShapeProto::default()
            }),
            ..LiteralProto::default()
        }
    }

    #[test]
    fn elements_are_put_into_row_major_order() {
        let ty = ArrayType::new(DType::S16, [2, 3]);
        // Column-major: 0 3 1 4 2 5.
        let bytes = vec![0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0];
        let column_major = LiteralProto { s16s: bytes, ..literal(DType::S16, &[2, 3], &[0, 1]) };
        let array = array_of(column_major, &ty).unwrap();
        assert_eq!(array.values::<i16>().unwrap().as_ref(), [0, 1, 2, 3, 4, 5]);

        let ty = ArrayType::new(DType::S4, [2, 1, 3]);
        // Axis 2 varies slowest, axis 0 fastest.
        let packed =
            LiteralProto { s4s: vec![0, 3, 1, 4, 2, 0xfd], ..literal(DType::S4, &[2, 1, 3], &[0, 1, 2]) };
        let array = array_of(packed, &ty).unwrap();
        assert_eq!(array.unpack_i8().unwrap(), [0, 1, 2, 3, 4, -3]);
    }

    #[test]
    fn literals_that_do_not_fit() {
        let f32s =
            |values: usize| LiteralProto { f32s: vec![0.0; values], ..literal(DType::F32, &[2, 3], &[1, 0]) };
        let ty = ArrayType::new(DType::F32, [2, 3]);
        assert!(array_of(f32s(6), &ty).is_ok());
        let tiled = |mut literal: LiteralProto| {
            let layout = literal.shape.as_mut().and_then(|shape| shape.layout.as_mut()).unwrap();
            layout.tiles = vec![vec![]];
            literal
        };
        for (literal, wanted) in [
            (f32s(5), "needs 6 elements, found 5"),
            (LiteralProto { u8s: vec![0; 24], ..f32s(0) }, "needs 6 elements, found 0"),
            (LiteralProto::default(), "no shape"),
            (literal(DType::F64, &[2, 3], &[1, 0]), "is f64[2,3], expected f32[2,3]"),
            (literal(DType::F32, &[3, 2], &[1, 0]), "is f32[3,2], expected f32[2,3]"),
            (literal(DType::F32, &[2, 3], &[1, 1]), "expected each of 2 axes once"),
            (literal(DType::F32, &[2, 3], &[0]), "expected each of 2 axes once"),
            (tiled(f32s(6)), "tiled layout"),
        ] {
            let error = array_of(literal, &ty).unwrap_err();
            assert!(error.contains(wanted), "wanted {wanted:?}, found {error:?}");
        }
    }
}
