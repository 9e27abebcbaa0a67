//! `ShapeProto` and our types.

use qwix_array::DType;

use crate::infer::MAX_RANK;
use crate::proto::{LayoutProto, ShapeProto};
use crate::{ArrayType, Type};

/// `PrimitiveType` of dtypes.
const PRIMITIVES: [(DType, i32); 19] = [
    (DType::Pred, 1),
    (DType::S2, 26),
    (DType::S4, 21),
    (DType::S8, 2),
    (DType::S16, 3),
    (DType::S32, 4),
    (DType::S64, 5),
    (DType::U4, 22),
    (DType::U8, 6),
    (DType::U16, 7),
    (DType::U32, 8),
    (DType::U64, 9),
    (DType::F16, 10),
    (DType::BF16, 16),
    (DType::F32, 11),
    (DType::F64, 12),
    (DType::F8E5M2, 19),
    (DType::F8E4M3FN, 20),
    (DType::F4E2M1FN, 32),
];

/// The other element types, which we name and no more.
const OPAQUE: [(i32, &str); 13] = [
    (30, "s1"),
    (31, "u1"),
    (27, "u2"),
    (28, "f8e4m3"),
    (23, "f8e4m3b11fnuz"),
    (29, "f8e3m4"),
    (24, "f8e5m2fnuz"),
    (25, "f8e4m3fnuz"),
    (33, "f8e8m0fnu"),
    (15, "c64"),
    (18, "c128"),
    (14, "opaque"),
    (34, "b"),
];

pub(crate) const TUPLE: i32 = 13;
pub(crate) const TOKEN: i32 = 17;

/// The most bytes that one array may have: far more than any machine this runs on, few enough to count with.
const MAX_BYTES: usize = 1 << 40;

/// A dtype's `PrimitiveType`.
pub(crate) fn primitive_of(dtype: DType) -> i32 {
    // Every dtype has a row; the test holds the table to it.
    PRIMITIVES.iter().find(|row| row.0 == dtype).map_or(0, |row| row.1)
}

/// The type that a shape describes; element types that arrays cannot have become [`Type::Opaque`].
pub(super) fn type_of(shape: &ShapeProto) -> Result<Type, String> {
    match shape.element_type {
        0 => Err("its shape has no element type".to_owned()),
        TUPLE => shape.tuple_shapes.iter().map(type_of).collect::<Result<_, _>>().map(Type::Tuple),
        TOKEN => Ok(Type::Token),
        element_type => {
            if shape.is_dynamic_dimension.iter().any(|&dynamic| dynamic) {
                return Err(format!(
                    "dynamic dimensions are not supported (found sizes up to {:?}); export the model with static shapes",
                    shape.dimensions
                ));
            }
            let dims = sizes("dimensions", &shape.dimensions)?;
            let Some(&(dtype, _)) = PRIMITIVES.iter().find(|row| row.1 == element_type) else {
                return Ok(Type::Opaque(opaque_name(element_type, &dims)));
            };
            let array = ArrayType::new(dtype, dims);
            match array.byte_len().filter(|&bytes| bytes <= MAX_BYTES) {
                Some(_) => Ok(Type::Array(array)),
                None => Err(format!("an array {array} is too large")),
            }
        }
    }
}

fn opaque_name(element_type: i32, dims: &[usize]) -> String {
    let name = OPAQUE.iter().find(|row| row.0 == element_type);
    let name = name.map_or_else(|| format!("type{element_type}"), |row| row.1.to_owned());
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("{name}[{}]", dims.join(","))
}

/// The first type without a meaning in a type.
pub(crate) fn opaque_part(ty: &Type) -> Option<&str> {
    match ty {
        Type::Opaque(text) => Some(text),
        Type::Tuple(elements) => elements.iter().find_map(opaque_part),
        Type::Array(_) | Type::QArray(_) | Type::Token => None,
    }
}

/// Numbers that cannot be negative, at most one an axis.
pub(super) fn sizes(what: &str, values: &[i64]) -> Result<Vec<usize>, String> {
    one_an_axis(what, values)?;
    values.iter().map(|&value| size(what, value)).collect()
}

/// An error when there are more values than an array can have axes.
pub(super) fn one_an_axis<T>(what: &str, values: &[T]) -> Result<(), String> {
    match values.len() {
        0..=MAX_RANK => Ok(()),
        found => Err(format!("{what}: found {found} values, expected at most {MAX_RANK}")),
    }
}

/// A number that cannot be negative.
pub(super) fn size(what: &str, value: i64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("{what}: found {value}, expected 0 or more"))
}

/// Axes from the one that varies fastest to the one that varies slowest, when that is not row-major order.
///
/// Only literals ask: elsewhere a layout says where a device puts the elements and nothing about their values.
pub(super) fn unusual_layout(
    layout: Option<&LayoutProto>,
    rank: usize,
) -> Result<Option<Vec<usize>>, String> {
    let Some(layout) = layout else { return Ok(None) };
    const DENSE: i32 = 0;
    if layout.dim_level_types.iter().any(|&level| level != DENSE) {
        return Err("found a sparse layout, expected a dense one".to_owned());
    }
    if !layout.tiles.is_empty() {
        return Err("found a tiled layout, expected an untiled one".to_owned());
    }
    if layout.minor_to_major.is_empty() {
        return Ok(None);
    }
    let order = sizes("layout", &layout.minor_to_major)?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return Err(format!("layout: found {order:?}, expected each of {rank} axes once"));
    }
    Ok(if order.iter().rev().copied().eq(0..rank) { None } else { Some(order) })
}

/// Whether all arrays of a type lie row-major, untiled.
pub(super) fn is_row_major(shape: &ShapeProto) -> bool {
    let lies = |layout: &LayoutProto| {
        let rank = shape.dimensions.len() as i64;
        layout.tiles.is_empty() && layout.minor_to_major.iter().copied().eq((0..rank).rev())
    };
    match shape.element_type {
        TUPLE => shape.tuple_shapes.iter().all(is_row_major),
        _ => shape.layout.as_ref().is_some_and(lies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_has_a_number_of_its_own() {
        let mut numbers: Vec<i32> = DType::all().map(primitive_of).collect();
        numbers.extend(OPAQUE.iter().map(|row| row.0));
        numbers.extend([TUPLE, TOKEN]);
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=34).collect::<Vec<_>>());
    }

    #[test]
    fn shapes() {
        let shape = |element_type, dimensions: &[i64]| ShapeProto {
            element_type,
            dimensions: dimensions.to_vec(),
            ..ShapeProto::default()
        };
        let tuple = |tuple_shapes| ShapeProto { element_type: TUPLE, tuple_shapes, ..ShapeProto::default() };
        let dynamic = ShapeProto { is_dynamic_dimension: vec![false, true], ..shape(11, &[2, 3]) };
        for (shape, wanted) in [
            (shape(11, &[2, 3]), Ok("f32[2,3]")),
            (shape(1, &[]), Ok("pred[]")),
            (shape(21, &[0, 5]), Ok("s4[0,5]")),
            (shape(15, &[2]), Ok("c64[2]")),
            (shape(99, &[2, 2]), Ok("type99[2,2]")),
            (tuple(vec![shape(4, &[]), tuple(vec![shape(16, &[7])])]), Ok("(s32[], (bf16[7]))")),
            (shape(TOKEN, &[]), Ok("token[]")),
            (shape(0, &[]), Err("no element type")),
            (shape(11, &[-1]), Err("found -1, expected 0 or more")),
            (shape(11, &[1 << 38]), Ok("f32[274877906944]")),
            (shape(11, &[1 << 39]), Err("too large")),
            (shape(11, &[0, 1 << 62, 1 << 62]), Err("too large")),
            (shape(11, &[1; 65]), Err("found 65 values, expected at most 64")),
            (dynamic, Err("dynamic dimensions are not supported")),
        ] {
            match (type_of(&shape), wanted) {
                (Ok(ty), Ok(text)) => assert_eq!(ty.to_string(), text),
                (Err(error), Err(text)) => assert!(error.contains(text), "{error}"),
                (found, wanted) => panic!("{shape:?}: found {found:?}, wanted {wanted:?}"),
            }
        }
    }
}
