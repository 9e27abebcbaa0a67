//! From a graph to the one that XLA's compilers take.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use qwix_graph::passes::lower_quant;
use qwix_graph::{
    ArrayType, Computation, ConvDims, DotDims, Graph, GraphError, Metadata, Node, NodeId, Op, Precision, Type,
};

use crate::gpu;

/// The graph in plain HLO whose result is a flat tuple of arrays.
///
/// `platform` is the plugin's name of it. XLA's CPU compiler takes no products of types narrower than a byte: there the
/// operands are converted to 8 bits first, which is exact. What its GPU compilers get wrong is written otherwise.
/// Products of floats have at least the precision `precision`; those of the model that ask for more keep theirs.
///
/// # Errors
/// When the graph cannot be lowered.
pub fn lower(graph: &Graph, platform: &str, precision: Precision) -> Result<Graph, GraphError> {
    finish(lower_quant(graph)?, platform, precision)
}

/// What [`lower`] does once quantized types are gone.
pub(crate) fn finish(mut graph: Graph, platform: &str, precision: Precision) -> Result<Graph, GraphError> {
    let (widen, gpu) = (platform == "cpu", is_gpu(platform));
    let mut fit = Fit { widen, gpu, precision, done: HashMap::new() };
    graph.entry = fit.computation(&graph.entry);
    graph.entry = Arc::new(flat_result(&graph.entry));
    graph.verify()?;
    Ok(graph)
}

/// Whether a platform is one of XLA's for GPUs.
pub(crate) fn is_gpu(platform: &str) -> bool {
    matches!(platform, "cuda" | "rocm")
}

/// The computation with the arrays of its result in one tuple.
fn flat_result(entry: &Computation) -> Computation {
    let mut entry = entry.clone();
    let mut leaves = Vec::new();
    let root = entry.root;
    leaves_of(&mut entry, root, &mut leaves);
    let types = leaves.iter().map(|id: &NodeId| entry.node(*id).ty.clone()).collect();
    entry.root = push(&mut entry, Op::Tuple, leaves, Type::Tuple(types));
    entry
}

fn leaves_of(computation: &mut Computation, id: NodeId, leaves: &mut Vec<NodeId>) {
    match computation.node(id).ty.clone() {
        Type::Tuple(types) => {
            for (index, ty) in types.into_iter().enumerate() {
                let element = push(computation, Op::GetTupleElement(index), vec![id], ty);
                leaves_of(computation, element, leaves);
            }
        }
        // A token has no value.
        Type::Token => {}
        Type::Array(_) | Type::QArray(_) | Type::Opaque(_) => leaves.push(id),
    }
}

fn push(computation: &mut Computation, op: Op, operands: Vec<NodeId>, ty: Type) -> NodeId {
    let name = format!("{}.result.{}", op.name(), computation.nodes.len());
    computation.nodes.push(Node { name, op, operands, ty, metadata: Metadata::default(), sharding: None });
    NodeId(computation.nodes.len() as u32 - 1)
}

/// Writes each op as XLA's compilers take it.
struct Fit {
    /// Whether operands of products are converted to 8 bits.
    widen: bool,
    /// Whether the compiler is one for GPUs.
    gpu: bool,
    /// The least precision of products of floats.
    precision: Precision,
    /// Computations that were done already; they are shared by many callers.
    done: HashMap<*const Computation, Arc<Computation>>,
}

impl Fit {
    fn computation(&mut self, computation: &Arc<Computation>) -> Arc<Computation> {
        let key = Arc::as_ptr(computation);
        if let Some(done) = self.done.get(&key) {
            return Arc::clone(done);
        }
        let mut new = Computation { name: computation.name.clone(), ..Computation::default() };
        // Where each old node is.
        let mut places: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
        for node in &computation.nodes {
            let mut node = node.clone();
            for called in node.op.called_mut() {
                *called = self.computation(called);
            }
            let operands = std::mem::take(&mut node.operands);
            for old in operands {
                // Out of order it stays, and the verifier says so.
                let at = places.get(old.index()).copied().unwrap_or(old);
                let before = new.nodes.get(at.index()).and_then(|operand| self.before(&node, operand));
                node.operands.push(match before {
                    Some((op, ty)) => {
                        let name = format!("{}.operand.{}", node.name, node.operands.len());
                        let metadata = node.metadata.clone();
                        new.nodes.push(Node { name, op, operands: vec![at], ty, metadata, sharding: None });
                        NodeId(new.nodes.len() as u32 - 1)
                    }
                    None => at,
                });
            }
            if let Op::Dot(DotDims { operand_precision, .. })
            | Op::Convolution(ConvDims { operand_precision, .. }) = &mut node.op
            {
                *operand_precision = operand_precision.map(|own| own.max(self.precision));
            }
            if self.gpu
                && let Some(id) = gpu::write(&mut new, &node, &node.operands)
                && let Some(written) = new.nodes.get_mut(id.index())
            {
                (written.name, written.sharding) = (node.name, node.sharding);
                places.push(id);
                continue;
            }
            new.nodes.push(node);
            places.push(NodeId(new.nodes.len() as u32 - 1));
        }
        new.root = places.get(computation.root.index()).copied().unwrap_or(computation.root);
        let new = Arc::new(new);
        self.done.insert(key, Arc::clone(&new));
        new
    }

    /// What must be done to an operand before a node takes it.
    fn before(&self, node: &Node, operand: &Node) -> Option<(Op, Type)> {
        let (Type::Array(ty), Type::Array(result)) = (&operand.ty, &node.ty) else { return None };
        if is_product(&node.op) && self.widen {
            let wide = gpu::wider(ty.dtype)?;
            return Some((Op::Convert, Type::array(wide, ty.shape.clone())));
        }
        if is_scalar_bound(&node.op, ty, result) {
            return Some((Op::Broadcast { dimensions: vec![] }, Type::array(ty.dtype, result.shape.clone())));
        }
        None
    }
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Dot(_) | Op::Convolution(_))
}

/// Whether an operand is the one bound of a clamp for all elements of an array. XLA moves reshapes and transposes through
/// a clamp as if its bounds had the array's shape; on scalar ones it fails, or ends the process.
fn is_scalar_bound(op: &Op, operand: &ArrayType, result: &ArrayType) -> bool {
    matches!(op, Op::Clamp) && operand.shape.is_empty() && !result.shape.is_empty()
}

/// The name of an instruction that XLA's compilers may not survive.
pub(crate) fn unsafe_instruction(computation: &Computation) -> Option<&str> {
    let mut pending = vec![computation];
    let mut seen = HashSet::new();
    while let Some(computation) = pending.pop() {
        for node in &computation.nodes {
            pending.extend(
                node.op.called().into_iter().filter(|c| seen.insert(Arc::as_ptr(c))).map(Arc::as_ref),
            );
            let bound = |id: &NodeId| match (computation.nodes.get(id.index()).map(|n| &n.ty), &node.ty) {
                (Some(Type::Array(operand)), Type::Array(result)) => {
                    is_scalar_bound(&node.op, operand, result)
                }
                _ => false,
            };
            if node.operands.iter().any(bound) {
                return Some(&node.name);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwix_array::DType;
    use qwix_graph::GraphBuilder;

    #[test]
    fn narrow_products_are_widened_where_they_must_be() {
        let mut b = GraphBuilder::new("narrow");
        let x = b.input("x", Type::array(DType::S8, [2, 4])).unwrap();
        let w = b.input("w", Type::array(DType::S4, [4, 3])).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let product = b.dot(x, w, &dims, DType::S32).unwrap();
        let graph = b.finish(product).unwrap();
        for (platform, expected) in [("cpu", DType::S8), ("cuda", DType::S8), ("tpu", DType::S4)] {
            let lowered = lower(&graph, platform, Precision::Default).unwrap();
            let dot = lowered.entry.nodes.iter().find(|n| matches!(n.op, Op::Dot(_))).unwrap();
            let found = lowered.entry.node(dot.operands[1]).ty.as_array().unwrap().dtype;
            assert_eq!(found, expected, "{platform}");
            assert_eq!(lowered.parameters[1].ty, Type::array(DType::S4, [4, 3]), "{platform}");
        }
    }

    #[test]
    fn bounds_of_clamps_get_the_arrays_shape() {
        let mut b = GraphBuilder::new("bounds");
        let x = b.input("x", Type::array(DType::F32, [2, 4])).unwrap();
        let one = b.scalar(1f32).unwrap();
        let clamped = b.clamp(one, x, one).unwrap();
        let graph = b.finish(clamped).unwrap();
        assert_eq!(unsafe_instruction(&graph.entry), Some(graph.entry.node(clamped).name.as_str()));
        let lowered = lower(&graph, "cpu", Precision::Default).unwrap();
        assert_eq!(unsafe_instruction(&lowered.entry), None);
    }

    #[test]
    fn results_become_one_flat_tuple() {
        let mut b = GraphBuilder::new("nested");
        let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
        let inner = b.tuple(&[x, x]).unwrap();
        let empty = b.tuple(&[]).unwrap();
        let root = b.tuple(&[inner, empty, x]).unwrap();
        let nested = b.finish(root).unwrap();
        let mut b = GraphBuilder::new("one");
        let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
        let one = b.finish(x).unwrap();
        for (graph, count) in [(nested, 3), (one, 1)] {
            let lowered = lower(&graph, "cpu", Precision::Default).unwrap();
            let expected = Type::Tuple(vec![Type::array(DType::F32, [2]); count]);
            assert_eq!(lowered.entry.node(lowered.entry.root).ty, expected, "{}", graph.name);
        }
    }
}
