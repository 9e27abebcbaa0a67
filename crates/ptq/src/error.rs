//! What can go wrong between rules and quantized parameters.

use qwix_graph::Path;
use qwix_quant::QuantError;

/// Why a model or its parameters could not be quantized.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PtqError {
    /// The rules cannot be read at all.
    #[error("rules: {reason}")]
    Rules {
        /// What is wrong, and where.
        reason: String,
    },
    /// One field of one rule.
    #[error("rules[{index}].{field}: {reason}")]
    Rule {
        /// Which rule, from 0.
        index: usize,
        /// The field's name.
        field: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A dot or convolution that the rule that matches it cannot quantize.
    #[error("site `{module_path}` {op_id} (rules[{rule}]): {reason}")]
    Site {
        /// The module that the op is in.
        module_path: Path,
        /// The op's name and number in the module.
        op_id: String,
        /// Which rule, from 0.
        rule: usize,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A graph that is not as its own tables say.
    #[error("the graph is damaged: {reason}")]
    Graph {
        /// What does not fit.
        reason: String,
    },
    /// Parameters of the template that are not there yet.
    #[error("{} of {total} parameters missing: {places}", missing.len())]
    MissingParams {
        /// Their paths, all of them.
        missing: Vec<Path>,
        /// How many the template has.
        total: usize,
        /// Where they are missing, in words: a module of which all are is one place.
        places: String,
    },
    /// A parameter that the template does not have.
    #[error("parameter `{path}` is not one of the model's{hint}")]
    UnknownParam {
        /// Its path.
        path: Path,
        /// A similar path, in words, or nothing.
        hint: String,
    },
    /// A parameter of another shape or dtype than the model's.
    #[error("parameter `{path}`: expected {expected}, found {found}")]
    WrongParam {
        /// Its path.
        path: Path,
        /// The model's type.
        expected: String,
        /// The given type.
        found: String,
    },
    /// A parameter whose values cannot be quantized.
    #[error("parameter `{path}`: {error}")]
    Param {
        /// Its path.
        path: Path,
        /// Why not.
        error: QuantError,
    },
}

/// Something that is allowed, and probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Warning {
    /// What it is about: `rules[0].act_qtype`, or a site.
    pub about: String,
    /// What happens, and what to do.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.about, self.message)
    }
}
