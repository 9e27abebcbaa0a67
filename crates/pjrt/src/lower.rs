//! From a graph to the one that XLA's compilers take.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use qwix_array::DType;
use qwix_graph::passes::lower_quant;
use qwix_graph::{ArrayType, Computation, Graph, GraphError, Metadata, Node, NodeId, Op, Type, UnaryOp};

/// The graph in plain HLO whose result is a flat tuple of arrays.
///
/// `platform` is the plugin's name of it. XLA takes products of types narrower than a byte on TPUs only: elsewhere the
/// operands are converted to 8 bits first, which is exact. On GPUs it takes no convolution of integers to integers: there
/// one is computed in f64 and rounded, which is exact too.
///
/// # Errors
/// When the graph cannot be lowered.
pub fn lower(graph: &Graph, platform: &str) -> Result<Graph, GraphError> {
    let mut graph = lower_quant(graph)?;
    let (widen, float_convolutions) = match platform {
        "tpu" => (false, false),
        "cuda" | "rocm" => (true, true),
        _ => (true, false),
    };
    let mut fit = Fit { widen, float_convolutions, done: HashMap::new() };
    graph.entry = fit.computation(&graph.entry);
    graph.entry = Arc::new(flat_result(&graph.entry));
    graph.verify()?;
    Ok(graph)
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

/// The 8-bit type that holds all values of a narrower one.
fn widened(dtype: DType) -> Option<DType> {
    match dtype {
        DType::S2 | DType::S4 | DType::U4 => Some(DType::S8),
        DType::F4E2M1FN => Some(DType::F8E4M3FN),
        DType::Pred
        | DType::S8
        | DType::S16
        | DType::S32
        | DType::S64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64
        | DType::F8E4M3FN
        | DType::F8E5M2 => None,
    }
}

/// Writes each op as XLA's compilers take it.
struct Fit {
    /// Whether operands of products are converted to 8 bits.
    widen: bool,
    /// Whether convolutions of integers are computed in floats.
    float_convolutions: bool,
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
            let after = self.after(&mut node);
            new.nodes.push(node);
            for (op, ty) in after {
                let before = NodeId(new.nodes.len() as u32 - 1);
                push(&mut new, op, vec![before], ty);
            }
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
        if let (Op::Convolution(_), true) = (&node.op, self.float_convolutions) {
            let float = float_of(ty.dtype)?;
            return Some((Op::Convert, Type::array(float, ty.shape.clone())));
        }
        if is_product(&node.op) && self.widen {
            let wide = widened(ty.dtype)?;
            return Some((Op::Convert, Type::array(wide, ty.shape.clone())));
        }
        if is_scalar_bound(&node.op, ty, result) {
            return Some((Op::Broadcast { dimensions: vec![] }, Type::array(ty.dtype, result.shape.clone())));
        }
        None
    }

    /// What must be done to the result of a node, which is changed to be the first step.
    fn after(&self, node: &mut Node) -> Vec<(Op, Type)> {
        let (Op::Convolution(_), Type::Array(ty), true) = (&node.op, &node.ty, self.float_convolutions)
        else {
            return vec![];
        };
        let Some(float) = float_of(ty.dtype) else { return vec![] };
        let (wide, narrow) = (Type::array(float, ty.shape.clone()), Type::Array(ty.clone()));
        let is_int = !ty.dtype.is_float();
        node.ty = wide.clone();
        // The sum is whole; an algorithm that goes by way of fractions is off by less than a half.
        let round = is_int.then_some((Op::Unary(UnaryOp::RoundNearestEven), wide));
        round.into_iter().chain([(Op::Convert, narrow)]).collect()
    }
}

/// The type in which a GPU computes a convolution of a type that its library does not take: f64 for integers, because f32
/// does not hold their sums.
fn float_of(dtype: DType) -> Option<DType> {
    match dtype {
        DType::S2
        | DType::S4
        | DType::S8
        | DType::S16
        | DType::S32
        | DType::U4
        | DType::U8
        | DType::U16
        | DType::U32 => Some(DType::F64),
        DType::F4E2M1FN | DType::F8E4M3FN | DType::F8E5M2 => Some(DType::F32),
        // No float holds all of 64 bits.
        DType::S64 | DType::U64 | DType::Pred | DType::F16 | DType::BF16 | DType::F32 | DType::F64 => None,
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
    use qwix_graph::{ConvDims, DotDims, GraphBuilder, WindowDim};

    #[test]
    fn narrow_products_are_widened_where_they_must_be() {
        let mut b = GraphBuilder::new("narrow");
        let x = b.input("x", Type::array(DType::S8, [2, 4])).unwrap();
        let w = b.input("w", Type::array(DType::S4, [4, 3])).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let product = b.dot(x, w, &dims, DType::S32).unwrap();
        let graph = b.finish(product).unwrap();
        for (platform, expected) in [("cpu", DType::S8), ("cuda", DType::S8), ("tpu", DType::S4)] {
            let lowered = lower(&graph, platform).unwrap();
            let dot = lowered.entry.nodes.iter().find(|n| matches!(n.op, Op::Dot(_))).unwrap();
            let found = lowered.entry.node(dot.operands[1]).ty.as_array().unwrap().dtype;
            assert_eq!(found, expected, "{platform}");
            assert_eq!(lowered.parameters[1].ty, Type::array(DType::S4, [4, 3]), "{platform}");
        }
    }

    #[test]
    fn convolutions_of_integers_are_computed_in_floats_on_gpus() {
        let mut b = GraphBuilder::new("conv");
        let x = b.input("x", Type::array(DType::S8, [1, 4, 3])).unwrap();
        let w = b.input("w", Type::array(DType::S4, [2, 3, 5])).unwrap();
        let dims = ConvDims {
            input_batch: 0,
            input_feature: 2,
            input_spatial: vec![1],
            kernel_input_feature: 1,
            kernel_output_feature: 2,
            kernel_spatial: vec![0],
            output_batch: 0,
            output_feature: 2,
            output_spatial: vec![1],
            window: vec![WindowDim::new(2)],
            feature_group_count: 1,
            batch_group_count: 1,
        };
        let product = b.convolution(x, w, &dims, DType::S32).unwrap();
        let result = b.binary(qwix_graph::BinaryOp::Add, product, product).unwrap();
        let graph = b.finish(result).unwrap();
        for (platform, expected) in [("cpu", [DType::S8, DType::S32]), ("cuda", [DType::F64; 2])] {
            let lowered = lower(&graph, platform).unwrap();
            let conv = lowered.entry.nodes.iter().find(|n| matches!(n.op, Op::Convolution(_))).unwrap();
            let dtype = |ty: &Type| ty.as_array().unwrap().dtype;
            let found = [dtype(&lowered.entry.node(conv.operands[1]).ty), dtype(&conv.ty)];
            assert_eq!(found, expected, "{platform}");
            let tuple = Type::Tuple(vec![Type::array(DType::S32, [1, 3, 5])]);
            assert_eq!(lowered.entry.node(lowered.entry.root).ty, tuple, "{platform}");
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
        let lowered = lower(&graph, "cpu").unwrap();
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
            let lowered = lower(&graph, "cpu").unwrap();
            let expected = Type::Tuple(vec![Type::array(DType::F32, [2]); count]);
            assert_eq!(lowered.entry.node(lowered.entry.root).ty, expected, "{}", graph.name);
        }
    }
}
