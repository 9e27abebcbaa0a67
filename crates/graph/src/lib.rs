//! HLO modules after inlining: a list of [`Node`]s in which every operand comes before its users.
//!
//! HLO's ops and types, and one thing more: a quantized array is a type ([`Type::QArray`]), made by
//! [`Op::Quantize`] and taken by `dot` and `convolution`.

#![forbid(unsafe_code)]

mod builder;
mod error;
mod export;
mod graph;
mod import;
mod infer;
mod key_path;
mod nearest;
mod op;
pub mod passes;
mod patch;
mod path;
mod proto;
pub mod ranges;
mod scope;
mod sharding;
pub mod text;
mod ty;
mod verify;

pub use builder::{ComputationBuilder, GraphBuilder, reducer};
pub use error::GraphError;
pub use export::ExportError;
pub use graph::{
    Computation, Graph, Metadata, Node, NodeId, Parameter, Prep, Role, Slot, StatisticPart, StatisticSlot,
    Sum, WeightSlot,
};
pub use import::ImportError;
pub use infer::infer;
pub use key_path::KeyPath;
pub use nearest::nearest;
pub use op::{
    BinaryOp, CompareOrder, Comparison, Composite, CustomCall, GatherDims, Op, PadDim, RngAlgorithm,
    ScatterDims, SliceDim, UnaryOp, Unsupported,
};
pub use patch::{Callee, Patch};
pub use path::Path;
pub use qwix_quant::{ConvDims, DotDims, Precision, WindowDim};
pub use scope::Scope;
pub use sharding::{MAX_DEVICES, Sharding, Shards, Tiling};
pub use ty::{ArrayType, QArrayType, Type};
pub use verify::MAX_DEPTH;
