//! Passes: graph to graph, the meaning kept.

mod dce;
mod retype;

pub use dce::eliminate_dead_code;
