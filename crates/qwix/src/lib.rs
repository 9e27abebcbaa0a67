//! Post-training quantization for models that are XLA graphs.

#![forbid(unsafe_code)]

mod checkpoint;
mod error;
pub mod files;
mod tensors;

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use tensors::{TensorFile, write_tensors};
