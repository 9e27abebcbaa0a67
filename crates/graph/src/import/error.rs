//! Why an HLO module cannot be imported.

use crate::GraphError;
use crate::proto::InstructionHead;

/// What can be wrong with a serialized HLO module. Each message is one line: where, what was found, what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The bytes are no module at all.
    #[error("not an HLO module: {reason}")]
    NotHlo {
        /// What was found, and what was expected.
        reason: String,
    },
    /// Something that concerns the whole module.
    #[error("HLO module `{module}`: {reason}")]
    Module {
        /// The module's name.
        module: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// Something that concerns one computation.
    #[error("computation `{computation}`: {reason}")]
    Computation {
        /// The computation's name.
        computation: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// Something that concerns one instruction.
    #[error("instruction `{instruction}` ({opcode}) of computation `{computation}`: {reason}")]
    Instruction {
        /// The computation's name.
        computation: String,
        /// The instruction's name.
        instruction: String,
        /// HLO's name of the op.
        opcode: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A graph that breaks the rules of its ops.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A name from a file as it stands in a message: on one line, and no longer than a line.
pub(super) fn quoted(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

/// Something is wrong with an instruction.
pub(super) fn at(computation: &str, head: &InstructionHead, reason: String) -> ImportError {
    ImportError::Instruction {
        computation: quoted(computation),
        instruction: quoted(&head.name),
        opcode: quoted(&head.opcode),
        reason,
    }
}
