//! The steps, a kind a file.

mod control;
mod conv;
pub(crate) mod dot;
mod fused;
mod indexing;
pub(crate) mod integers;
mod moves;
mod parts;
pub(crate) mod qdot;
mod quantize;
mod quantize_static;
mod reduce;
mod reference;
pub(crate) mod scales;
mod scatter;
mod sort;
pub(crate) mod weights;
mod wide;
mod window;
mod window_general;

use qwix_eval::EvalError;
use qwix_graph::{NodeId, Op};

use crate::plan::{Planned, Planning};

type Planner = fn(&Planning<'_>, NodeId) -> Option<Planned>;

/// What can plan a node, best first. What none of them takes, the reference evaluator does.
const STEPS: &[Planner] = &[
    control::plan,
    dot::plan,
    qdot::plan,
    wide::plan,
    conv::plan,
    quantize_static::plan,
    quantize::plan,
    fused::plan,
    moves::plan,
    indexing::plan,
    reduce::plan,
    window::plan,
    window_general::plan,
    sort::plan,
    scatter::plan,
    parts::plan,
];

/// A step for a node.
///
/// # Errors
/// When a computation that the node calls cannot be planned.
pub(crate) fn plan(planning: &Planning<'_>, id: NodeId) -> Result<Planned, EvalError> {
    if let Some(nested) = control::plan_nested(planning, id) {
        return nested;
    }
    Ok(STEPS.iter().find_map(|plan| plan(planning, id)).unwrap_or_else(|| reference::plan(planning, id)))
}

/// Whether a node with known operands is computed when the graph is compiled.
pub(crate) fn is_cheap_to_fold(op: &Op) -> bool {
    match op {
        Op::Iota { .. }
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
        | Op::Concatenate { .. }
        | Op::Pad(_)
        | Op::Reverse { .. } => true,
        Op::Parameter(_)
        | Op::Constant(_)
        | Op::DynamicUpdateSlice
        | Op::Gather(_)
        | Op::Scatter { .. }
        | Op::Dot(_)
        | Op::Convolution(_)
        | Op::Reduce { .. }
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
        | Op::Sharding { .. }
        | Op::CustomCall(_)
        | Op::Unsupported(_)
        | Op::Quantize(_)
        | Op::Dequantize => false,
    }
}
