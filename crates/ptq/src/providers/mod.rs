//! Algorithms: what is done at a site, one file each.

mod ptq;

use qwix_array::Array;
use qwix_eval::Value;
use qwix_graph::{Graph, Patch, Slot};
use qwix_quant::HowToQuantize;

use crate::quantize_params::round_to_nearest;
use crate::rewrite::quantize_sides;
use crate::{PtqError, Rules, Site, Stats};
pub use ptq::PtqProvider;
pub(crate) use ptq::multiplies_stored;

/// How one side of a site is quantized.
#[derive(Clone, PartialEq, Debug)]
pub struct Side {
    /// Type, granularity for each axis of the operand, calibration.
    pub how: HowToQuantize,
    /// Whether it is quantized as a weight: once, before the model runs, where it can be stored.
    pub weight: bool,
}

/// How the sides of a site are quantized; at least one is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Choice {
    /// The left side.
    pub lhs: Option<Side>,
    /// The right side.
    pub rhs: Option<Side>,
}

/// What is to happen at a site.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// It is quantized.
    Quantize {
        /// How.
        choice: Choice,
        /// What of the rule has no effect here, and other things that are probably not meant.
        warnings: Vec<String>,
    },
    /// It stays as it is, for this reason.
    Leave(String),
}

/// An algorithm: what happens at the sites that rules match.
pub trait Provider {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Which sites it is for.
    fn rules(&self) -> &Rules;

    /// What is to happen at a site that a rule (by number) matches. It must not depend on weights' values.
    ///
    /// # Errors
    /// When the rule asks for what this site cannot do.
    fn decide(&self, site: &Site, rule: usize) -> Result<Decision, PtqError>;

    /// The edit that does it.
    ///
    /// # Errors
    /// When the graph has no room for it, in words.
    fn rewrite(&self, graph: &Graph, site: &Site, choice: &Choice) -> Result<Patch, String> {
        quantize_sides(graph, site, choice)
    }

    /// What calibration keeps of an activation that enters a site; nothing unless the algorithm needs it.
    ///
    /// # Errors
    /// When the activation cannot be measured.
    fn observe(&self, site: &Site, activation: &Array) -> Result<Option<Stats>, PtqError> {
        let _ = (site, activation);
        Ok(None)
    }

    /// The quantized form of a weight, which comes as its slot's source: rounded to nearest unless the algorithm knows
    /// better.
    ///
    /// # Errors
    /// When the weight is not as the slot says, or cannot be quantized.
    fn quantize(&self, slot: &Slot, weight: &Array, stats: Option<&Stats>) -> Result<Vec<Value>, PtqError> {
        let _ = stats;
        Ok(vec![round_to_nearest(slot, weight)?])
    }
}
