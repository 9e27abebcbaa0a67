//! Why a graph cannot run.

use qwix_array::ArrayError;
use qwix_graph::{GraphError, Node, Path, Scope};
use qwix_quant::QuantError;

/// What can go wrong when a graph is compiled or run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An array could not be made or read.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// An array could not be quantized, or a quantized product not computed.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// The graph is not whole.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A variable of the graph was not given.
    #[error("parameter `{path}` is missing: expected {expected}")]
    MissingParam {
        /// Its path.
        path: Path,
        /// Its type.
        expected: String,
    },
    /// A variable that the graph does not have.
    #[error("parameter `{path}` is not one of the model's{hint}")]
    ExtraParam {
        /// Its path.
        path: Path,
        /// A similar path, in words, or nothing.
        hint: String,
    },
    /// A variable that was given before.
    #[error("parameter `{path}` was given twice")]
    RepeatedParam {
        /// Its path.
        path: Path,
    },
    /// A value of another type than the graph's.
    #[error("{what}: expected {expected}, found {found}")]
    WrongType {
        /// Which parameter, input or node.
        what: String,
        /// The graph's type.
        expected: String,
        /// The value's.
        found: String,
    },
    /// Too many or too few inputs.
    #[error("the model takes {expected} inputs, found {found}")]
    InputCount {
        /// How many it takes.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// An op without a meaning here.
    #[error("op `{opcode}` (instruction `{instruction}`, module `{module}`) is not supported: {reason}")]
    Unsupported {
        /// HLO's name.
        opcode: String,
        /// The node's name.
        instruction: String,
        /// The node's scope.
        module: String,
        /// What is missing.
        reason: String,
    },
    /// A device that refused or failed.
    #[error("{device}: {reason}")]
    Device {
        /// The backend's name.
        device: String,
        /// What it said.
        reason: String,
    },
    /// A node that could not be computed.
    #[error("instruction `{instruction}`: {reason}")]
    Node {
        /// The node's name.
        instruction: String,
        /// What went wrong.
        reason: String,
    },
}

/// The module that a node was traced in; of ops without one, all that JAX wrote.
fn module(node: &Node) -> String {
    let modules = Scope::parse(&node.metadata.op_name).modules;
    if modules.is_empty() { node.metadata.op_name.clone() } else { modules.join("/") }
}

impl EvalError {
    /// An error of a node whose name the caller fills in.
    pub(crate) fn reason(reason: impl Into<String>) -> Self {
        EvalError::Node { instruction: String::new(), reason: reason.into() }
    }

    /// Names the node that an error came from, unless it names one already.
    pub(crate) fn at(self, node: &Node) -> Self {
        match self {
            EvalError::Node { instruction, reason } if instruction.is_empty() => {
                EvalError::Node { instruction: node.name.clone(), reason }
            }
            EvalError::Unsupported { opcode, instruction, reason, .. } if instruction.is_empty() => {
                EvalError::Unsupported {
                    opcode,
                    instruction: node.name.clone(),
                    module: module(node),
                    reason,
                }
            }
            EvalError::Array(error) => {
                EvalError::Node { instruction: node.name.clone(), reason: error.to_string() }
            }
            EvalError::Quant(error) => {
                EvalError::Node { instruction: node.name.clone(), reason: error.to_string() }
            }
            named @ (EvalError::Node { .. }
            | EvalError::Unsupported { .. }
            | EvalError::Graph(_)
            | EvalError::MissingParam { .. }
            | EvalError::ExtraParam { .. }
            | EvalError::RepeatedParam { .. }
            | EvalError::WrongType { .. }
            | EvalError::Device { .. }
            | EvalError::InputCount { .. }) => named,
        }
    }
}
