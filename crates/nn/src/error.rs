//! Why a model cannot be traced, initialised or run.

use qwix_array::ArrayError;
use qwix_eval::EvalError;
use qwix_graph::GraphError;

/// What can go wrong with a model written in Rust. Modules are named by their scope, as in op names: `Net/attn/query`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// An op whose operands do not fit it.
    #[error("in `{module}`: {op}: {reason}")]
    Op {
        /// The module that was called.
        module: String,
        /// The op, by JAX's name where it has one.
        op: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A layer whose options are impossible, or do not fit its inputs.
    #[error("layer `{module}`: {reason}")]
    Layer {
        /// The layer.
        module: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A name that a module has given away already.
    #[error(
        "in `{module}`: {what} `{name}` is already taken by {holder}; \
         give another name, or keep the child and call it again to share its parameters"
    )]
    NameTaken {
        /// The module in which the name is used twice.
        module: String,
        /// The name.
        name: String,
        /// What asked for it: a submodule, or a parameter.
        what: &'static str,
        /// What holds it.
        holder: &'static str,
    },
    /// A variable that is asked for a second time, as something else.
    #[error("variable `{path}` is {found} in one call and {expected} in another")]
    VariableChanged {
        /// Its path.
        path: String,
        /// The type it had.
        expected: String,
        /// The type asked for now.
        found: String,
    },
    /// More or fewer inputs than the model takes.
    #[error("the model takes {expected}, found {found} inputs")]
    InputCount {
        /// How many it takes, in words.
        expected: String,
        /// How many there were.
        found: usize,
    },
    /// A tensor that is used when its trace is over, or together with one of another trace.
    #[error("a tensor is used outside the trace that it belongs to")]
    ForeignTensor,
    /// A node could not be added.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An array could not be made.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// The model could not be run.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

/// A result whose error is an [`NnError`].
pub type Result<T, E = NnError> = std::result::Result<T, E>;
