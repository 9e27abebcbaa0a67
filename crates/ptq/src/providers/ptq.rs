//! Post-training quantization: weights rounded to nearest, activations with scales of their own batch.

use qwix_graph::QArrayType;
use qwix_quant::{
    ConvPlan, DotPlan, Granularity, HowToQuantize, OperandInfo, QuantizedInfo, Tile, conv_plan, dot_plan,
};

use super::{Choice, Decision, Provider, Side};
use crate::rule::{CheckedRule, SideRule};
use crate::{Operand, Product, PtqError, QuantizationRule, Rules, Site};

/// Qwix's `PtqProvider`: weight-only and dynamic-range quantization.
#[derive(Clone, Debug)]
pub struct PtqProvider {
    rules: Rules,
    qwix_compat: bool,
}

impl PtqProvider {
    /// A provider for these rules, the first that matches a site goes.
    ///
    /// # Errors
    /// When a rule cannot be: names the rule and the field.
    pub fn new(rules: Vec<QuantizationRule>) -> Result<Self, PtqError> {
        Ok(PtqProvider { rules: Rules::new(rules)?, qwix_compat: false })
    }

    /// Whether to do exactly what Qwix does: a weight on the left side is an activation, and a convolution needs one type
    /// for weights and activations.
    pub fn qwix_compat(mut self, on: bool) -> Self {
        self.qwix_compat = on;
        self
    }

    fn is_weight(&self, site: &Site, left: bool) -> bool {
        let operand = if left { &site.lhs } else { &site.rhs };
        // The author's second operand, the only one that Qwix looks for a weight in.
        let second = left == site.swapped;
        operand.weight.is_some() && (second || !self.qwix_compat)
    }
}

impl Provider for PtqProvider {
    fn name(&self) -> &'static str {
        "ptq"
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn decide(&self, site: &Site, rule: usize) -> Result<Decision, PtqError> {
        let fail = |reason: String| PtqError::Site {
            module_path: site.module_path.clone(),
            op_id: site.op_id.clone(),
            rule,
            reason,
        };
        let Some(checked) = self.rules.as_slice().get(rule) else {
            return Err(fail("there is no such rule".to_owned()));
        };
        let Some(weight) = checked.weight else {
            return Ok(Decision::Leave(format!("rules[{rule}] has no weight_qtype")));
        };
        if !site.result.as_array().is_some_and(|a| a.dtype.is_wide_float()) {
            return Ok(Decision::Leave(format!(
                "its result is {}, and only floats of 16 bits or more are quantized",
                site.result
            )));
        }
        let mut warnings = vec![];
        if let Product::Convolution(_) = site.product {
            check_convolution(checked, weight, self.qwix_compat).map_err(fail)?;
            if checked.tile.is_some() {
                warnings.push("tile_size has no effect on a convolution".to_owned());
            }
        }
        let side = |left: bool| -> Result<Option<Side>, String> {
            let operand = if left { &site.lhs } else { &site.rhs };
            let is_weight = self.is_weight(site, left);
            let spec = if is_weight { Some(weight) } else { checked.act };
            match (spec, operand.ty.as_array()) {
                (Some(spec), Some(array)) if array.dtype.is_wide_float() => {
                    let how = how(site, left, spec, checked.tile)?;
                    // Says which axis a tile does not divide.
                    QArrayType { array: array.clone(), how: how.clone() }
                        .scale_shape()
                        .map_err(|e| e.to_string())?;
                    Ok(Some(Side { how, weight: is_weight }))
                }
                _ => Ok(None),
            }
        };
        let choice = Choice { lhs: side(true).map_err(fail)?, rhs: side(false).map_err(fail)? };
        if choice.lhs.is_none() && choice.rhs.is_none() {
            let why = match checked.act {
                None => format!("no side is a weight, and rules[{rule}] has no act_qtype"),
                Some(_) => format!(
                    "its operands are {} and {}, and only floats of 16 bits or more are quantized",
                    site.lhs.ty, site.rhs.ty
                ),
            };
            return Ok(Decision::Leave(why));
        }
        multiplies_stored(site, &choice).map_err(fail)?;
        Ok(Decision::Quantize { choice, warnings })
    }
}

fn check_convolution(rule: &CheckedRule, weight: SideRule, qwix_compat: bool) -> Result<(), String> {
    match rule.act {
        Some(act) if act.qtype != weight.qtype => Err(format!(
            "a convolution needs one type for weights and activations, found {} and {}; give it a rule of its own",
            weight.qtype, act.qtype
        )),
        None if qwix_compat => Err(format!(
            "Qwix takes no convolution with weight_qtype {} and no act_qtype; set both, or turn qwix_compat off",
            weight.qtype
        )),
        Some(_) | None => match weight.qtype.tile {
            Some(tile) => Err(format!(
                "{} has tiles of {tile}, and a convolution has no tiles; give it a rule of its own, with int8 or \
                 float8_e4m3fn",
                weight.qtype
            )),
            None => Ok(()),
        },
    }
}

/// The granularity of one side: a scale for each index of every axis that is not contracted, and for convolutions of
/// the batch (input) or the output features (kernel) alone.
fn how(site: &Site, left: bool, spec: SideRule, tile: Option<Tile>) -> Result<HowToQuantize, String> {
    let operand = if left { &site.lhs } else { &site.rhs };
    let rank = operand.ty.as_array().map_or(0, |a| a.shape.len());
    let granularity = match &site.product {
        Product::Dot(dims) => {
            let contracted = if left { &dims.lhs_contracting } else { &dims.rhs_contracting };
            // The block formats have a tile of their own, which a rule need not repeat.
            let tile = tile.or(spec.qtype.tile.map(Tile::Size));
            let tiled = site.tiled_axis(left).zip(tile);
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
