//! What quantizing did to one weight, seen at elements that are the same whoever looks.

use std::ops::Range;

use qwix_array::Array;
use qwix_graph::{Prep, WeightSlot};
use qwix_quant::{QArray, QType, dequantize};
use serde::Serialize;

use crate::noise::decibels;
use crate::{Error, Result};

/// The most elements of a weight that are looked at. One that has more is looked at in this many places, one in each of as
/// many equal stretches; which, depends on its size alone. The ratio of what is seen then differs from that of all elements
/// by a few hundredths of a decibel.
pub const SAMPLED: usize = 1 << 16;

/// Bins of a histogram: an odd number, so that zeros stand in the middle one.
pub const BINS: usize = 65;

/// How many elements lie where in the range that their scale gives them: the first bin begins at the range's lower end, the
/// last ends at its upper one, and each takes in what lies beyond.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Histogram(#[serde(serialize_with = "as_list")] pub [u64; BINS]);

/// Serde has no arrays of this length.
fn as_list<S: serde::Serializer>(bins: &[u64; BINS], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(bins)
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram([0; BINS])
    }
}

impl Histogram {
    /// Counts an element at `place`, −1 being the lower end of its range and 1 the upper one.
    fn count(&mut self, place: f64) {
        let bin = ((place + 1.0) / 2.0 * BINS as f64).floor().clamp(0.0, (BINS - 1) as f64);
        self.0[bin as usize] += 1;
    }

    /// Adds another one, bin by bin.
    pub fn add(&mut self, other: &Histogram) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
    }
}

/// What was seen of one weight.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seen {
    pub(super) sampled: u64,
    /// None when there is no element.
    pub(super) sqnr_db: Option<f64>,
    pub(super) histogram: Histogram,
}

/// The elements of one weight that are looked at, as they come: in one piece or in several, in any order.
#[derive(Debug)]
pub(super) struct Sample {
    elements: Vec<Option<Element>>,
    missing: usize,
}

/// An element: what it was, what it has become, and where it lies in its range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    float: f64,
    made: f64,
    place: f64,
}

impl Sample {
    /// Of a weight with so many elements.
    pub(super) fn new(count: usize) -> Self {
        let missing = count.min(SAMPLED);
        Sample { elements: vec![None; missing], missing }
    }

    /// Takes elements in; those that are there already stay.
    pub(super) fn add(&mut self, elements: Vec<(usize, Element)>) {
        for (number, element) in elements {
            if let Some(free @ None) = self.elements.get_mut(number) {
                *free = Some(element);
                self.missing -= 1;
            }
        }
    }

    /// What was seen, once every element has come. The sums are those of the order of the elements, whatever order they
    /// came in.
    pub(super) fn seen(&self) -> Option<Seen> {
        if self.missing > 0 {
            return None;
        }
        let (mut signal, mut noise) = (0f64, 0f64);
        let mut histogram = Histogram::default();
        for &Element { float, made, place } in self.elements.iter().flatten() {
            signal += float * float;
            noise += (float - made) * (float - made);
            histogram.count(place);
        }
        let sqnr_db = (!self.elements.is_empty()).then(|| decibels(signal, noise));
        Some(Seen { sampled: self.elements.len() as u64, sqnr_db, histogram })
    }
}

/// Looks at a whole weight and what became of it.
pub(super) fn look(slot: &WeightSlot, float: &Array, made: &QArray) -> Result<Vec<(usize, Element)>> {
    let places: Vec<usize> = places(made.qvalue().len()).collect();
    let steps = Steps::of(slot);
    let sources: Vec<usize> = places.iter().map(|&place| steps.index(place)).collect();
    let elements = elements(float, &sources, made, &places)?;
    Ok(elements.into_iter().enumerate().collect())
}

/// Looks at a piece of a weight of some shape: the floats as they are quantized, and what became of them.
pub(super) fn look_at_piece(
    shape: &[usize],
    region: &[Range<usize>],
    float: &Array,
    made: &QArray,
) -> Result<Vec<(usize, Element)>> {
    let sizes: Vec<usize> = region.iter().map(Range::len).collect();
    if region.len() != shape.len() || made.shape() != sizes || float.shape() != sizes {
        return Err(Error::Unsupported(format!(
            "a piece of an array of shape {shape:?} is {region:?}, found {float:?} and {:?}",
            made.qvalue()
        )));
    }
    let count = qwix_array::element_count(shape).unwrap_or(0);
    let (mut numbers, mut local) = (Vec::new(), Vec::new());
    if sizes.contains(&0) {
        return Ok(Vec::new());
    }
    // There are many pieces: only the places between a piece's first and last element are looked at.
    let corner = |of: fn(&Range<usize>) -> usize| joined(&region.iter().map(of).collect::<Vec<_>>(), shape);
    for number in stretches(count, corner(|range| range.start), corner(|range| range.end - 1)) {
        local.extend(index_in(place(count, number), shape, region).inspect(|_| numbers.push(number)));
    }
    Ok(numbers.into_iter().zip(elements(float, &local, made, &local)?).collect())
}

/// The elements at some indices of a float array, and at others of what it became.
fn elements(float: &Array, sources: &[usize], made: &QArray, places: &[usize]) -> Result<Vec<Element>> {
    let entries = |part: &Array| {
        let at = |&place: &usize| entry(place, made.shape(), part.shape());
        pick(part, &places.iter().map(at).collect::<Vec<_>>())
    };
    let (scale, zero_point) = (entries(made.scale())?, made.zero_point().map(entries).transpose()?);
    // Each element with a scale of its own: what it means is said in one place.
    let small = QArray::new(pick(made.qvalue(), places)?, scale, zero_point, made.qtype())?;
    let (low, high) = bounds(made.qtype(), small.zero_point().is_some());
    let scales = small.scale().to_f64_vec();
    let shifts = small.zero_point().map_or_else(|| vec![0.0; places.len()], Array::to_f64_vec);
    let floats = pick(float, sources)?.to_f64_vec();
    let element = |((float, made), (scale, shift)): ((f64, f64), (f64, f64))| {
        let place = (2.0 * (float / scale + shift) - low - high) / (high - low);
        Element { float, made, place }
    };
    let pairs = floats.into_iter().zip(dequantize(&small)?.to_f64_vec());
    Ok(pairs.zip(scales.into_iter().zip(shifts)).map(element).collect())
}

/// The numbers of a qtype's range, before scales.
fn bounds(qtype: &QType, asymmetric: bool) -> (f64, f64) {
    match qtype.asymmetric_bounds {
        Some(bounds) if asymmetric => bounds,
        Some(_) | None => (-qtype.symmetric_bound, qtype.symmetric_bound),
    }
}

/// The elements to look at, ascending: all, or one in each of [`SAMPLED`] stretches, scattered so that no axis is in step.
fn places(count: usize) -> impl Iterator<Item = usize> {
    (0..count.min(SAMPLED)).map(move |number| place(count, number))
}

/// The place of this number among those of so many elements.
fn place(count: usize, number: usize) -> usize {
    let stretches = count.clamp(1, SAMPLED);
    let border = |i: usize| (i as u128 * count as u128 / stretches as u128) as usize;
    let (start, end) = (border(number), border(number + 1));
    start + (scattered(number as u64) % (end - start).max(1) as u64) as usize
}

/// The numbers of the places that may lie between two elements, both included.
fn stretches(count: usize, first: usize, last: usize) -> Range<usize> {
    let stretches = count.min(SAMPLED);
    let number = |element: usize| (element as u128 * stretches as u128 / count.max(1) as u128) as usize;
    // Borders are rounded down, so an element at one may be of the stretch that follows.
    number(first)..(number(last) + 2).min(stretches)
}

/// The index in a region of an array of the element of this index in the array, where it lies in the region.
fn index_in(mut index: usize, shape: &[usize], region: &[Range<usize>]) -> Option<usize> {
    let (mut local, mut step) = (0, 1);
    for (&size, range) in shape.iter().zip(region).rev() {
        let at = index % size.max(1);
        index /= size.max(1);
        if !range.contains(&at) {
            return None;
        }
        local += (at - range.start) * step;
        step *= range.len();
    }
    Some(local)
}

/// The finisher of SplitMix64: any number into one that looks like chance.
fn scattered(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The index along each axis of a row-major index.
fn split(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (at, &size) in at.iter_mut().zip(shape).rev() {
        *at = index % size.max(1);
        index /= size.max(1);
    }
    at
}

fn joined(at: &[usize], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |index, (&at, &size)| index * size + at)
}

/// From an element of a weight to the element of its source. The weight was made by these steps, so they are possible.
struct Steps<'a> {
    /// The steps with the shapes before them, last to first.
    steps: Vec<(&'a Prep, Vec<usize>, Vec<usize>)>,
}

impl<'a> Steps<'a> {
    fn of(slot: &'a WeightSlot) -> Self {
        let mut shape = slot.source_type.shape.clone();
        let mut steps = Vec::new();
        for step in &slot.prep {
            let after = match step {
                Prep::Reshape(to) => to.clone(),
                Prep::Transpose(order) => order.iter().map(|&axis| shape[axis]).collect(),
                Prep::Slice(dims) => {
                    dims.iter().map(|d| d.limit.saturating_sub(d.start).div_ceil(d.stride.max(1))).collect()
                }
            };
            steps.push((step, std::mem::replace(&mut shape, after.clone()), after));
        }
        steps.reverse();
        Steps { steps }
    }

    fn index(&self, mut index: usize) -> usize {
        for (step, before, after) in &self.steps {
            index = match step {
                Prep::Reshape(_) => index,
                Prep::Transpose(order) => {
                    let mut at = vec![0; before.len()];
                    order.iter().zip(split(index, after)).for_each(|(&axis, i)| at[axis] = i);
                    joined(&at, before)
                }
                Prep::Slice(dims) => {
                    let at = split(index, after);
                    let at: Vec<usize> = at.iter().zip(dims).map(|(i, d)| d.start + i * d.stride).collect();
                    joined(&at, before)
                }
            };
        }
        index
    }
}

/// The entry of a scale (or zero point) that serves an element.
fn entry(mut index: usize, shape: &[usize], scales: &[usize]) -> usize {
    let (mut entry, mut step) = (0, 1);
    for (&size, &scales) in shape.iter().zip(scales).rev() {
        let at = index % size.max(1);
        index /= size.max(1);
        entry += at / (size / scales.max(1)).max(1) * step;
        step *= scales;
    }
    entry
}

/// Some elements of an array, as an array of one axis.
fn pick(array: &Array, indices: &[usize]) -> Result<Array> {
    let outside = || Error::Unsupported(format!("an element outside of {array:?} was asked for"));
    let (bytes, bits) = (array.bytes(), array.dtype().bits());
    if indices.iter().any(|&i| i >= array.len()) {
        return Err(outside());
    }
    if array.dtype().is_packed() {
        let per = 8 / bits;
        let codes: Vec<u8> = indices.iter().map(|i| bytes[i / per] >> (i % per * bits)).collect();
        return Ok(Array::pack(array.dtype(), &[indices.len()], &codes)?);
    }
    let size = bits / 8;
    let picked = indices.iter().flat_map(|i| &bytes[i * size..][..size]).copied().collect();
    Ok(Array::from_bytes(array.dtype(), &[indices.len()], picked)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use qwix_array::DType;
    use qwix_graph::{ArrayType, Path, SliceDim};
    use qwix_quant::{Calibration, Granularity, HowToQuantize, Tile, quantize};

    use super::*;
    use crate::sqnr;

    fn seen(slot: &WeightSlot, float: &Array, made: &QArray) -> Seen {
        let mut sample = Sample::new(made.qvalue().len());
        sample.add(look(slot, float, made).unwrap());
        sample.seen().unwrap()
    }

    /// As [`seen`], obviously: the source is moved as its slot says, and everything is compared.
    fn look_at_all(slot: &WeightSlot, float: &Array, made: &QArray) -> f64 {
        sqnr(&prepared(slot, float), &dequantize(made).unwrap()).unwrap()
    }

    fn prepared(slot: &WeightSlot, float: &Array) -> Array {
        slot.prep.iter().fold(float.clone(), |array, step| match step {
            Prep::Reshape(shape) => array.reshape(shape).unwrap(),
            Prep::Transpose(order) => array.transpose(order).unwrap(),
            Prep::Slice(dims) => {
                let of = |f: fn(&SliceDim) -> usize| dims.iter().map(f).collect::<Vec<_>>();
                array.slice(&of(|d| d.start), &of(|d| d.limit), &of(|d| d.stride)).unwrap()
            }
        })
    }

    fn slot(dtype: DType, shape: &[usize], prep: Vec<Prep>, how: HowToQuantize) -> WeightSlot {
        WeightSlot { source: Path::new("w"), source_type: ArrayType::new(dtype, shape), prep, how }
    }

    fn how(qtype: &str, granularity: &[Granularity], calibration: Calibration) -> HowToQuantize {
        let qtype = QType::by_name(qtype).unwrap();
        HowToQuantize::new(qtype, granularity.to_vec(), calibration).unwrap()
    }

    /// Values that look like chance, some of them large.
    fn values(dtype: DType, shape: &[usize]) -> Array {
        let count: usize = shape.iter().product();
        let value = |i| {
            let unit = scattered(i as u64 + 99) as f64 / u64::MAX as f64 - 0.5;
            if i % 97 == 0 { unit * 8.0 } else { unit }
        };
        Array::from_f64(dtype, shape, &(0..count).map(value).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_seen_is_what_there_is() {
        use Granularity::{Channelwise, Shared};
        let tiled = |size| Granularity::Tiled(Tile::Size(size));
        let absmax = Calibration::AbsMax { scale: None };
        let minmax = Calibration::MinMax { scale: None };
        let transpose = Prep::Transpose(vec![1, 0]);
        let slice = |start, limit, stride| SliceDim { start, limit, stride };
        let moved = vec![
            Prep::Reshape(vec![8, 4, 6]),
            Prep::Transpose(vec![2, 0, 1]),
            Prep::Slice(vec![slice(1, 6, 2), slice(0, 8, 1), slice(1, 4, 1)]),
            Prep::Reshape(vec![3, 24]),
        ];
        let rows = [
            ("int8", vec![7, 5], vec![], vec![Shared, Channelwise], absmax),
            ("int4", vec![8, 5], vec![transpose.clone()], vec![Channelwise, tiled(4)], absmax),
            ("int4", vec![8, 5], vec![], vec![tiled(2), Channelwise], minmax),
            ("int8", vec![3, 5], vec![transpose], vec![Shared, Shared], minmax),
            ("nf4", vec![8, 24], moved.clone(), vec![Channelwise, tiled(8)], absmax),
            ("int2", vec![8, 24], moved, vec![Channelwise, Shared], absmax),
            ("int16", vec![11, 2], vec![], vec![Shared, Channelwise], absmax),
            ("float8_e4m3fn", vec![6, 9], vec![], vec![Shared, Channelwise], absmax),
            ("nvfp4", vec![32, 3], vec![], vec![tiled(16), Channelwise], absmax),
            ("int8", vec![1], vec![], vec![Shared], absmax),
            ("int8", vec![0, 4], vec![], vec![Shared, Channelwise], absmax),
        ];
        let mut wrong = Vec::new();
        for (qtype, shape, prep, granularity, calibration) in rows {
            for dtype in [DType::F32, DType::BF16] {
                let slot = slot(dtype, &shape, prep.clone(), how(qtype, &granularity, calibration));
                let float = values(dtype, &shape);
                let made = quantize(&prepared(&slot, &float), &slot.how).unwrap();
                let seen = seen(&slot, &float, &made);
                let count = made.qvalue().len() as u64;
                let expected = (count > 0).then(|| look_at_all(&slot, &float, &made));
                let counted: u64 = seen.histogram.0.iter().sum();
                if seen.sqnr_db != expected || (seen.sampled, counted) != (count, count) {
                    wrong.push(format!(
                        "{qtype} {dtype}{shape:?}: {:?} of {} ({counted}), expected {expected:?} of {count}",
                        seen.sqnr_db, seen.sampled
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Of a large weight enough is seen.
    #[test]
    fn a_sample_is_close_to_all() {
        let granularity = [Granularity::Tiled(Tile::Size(32)), Granularity::Channelwise];
        let shape = [1024, 512];
        let slot =
            slot(DType::F32, &shape, vec![], how("int4", &granularity, Calibration::AbsMax { scale: None }));
        let float = values(DType::F32, &shape);
        let made = quantize(&float, &slot.how).unwrap();
        let (seen, all) = (seen(&slot, &float, &made), look_at_all(&slot, &float, &made));
        let found = seen.sqnr_db.unwrap();
        assert_eq!(seen.sampled, SAMPLED as u64);
        assert!((found - all).abs() < 0.15, "{found} dB, of all {all} dB");
    }

    /// One scale for 4: 8 / 127.5; the values are at 1, 0.5, 0 and −1 of the range.
    #[test]
    fn places_in_the_range_are_counted() {
        let slot = slot(
            DType::F32,
            &[4],
            vec![],
            how("int8", &[Granularity::Shared], Calibration::AbsMax { scale: None }),
        );
        let float = Array::from_vec(&[4], vec![8f32, 4.0, 0.0, -8.0]).unwrap();
        let made = quantize(&float, &slot.how).unwrap();
        let seen = seen(&slot, &float, &made);
        let full: Vec<usize> = (0..BINS).filter(|&bin| seen.histogram.0[bin] > 0).collect();
        assert_eq!(full, [0, 32, 48, 64]);
    }

    /// However a weight is cut, and in whatever order its pieces come, the same is seen of it.
    #[test]
    fn pieces_are_as_good_as_the_whole() {
        let granularity = [Granularity::Tiled(Tile::Size(32)), Granularity::Channelwise];
        let shape = [320, 300];
        let slot =
            slot(DType::F32, &shape, vec![], how("int4", &granularity, Calibration::AbsMax { scale: None }));
        let float = values(DType::F32, &shape);
        let whole = seen(&slot, &float, &quantize(&float, &slot.how).unwrap());
        for (rows, columns) in [(320, 300), (32, 300), (320, 7), (64, 100)] {
            let mut sample = Sample::new(320 * 300);
            for row in (0..320).step_by(rows).rev() {
                for column in (0..300).step_by(columns) {
                    assert!(sample.seen().is_none());
                    let region = [row..(row + rows).min(320), column..(column + columns).min(300)];
                    let [r, c] = &region;
                    let piece = float.slice(&[r.start, c.start], &[r.end, c.end], &[1, 1]).unwrap();
                    let made = quantize(&piece, &slot.how).unwrap();
                    let elements = look_at_piece(&shape, &region, &piece, &made).unwrap();
                    sample.add(elements.clone());
                    // A piece that comes twice (its work was done again) counts once.
                    sample.add(elements);
                }
            }
            assert_eq!(sample.seen(), Some(whole.clone()), "pieces of {rows} by {columns}");
        }
        let piece = float.slice(&[0, 0], &[32, 300], &[1, 1]).unwrap();
        let made = quantize(&piece, &slot.how).unwrap();
        assert!(look_at_piece(&shape, &[0..64, 0..300], &piece, &made).is_err());
        assert!(look_at_piece(&shape, std::slice::from_ref(&(0..32)), &piece, &made).is_err());
    }

    #[test]
    fn places_are_in_range_and_different() {
        for count in [0, 1, 7, SAMPLED - 1, SAMPLED, SAMPLED + 1, 3 * SAMPLED + 5, 1 << 33] {
            let chosen: BTreeSet<usize> = places(count).collect();
            assert_eq!(chosen.len(), count.min(SAMPLED), "{count}");
            assert!(chosen.last().is_none_or(|&last| last < count), "{count}");
        }
        assert!(places(100).eq(0..100));
        // A power of two is what weights have: no column may be seen more than others by much.
        let mut columns = [0usize; 64];
        places(1 << 24).for_each(|place| columns[place % 4096 / 64] += 1);
        assert!(columns.iter().all(|&n| (900..1150).contains(&n)), "{columns:?}");
    }
}
