//! Passes: graph to graph, the meaning kept.

mod dce;
mod fit_xla;
pub(crate) mod inline;
pub(crate) mod lower_quant;
mod retype;
mod unshard;

pub use dce::eliminate_dead_code;
pub use fit_xla::{fit_xla, unsafe_instruction, widened};
pub use inline::inline_calls;
pub use lower_quant::lower_quant;
pub use unshard::without_shardings;
