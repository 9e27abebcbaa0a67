//! What calibration saw of activations.

use std::collections::BTreeMap;

use qwix_array::Array;
use qwix_graph::Path;

/// Running sums over batches; averages are sums by count.
#[derive(Clone, PartialEq, Debug)]
pub struct Stats {
    /// How many batches have been added.
    pub count: i32,
    /// The sums, f32.
    pub sums: Sums,
}

/// Which statistics are summed: those that the calibration method has.
#[derive(Clone, PartialEq, Debug)]
pub enum Sums {
    /// Of the largest absolute values.
    AbsMax(Array),
    /// Of the smallest and of the largest values.
    MinMax {
        /// Of the smallest.
        min: Array,
        /// Of the largest.
        max: Array,
    },
}

/// Statistics by path: `<module path>/<op id>_lhs` or `_rhs`.
pub type QuantStats = BTreeMap<Path, Stats>;
