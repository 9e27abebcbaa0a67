//! Graphs as XLA's compilers take them: what HLO allows and a compiler fails on is written in another way, with the same
//! numbers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use qwix_array::DType;

use crate::{ArrayType, Computation, Graph, Node, NodeId, Op, Type};

/// The graph with the bounds of clamps in the shape of what they bound and, when `widen` is set, with the operands of
/// products that are narrower than a byte converted to 8 bits. XLA's CPU compiler takes no narrower ones.
pub fn fit_xla(graph: &Graph, widen: bool) -> Graph {
    let entry = Fit { widen, done: HashMap::new() }.computation(&graph.entry);
    Graph { name: graph.name.clone(), entry, parameters: graph.parameters.clone() }
}

/// The 8-bit type that holds all values of a narrower one.
pub fn widened(dtype: DType) -> Option<DType> {
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
            let wide = widened(ty.dtype)?;
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
pub fn unsafe_instruction(computation: &Computation) -> Option<&str> {
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
