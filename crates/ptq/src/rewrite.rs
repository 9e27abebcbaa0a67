//! The edit that quantizes the sides of a site.

use qwix_array::DType;
use qwix_graph::{
    ArrayType, Graph, NodeId, Op, Parameter, Patch, Path, QArrayType, Role, Slot, StatisticPart,
    StatisticSlot, Type, UnaryOp, WeightSlot,
};
use qwix_quant::{Granularity, HowToQuantize};

use crate::providers::{Choice, Observed, RangeFrom, Side};
use crate::sharding;
use crate::{AxisUse, Operand, Product, Site, Storage, Weight};

/// What the edit of a side with a static range is given.
pub(crate) struct StaticSide<'a> {
    /// What calibration keeps of the activation.
    pub observed: &'a Observed,
    /// How it is quantized into the range.
    pub how: &'a HowToQuantize,
    /// The node of the activation.
    pub x: NodeId,
    /// Its type.
    pub array: ArrayType,
    /// The node of the site: new ones stand before it.
    pub before: NodeId,
}

/// A scale and a zero point, of nodes of a patch.
pub(crate) type ScaleZeroPoint = (NodeId, Option<NodeId>);

/// Weights become parameters where they can be stored, other sides are quantized when the model runs; the op takes
/// what results, and its type stays. `static_range` makes scale and zero point of the sides that have a static range.
pub(crate) fn quantize_sides(
    graph: &Graph,
    site: &Site,
    choice: &Choice,
    static_range: impl Fn(&mut Patch, StaticSide<'_>) -> Result<ScaleZeroPoint, String>,
) -> Result<Patch, String> {
    let mut patch = Patch::new(graph, &site.at).map_err(|e| e.to_string())?;
    let is_weight = |side: &Option<Side>| side.as_ref().is_some_and(Side::is_stored);
    let both = is_weight(&choice.lhs) && is_weight(&choice.rhs);
    let mut side = |operand: &Operand, side: &Option<Side>, suffix: &str| -> Result<NodeId, String> {
        let Some(Side { how, range }) = side else { return Ok(operand.node) };
        let mut operands = vec![operand.node];
        match (range, &operand.weight) {
            (RangeFrom::Weight { stored: true }, Some(weight)) => {
                return weight_side(&mut patch, graph, site, weight, how, suffix);
            }
            (RangeFrom::Weight { .. } | RangeFrom::Values, _) => {}
            (RangeFrom::Statistics(observed), _) => {
                let array = operand.ty.as_array().cloned().ok_or("an operand is no array")?;
                let dtype = array.dtype;
                let side = StaticSide { observed, how, x: operand.node, array, before: site.node };
                let (scale, zero_point) = static_range(&mut patch, side)?;
                operands.push(convert(&mut patch, site.node, scale, dtype)?);
                operands.extend(zero_point);
            }
        }
        patch.insert(site.node, Op::Quantize(how.clone()), &operands).map_err(|e| e.to_string())
    };
    let suffix = if both { "_lhs" } else { "" };
    let operands = [side(&site.lhs, &choice.lhs, suffix)?, side(&site.rhs, &choice.rhs, "")?];
    let op = match &site.product {
        Product::Dot(dims) => Op::Dot(dims.clone()),
        Product::Convolution(dims) => Op::Convolution(dims.clone()),
    };
    patch.replace(site.node, op, &operands).map_err(|e| e.to_string())?;
    Ok(patch)
}

/// A float in another dtype; itself when it has it already.
fn convert(patch: &mut Patch, before: NodeId, x: NodeId, dtype: DType) -> Result<NodeId, String> {
    let ty = patch.ty(x).map_err(|e| e.to_string())?;
    if ty.as_array().is_some_and(|a| a.dtype == dtype) {
        return Ok(x);
    }
    patch.insert_as(before, Op::Convert, &[x], Type::array(dtype, [])).map_err(|e| e.to_string())
}

/// A new parameter for a part of an activation's statistics.
pub(crate) fn statistic(
    patch: &mut Patch,
    observed: &Observed,
    part: StatisticPart,
    role: Role,
    array: ArrayType,
) -> Result<NodeId, String> {
    let path = match &part {
        StatisticPart::Count => observed.path.join("count"),
        StatisticPart::Sum(sum) => observed.path.join(sum.name()),
        StatisticPart::Scale { .. } => Path::new(&format!("{}_scale", observed.path)),
        StatisticPart::ZeroPoint { .. } => Path::new(&format!("{}_zero_point", observed.path)),
    };
    let otherwise = Path::new(&format!("{path}@statistics"));
    let slot = Slot::Statistic(StatisticSlot { source: observed.path.clone(), part });
    let parameter =
        Parameter { path, key_path: None, role, ambiguous: false, ty: array.into(), slot: Some(slot) };
    patch.add_parameter(parameter, otherwise).map_err(|e| e.to_string())
}

fn weight_side(
    patch: &mut Patch,
    graph: &Graph,
    site: &Site,
    weight: &Weight,
    how: &HowToQuantize,
    suffix: &str,
) -> Result<NodeId, String> {
    let parameter = graph.parameters.get(weight.parameter).ok_or("its weight is no parameter")?;
    let Type::Array(source_type) = &parameter.ty else {
        return Err(format!("its weight `{}` is {}", parameter.path, parameter.ty));
    };
    match &weight.storage {
        Storage::Folded { prep } => {
            let slot = WeightSlot {
                source: parameter.path.clone(),
                source_type: source_type.clone(),
                prep: prep.clone(),
                how: how.clone(),
            };
            let shape = shape_of(graph, site, weight.source)?;
            let array = ArrayType::new(source_type.dtype, shape);
            let stored = Parameter {
                ty: QArrayType { array, how: how.clone() }.into(),
                slot: Some(Slot::Weight(slot)),
                role: Role::Variable,
                ..parameter.clone()
            };
            let otherwise = reserved_path(&parameter.path, site, suffix);
            let mut id = patch.add_parameter(stored, otherwise).map_err(|e| e.to_string())?;
            let sharding = sharding::stored(graph, weight).map(|(sharding, _)| sharding);
            patch.set_sharding(id, sharding).map_err(|e| e.to_string())?;
            if let Some((sharding, open)) = &weight.constraint {
                let op = Op::Sharding { open: open.clone() };
                id = patch.insert(site.node, op, &[id]).map_err(|e| e.to_string())?;
                patch.set_sharding(id, Some(sharding.clone())).map_err(|e| e.to_string())?;
            }
            Ok(id)
        }
        Storage::InPlace { axes, chain } => {
            let granularity = axes
                .iter()
                .map(|axis| match *axis {
                    AxisUse::Index => Some(Granularity::Channelwise),
                    AxisUse::Whole(to) => how.granularity.get(to).copied(),
                    AxisUse::Part(to) => {
                        how.granularity.get(to).copied().filter(|g| *g == Granularity::Channelwise)
                    }
                })
                .collect::<Option<Vec<_>>>()
                .ok_or("part of its weight is taken along an axis that shares scales")?;
            let how = HowToQuantize { granularity, ..how.clone() };
            let slot = WeightSlot {
                source: parameter.path.clone(),
                source_type: source_type.clone(),
                prep: vec![],
                how,
            };
            patch.quantize_parameter(graph, weight.parameter, slot).map_err(|e| e.to_string())?;
            unconverted(patch, graph, site, chain, source_type)
        }
        Storage::EachRun { .. } => {
            patch.insert(site.node, Op::Quantize(how.clone()), &[weight.source]).map_err(|e| e.to_string())
        }
    }
}

/// The path of a quantized weight whose own is taken: `embed/embedding@dot_general0`, with the module where it is not
/// the weight's.
fn reserved_path(path: &Path, site: &Site, suffix: &str) -> Path {
    let (module, op_id) = (&site.module_path, &site.op_id);
    let place = if path.parent() == *module {
        format!("{op_id}{suffix}")
    } else {
        format!("{}.{op_id}{suffix}", module.as_str().replace('/', "."))
    };
    Path::new(&format!("{path}@{place}"))
}

fn shape_of(graph: &Graph, site: &Site, id: NodeId) -> Result<Vec<usize>, String> {
    let computation = graph.computation(&site.at).map_err(|e| e.to_string())?;
    let node = computation.nodes.get(id.index()).ok_or("an operand is missing")?;
    Ok(node.ty.as_array().ok_or("an operand is no array")?.shape.clone())
}

/// The steps to an operand again, conversions and copies left out: quantized arrays do not pass through those.
fn unconverted(
    patch: &mut Patch,
    graph: &Graph,
    site: &Site,
    chain: &[NodeId],
    source_type: &ArrayType,
) -> Result<NodeId, String> {
    let computation = graph.computation(&site.at).map_err(|e| e.to_string())?;
    let mut now = *chain.first().ok_or("its weight is not in its computation")?;
    let mut converted = false;
    for &id in chain.iter().skip(1) {
        let node = computation.nodes.get(id.index()).ok_or("a step to its weight is missing")?;
        if matches!(node.op, Op::Convert | Op::Unary(UnaryOp::Copy)) {
            converted = true;
        } else if !converted {
            now = id;
        } else {
            let shape = node.ty.as_array().ok_or("a step to its weight is no array")?.shape.clone();
            let declared = Type::array(source_type.dtype, shape);
            let operands: Vec<NodeId> =
                std::iter::once(now).chain(node.operands.iter().copied().skip(1)).collect();
            now = patch
                .insert_as(site.node, node.op.clone(), &operands, declared)
                .map_err(|e| e.to_string())?;
            patch.set_sharding(now, node.sharding.clone()).map_err(|e| e.to_string())?;
        }
    }
    Ok(now)
}
