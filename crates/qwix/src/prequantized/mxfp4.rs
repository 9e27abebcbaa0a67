//! MXFP4 as gpt-oss has it.
//!
//! `<name>_blocks` u8 [experts, out, in / 32, 16] holds fp4 values, two a byte, the first in the low bits; `<name>_scales` u8
//! [experts, out, in / 32] holds exponents: 2^(byte − 127), where 255 is NaN. The parameter is `<name>`.

use qwix_array::{Array, DType};
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path};
use qwix_quant::{Granularity, QArray, QType, Tile};

use super::blocks::quantized;
use super::plan::{Entry, Plan};
use super::source::Source;
use super::{Format, ImportOptions};
use crate::Result;

pub(super) struct Mxfp4;

/// Values that share a scale.
const TILE: usize = 32;

const FIELDS: [&str; 3] = ["quant_method", "modules_to_not_convert", "dequantize"];

impl Format for Mxfp4 {
    fn name(&self) -> &'static str {
        "mxfp4"
    }

    fn is(&self, source: &Source) -> bool {
        let whole = |path: &Path| {
            path.as_str()
                .strip_suffix("_blocks")
                .is_some_and(|stem| source.checkpoint.contains(&Path::new(&format!("{stem}_scales"))))
        };
        match source.method() {
            Some(method) => method == "mxfp4",
            None => source.config.is_none() && source.checkpoint.paths().iter().any(whole),
        }
    }

    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan> {
        if let Some(config) = &source.config {
            config.only(&FIELDS, &options.ignore_config)?;
        }
        let mut plan = Plan::default();
        for path in source.checkpoint.paths() {
            let is_bytes = source.ty(&path)?.dtype == DType::U8;
            if let Some(stem) = path.as_str().strip_suffix("_blocks").filter(|_| is_bytes) {
                let scales = Path::new(&format!("{stem}_scales"));
                plan.add(source, Path::new(stem), weight(source, path.clone(), scales, &[16])?)?;
            } else if let Some(stem) = path.as_str().strip_suffix("_scales").filter(|_| is_bytes) {
                source.ty(&Path::new(&format!("{stem}_blocks")))?;
            } else {
                plan.add(source, path.clone(), Entry::plain(source, &path)?)?;
            }
        }
        Ok(plan)
    }
}

/// A packed array u8 […, in / 32] and then `rest`, with a scale for 32 values: `rest` is [16], or the axis before it is
/// in / 2 and `rest` is empty.
pub(super) fn weight(source: &Source, packed: Path, scales: Path, rest: &[usize]) -> Result<Entry> {
    let ty = source.ty(&packed)?;
    let bad = |why: String| source.bad(&packed, why);
    let shape = match rest {
        [] => ty.shape.clone(),
        rest => match ty.shape.strip_suffix(rest) {
            Some(head) => {
                let mut shape = head.to_vec();
                let tiles =
                    shape.last_mut().ok_or_else(|| bad(format!("expected […, tiles, 16], found {ty}")))?;
                *tiles = tiles.checked_mul(16).ok_or_else(|| bad(format!("{ty} is too large")))?;
                shape
            }
            None => return Err(bad(format!("expected […, tiles, 16], found {ty}"))),
        },
    };
    let mut shape = shape;
    let columns = shape.last().and_then(|bytes| bytes.checked_mul(2)).filter(|columns| columns % TILE == 0);
    let (Some(columns), true) = (columns, ty.dtype == DType::U8 && shape.len() >= 2) else {
        return Err(bad(format!("expected u8 with 16 bytes for each tile of {TILE} values, found {ty}")));
    };
    let mut scale_shape = shape.clone();
    if let (Some(last), Some(tiles)) = (shape.last_mut(), scale_shape.last_mut()) {
        (*last, *tiles) = (columns, columns / TILE);
    }
    source.expect(&scales, &[DType::U8], &scale_shape)?;
    let qtype = QType::by_name("mxfp4")?;
    let mut granularity = vec![Granularity::Channelwise; shape.len() - 1];
    granularity.push(Granularity::Tiled(Tile::Size(TILE)));
    let ty = quantized(qtype, ArrayType::new(DType::BF16, shape.clone()), granularity, false);
    Ok(Entry::out_in(ty, move |source| {
        let exponents = source.read(&scales)?;
        if let Some(at) = exponents.bytes().iter().position(|&e| e == 255) {
            return Err(source.bad(&scales, format!("element {at} is 255, which is NaN")));
        }
        // The exponent's bits are bf16's own; 2^−127 alone is a subnormal, its highest bit of fraction.
        let bits = exponents.bytes().iter().flat_map(|&e| match e {
            0 => 0x0040u16.to_le_bytes(),
            e => (u16::from(e) << 7).to_le_bytes(),
        });
        let scale = Array::from_bytes(DType::BF16, &scale_shape, bits.collect())?;
        let qvalue = Array::from_bytes(DType::F4E2M1FN, &shape, source.read(&packed)?.bytes().to_vec())?;
        Ok(Value::QArray(QArray::new(qvalue, scale, None, qtype)?))
    }))
}
