//! Constant folding: what depends on constants alone is computed once, when the graph is made ready.

use std::sync::Arc;

use qwix_array::{Array, element_count};
use qwix_graph::{Computation, Graph, Op, Type};

use crate::{Value, evaluate};

/// Results (and operands) of more elements are left as they are.
const LARGEST: usize = 1 << 16;

/// The graph with every small array that depends on constants alone as a constant, in nested computations too.
///
/// Counts and repeated scalars stay as they are, since they are cheaper to make than to keep; loops, branches and
/// calls are not run. Nodes that nothing uses any more are dropped.
pub fn fold_constants(graph: &Graph) -> Graph {
    let folded = Graph { entry: Arc::new(fold(&graph.entry)), ..graph.clone() };
    qwix_graph::passes::eliminate_dead_code(&folded)
}

fn fold(computation: &Computation) -> Computation {
    let mut folded = computation.clone();
    let mut known: Vec<Option<Array>> = Vec::with_capacity(folded.nodes.len());
    for node in &mut folded.nodes {
        for called in node.op.called_mut() {
            *called = Arc::new(fold(called));
        }
        let value = if is_small(&node.ty) && may_fold(&node.op) {
            let operands = node
                .operands
                .iter()
                .map(|id| known.get(id.index())?.clone().map(Value::Array))
                .collect::<Option<Vec<_>>>();
            // What cannot be computed stays, for the run to say why.
            operands.and_then(|operands| match evaluate(&node.op, &node.ty, &operands) {
                Ok(Value::Array(array)) => Some(array),
                Ok(Value::QArray(_) | Value::Tuple(_)) | Err(_) => None,
            })
        } else {
            None
        };
        known.push(value);
    }
    for (node, value) in folded.nodes.iter_mut().zip(known) {
        let cheap = matches!(node.op, Op::Constant(_) | Op::Iota { .. } | Op::Broadcast { .. });
        if let (Some(value), false) = (value, cheap) {
            node.op = Op::Constant(value);
            node.operands.clear();
        }
    }
    folded
}

fn is_small(ty: &Type) -> bool {
    match ty {
        Type::Array(array) => element_count(&array.shape).is_some_and(|count| count <= LARGEST),
        Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => false,
    }
}

/// Whether the op's value depends on its operands alone, and is had in little time.
fn may_fold(op: &Op) -> bool {
    match op {
        Op::Constant(_)
        | Op::Iota { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare { .. }
        | Op::Select
        | Op::Clamp
        | Op::Convert
        | Op::BitcastConvert
        | Op::ReducePrecision { .. }
        | Op::Broadcast { .. }
        | Op::Reshape
        | Op::Transpose { .. }
        | Op::Slice(_)
        | Op::DynamicSlice { .. }
        | Op::DynamicUpdateSlice
        | Op::Concatenate { .. }
        | Op::Pad(_)
        | Op::Reverse { .. }
        | Op::Gather(_)
        | Op::Reduce { .. } => true,
        Op::Parameter(_)
        | Op::Scatter { .. }
        | Op::Dot(_)
        | Op::Convolution(_)
        | Op::ReduceWindow { .. }
        | Op::SelectAndScatter { .. }
        | Op::Sort { .. }
        | Op::TopK { .. }
        | Op::Map { .. }
        | Op::Tuple
        | Op::GetTupleElement(_)
        | Op::While { .. }
        | Op::Conditional { .. }
        | Op::Call { .. }
        | Op::RngBitGenerator(_)
        | Op::OptimizationBarrier
        | Op::CustomCall(_)
        | Op::Unsupported(_)
        | Op::Quantize(_)
        | Op::Dequantize => false,
    }
}
