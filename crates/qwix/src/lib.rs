//! Post-training quantization for models that are XLA graphs.

#![forbid(unsafe_code)]

mod backends;
mod checkpoint;
mod error;
pub mod files;
mod model;
mod noise;
mod package;
mod pending;
mod rules;
mod tensors;

pub use backends::{backend, backend_names};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::Model;
pub use noise::sqnr;
pub use package::{Package, PackageWriter};
pub use qwix_array::{Array, ArrayError, DType};
pub use qwix_eval::{Backend, EvalError, Executable, Params, ReferenceBackend, Value};
pub use qwix_graph::{
    ArrayType, Computation, Graph, GraphError, Node, NodeId, Op, Parameter, Path, Role, Type,
};
pub use qwix_ptq::{PtqError, QuantizationRule, Warning};
pub use qwix_quant::{Calibration, Granularity, HowToQuantize, QArray, QType, QuantError, Tile};
pub use rules::read_rules;
pub use tensors::{TensorFile, TensorWriter, narrowed, widened, write_tensors};
