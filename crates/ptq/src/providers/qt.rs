//! Quantized training, forward: float parameters and activations quantized on each run, and calibration.

use std::cell::RefCell;

use qwix_array::{Array, DType};
use qwix_graph::{
    ArrayType, BinaryOp, Comparison, Computation, ComputationBuilder, Graph, GraphError, NodeId, Patch, Role,
    StatisticPart, Sum, Type,
    ranges::{RangeNodes, average, calibrate, mean, scale_zero_point},
};
use qwix_quant::{Granularity, HowToQuantize};

use super::sides::{activation, how, multiplies_stored};
use super::{Choice, Decision, Phase, Provider, RangeFrom, Side};
use crate::rewrite::{ScaleZeroPoint, StaticSide, quantize_sides, statistic};
use crate::rule::CheckedRule;
use crate::{Product, PtqError, QuantizationRule, Rules, Site};

/// Qwix's `QtProvider`: the forward pass of quantized training. Parameters stay floats; the graph computes with the
/// numbers that they have when quantized.
///
/// Where a rule has `act_static_scale`, the range of an activation is the average over the batches that calibration saw.
/// The graph has parameters for those statistics, `<module path>/<op id>_lhs/count` and `…/sum_of_absmax` (or
/// `…/sum_of_min` and `…/sum_of_max`); while the count is 0, the range is that of the batch at hand.
#[derive(Clone, Debug)]
pub struct QtProvider {
    rules: Rules,
}

impl QtProvider {
    /// A provider for these rules, the first that matches a site goes.
    ///
    /// # Errors
    /// When a rule cannot be: names the rule and the field.
    pub fn new(rules: Vec<QuantizationRule>) -> Result<Self, PtqError> {
        Ok(QtProvider { rules: Rules::new(rules)? })
    }
}

impl Provider for QtProvider {
    fn name(&self) -> &'static str {
        "qt"
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
        if checked.weight.is_none() {
            return Ok(Decision::Leave(format!("rules[{rule}] has no weight_qtype")));
        }
        if let (Product::Convolution(_), Some(tile)) = (&site.product, &checked.rule.tile_size) {
            return Err(fail(format!(
                "a convolution has no tiles, found tile_size {tile}; give it a rule of its own"
            )));
        }
        let choice = Choice {
            lhs: side(site, true, checked).map_err(fail)?,
            rhs: side(site, false, checked).map_err(fail)?,
        };
        if choice.lhs.is_none() && choice.rhs.is_none() {
            return Ok(Decision::Leave(format!(
                "rules[{rule}] is for no side of it: its operands are {} and {}",
                site.lhs.ty, site.rhs.ty
            )));
        }
        multiplies_stored(site, &choice).map_err(fail)?;
        Ok(Decision::Quantize { choice: Box::new(choice), warnings: vec![] })
    }

    fn calibrates(&self) -> bool {
        true
    }

    fn rewrite(&self, graph: &Graph, site: &Site, choice: &Choice, phase: Phase) -> Result<Patch, String> {
        let outputs = RefCell::new(vec![]);
        let mut patch = quantize_sides(graph, site, choice, |patch, side| {
            let made = static_range(patch, &side, phase)?;
            outputs.borrow_mut().extend(made.outputs);
            Ok(made.scale_zero_point)
        })?;
        for output in outputs.into_inner() {
            patch.add_output(output).map_err(|e| e.to_string())?;
        }
        Ok(patch)
    }
}

fn side(site: &Site, left: bool, rule: &CheckedRule) -> Result<Option<Side>, String> {
    let operand = if left { &site.lhs } else { &site.rhs };
    let is_weight = operand.weight.is_some();
    let spec = if is_weight { rule.weight } else { rule.act };
    let (Some(spec), Some(array)) = (spec, operand.ty.as_array()) else { return Ok(None) };
    if !array.dtype.is_wide_float() {
        return Ok(None);
    }
    // Qwix quantizes the operands of the dot that an einsum becomes, so the tile is along the dot's last axis.
    let tiled = match &site.product {
        Product::Dot(dims) => {
            let contracted = if left { &dims.lhs_contracting } else { &dims.rhs_contracting };
            contracted.last().copied()
        }
        Product::Convolution(_) => None,
    };
    let mut how = how(site, left, spec, rule.tile, tiled)?;
    if rule.rule.disable_channelwise_axes {
        for granularity in &mut how.granularity {
            if *granularity == Granularity::Channelwise {
                *granularity = Granularity::Shared;
            }
        }
    }
    // Says which axis a tile does not divide.
    how.scale_shape(&array.shape).map_err(|e| e.to_string())?;
    Ok(Some(if is_weight {
        Side { how, range: RangeFrom::Weight { stored: false } }
    } else {
        activation(site, left, rule, array, how)?
    }))
}

/// A static range as nodes of the graph.
struct Made {
    scale_zero_point: ScaleZeroPoint,
    /// The new statistics, in the order of the parameters.
    outputs: Vec<NodeId>,
}

/// The range is the average of the statistics: while they are collected, with those of this batch.
fn static_range(patch: &mut Patch, side: &StaticSide<'_>, phase: Phase) -> Result<Made, String> {
    let shape = side.how.scale_shape(&side.array.shape).map_err(|e| e.to_string())?;
    let sums = match side.how.calibration.is_asymmetric() {
        true => vec![Sum::Min, Sum::Max],
        false => vec![Sum::AbsMax],
    };
    let role = match phase {
        Phase::Run => Role::Variable,
        Phase::Calibrate => Role::Input,
    };
    let mut parameter =
        |part, dtype, shape| statistic(patch, side.observed, part, role, ArrayType::new(dtype, shape));
    let mut operands = vec![side.x, parameter(StatisticPart::Count, DType::S32, vec![])?];
    for &sum in &sums {
        operands.push(parameter(StatisticPart::Sum(sum), DType::F32, shape.clone())?);
    }
    let computation = averaged(side, &shape, sums.len(), phase).map_err(|e| e.to_string())?;
    let made = patch.insert_computation(side.before, &computation, &operands).map_err(|e| e.to_string())?;
    let ranges = if side.how.calibration.is_asymmetric() { 2 } else { 1 };
    let (range, outputs) = made.split_at_checked(ranges).ok_or("a range without a scale")?;
    let [scale, ..] = range else { return Err("a range without a scale".to_owned()) };
    Ok(Made { scale_zero_point: (*scale, range.get(1).copied()), outputs: outputs.to_vec() })
}

/// A computation of an activation, a count and sums: to the scale, the zero point, and in calibration the new count and
/// sums.
fn averaged(
    side: &StaticSide<'_>,
    shape: &[usize],
    sums: usize,
    phase: Phase,
) -> Result<Computation, GraphError> {
    let (dtype, qtype) = (side.array.dtype, side.how.qtype);
    let mut b = ComputationBuilder::new("static_range");
    let x = b.parameter("x", side.array.clone().into())?;
    let count = b.parameter("count", Type::array(DType::S32, []))?;
    let mut sums = (0..sums)
        .map(|_| b.parameter("sum", Type::array(DType::F32, shape)))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    let batch = batch_range(&mut b, x, &side.observed.how, &side.observed.batch_axes)?;
    let mut outputs = vec![];
    let range = match phase {
        Phase::Run => {
            let zero = b.constant(Array::scalar(0i32))?;
            let seen = b.compare(Comparison::Gt, count, zero)?;
            let seen = b.broadcast(seen, shape, &[])?;
            batch.map(|bound| {
                let Some(sum) = sums.next() else { return Ok(bound) };
                let known = average(&mut b, sum, count)?;
                let known = b.convert(known, dtype)?;
                b.select(seen, known, bound)
            })?
        }
        Phase::Calibrate => {
            let one = b.constant(Array::scalar(1i32))?;
            let count = b.binary(BinaryOp::Add, count, one)?;
            outputs.push(count);
            batch.map(|bound| {
                let Some(sum) = sums.next() else { return Ok(bound) };
                let bound = b.convert(bound, DType::F32)?;
                let sum = b.binary(BinaryOp::Add, sum, bound)?;
                outputs.push(sum);
                let known = average(&mut b, sum, count)?;
                b.convert(known, dtype)
            })?
        }
    };
    let (scale, zero_point) = scale_zero_point(&mut b, range, qtype)?;
    let results: Vec<NodeId> = [scale].into_iter().chain(zero_point).chain(outputs).collect();
    let root = b.tuple(&results)?;
    b.finish(root)
}

/// What calibration keeps of a batch.
fn batch_range(
    b: &mut ComputationBuilder,
    x: NodeId,
    how: &HowToQuantize,
    batch_axes: &[usize],
) -> Result<RangeNodes, GraphError> {
    let range = calibrate(b, x, how)?;
    range.map(|bound| mean(b, bound, batch_axes))
}
