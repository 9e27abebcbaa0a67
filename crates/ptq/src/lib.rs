//! Post-training quantization: rules say which products of a graph are quantized and how, a provider rewrites them,
//! and parameters are quantized to fit.

#![forbid(unsafe_code)]

mod apply_mut;
mod calibrate;
mod error;
mod explain;
mod prequantized;
mod providers;
mod quantize_model;
mod quantize_params;
mod quantize_stats;
mod restore_rules;
mod rewrite;
mod rule;
mod sharding;
mod share;
mod site;
mod stats;
mod template;

pub use apply_mut::quantize_variables;
pub use calibrate::{CalibrateError, Calibrator, calibrate};
pub use error::{PtqError, Warning};
pub use explain::{Outcome, Report, SideVerdict, UnusedRule, Verdict, bytes_of, bytes_of_variables, explain};
pub use prequantized::{ProcessPrequantized, process_prequantized_param, process_prequantized_params};
pub use providers::{Choice, Decision, Observed, Phase, Provider, PtqProvider, QtProvider, RangeFrom, Side};
pub use quantize_model::{PtqModel, quantize_model};
pub use quantize_params::{QuantizeParams, quantize_param, quantize_params, quantize_params_with};
pub use quantize_stats::quantize_stats;
pub use restore_rules::{
    RestoreRules, RestoredActs, restore_quantization_rules, type_of_parts, type_of_qarray,
};
pub use rule::{
    CheckedRule, OP_NAMES, QuantizationRule, Rules, SideRule, TileSize, WeightLayout, WeightRule,
    weights_only,
};
pub use site::{AxisUse, Operand, Product, Site, Storage, Weight, find_sites};
pub use stats::{QuantStats, Stats, Sums};
pub use template::{Template, Unfinished, human_bytes};
