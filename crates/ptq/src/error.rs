//! What can go wrong between rules and quantized parameters.

use qwix_eval::EvalError;
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
    /// Statistics of an activation that a static range is to come from, and that are not there.
    #[error(
        "statistics `{path}` are missing, and the static range of that activation comes from them{hint}; calibrate the \
         model with QtProvider and the same rules"
    )]
    MissingStats {
        /// Their path.
        path: Path,
        /// What is there instead, in words, or nothing.
        hint: String,
    },
    /// Statistics that are not those of this model, or of no batch.
    #[error("statistics `{path}`: expected {expected}, found {found}")]
    Stats {
        /// Their path.
        path: Path,
        /// What the model, or the other statistics, ask for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Statistics of an activation that the model does not have.
    #[error("statistics `{path}` are of no activation with a static range in this model{hint}")]
    UnknownStats {
        /// Their path.
        path: Path,
        /// A similar path, in words, or nothing.
        hint: String,
    },
    /// A model that cannot be calibrated.
    #[error("the model cannot be calibrated: {reason}")]
    Calibration {
        /// Why not, and what to do.
        reason: String,
    },
    /// A batch that cannot be run, or that has no range.
    #[error("batch {batch}: {reason}")]
    Batch {
        /// Its number, from 0.
        batch: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An engine that cannot run the model.
    #[error("{0}")]
    Eval(Box<EvalError>),
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
