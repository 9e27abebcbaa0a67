//! What quantizing did to a model's parameters: sizes, errors, and where the values lie in their ranges.
//!
//! A [`ReportBuilder`] looks at each parameter while it is quantized, when both forms of it are in memory. The
//! [`Report`] is the same for any number of threads and any bound on memory.

mod html;
mod plot;
mod sample;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use qwix_array::Array;
use qwix_eval::Value;
use qwix_graph::{ArrayType, Parameter, Path, Slot, Type, WeightSlot};
use qwix_ptq::Template;
use qwix_quant::QArray;
use serde::{Serialize, Serializer};

use crate::{Error, Result};
pub use sample::{BINS, Histogram, SAMPLED};
use sample::{Element, Sample, Seen, look, look_at_piece};

/// One parameter of a quantized model.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TensorReport {
    /// Its path.
    #[serde(serialize_with = "as_text")]
    pub path: Path,
    /// The path of the float parameter that it was made from. Several may be made from one.
    #[serde(serialize_with = "as_text")]
    pub source_path: Path,
    /// The type of that float parameter.
    #[serde(serialize_with = "as_text")]
    pub source: ArrayType,
    /// The name of its qtype; none where it is left in float.
    pub qtype: Option<&'static str>,
    /// How many weights it has.
    pub weights: u64,
    /// Bytes of as many elements of the float parameter.
    pub bytes_before: u64,
    /// Bytes that are stored: values, scales and zero points.
    pub bytes_after: u64,
    /// The signal-to-quantization-noise ratio in dB, as [`sqnr`](crate::sqnr) defines it, of the elements that were looked
    /// at. Infinite (`"exact"` in JSON) when nothing was lost; none where none were.
    #[serde(serialize_with = "decibels")]
    pub sqnr_db: Option<f64>,
    /// How many elements were looked at: all, or [`SAMPLED`].
    pub sampled: u64,
    /// Stored bits for each weight, scales included; none when it has none.
    pub bits_per_weight: Option<f64>,
    /// Where they lie in their ranges; none where it is left in float or was not looked at.
    pub histogram: Option<Histogram>,
}

impl TensorReport {
    /// A parameter that was made from a float parameter, and what was seen of it where it is quantized.
    fn new(parameter: &Parameter, source_path: &Path, source: &ArrayType, seen: Option<Seen>) -> Self {
        let (qtype, shape) = match &parameter.ty {
            Type::QArray(q) => (Some(q.how.qtype.name), &q.array.shape[..]),
            Type::Array(array) => (None, &array.shape[..]),
            Type::Tuple(_) | Type::Token | Type::Opaque(_) => (None, &[][..]),
        };
        let weights = qwix_array::element_count(shape).unwrap_or(usize::MAX);
        let bytes_after = qwix_ptq::bytes_of(&parameter.ty);
        let (sampled, sqnr_db, histogram) = match seen {
            Some(seen) => (seen.sampled, seen.sqnr_db, Some(seen.histogram)),
            None => (0, None, None),
        };
        TensorReport {
            path: parameter.path.clone(),
            source_path: source_path.clone(),
            source: source.clone(),
            qtype,
            weights: weights as u64,
            bytes_before: source.dtype.byte_len(weights).unwrap_or(usize::MAX) as u64,
            bytes_after,
            sqnr_db,
            sampled,
            bits_per_weight: bits_per_weight(bytes_after, weights as u64),
            histogram,
        }
    }

    /// The path with every number replaced by `*`, which parameters of the same kind in other layers have as well:
    /// `layers/*/mlp/kernel`.
    pub fn kind(&self) -> String {
        let pieces = pieces(self.path.as_str());
        pieces.into_iter().map(|piece| if is_number(piece) { "*" } else { piece }).collect()
    }

    /// The first number of the path, which tells the layer.
    pub fn layer(&self) -> Option<u64> {
        pieces(self.path.as_str()).into_iter().find(|piece| is_number(piece))?.parse().ok()
    }
}

/// Sums over some parameters.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Totals {
    /// How many there are.
    pub tensors: u64,
    /// Weights of the float parameters that they were made from.
    pub weights: u64,
    /// Bytes of these, each counted once.
    pub bytes_before: u64,
    /// Bytes that are stored.
    pub bytes_after: u64,
    /// Stored bits for each weight, scales included; none when there are no weights.
    pub bits_per_weight: Option<f64>,
}

impl Totals {
    /// `more`: bytes that are stored beside them.
    fn of<'a>(tensors: impl Iterator<Item = &'a TensorReport>, more: u64) -> Self {
        let mut totals = Totals { bytes_after: more, ..Totals::default() };
        let mut sources = BTreeSet::new();
        for tensor in tensors {
            totals.tensors += 1;
            totals.bytes_after += tensor.bytes_after;
            if sources.insert(&tensor.source_path) {
                let count = qwix_array::element_count(&tensor.source.shape).unwrap_or(usize::MAX);
                totals.weights += count as u64;
                totals.bytes_before += tensor.source.byte_len().unwrap_or(usize::MAX) as u64;
            }
        }
        totals.bits_per_weight = bits_per_weight(totals.bytes_after, totals.weights);
        totals
    }
}

/// The parameters of one kind, see [`TensorReport::kind`].
#[derive(Clone, PartialEq, Debug)]
pub struct Kind<'a> {
    /// The path that they share.
    pub name: String,
    /// They themselves, in the order of the layers.
    pub tensors: Vec<&'a TensorReport>,
}

impl Kind<'_> {
    /// Where the elements of all of them lie in their ranges; none where they are left in float.
    pub fn histogram(&self) -> Option<Histogram> {
        self.tensors.iter().filter_map(|tensor| tensor.histogram.as_ref()).fold(None, |sum, histogram| {
            let mut sum = sum.unwrap_or_default();
            sum.add(histogram);
            Some(sum)
        })
    }
}

/// What became of every parameter of a model.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    totals: Totals,
    static_bytes: u64,
    tensors: Vec<TensorReport>,
}

impl Report {
    /// The parameters, in the order of the layers: numbers in paths count as numbers.
    pub fn tensors(&self) -> &[TensorReport] {
        &self.tensors
    }

    /// Sums over all of them; [`Report::static_bytes`] are among the stored ones.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Bytes of parameters that were made from statistics: the static ranges of activations, which are no weights.
    pub fn static_bytes(&self) -> u64 {
        self.static_bytes
    }

    /// Sums for each qtype, and for what is left in float (none), the largest first.
    pub fn by_qtype(&self) -> Vec<(Option<&'static str>, Totals)> {
        let names: BTreeSet<Option<&str>> = self.tensors.iter().map(|tensor| tensor.qtype).collect();
        let of = |name| Totals::of(self.tensors.iter().filter(|tensor| tensor.qtype == name), 0);
        let mut rows: Vec<_> = names.into_iter().map(|name| (name, of(name))).collect();
        rows.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.weights));
        rows
    }

    /// How many quantized parameters were not looked at: made in an earlier run, for one.
    pub fn unseen(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.qtype.is_some() && tensor.histogram.is_none()).count()
    }

    /// Quantized parameters that were looked at, the worst ratio first.
    pub fn worst_first(&self) -> Vec<&TensorReport> {
        let mut rows: Vec<_> =
            self.tensors.iter().filter_map(|tensor| Some((tensor.sqnr_db?, tensor))).collect();
        rows.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        rows.into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// The parameters by kind, in the order of the kinds' first ones.
    pub fn kinds(&self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut known = BTreeMap::new();
        for tensor in &self.tensors {
            let number = *known.entry(tensor.kind()).or_insert_with_key(|name| {
                kinds.push(Kind { name: name.clone(), tensors: Vec::new() });
                kinds.len() - 1
            });
            kinds[number].tensors.push(tensor);
        }
        kinds
    }

    /// One page that needs nothing but itself: sums, the ratio by layer and the histogram of each kind as drawings, and a
    /// table to search and to sort. The same report gives the same bytes.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}

/// Makes a report while parameters are quantized, on any threads and in any order.
pub struct ReportBuilder<'a> {
    template: &'a Template,
    weights: Mutex<BTreeMap<Path, Weight>>,
}

/// How far a weight is.
enum Weight {
    Coming(Sample),
    Seen(Box<Seen>),
    Failed(Error),
}

impl<'a> ReportBuilder<'a> {
    /// An empty report of a model with these parameters.
    pub fn new(template: &'a Template) -> Self {
        ReportBuilder { template, weights: Mutex::default() }
    }

    /// Looks at a float parameter and at what was made of it; to be given as [`Loading::made`](crate::Loading::made).
    pub fn see(&self, float: &Array, made: &[(Path, Value)]) {
        for (path, value) in made {
            match value {
                Value::QArray(q) => self.take_in(path, q.qvalue().len(), |slot, _| look(slot, float, q)),
                // What is left in float is known by its type.
                Value::Array(_) | Value::Tuple(_) => {}
            }
        }
    }

    /// Looks at a piece of a quantized parameter that is made piece by piece: the part of its indices along each axis, the
    /// floats as they were quantized, and the values with the scales that serve them. The pieces of a parameter may come
    /// in any order; how it is cut changes nothing.
    pub fn see_piece(&self, path: &Path, region: &[Range<usize>], float: &Array, made: &QArray) {
        let Some(Type::QArray(q)) = self.template.parameters().get(path).map(|p| &p.ty) else { return };
        let count = qwix_array::element_count(&q.array.shape).unwrap_or(0);
        self.take_in(path, count, |_, shape| look_at_piece(shape, region, float, made));
    }

    fn take_in(
        &self,
        path: &Path,
        count: usize,
        look: impl FnOnce(&WeightSlot, &[usize]) -> Result<Vec<(usize, Element)>>,
    ) {
        let parameter = self.template.parameters().get(path);
        let Some((Some(slot), Type::QArray(q))) =
            parameter.map(|p| (p.slot.as_ref().and_then(Slot::as_weight), &p.ty))
        else {
            return;
        };
        let looked = look(slot, &q.array.shape);
        // Nothing that can panic happens while the lock is held.
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = weights.entry(path.clone()).or_insert_with(|| Weight::Coming(Sample::new(count)));
        match (&mut *weight, looked) {
            (Weight::Coming(sample), Ok(elements)) => {
                sample.add(elements);
                if let Some(seen) = sample.seen() {
                    *weight = Weight::Seen(Box::new(seen));
                }
            }
            (Weight::Coming(_), Err(error)) => *weight = Weight::Failed(error),
            (Weight::Seen(_) | Weight::Failed(_), _) => {}
        }
    }

    /// The report. A quantized parameter that was not looked at, or not at all of it, has its sizes alone; see
    /// [`Report::unseen`].
    ///
    /// # Errors
    /// When a parameter was not what its type says.
    pub fn finish(self) -> Result<Report> {
        let mut weights = self.weights.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (mut tensors, mut static_bytes) = (Vec::new(), 0);
        for (path, parameter) in self.template.parameters() {
            let (source_path, source) = match (&parameter.slot, &parameter.ty) {
                (Some(Slot::Weight(slot)), _) => (&slot.source, &slot.source_type),
                (None, Type::Array(array)) => (path, array),
                (Some(Slot::Statistic(_)), ty) => {
                    static_bytes += qwix_ptq::bytes_of(ty);
                    continue;
                }
                // Nothing makes such a parameter.
                (None, Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_)) => continue,
            };
            let seen = match weights.remove(path) {
                Some(Weight::Seen(seen)) => Some(*seen),
                Some(Weight::Failed(error)) => return Err(error),
                Some(Weight::Coming(_)) | None => None,
            };
            tensors.push(TensorReport::new(parameter, source_path, source, seen));
        }
        tensors.sort_by(|a, b| by_layer(a.path.as_str(), b.path.as_str()));
        Ok(Report { totals: Totals::of(tensors.iter(), static_bytes), static_bytes, tensors })
    }
}

fn bits_per_weight(bytes: u64, weights: u64) -> Option<f64> {
    (weights > 0).then(|| bytes as f64 * 8.0 / weights as f64)
}

/// The text cut where numbers begin and end.
fn pieces(text: &str) -> Vec<&str> {
    text.as_bytes()
        .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
        .scan(0, |at, piece| {
            let start = *at;
            *at += piece.len();
            text.get(start..*at)
        })
        .collect()
}

fn is_number(piece: &str) -> bool {
    piece.starts_with(|c: char| c.is_ascii_digit())
}

/// The order of texts in which numbers count as numbers: `layer_2` stands before `layer_10`.
fn by_layer(a: &str, b: &str) -> Ordering {
    let number = |piece: &str| {
        let digits = piece.trim_start_matches('0');
        (digits.len(), digits.to_owned())
    };
    let (left, right) = (pieces(a), pieces(b));
    for (x, y) in left.iter().zip(&right) {
        let order = match is_number(x) && is_number(y) {
            true => number(x).cmp(&number(y)),
            false => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// JSON has no infinity.
fn decibels<S: Serializer>(value: &Option<f64>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match value {
        Some(db) if *db == f64::INFINITY => serializer.serialize_str("exact"),
        Some(db) => serializer.serialize_f64(*db),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_kinds_layers_and_an_order() {
        let tensor = |path: &str| TensorReport {
            path: Path::new(path),
            source_path: Path::new(path),
            source: ArrayType::new(qwix_array::DType::F32, [1]),
            qtype: None,
            weights: 1,
            bytes_before: 4,
            bytes_after: 4,
            sqnr_db: None,
            sampled: 0,
            bits_per_weight: Some(32.0),
            histogram: None,
        };
        let rows = [
            ("layers/3/mlp/kernel", "layers/*/mlp/kernel", Some(3)),
            ("layer_007/experts/12/up", "layer_*/experts/*/up", Some(7)),
            ("Dense_0/kernel", "Dense_*/kernel", Some(0)),
            ("übung²/w", "übung²/w", None),
            ("lm_head", "lm_head", None),
            ("w99999999999999999999999", "w*", None),
            ("", "", None),
        ];
        for (path, kind, layer) in rows {
            assert_eq!((tensor(path).kind(), tensor(path).layer()), (kind.to_owned(), layer), "{path}");
        }
        let mut paths = vec!["b_10/w", "b_9/w", "b_9", "a", "b_09/x", "b_10/a", "b", "10", "9", ""];
        paths.sort_by(|a, b| by_layer(a, b));
        assert_eq!(paths, ["", "9", "10", "a", "b", "b_9", "b_9/w", "b_09/x", "b_10/a", "b_10/w"]);
    }
}
