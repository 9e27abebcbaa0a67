//! What a quantized number means: [`QType`], how to find a range, how to round, and the array that results.

#![forbid(unsafe_code)]

mod calibrate;
mod dims;
mod einsum;
mod error;
mod how;
mod kernel;
mod piece;
mod plan;
mod product;
mod qarray;
mod qtype;
mod quantize;
pub mod reference;
mod runs;
mod scale;

pub use calibrate::{Range, calibrate, check_finite};
pub use dims::{ConvDims, DotDims, Precision, WindowDim};
pub use einsum::{EinsumInfo, einsum, how_to_quantize_einsum};
pub use error::QuantError;
pub use how::{Calibration, Granularity, HowToQuantize, Parts, Tile};
pub use piece::{RangeSoFar, Whole};
pub use plan::{
    BroadcastViews, ConvPlan, DotPlan, MIN_TILE, OperandInfo, QuantizedConv, QuantizedDot, QuantizedInfo,
    ScalePlan, SidePlan, ZeroPointPlan, accumulator_and_result, broadcast_views, conv_plan, dot_plan,
    higher_precision, promote,
};
pub use product::{
    Operand, Side, conv_general_dilated, dot_general, how_to_quantize_conv, how_to_quantize_dot,
};
pub use qarray::{Group, QArray, reshape_groups};
pub use qtype::{Codec, QType, ScaleRounding};
pub use quantize::{dequantize, quantize, quantize_as, quantize_with_scale_zero_point};
pub use scale::{Arithmetic, ScaleFactor, average, compute_scale_zero_point, scale_factors};
