//! Post-training quantization: rules say which products of a graph are quantized and how, a provider rewrites them,
//! and parameters are quantized to fit.

#![forbid(unsafe_code)]

mod error;
mod rule;

pub use error::{PtqError, Warning};
pub use rule::{CheckedRule, OP_NAMES, QuantizationRule, Rules, SideRule, TileSize};
