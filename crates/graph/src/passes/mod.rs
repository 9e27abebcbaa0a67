//! Passes: graph to graph, the meaning kept.

mod dce;
pub(crate) mod inline;
mod lower_quant;
mod retype;
mod unshard;

pub use dce::eliminate_dead_code;
pub use inline::inline_calls;
pub use lower_quant::lower_quant;
pub use unshard::without_shardings;
