//! What a quantized number means: [`QType`], how to find a range, how to round, and the array that results.

#![forbid(unsafe_code)]

mod dims;
mod error;
mod how;
mod plan;
mod qarray;
mod qtype;

pub use dims::{ConvDims, DotDims, WindowDim};
pub use error::QuantError;
pub use how::{Calibration, Granularity, HowToQuantize, Tile};
pub use plan::{
    BroadcastViews, ConvPlan, DotPlan, MIN_TILE, OperandInfo, QuantizedConv, QuantizedDot, QuantizedInfo,
    ScalePlan, SidePlan, ZeroPointPlan, accumulator_and_result, broadcast_views, conv_plan, dot_plan,
    promote,
};
pub use qarray::QArray;
pub use qtype::{Codec, QType, ScaleRounding};
