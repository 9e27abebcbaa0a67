//! Values, what runs a graph, and the reference evaluator: the meaning of every op.

#![forbid(unsafe_code)]

mod backend;
mod error;
mod value;

pub use backend::{Backend, Executable};
pub use error::EvalError;
pub use value::{Params, Value};
