//! Values, what runs a graph, and the reference evaluator: the meaning of every op.

#![forbid(unsafe_code)]

mod backend;
mod cells;
mod error;
mod evaluate;
mod function;
mod lanes;
mod number;
mod ops;
mod reference;
mod run;
mod signature;
mod value;

pub use backend::{Backend, Executable, Loader, collect};
pub use error::EvalError;
pub use evaluate::{evaluate, evaluate_node};
pub use reference::{ReferenceBackend, check_supported};
pub use run::Limits;
pub use signature::{Variables, check_inputs};
pub use value::{Params, Value};
