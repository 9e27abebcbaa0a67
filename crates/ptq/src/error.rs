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

/// The candidate most like `name`, if any is like it.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .min_by_key(|&(distance, _)| distance)?;
    (best.0 <= name.chars().count().max(best.1.chars().count()) / 2).then_some(best.1)
}

/// Insertions, deletions and replacements between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_name() {
        let names = ["module_path", "op_names", "weight_qtype", "act_qtype"];
        for (name, wanted) in [
            ("weight_qtyp", Some("weight_qtype")),
            ("act_dtype", Some("act_qtype")),
            ("modulepath", Some("module_path")),
            ("z", None),
        ] {
            assert_eq!(nearest(name, names), wanted, "{name}");
        }
    }
}
