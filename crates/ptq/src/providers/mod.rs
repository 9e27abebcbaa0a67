//! Algorithms: what is done at a site, one file each.

mod ptq;
mod qt;
mod sides;

use qwix_graph::{Graph, Patch, Path};
use qwix_quant::HowToQuantize;

use crate::{PtqError, Rules, Site};
pub use ptq::PtqProvider;
pub use qt::QtProvider;
pub(crate) use sides::multiplies_stored;

/// How one side of a site is quantized.
#[derive(Clone, PartialEq, Debug)]
pub struct Side {
    /// Type, granularity for each axis of the operand, calibration.
    pub how: HowToQuantize,
    /// Where its range comes from.
    pub range: RangeFrom,
}

/// Where the range comes from that a side is quantized into.
#[derive(Clone, PartialEq, Debug)]
pub enum RangeFrom {
    /// The weight that it is.
    Weight {
        /// Whether it is quantized once, before the model runs, where it can be stored; otherwise on each run, as the op
        /// sees it.
        stored: bool,
    },
    /// The values of each run.
    Values,
    /// What calibration saw.
    Statistics(Observed),
}

/// What calibration keeps of an activation.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// The path of the statistics: `<module path>/<op id>_lhs`.
    pub path: Path,
    /// How the range of each batch is found.
    pub how: HowToQuantize,
    /// The axes over which the mean of that is taken.
    pub batch_axes: Vec<usize>,
}

impl Side {
    /// Whether it is a weight that is quantized before the model runs.
    pub(crate) fn is_stored(&self) -> bool {
        self.range == RangeFrom::Weight { stored: true }
    }
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
        choice: Box<Choice>,
        /// What of the rule has no effect here, and other things that are probably not meant.
        warnings: Vec<String>,
    },
    /// It stays as it is, for this reason.
    Leave(String),
}

/// What a graph is made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// To be run as a model.
    Run,
    /// To collect statistics of activations.
    Calibrate,
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

    /// Whether the provider has a graph that collects statistics.
    fn calibrates(&self) -> bool {
        false
    }

    /// The edit that does it; [`Phase::Calibrate`] is asked for only where [`Provider::calibrates`].
    ///
    /// # Errors
    /// When the graph has no room for it, in words.
    fn rewrite(&self, graph: &Graph, site: &Site, choice: &Choice, phase: Phase) -> Result<Patch, String>;
}
