//! What a job will do, from names and types alone.

use qwix_array::DType;
use qwix_eval::EvalError;
use qwix_graph::{ArrayType, Parameter, Path, Slot, Type, WeightSlot};
use qwix_ptq::{PtqError, Template};
use qwix_quant::Whole;

use super::cut::{Cut, Passes, passes};
use super::memory;
use crate::package::shards::{Place, Shards, stored};
use crate::{Checkpoint, Error, Result};

/// Bytes of a checkpoint that are worked on at once, where memory allows: enough that calls of the system cost nothing,
/// few enough to stay in the processor's cache.
pub(crate) const PIECE: u64 = 4 << 20;
/// Pieces are halved so many times less one, where memory is short.
const SMALLER: u32 = 7;

/// A float parameter of the checkpoint, and all that is made of it.
pub(crate) struct Item {
    pub path: Path,
    pub source: ArrayType,
    /// Its bytes in the checkpoint.
    pub bytes: u64,
    pub outputs: Vec<Output>,
    pub cut: Cut,
    pub pieces: usize,
    /// Whether the checkpoint is read a second time.
    pub two_passes: bool,
    /// Bytes of memory for one piece.
    pub cost: u64,
    /// Bytes of memory while it is worked on, whatever the number of pieces at once.
    pub held: u64,
}

/// A parameter of the package that is made of a float parameter.
pub(crate) struct Output {
    pub parameter: Parameter,
    /// Its tensors: the array, or qvalue, scale and zero point.
    pub parts: Vec<Part>,
    /// How it is made; the float parameter as it is where there is none.
    pub weight: Option<Weight>,
}

/// A tensor of the package.
pub(crate) struct Part {
    pub key: String,
    pub ty: ArrayType,
    pub place: Place,
}

pub(crate) struct Weight {
    pub slot: WeightSlot,
    pub whole: Whole,
    pub passes: Passes,
}

/// The parts of a parameter with their places.
pub(crate) fn parts_of(parameter: &Parameter, shards: &Shards) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (key, ty) in stored(parameter)? {
        let place = shards.places.get(&key).copied();
        let place =
            place.ok_or_else(|| Error::Unsupported(format!("`{key}` has no place in the package")))?;
        parts.push(Part { key, ty, place });
    }
    Ok(parts)
}

/// The items of a template, in the order in which the checkpoint has them.
///
/// # Errors
/// When the checkpoint lacks one or has it in another type.
pub(crate) fn items(checkpoint: &Checkpoint, template: &Template, shards: &Shards) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in template.sources() {
        let source = template.source_type(path).cloned().ok_or_else(|| {
            Error::Unsupported(format!("parameter `{path}` is no array, and cannot come from a checkpoint"))
        })?;
        let found = checkpoint
            .type_of(path)
            .ok_or_else(|| EvalError::MissingParam { path: path.clone(), expected: source.to_string() })?;
        if *found != source {
            let (expected, found) = (source.to_string(), found.to_string());
            return Err(PtqError::WrongParam { path: path.clone(), expected, found }.into());
        }
        let mut outputs = Vec::new();
        for parameter in template.made_of(path) {
            let weight = match (&parameter.slot, &parameter.ty) {
                (Some(Slot::Weight(slot)), Type::QArray(q)) => {
                    let fail = |error| PtqError::Param { path: path.clone(), error };
                    let whole = Whole::new(&q.array.shape, &slot.how).map_err(fail)?;
                    Some(Weight { slot: slot.clone(), whole, passes: Passes::One })
                }
                (None, Type::Array(_)) => None,
                (slot, ty) => {
                    let what =
                        if slot.is_some() { "is made in a way that cannot be stored" } else { "is no array" };
                    return Err(Error::Unsupported(format!("parameter `{}`, {ty}, {what}", parameter.path)));
                }
            };
            outputs.push(Output {
                parameter: parameter.clone(),
                parts: parts_of(parameter, shards)?,
                weight,
            });
        }
        let bytes = source.byte_len().unwrap_or(usize::MAX) as u64;
        let mut item = Item {
            path: path.clone(),
            cut: Cut { axis: 0, chunk: source.shape.first().copied().unwrap_or(1) },
            source,
            bytes,
            outputs,
            pieces: 1,
            two_passes: false,
            cost: 0,
            held: 0,
        };
        item.settle(Passes::One);
        items.push(item);
    }
    items.sort_by_key(|item| checkpoint.place(&item.path).unwrap_or_default());
    Ok(items)
}

impl Item {
    /// Whether nothing of it is quantized: then it is bytes, which may be cut anywhere.
    pub fn is_plain(&self) -> bool {
        self.outputs.iter().all(|output| output.weight.is_none())
    }

    /// The array as it is cut: of bytes when it is plain.
    pub fn cut_type(&self) -> ArrayType {
        if self.is_plain() {
            return ArrayType::new(DType::U8, [self.bytes as usize]);
        }
        self.source.clone()
    }

    /// Works out what follows from the cut. Whether it is possible.
    fn settle(&mut self, most: Passes) -> bool {
        let ty = self.cut_type();
        if self.is_plain() && self.pieces == 1 {
            self.cut = Cut { axis: 0, chunk: ty.shape[0].max(1) };
        }
        let cut = self.cut;
        for weight in self.outputs.iter_mut().filter_map(|output| output.weight.as_mut()) {
            match passes(cut, &ty, &weight.slot.prep, &weight.whole, most) {
                Some(passes) => weight.passes = passes,
                None => return false,
            }
        }
        let weights: Vec<&Weight> = self.outputs.iter().filter_map(|output| output.weight.as_ref()).collect();
        let ways: Vec<_> = weights.iter().map(|w| (w.slot.prep.as_slice(), &w.whole)).collect();
        let held = weights.iter().filter(|w| w.passes == Passes::Two).map(|w| memory::of_ranges(&w.whole));
        self.held = held.sum();
        self.two_passes = weights.iter().any(|w| w.passes == Passes::Two);
        self.cost = memory::of_piece(&ty, cut, &ways);
        self.pieces = cut.count(&ty.shape);
        true
    }

    /// Cuts it so that a piece takes at most `most` bytes of memory: into the fewest passes, then into pieces of about
    /// `piece` bytes. Whether that is possible.
    pub fn fit(&mut self, most: u64, piece: u64) -> bool {
        let ty = self.cut_type();
        // Pieces that stay in the cache are read twice in less time than larger ones once.
        let handy: Vec<u64> = [piece << 1].into_iter().chain((0..SMALLER).map(|i| piece >> i)).collect();
        let larger: Vec<u64> =
            (2..40).map(|i| piece << i).take_while(|&size| size <= most && size < self.bytes).collect();
        let all = [self.bytes];
        let (one, two) = (Passes::One, Passes::Two);
        let tries: [(Passes, &[u64]); 6] = [
            (one, &handy[1..]),
            (one, &handy[..1]),
            (two, &handy[1..]),
            (one, &larger),
            (two, &larger),
            (two, &all),
        ];
        for (passes, sizes) in tries {
            for &size in sizes {
                for cut in self.cuts(&ty, size.max(1)) {
                    self.cut = cut;
                    if self.settle(passes) && self.cost.saturating_add(self.held) <= most {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// The cuts into pieces of at most so many bytes that are worth a try.
    fn cuts(&self, ty: &ArrayType, size: u64) -> Vec<Cut> {
        if size >= self.bytes {
            return vec![Cut { axis: 0, chunk: ty.shape.first().copied().unwrap_or(1).max(1) }];
        }
        let elements = size.saturating_mul(8) / ty.dtype.bits().max(1) as u64;
        Cut::candidates(&ty.shape, usize::try_from(elements).unwrap_or(usize::MAX))
    }

    /// The least memory that it can be made in.
    pub fn least(&mut self, piece: u64) -> u64 {
        let ty = self.cut_type();
        let sizes =
            (0..40).map(|i| (piece >> (SMALLER - 1)).max(1) << i).take_while(|&size| size < self.bytes);
        for size in sizes.chain([self.bytes]).collect::<Vec<_>>() {
            for cut in self.cuts(&ty, size) {
                self.cut = cut;
                if self.settle(Passes::Two) {
                    return self.cost.saturating_add(self.held);
                }
            }
        }
        u64::MAX
    }
}
