//! What calibration saw of activations.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{Path, Sum};

use crate::PtqError;

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

impl Sums {
    /// The sums with their names.
    pub fn parts(&self) -> Vec<(Sum, &Array)> {
        match self {
            Sums::AbsMax(absmax) => vec![(Sum::AbsMax, absmax)],
            Sums::MinMax { min, max } => vec![(Sum::Min, min), (Sum::Max, max)],
        }
    }

    /// `absmax` or `min and max`, with the shape: for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Sums::AbsMax(absmax) => format!("sums of absmax of shape {:?}", absmax.shape()),
            Sums::MinMax { min, .. } => format!("sums of min and max of shape {:?}", min.shape()),
        }
    }

    fn added(&self, other: &Sums) -> Result<Option<Sums>, PtqError> {
        let add = |a: &Array, b: &Array| -> Result<Option<Array>, PtqError> {
            if a.shape() != b.shape() || a.dtype() != DType::F32 || b.dtype() != DType::F32 {
                return Ok(None);
            }
            let fail = |e: qwix_array::ArrayError| PtqError::Graph { reason: e.to_string() };
            let (x, y) = (a.values::<f32>().map_err(fail)?, b.values::<f32>().map_err(fail)?);
            let sums = x.iter().zip(y.iter()).map(|(x, y)| x + y).collect();
            Array::from_vec(a.shape(), sums).map(Some).map_err(fail)
        };
        Ok(match (self, other) {
            (Sums::AbsMax(a), Sums::AbsMax(b)) => add(a, b)?.map(Sums::AbsMax),
            (Sums::MinMax { min, max }, Sums::MinMax { min: other_min, max: other_max }) => {
                match (add(min, other_min)?, add(max, other_max)?) {
                    (Some(min), Some(max)) => Some(Sums::MinMax { min, max }),
                    _ => None,
                }
            }
            (Sums::AbsMax(_), Sums::MinMax { .. }) | (Sums::MinMax { .. }, Sums::AbsMax(_)) => None,
        })
    }
}

/// Statistics by path, as Qwix names them: `<module path>/<op id>_lhs` or `_rhs`.
///
/// As arrays ([`QuantStats::to_params`]) they are what files hold: `<path>/count`, `<path>/sum_of_absmax`,
/// `<path>/sum_of_min`, `<path>/sum_of_max`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct QuantStats {
    stats: BTreeMap<Path, Stats>,
}

impl QuantStats {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The statistics of one activation.
    pub fn get(&self, path: &Path) -> Option<&Stats> {
        self.stats.get(path)
    }

    /// Sets the statistics of one activation; those that it had before.
    pub fn insert(&mut self, path: Path, stats: Stats) -> Option<Stats> {
        self.stats.insert(path, stats)
    }

    /// Paths and statistics, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Stats)> {
        self.stats.iter()
    }

    /// How many activations have statistics.
    pub fn len(&self) -> usize {
        self.stats.len()
    }

    /// Whether no activation has statistics.
    pub fn is_empty(&self) -> bool {
        self.stats.is_empty()
    }

    /// Adds statistics of other batches of the same model: counts and sums add. Where it fails nothing is added.
    ///
    /// # Errors
    /// When an activation has statistics of another kind or shape in the two, or the count no longer fits.
    pub fn merge(&mut self, other: &QuantStats) -> Result<(), PtqError> {
        let mut merged = self.stats.clone();
        for (path, stats) in &other.stats {
            match merged.entry(path.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(stats.clone());
                }
                Entry::Occupied(mut entry) => {
                    let own = entry.get_mut();
                    let wrong = |expected, found| PtqError::Stats { path: path.clone(), expected, found };
                    own.sums = own
                        .sums
                        .added(&stats.sums)?
                        .ok_or_else(|| wrong(own.sums.describe(), stats.sums.describe()))?;
                    own.count = own.count.checked_add(stats.count).ok_or_else(|| {
                        wrong(
                            format!("a count of {} or fewer batches in all", i32::MAX),
                            format!("{} and {} batches", own.count, stats.count),
                        )
                    })?;
                }
            }
        }
        self.stats = merged;
        Ok(())
    }

    /// The statistics as arrays: `<path>/count` s32[], and the sums f32.
    pub fn to_params(&self) -> Params {
        let mut params = Params::new();
        for (path, stats) in &self.stats {
            params.insert(path.join("count"), Array::scalar(stats.count).into());
            for (sum, array) in stats.sums.parts() {
                params.insert(path.join(sum.name()), array.clone().into());
            }
        }
        params
    }

    /// Statistics from arrays, as [`QuantStats::to_params`] gives them.
    ///
    /// # Errors
    /// When a path ends in no part of statistics, a part is missing or too many, or has another type.
    pub fn from_params(params: &Params) -> Result<Self, PtqError> {
        let mut parts: BTreeMap<Path, BTreeMap<&str, &Value>> = BTreeMap::new();
        for (path, value) in params {
            parts.entry(path.parent()).or_default().insert(path.name(), value);
        }
        let mut stats = BTreeMap::new();
        for (path, parts) in parts {
            let wrong = |expected: &str, found: String| PtqError::Stats {
                path: path.clone(),
                expected: expected.to_owned(),
                found,
            };
            let sum = |name: &str| match parts.get(name) {
                Some(Value::Array(array)) if array.dtype() == DType::F32 => Ok(array.clone()),
                Some(value) => Err(wrong(&format!("{name} of f32"), value.describe())),
                None => Err(wrong(name, "nothing of that name".to_owned())),
            };
            let names: Vec<&str> = parts.keys().copied().collect();
            let sums = match names[..] {
                ["count", "sum_of_absmax"] => Sums::AbsMax(sum("sum_of_absmax")?),
                ["count", "sum_of_max", "sum_of_min"] => {
                    let (min, max) = (sum("sum_of_min")?, sum("sum_of_max")?);
                    if min.shape() != max.shape() {
                        let found = format!("{:?} and {:?}", min.shape(), max.shape());
                        return Err(wrong("sum_of_min and sum_of_max of one shape", found));
                    }
                    Sums::MinMax { min, max }
                }
                _ => {
                    return Err(wrong(
                        "count and sum_of_absmax, or count, sum_of_min and sum_of_max",
                        names.join(", "),
                    ));
                }
            };
            let count = match parts.get("count") {
                Some(Value::Array(count)) if count.dtype() == DType::S32 && count.len() == 1 => {
                    count.values::<i32>().ok().and_then(|v| v.first().copied())
                }
                Some(_) | None => None,
            };
            let count = count.ok_or_else(|| {
                wrong("a count, s32[]", parts.get("count").map_or("nothing".to_owned(), |v| v.describe()))
            })?;
            stats.insert(path.clone(), Stats { count, sums });
        }
        Ok(QuantStats { stats })
    }
}

impl FromIterator<(Path, Stats)> for QuantStats {
    fn from_iter<I: IntoIterator<Item = (Path, Stats)>>(stats: I) -> Self {
        QuantStats { stats: stats.into_iter().collect() }
    }
}

impl IntoIterator for QuantStats {
    type Item = (Path, Stats);
    type IntoIter = std::collections::btree_map::IntoIter<Path, Stats>;

    fn into_iter(self) -> Self::IntoIter {
        self.stats.into_iter()
    }
}
