//! Post-training quantization: weights rounded to nearest, activations with scales of their own batch.

use qwix_array::DType;
use qwix_graph::{ArrayType, Graph, Patch, QArrayType, Role, StatisticPart};

use super::sides::{activation, how, multiplies_stored};
use super::{Choice, Decision, Phase, Provider, RangeFrom, Side};
use crate::rewrite::{ScaleZeroPoint, StaticSide, quantize_sides, statistic};
use crate::rule::{CheckedRule, SideRule};
use crate::{Product, PtqError, QuantizationRule, Rules, Site};

/// Qwix's `PtqProvider`: weight-only, dynamic-range and static-range quantization.
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
        if checked.rule.disable_channelwise_axes {
            warnings.push("disable_channelwise_axes has no effect in PtqProvider, as in Qwix's".to_owned());
        }
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
                    let how = how(site, left, spec, checked.tile, site.tiled_axis(left))?;
                    // Says which axis a tile does not divide.
                    QArrayType { array: array.clone(), how: how.clone() }
                        .scale_shape()
                        .map_err(|e| e.to_string())?;
                    Ok(Some(if is_weight {
                        Side { how, range: RangeFrom::Weight { stored: true } }
                    } else {
                        activation(site, left, checked, array, how)?
                    }))
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
        Ok(Decision::Quantize { choice: Box::new(choice), warnings })
    }

    fn rewrite(&self, graph: &Graph, site: &Site, choice: &Choice, _: Phase) -> Result<Patch, String> {
        quantize_sides(graph, site, choice, static_range)
    }
}

/// Scale and zero point of a static range are parameters, made from statistics by
/// [`quantize_params`](crate::quantize_params()).
fn static_range(patch: &mut Patch, side: StaticSide<'_>) -> Result<ScaleZeroPoint, String> {
    let (how, observed) = (side.how, side.observed);
    let shape = how.scale_shape(&side.array.shape).map_err(|e| e.to_string())?;
    let (qtype, asymmetric) = (how.qtype, how.calibration.is_asymmetric());
    let mut parameter =
        |part, dtype| statistic(patch, observed, part, Role::Variable, ArrayType::new(dtype, shape.clone()));
    let scale = parameter(StatisticPart::Scale { qtype, asymmetric }, DType::F32)?;
    let zero_point = match asymmetric {
        true => Some(parameter(StatisticPart::ZeroPoint { qtype }, qtype.storage)?),
        false => None,
    };
    Ok((scale, zero_point))
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
