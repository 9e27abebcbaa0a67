//! Why a graph cannot be read, made or changed.

use qwix_array::ArrayError;
use qwix_quant::QuantError;

/// What can go wrong with a graph.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An array could not be made or read.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A quantized type that cannot be.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// An instruction whose operands, attributes or type break the rules of its op.
    #[error("`{instruction}` ({opcode}) in `{computation}`: {reason}")]
    Instruction {
        /// The computation's name.
        computation: String,
        /// The node's name.
        instruction: String,
        /// HLO's name of the op.
        opcode: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A graph or a computation that is not whole.
    #[error("`{computation}`: {reason}")]
    Invalid {
        /// The computation's or the graph's name.
        computation: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// HLO text that cannot be read.
    #[error("line {line}, column {column}: {reason}")]
    Text {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What was found, and what was expected.
        reason: String,
    },
    /// An edit that does not fit its graph, or another edit.
    #[error("patch: {0}")]
    Patch(String),
}
