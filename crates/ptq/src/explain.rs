//! What happens to every dot and convolution, and why.

use std::fmt;

use qwix_graph::{Graph, Path, Type};
use qwix_quant::{Granularity, Tile};
use serde::Serialize;

use crate::providers::{Choice, Provider, RangeFrom, Side, multiplies_stored};
use crate::quantize_model::plan;
use crate::sharding;
use crate::{Operand, PtqError, Site, Storage, Warning};

/// One side of a quantized site.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SideVerdict {
    /// `weight` or `activation`.
    pub role: &'static str,
    /// The weight's path.
    pub path: Option<String>,
    /// The operand's type.
    pub ty: String,
    /// The type that it is quantized to; none when it stays a float.
    pub qtype: Option<&'static str>,
    /// How the range is found.
    pub calibration: Option<String>,
    /// For each axis: `shared`, `channelwise`, `tile 128`.
    pub axes: Vec<String>,
    /// Where the quantized weight is kept.
    pub storage: Option<String>,
    /// The sharding of the quantized weight, where the model spreads the float one over devices.
    pub sharding: Option<String>,
    /// The path of the statistics that the range of an activation comes from, when it is static.
    pub statistics: Option<String>,
    /// The axes over which calibration takes the mean of its statistics.
    pub batch_axes: Vec<usize>,
}

/// What happens to a site.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Outcome {
    /// It is quantized.
    Quantized {
        /// The left side.
        lhs: Box<SideVerdict>,
        /// The right side.
        rhs: Box<SideVerdict>,
        /// `multiply stored values, then scale` or `dequantize first`.
        strategy: &'static str,
    },
    /// It stays as it is.
    Left {
        /// Why.
        reason: String,
    },
    /// The rule asks for what it cannot do; quantizing the model is an error.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The verdict on one dot or convolution.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Verdict {
    /// The module's path.
    pub module_path: String,
    /// The op's name in rules.
    pub op_name: &'static str,
    /// The op's name and number in its module.
    pub op_id: String,
    /// The instruction's name in the graph.
    pub instruction: String,
    /// The einsum's equation.
    pub equation: Option<String>,
    /// The rule that matches, from 0.
    pub rule: Option<usize>,
    /// What happens.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A rule that is for no site.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct UnusedRule {
    /// Its number, from 0.
    pub rule: usize,
    /// Its pattern.
    pub module_path: String,
    /// The rules that match first wherever it would match; empty when it matches nothing.
    pub shadowed_by: Vec<usize>,
}

/// What rules do to a graph.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// One entry a dot or convolution, in trace order.
    pub sites: Vec<Verdict>,
    /// The rules that are for no site.
    pub unused_rules: Vec<UnusedRule>,
    /// What is probably not meant.
    pub warnings: Vec<Warning>,
    /// Sites that are quantized.
    pub quantized: usize,
    /// Sites that fail; quantizing the model is an error if there are any.
    pub failed: usize,
    /// Bytes of all variables of the float model.
    pub bytes_before: u64,
    /// Bytes of all variables of the quantized model (failed sites counted as floats).
    pub bytes_after: u64,
}

/// Says for every dot and convolution of a graph what a provider's rules make of it. No weight is read.
///
/// # Errors
/// When a rule's pattern backtracks without end, or the graph is damaged.
pub fn explain(graph: &Graph, provider: &dyn Provider) -> Result<Report, PtqError> {
    let (model, failed) = plan(graph, provider, true)?;
    let unused_rules = model
        .unused()
        .map(|rule| UnusedRule {
            rule,
            module_path: model.rules.as_slice()[rule].rule.module_path.clone(),
            shadowed_by: model.shadows[rule].iter().copied().collect(),
        })
        .collect();
    Ok(Report {
        quantized: model.verdicts.iter().filter(|v| matches!(v.outcome, Outcome::Quantized { .. })).count(),
        failed,
        unused_rules,
        bytes_before: bytes_of_variables(graph),
        bytes_after: bytes_of_variables(&model.graph),
        sites: model.verdicts,
        warnings: model.warnings,
    })
}

/// Bytes that a graph's variables take, scales and zero points included.
pub fn bytes_of_variables(graph: &Graph) -> u64 {
    graph.variables().map(|(_, p)| bytes_of(&p.ty)).sum()
}

/// Bytes that a value of a type takes; nothing for what has no size.
pub fn bytes_of(ty: &Type) -> u64 {
    let array = |dtype: qwix_array::DType, shape: &[usize]| {
        qwix_array::element_count(shape).and_then(|n| dtype.byte_len(n)).unwrap_or(0) as u64
    };
    match ty {
        Type::Array(a) => array(a.dtype, &a.shape),
        Type::QArray(q) => {
            let scale = q.scale_shape().unwrap_or_default();
            let zero_point = if q.has_zero_point() { array(q.how.qtype.storage, &scale) } else { 0 };
            array(q.how.qtype.storage, &q.array.shape) + array(q.array.dtype, &scale) + zero_point
        }
        Type::Tuple(elements) => elements.iter().map(bytes_of).sum(),
        Type::Token | Type::Opaque(_) => 0,
    }
}

impl Verdict {
    pub(crate) fn new(graph: &Graph, site: &Site, rule: Option<usize>, outcome: Outcome) -> Self {
        let node = graph.computation(&site.at).ok().and_then(|c| c.nodes.get(site.node.index()));
        Verdict {
            module_path: site.module_path.to_string(),
            op_name: site.op_name,
            op_id: site.op_id.clone(),
            instruction: node.map(|n| n.name.clone()).unwrap_or_default(),
            equation: site.equation.clone(),
            rule,
            outcome,
        }
    }
}

impl Outcome {
    /// Whether the site is quantized.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Outcome::Quantized { .. })
    }

    pub(crate) fn of(graph: &Graph, site: &Site, choice: &Choice) -> Self {
        Outcome::Quantized {
            lhs: Box::new(SideVerdict::of(graph, &site.lhs, &choice.lhs)),
            rhs: Box::new(SideVerdict::of(graph, &site.rhs, &choice.rhs)),
            strategy: match multiplies_stored(site, choice) {
                Ok(true) => "multiply stored values, then scale",
                Ok(false) | Err(_) => "dequantize first",
            },
        }
    }
}

impl SideVerdict {
    fn of(graph: &Graph, operand: &Operand, side: &Option<Side>) -> Self {
        let observed = side.as_ref().and_then(|s| match &s.range {
            RangeFrom::Statistics(observed) => Some(observed),
            RangeFrom::Weight { .. } | RangeFrom::Values => None,
        });
        let stored = side.as_ref().is_some_and(|s| s.range == RangeFrom::Weight { stored: true });
        let as_weight = operand
            .weight
            .as_ref()
            .filter(|_| side.as_ref().is_none_or(|s| matches!(s.range, RangeFrom::Weight { .. })));
        let axes = side.iter().flat_map(|s| &s.how.granularity).map(|granularity| match granularity {
            Granularity::Shared => "shared".to_owned(),
            Granularity::Channelwise => "channelwise".to_owned(),
            Granularity::Tiled(Tile::Size(size)) => format!("tile {size}"),
            Granularity::Tiled(Tile::Fraction(fraction)) => format!("tile {fraction:?} of the axis"),
        });
        SideVerdict {
            role: if as_weight.is_some() { "weight" } else { "activation" },
            path: as_weight.and_then(|w| graph.parameters.get(w.parameter)).map(|p| Path::to_string(&p.path)),
            ty: operand.ty.to_string(),
            qtype: side.as_ref().map(|s| s.how.qtype.name),
            calibration: side.as_ref().map(|s| s.how.calibration.to_string()),
            axes: axes.collect(),
            sharding: as_weight
                .filter(|_| stored)
                .and_then(|w| sharding::stored(graph, w))
                .map(|(sharding, _)| sharding.to_string()),
            statistics: observed.map(|o| o.path.to_string()),
            batch_axes: observed.map(|o| o.batch_axes.clone()).unwrap_or_default(),
            storage: as_weight.filter(|_| side.is_some()).map(|w| match &w.storage {
                _ if !stored => "float, quantized on each run".to_owned(),
                Storage::Folded { prep } if prep.is_empty() => "quantized parameter".to_owned(),
                Storage::Folded { .. } => {
                    "quantized parameter in the shape that the op computes with".to_owned()
                }
                Storage::InPlace { .. } => "quantized parameter, stacked".to_owned(),
                Storage::EachRun { reason } => format!("float, quantized on each run: {reason}"),
            }),
        }
    }
}

impl fmt::Display for SideVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.qtype {
            None => write!(f, "{} {}", self.role, self.ty)?,
            Some(qtype) => write!(f, "{} {} {} [{}]", self.role, self.ty, qtype, self.axes.join(", "))?,
        }
        if let Some(path) = &self.path {
            write!(f, " `{path}`")?;
        }
        if let Some(path) = &self.statistics {
            write!(f, " static from `{path}`")?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}: ", self.module_path, self.op_id)?;
        match &self.outcome {
            Outcome::Quantized { lhs, rhs, strategy } => {
                write!(f, "rules[{}]: {lhs} x {rhs}; {strategy}", self.rule.unwrap_or_default())
            }
            Outcome::Left { reason } => write!(f, "left: {reason}"),
            Outcome::Failed { reason } => write!(f, "fails: {reason}"),
        }
    }
}
