//! Placeholders become calls of kernels, with their left sides as kernels want them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use qwix_array::DType;
use qwix_graph::{Computation, ComputationBuilder, CustomCall, Graph, GraphError, Node, NodeId, Op, Type};
use qwix_quant::{DotPlan, QuantizedDot, dot_plan};

use super::replace::PLACE;
use super::{Attribute, Call, Product};

/// The graph, whose quantized types are gone, with calls in place of placeholders.
pub(super) fn expand(graph: Graph, calls: &[(Product, Call)]) -> Result<Graph, GraphError> {
    let old = graph.entry.as_ref();
    let mut b = ComputationBuilder::new(&old.name);
    let mut places: Vec<NodeId> = Vec::with_capacity(old.nodes.len());
    // The nodes that are made for each placeholder.
    let mut made: Vec<(Range<usize>, &Node)> = Vec::new();
    for node in &old.nodes {
        let operands: Vec<NodeId> =
            node.operands.iter().map(|id| places.get(id.index()).copied().unwrap_or(*id)).collect();
        let call = match &node.op {
            Op::CustomCall(call) if call.target == PLACE => {
                let number = std::str::from_utf8(&call.config).ok().and_then(|text| text.parse().ok());
                let call = number.and_then(|number: usize| calls.get(number));
                Some(call.ok_or_else(|| wrong(old, node, "stands for nothing".to_owned()))?)
            }
            _ => None,
        };
        places.push(match call {
            Some((product, call)) => {
                let start = b.node_count();
                let left = left(&mut b, old, node, &places)?;
                let called = emit(&mut b, &left, operands.get(1..).unwrap_or_default(), product, call)?;
                let Type::Array(ty) = &node.ty else {
                    return Err(wrong(old, node, format!("is declared {}, should be an array", node.ty)));
                };
                let result = b.convert(called, ty.dtype)?;
                made.push((start..b.node_count(), node));
                result
            }
            None => b.add_node(Node { operands, ..node.clone() })?,
        });
    }
    let root = places.get(old.root.index()).copied().unwrap_or(old.root);
    let mut entry = b.finish(root)?;
    adopt(&mut entry, &made);
    Ok(Graph { entry: Arc::new(entry), ..graph.clone() })
}

/// Gives the nodes that were made for an old one its place in the model, and the last of them its name; the others get
/// names that no old one has.
fn adopt(entry: &mut Computation, made: &[(Range<usize>, &Node)]) {
    let mut names: HashSet<String> = made.iter().map(|(_, old)| old.name.clone()).collect();
    let is_made = |index: usize| made.iter().any(|(range, _)| range.contains(&index));
    names.extend(entry.nodes.iter().enumerate().filter(|(i, _)| !is_made(*i)).map(|(_, n)| n.name.clone()));
    for (range, old) in made {
        for index in range.clone() {
            let Some(node) = entry.nodes.get_mut(index) else { continue };
            node.metadata = old.metadata.clone();
            if index + 1 == range.end {
                node.name.clone_from(&old.name);
                continue;
            }
            let mut name = format!("{}.{}.{index}", old.name, node.op.name());
            while !names.insert(name.clone()) {
                name.push('.');
            }
            node.name = name;
        }
    }
}

fn wrong(computation: &Computation, node: &Node, reason: String) -> GraphError {
    GraphError::Invalid { computation: computation.name.clone(), reason: format!("`{}` {reason}", node.name) }
}

/// The parts of the left side: qvalue, scale and zero point, or the array.
fn left(
    b: &mut ComputationBuilder,
    old: &Computation,
    node: &Node,
    places: &[NodeId],
) -> Result<Vec<NodeId>, GraphError> {
    let missing = || wrong(old, node, "has no left side".to_owned());
    let id = *node.operands.first().ok_or_else(missing)?;
    let place = *places.get(id.index()).ok_or_else(missing)?;
    match (&old.node(id).op, &old.node(id).ty) {
        // Lowering put the parts together for this call.
        (Op::Tuple, _) => {
            let parts = old.node(id).operands.iter().map(|part| places.get(part.index()).copied());
            parts.collect::<Option<_>>().ok_or_else(missing)
        }
        (_, Type::Tuple(parts)) => (0..parts.len()).map(|i| b.get_tuple_element(place, i)).collect(),
        _ => Ok(vec![place]),
    }
}

/// The call and what is around it; yields f32 of the product's shape.
fn emit(
    b: &mut ComputationBuilder,
    left: &[NodeId],
    packed: &[NodeId],
    product: &Product,
    call: &Call,
) -> Result<NodeId, GraphError> {
    let invalid = |reason: &str| GraphError::Invalid {
        computation: "entry".to_owned(),
        reason: format!("a call of `{}` {reason}", call.target),
    };
    let Product { lhs, weight, dims } = product;
    let (operands, tiles, shape) = match (dot_plan(lhs, weight, dims, None)?, left) {
        (DotPlan::Dequantize { shape, .. }, &[values]) => {
            let values = b.convert(values, DType::F32)?;
            let (free, batch) = (dims.lhs_free(lhs.shape.len()), &dims.lhs_batch);
            (vec![ordered(b, values, [batch, &free, &dims.lhs_contracting])?], 1, shape)
        }
        (DotPlan::Multiply(plan), &[values, scale, ref zero_point @ ..]) => {
            let tiles = plan.sum_axes.iter().map(|&axis| plan.product_shape[axis]).product();
            (stored(b, values, scale, zero_point.first().copied(), &plan)?, tiles, plan.shape.clone())
        }
        _ => return Err(invalid("has another left side than was planned")),
    };
    let (batch, rows) = match b.shape(operands[0])? {
        &[batch, rows, _] => (batch, rows),
        _ => return Err(invalid("has another left side than was planned")),
    };
    let outer = batch.checked_div(tiles).unwrap_or(0);
    let columns = dims.rhs_free(weight.shape.len()).iter().map(|&axis| weight.shape[axis]).product();
    let op = Op::CustomCall(CustomCall {
        target: call.target.to_owned(),
        config: config(&call.attributes).into_bytes(),
        called: Vec::new(),
        typed: true,
    });
    let operands = [&operands, packed].concat();
    let called = b.add_as(op, &operands, Type::array(DType::F32, [outer, rows, columns]))?;
    b.reshape(called, &shape)
}

/// A left side of stored values: values, scales, zero points.
fn stored(
    b: &mut ComputationBuilder,
    values: NodeId,
    scale: NodeId,
    zero_point: Option<NodeId>,
    plan: &QuantizedDot,
) -> Result<Vec<NodeId>, GraphError> {
    let (shape, dims) = (&plan.lhs.shape, &plan.dims);
    let free = dims.lhs_free(shape.len());
    let values = b.convert(values, DType::S8)?;
    let values = b.reshape(values, shape)?;
    let values = ordered(b, values, [&dims.lhs_batch, &free, &dims.lhs_contracting])?;
    let mut operands = vec![values];
    let size = |axes: &[usize]| axes.iter().map(|&axis| shape[axis]).product::<usize>();
    let rows = [size(&dims.lhs_batch), size(&free)];
    let kept: Vec<usize> = dims.lhs_batch.iter().chain(&free).copied().collect();
    let to: Vec<usize> = kept.iter().map(|&axis| shape[axis]).collect();
    if let Some(how) = &plan.lhs.scale {
        let scale = b.convert(scale, DType::F32)?;
        let scale = b.reshape(scale, &how.split)?;
        let scale = b.transpose(scale, &how.permutation)?;
        // The product's first axes are those of the left side.
        let from: Vec<usize> = how.shape.iter().take(to.len()).copied().collect();
        let scale = b.reshape(scale, &from)?;
        let scale = spread(b, scale, &to)?;
        operands.push(b.reshape(scale, &rows)?);
    }
    if let (Some(zero_point), Some(how)) = (zero_point, &plan.lhs.zero_point) {
        let zero_point = b.convert(zero_point, DType::S32)?;
        let zero_point = b.reshape(zero_point, &how.split)?;
        let order: Vec<usize> = kept.iter().chain(&dims.lhs_contracting).copied().collect();
        let zero_point = b.transpose(zero_point, &order)?;
        // Contracted axes have one zero point.
        let from: Vec<usize> = kept.iter().map(|&axis| how.split[axis]).collect();
        let zero_point = b.reshape(zero_point, &from)?;
        let zero_point = spread(b, zero_point, &to)?;
        operands.push(b.reshape(zero_point, &rows)?);
    }
    Ok(operands)
}

/// An array's axes in three groups, each taken as one.
fn ordered(b: &mut ComputationBuilder, x: NodeId, groups: [&[usize]; 3]) -> Result<NodeId, GraphError> {
    let shape = b.shape(x)?.to_vec();
    let x = b.transpose(x, &groups.concat())?;
    let sizes = groups.map(|axes| axes.iter().map(|&axis| shape[axis]).product());
    b.reshape(x, &sizes)
}

/// Repeats entries so that the shape is `to`: each entry serves a tile of every axis.
fn spread(b: &mut ComputationBuilder, x: NodeId, to: &[usize]) -> Result<NodeId, GraphError> {
    let from = b.shape(x)?.to_vec();
    if from == to {
        return Ok(x);
    }
    let tiles = from.iter().zip(to).map(|(&from, &to)| [from, to.checked_div(from).unwrap_or(0)]);
    let shape: Vec<usize> = tiles.flatten().collect();
    let dimensions = (0..from.len()).map(|axis| 2 * axis).collect();
    let dtype = b.dtype(x)?;
    let repeated = b.add_as(Op::Broadcast { dimensions }, &[x], Type::array(dtype, shape))?;
    b.reshape(repeated, to)
}

/// Attributes as MLIR writes a dictionary, which is how XLA reads them.
fn config(attributes: &[(&str, Attribute)]) -> String {
    let mut text = String::from("{");
    for (i, (name, value)) in attributes.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = match value {
            Attribute::Int(number) => write!(text, "{comma}{name} = {number} : i64"),
            Attribute::Text(value) => write!(text, "{comma}{name} = \"{}\"", escaped(value)),
        };
    }
    text.push('}');
    text
}

/// A text between quotes of MLIR's.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'"' && byte != b'\\' => escaped.push(byte.into()),
            _ => {
                let _ = write!(escaped, "\\{byte:02X}");
            }
        }
    }
    escaped
}
