//! An op's name and the computations that it calls.

use std::sync::Arc;

use crate::{Computation, Op};

impl Op {
    /// HLO's name of the op; `quantize` and `dequantize` for ours.
    pub fn name(&self) -> &str {
        match self {
            Op::Parameter(_) => "parameter",
            Op::Constant(_) => "constant",
            Op::Iota { .. } => "iota",
            Op::Unary(op) => op.name(),
            Op::Binary(op) => op.name(),
            Op::Compare { .. } => "compare",
            Op::Select => "select",
            Op::Clamp => "clamp",
            Op::Convert => "convert",
            Op::BitcastConvert => "bitcast-convert",
            Op::ReducePrecision { .. } => "reduce-precision",
            Op::Broadcast { .. } => "broadcast",
            Op::Reshape => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice(_) => "slice",
            Op::DynamicSlice { .. } => "dynamic-slice",
            Op::DynamicUpdateSlice => "dynamic-update-slice",
            Op::Concatenate { .. } => "concatenate",
            Op::Pad(_) => "pad",
            Op::Reverse { .. } => "reverse",
            Op::Gather(_) => "gather",
            Op::Scatter { .. } => "scatter",
            Op::Dot(_) => "dot",
            Op::Convolution(_) => "convolution",
            Op::Reduce { .. } => "reduce",
            Op::ReduceWindow { .. } => "reduce-window",
            Op::SelectAndScatter { .. } => "select-and-scatter",
            Op::Sort { .. } => "sort",
            Op::TopK { .. } => "topk",
            Op::Map { .. } => "map",
            Op::Tuple => "tuple",
            Op::GetTupleElement(_) => "get-tuple-element",
            Op::While { .. } => "while",
            Op::Conditional { .. } => "conditional",
            Op::Call { .. } => "call",
            Op::RngBitGenerator(_) => "rng-bit-generator",
            Op::OptimizationBarrier => "opt-barrier",
            Op::Sharding { .. } | Op::CustomCall(_) => "custom-call",
            Op::Unsupported(unsupported) => &unsupported.opcode,
            Op::Quantize(_) => "quantize",
            Op::Dequantize => "dequantize",
        }
    }

    /// The computations that the op calls: a while's condition, then its body; a conditional's branches;
    /// select-and-scatter's select, then scatter; for the others there is at most one.
    pub fn called(&self) -> Vec<&Arc<Computation>> {
        match self {
            Op::Scatter { update: c, .. }
            | Op::Reduce { computation: c, .. }
            | Op::ReduceWindow { computation: c, .. }
            | Op::Sort { comparator: c, .. }
            | Op::Map { computation: c }
            | Op::Call { computation: c, .. } => vec![c],
            Op::SelectAndScatter { select, scatter, .. } => vec![select, scatter],
            Op::While { condition, body } => vec![condition, body],
            Op::Conditional { branches } => branches.iter().collect(),
            Op::Parameter(_)
            | Op::Constant(_)
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
            | Op::Dot(_)
            | Op::Convolution(_)
            | Op::TopK { .. }
            | Op::Tuple
            | Op::GetTupleElement(_)
            | Op::RngBitGenerator(_)
            | Op::OptimizationBarrier
            | Op::Sharding { .. }
            | Op::CustomCall(_)
            | Op::Unsupported(_)
            | Op::Quantize(_)
            | Op::Dequantize => Vec::new(),
        }
    }

    /// The computations that the op calls, in the order of [`Op::called`], to be changed.
    pub fn called_mut(&mut self) -> Vec<&mut Arc<Computation>> {
        match self {
            Op::Scatter { update: c, .. }
            | Op::Reduce { computation: c, .. }
            | Op::ReduceWindow { computation: c, .. }
            | Op::Sort { comparator: c, .. }
            | Op::Map { computation: c }
            | Op::Call { computation: c, .. } => vec![c],
            Op::SelectAndScatter { select, scatter, .. } => vec![select, scatter],
            Op::While { condition, body } => vec![condition, body],
            Op::Conditional { branches } => branches.iter_mut().collect(),
            Op::Parameter(_)
            | Op::Constant(_)
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
            | Op::Dot(_)
            | Op::Convolution(_)
            | Op::TopK { .. }
            | Op::Tuple
            | Op::GetTupleElement(_)
            | Op::RngBitGenerator(_)
            | Op::OptimizationBarrier
            | Op::Sharding { .. }
            | Op::CustomCall(_)
            | Op::Unsupported(_)
            | Op::Quantize(_)
            | Op::Dequantize => Vec::new(),
        }
    }
}
