//! Passes: graph to graph, the meaning kept.

mod dce;
pub(crate) mod inline;
mod retype;

pub use dce::eliminate_dead_code;
pub use inline::inline_calls;
