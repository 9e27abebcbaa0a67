//! NVFP4: fp4 values, two a byte; an e4m3 scale for 16 columns, and an f32 scale for the tensor.
//!
//! The two scales are one here, their product (or quotient, as the format has it) rounded to f32 once, which is what the
//! formats' own code computes with. It is no e4m3 number any more, so that the type is `float4_e2m1fn` in tiles of 16.

use qwix_array::{Array, DType};
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path};
use qwix_quant::{Granularity, QArray, QType, Tile};

use super::blocks::quantized;
use super::plan::Entry;
use super::source::Source;
use crate::Result;

/// Columns that share a scale.
const TILE: usize = 16;

/// How the scale of the tensor goes with that of a tile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// scale · global (ModelOpt).
    Factor,
    /// scale / global (compressed-tensors).
    Divisor,
}

/// A packed matrix u8 [out, in / 2], the first column of two in the low bits.
pub(super) fn weight(
    source: &Source,
    packed: Path,
    scale: Path,
    global: Path,
    meaning: Global,
) -> Result<Entry> {
    let shape = source.ranked(&packed, &[DType::U8], 2)?.shape.clone();
    let columns = shape[1].checked_mul(2).filter(|columns| columns % TILE == 0);
    let columns = columns.ok_or_else(|| {
        source.bad(&packed, format!("has {} bytes a row; tiles of {TILE} columns take 8", shape[1]))
    })?;
    let (rows, tiles) = (shape[0], columns / TILE);
    source.expect(&scale, &[DType::F8E4M3FN], &[rows, tiles])?;
    let global_ty = source.ty(&global)?;
    if global_ty.dtype != DType::F32 || global_ty.shape.iter().any(|&size| size != 1) {
        return Err(source.bad(&global, format!("expected one f32, found {global_ty}")));
    }
    let qtype = QType::by_name("float4_e2m1fn")?;
    let granularity = vec![Granularity::Channelwise, Granularity::Tiled(Tile::Size(TILE))];
    let ty = quantized(qtype, ArrayType::new(DType::F32, [rows, columns]), granularity, false);
    Ok(Entry::out_in(ty, move |source| {
        let factor = source.read_finite(&global)?.to_f32_vec().first().copied().unwrap_or(0.0);
        if factor == 0.0 && meaning == Global::Divisor {
            return Err(source.bad(&global, "is 0, and scales are divided by it"));
        }
        let scales = source.read_fp8(&scale)?.to_f32_vec().into_iter().map(|scale| match meaning {
            Global::Factor => scale * factor,
            Global::Divisor => scale / factor,
        });
        let scales = Array::from_vec(&[rows, tiles], scales.collect::<Vec<f32>>())?;
        qwix_quant::check_finite(&scales).map_err(|e| source.bad(&scale, format!("with `{global}`: {e}")))?;
        let qvalue =
            Array::from_bytes(DType::F4E2M1FN, &[rows, columns], source.read(&packed)?.bytes().to_vec())?;
        Ok(Value::QArray(QArray::new(qvalue, scales, None, qtype)?))
    }))
}
