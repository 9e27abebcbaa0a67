//! What providers have in common: the granularity of a side, its static range, and whether two sides go together.

use qwix_graph::{ArrayType, QArrayType};
use qwix_quant::{
    ConvPlan, DotPlan, Granularity, HowToQuantize, OperandInfo, QuantizedInfo, Tile, conv_plan, dot_plan,
};

use super::{Choice, Observed, RangeFrom, Side};
use crate::rule::{CheckedRule, SideRule};
use crate::{Operand, Product, Site};

/// The side of an activation: its range from the values of each run, or as the rule asks from statistics.
pub(super) fn activation(
    site: &Site,
    left: bool,
    rule: &CheckedRule,
    array: &ArrayType,
    how: HowToQuantize,
) -> Result<Side, String> {
    if rule.rule.act_static_scale != Some(true) {
        return Ok(Side { how, range: RangeFrom::Values });
    }
    if !site.at.is_empty() {
        return Err(
            "it is in a loop or a branch, and its static range would be a value of each iteration; give the \
                    module a rule of its own without act_static_scale, or write the loop out"
                .to_owned(),
        );
    }
    let mut batch_axes = vec![];
    for &axis in &rule.rule.act_batch_axes {
        let rank = array.shape.len();
        let from_end = usize::try_from(axis.unsigned_abs()).ok();
        let found = if axis < 0 { from_end.and_then(|back| rank.checked_sub(back)) } else { from_end };
        match found.filter(|&a| a < rank) {
            Some(found) if !batch_axes.contains(&found) => batch_axes.push(found),
            Some(_) => {
                return Err(format!(
                    "act_batch_axes {:?} names an axis of {array} twice",
                    rule.rule.act_batch_axes
                ));
            }
            None => {
                return Err(format!(
                    "act_batch_axes has the axis {axis}, and its activation {array} has {rank} axes; give the module a \
                     rule of its own"
                ));
            }
        }
    }
    batch_axes.sort_unstable();
    let mut fixed = how.clone();
    for &axis in &batch_axes {
        fixed.granularity[axis] = Granularity::Shared;
    }
    // Qwix names the author's operands, which a lowered einsum may exchange.
    let suffix = if left != site.swapped { "lhs" } else { "rhs" };
    let path = site.module_path.join(&format!("{}_{suffix}", site.op_id));
    Ok(Side { how: fixed, range: RangeFrom::Statistics(Observed { path, how, batch_axes }) })
}

/// The granularity of one side: a scale for each index of every axis that is not contracted, and for convolutions of
/// the batch (input) or the output features (kernel) alone.
pub(super) fn how(
    site: &Site,
    left: bool,
    spec: SideRule,
    tile: Option<Tile>,
    tiled_axis: Option<usize>,
) -> Result<HowToQuantize, String> {
    let operand = if left { &site.lhs } else { &site.rhs };
    let rank = operand.ty.as_array().map_or(0, |a| a.shape.len());
    let granularity = match &site.product {
        Product::Dot(dims) => {
            let contracted = if left { &dims.lhs_contracting } else { &dims.rhs_contracting };
            // The block formats have a tile of their own, which a rule need not repeat.
            let tile = tile.or(spec.qtype.tile.map(Tile::Size));
            let tiled = tiled_axis.zip(tile);
            if let (None, Some(size)) = (tiled, spec.qtype.tile) {
                return Err(format!(
                    "{} has tiles of {size} along a contracted axis, and nothing is contracted",
                    spec.qtype
                ));
            }
            (0..rank)
                .map(|axis| match tiled {
                    Some((a, tile)) if a == axis => Granularity::Tiled(tile),
                    _ if contracted.contains(&axis) => Granularity::Shared,
                    _ => Granularity::Channelwise,
                })
                .collect()
        }
        Product::Convolution(dims) => {
            let own = if left { dims.input_batch } else { dims.kernel_output_feature };
            (0..rank)
                .map(|axis| if axis == own { Granularity::Channelwise } else { Granularity::Shared })
                .collect()
        }
    };
    Ok(HowToQuantize { qtype: spec.qtype, granularity, calibration: spec.calibration })
}

/// Whether stored values are multiplied, and scaled afterwards; otherwise they are dequantized first.
///
/// # Errors
/// When the sides do not go together.
pub(crate) fn multiplies_stored(site: &Site, choice: &Choice) -> Result<bool, String> {
    let info = |operand: &Operand, side: &Option<Side>| -> Result<OperandInfo, String> {
        let array = operand.ty.as_array().ok_or_else(|| format!("an operand is {}", operand.ty))?;
        let mut info = OperandInfo::array(&array.shape, array.dtype);
        if let Some(side) = side {
            let q = QArrayType { array: array.clone(), how: side.how.clone() };
            info.quantized = Some(QuantizedInfo {
                qtype: side.how.qtype,
                scale_shape: q.scale_shape().map_err(|e| e.to_string())?,
                has_zero_point: q.has_zero_point(),
            });
        }
        Ok(info)
    };
    let (lhs, rhs) = (info(&site.lhs, &choice.lhs)?, info(&site.rhs, &choice.rhs)?);
    match &site.product {
        Product::Dot(dims) => {
            dot_plan(&lhs, &rhs, dims, None).map(|plan| matches!(plan, DotPlan::Multiply(_)))
        }
        Product::Convolution(dims) => {
            conv_plan(&lhs, &rhs, dims, None).map(|plan| matches!(plan, ConvPlan::Multiply(_)))
        }
    }
    .map_err(|e| e.to_string())
}
