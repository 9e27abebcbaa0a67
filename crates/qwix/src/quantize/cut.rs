//! Cutting a parameter into pieces whose bytes lie together in the checkpoint, and following each to where it goes.
//!
//! Nothing here depends on values, and how a parameter is cut changes no byte of what is made of it.

use std::ops::Range;

use qwix_array::Array;
use qwix_graph::{ArrayType, Prep};
use qwix_quant::{QuantError, Whole, reshape_groups};

use crate::Result;

/// Part of an array: a range of indices for each axis.
pub(crate) type Region = Vec<Range<usize>>;

/// The sizes of a region.
pub(crate) fn sizes(region: &[Range<usize>]) -> Vec<usize> {
    region.iter().map(Range::len).collect()
}

/// The indices at which it begins.
pub(crate) fn starts(region: &[Range<usize>]) -> Vec<usize> {
    region.iter().map(|r| r.start).collect()
}

/// The whole of an array.
pub(crate) fn all(shape: &[usize]) -> Region {
    shape.iter().map(|&size| 0..size).collect()
}

fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |product: usize, &size| product.saturating_mul(size))
}

/// Pieces of so many indices of one axis, for every index of the axes before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    pub axis: usize,
    pub chunk: usize,
}

impl Cut {
    /// How many pieces there are; at least one, of an array without elements too.
    pub fn count(self, shape: &[usize]) -> usize {
        match shape.get(self.axis) {
            None => 1,
            Some(&size) => (product(&shape[..self.axis]) * size.div_ceil(self.chunk.max(1))).max(1),
        }
    }

    /// A piece, by number in row-major order; its elements are consecutive.
    pub fn region(self, shape: &[usize], number: usize) -> Region {
        let mut region = all(shape);
        let Some(&size) = shape.get(self.axis) else { return region };
        let per_index = size.div_ceil(self.chunk.max(1)).max(1);
        let start = number % per_index * self.chunk;
        region[self.axis] = start.min(size)..(start + self.chunk).min(size);
        let mut outer = number / per_index;
        for axis in (0..self.axis).rev() {
            let index = outer % shape[axis].max(1);
            outer /= shape[axis].max(1);
            region[axis] = index..(index + 1).min(shape[axis]);
        }
        region
    }

    /// The cuts to try, those of the fewest pieces first, of which each has at most so many elements.
    pub fn candidates(shape: &[usize], most: usize) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (axis, &size) in shape.iter().enumerate() {
            let inner = product(&shape[axis + 1..]).max(1);
            let fit = (most / inner).min(size);
            if fit == 0 {
                continue;
            }
            if fit == size {
                cuts.push(Cut { axis, chunk: size });
            }
            // Round numbers fit tiles.
            let mut step = 256;
            while step > 0 {
                if fit >= step && fit / step * step < size {
                    cuts.push(Cut { axis, chunk: fit / step * step });
                }
                step /= 2;
            }
        }
        cuts.dedup();
        cuts
    }
}

/// The elements that a region of consecutive elements begins and ends at.
pub(crate) fn span(shape: &[usize], region: &[Range<usize>]) -> Option<Range<usize>> {
    let sizes = sizes(region);
    let count = product(&sizes);
    let steps = qwix_array::strides(shape);
    let start: usize = region.iter().zip(&steps).map(|(r, &step)| r.start * step).sum();
    // After the first axis of which there is more than one index, all is there.
    let first = sizes.iter().position(|&size| size != 1).unwrap_or(sizes.len());
    let rest = sizes.iter().zip(shape).skip(first + 1).all(|(size, all)| size == all);
    rest.then_some(start..start + count)
}

/// Where a region is after a reshape: none where it is no region any more.
fn reshaped(region: &[Range<usize>], from: &[usize], to: &[usize]) -> Option<Region> {
    let mut found = Vec::with_capacity(to.len());
    let mut axis = 0;
    for (old, new) in reshape_groups(from, to).ok()? {
        let own = region.get(axis..axis + old.len())?;
        axis += old.len();
        let flat = span(&old, own)?;
        let (mut at, len) = (flat.start, flat.len());
        if len == 0 {
            return None;
        }
        let mut single = true;
        for (i, &size) in new.iter().enumerate() {
            let inner = product(&new[i + 1..]);
            if !single {
                found.push(0..size);
                continue;
            }
            let (first, last) = (at / inner, (at + len - 1) / inner);
            if first == last && len < inner {
                found.push(first..first + 1);
                at -= first * inner;
            } else if at.is_multiple_of(inner) && len.is_multiple_of(inner) {
                found.push(first..last + 1);
                at = 0;
                single = false;
            } else {
                return None;
            }
        }
    }
    Some(found)
}

/// One step of a region's way to what is quantized: the region after it, and the shape of the whole.
fn step(region: &Region, shape: &[usize], prep: &Prep) -> Option<(Region, Vec<usize>)> {
    match prep {
        Prep::Reshape(to) if *region == all(shape) => Some((all(to), to.clone())),
        Prep::Reshape(to) => Some((reshaped(region, shape, to)?, to.clone())),
        Prep::Transpose(permutation) => {
            let region = permutation.iter().map(|&axis| region.get(axis).cloned()).collect::<Option<_>>()?;
            let shape = permutation.iter().map(|&axis| shape.get(axis).copied()).collect::<Option<_>>()?;
            Some((region, shape))
        }
        Prep::Slice(dims) => {
            let axis = |((range, &size), dim): ((&Range<usize>, &usize), &qwix_graph::SliceDim)| {
                let count = dim.limit.checked_sub(dim.start)?.div_ceil(dim.stride.max(1));
                if *range == (0..size) {
                    return Some((0..count, count));
                }
                // Part of an axis of which part is taken: what both have.
                let start = range.start.clamp(dim.start, dim.limit) - dim.start;
                let end = range.end.clamp(dim.start, dim.limit) - dim.start;
                (dim.stride == 1).then_some((start..end, count))
            };
            region
                .iter()
                .zip(shape)
                .zip(dims)
                .map(axis)
                .collect::<Option<Vec<_>>>()
                .map(|axes| axes.into_iter().unzip())
        }
    }
}

/// Where a region of a source is in what is quantized; none where it is no region there.
pub(crate) fn followed(region: &Region, shape: &[usize], prep: &[Prep]) -> Option<Region> {
    let mut at = (region.clone(), shape.to_vec());
    for prep in prep {
        at = step(&at.0, &at.1, prep)?;
    }
    Some(at.0)
}

/// A piece of a source as it is quantized.
///
/// # Errors
/// When the steps do not fit the piece.
pub(crate) fn prepared(piece: Array, region: &Region, shape: &[usize], prep: &[Prep]) -> Result<Array> {
    let lost = || QuantError::Invalid("a piece of a parameter cannot be followed".to_owned());
    let mut at = (region.clone(), shape.to_vec());
    let mut array = piece;
    for prep in prep {
        let next = step(&at.0, &at.1, prep).ok_or_else(lost)?;
        array = match prep {
            Prep::Reshape(_) => array.reshape(&sizes(&next.0))?,
            Prep::Transpose(permutation) => array.transpose(permutation)?,
            Prep::Slice(dims) => {
                let (mut start, mut limit) = (Vec::new(), Vec::new());
                for ((range, &size), dim) in at.0.iter().zip(&at.1).zip(dims) {
                    let whole = *range == (0..size);
                    let inside = |index: usize| index.clamp(range.start, range.end) - range.start;
                    start.push(if whole { dim.start } else { inside(dim.start) });
                    limit.push(if whole { dim.limit } else { inside(dim.limit) });
                }
                let stride: Vec<usize> = dims.iter().map(|dim| dim.stride).collect();
                array.slice(&start, &limit, &stride)?
            }
        };
        at = next;
    }
    Ok(array)
}

/// How the pieces of a cut are quantized.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Passes {
    /// Each by itself: no two share a scale.
    One,
    /// First their ranges are found and joined, then they are quantized.
    Two,
}

/// The entries of a scale that serve a region.
pub(crate) fn scale_region(whole: &Whole, region: &[Range<usize>]) -> Region {
    let axis = |(range, (&tile, &count)): (&Range<usize>, (&usize, &usize))| {
        if range.is_empty() {
            return 0..0;
        }
        let tile = tile.max(1);
        range.start / tile..((range.end - 1) / tile + 1).min(count)
    };
    region.iter().zip(whole.tiles().iter().zip(whole.scale_shape())).map(axis).collect()
}

/// How a source may be quantized in these pieces, in at most so many passes; none where it may not.
pub(crate) fn passes(
    cut: Cut,
    source: &ArrayType,
    prep: &[Prep],
    whole: &Whole,
    most: Passes,
) -> Option<Passes> {
    let count = cut.count(&source.shape);
    if prep.is_empty() && count > 1 {
        return unmoved(cut, whole, most);
    }
    let mut passes = Passes::One;
    let mut regions = Vec::with_capacity(count);
    for number in 0..count {
        let to = followed(&cut.region(&source.shape, number), &source.shape, prep)?;
        if to.iter().any(Range::is_empty) {
            continue;
        }
        for ((range, &tile), &size) in to.iter().zip(whole.tiles()).zip(whole.shape()) {
            let tile = tile.max(1);
            let inside = range.start / tile == (range.end - 1) / tile;
            let aligned =
                range.start.is_multiple_of(tile) && (range.end.is_multiple_of(tile) || range.end == size);
            if !aligned && !inside {
                return None;
            }
            if !aligned && !whole.is_fixed() {
                passes = Passes::Two;
                if most == Passes::One {
                    return None;
                }
            }
        }
        regions.push(to);
    }
    // Bytes that hold elements of two pieces cannot be written by each.
    let bits = whole.qtype().storage.bits();
    let by_piece = passes == Passes::One;
    let writable = regions.iter().all(|to| {
        whole_bytes(whole.shape(), to, bits)
            && (!by_piece || whole_bytes(whole.scale_shape(), &scale_region(whole, to), bits))
    });
    if bits < 8 && !writable {
        return None;
    }
    // The order of a mean's sum is that of the whole as long as no axis of the sum is cut, and none has moved.
    let moved = prep.iter().any(|prep| matches!(prep, Prep::Transpose(_)));
    let allowed = whole.joins() || count == 1 || (by_piece && !moved);
    allowed.then_some(passes)
}

/// [`passes`] of several pieces of a source that is quantized as it lies, without a look at each of them.
fn unmoved(cut: Cut, whole: &Whole, most: Passes) -> Option<Passes> {
    let (shape, tiles) = (whole.shape(), whole.tiles());
    let (size, tile) = (*shape.get(cut.axis)?, (*tiles.get(cut.axis)?).max(1));
    let one = cut.chunk >= size || cut.chunk.is_multiple_of(tile);
    if !one && !tile.is_multiple_of(cut.chunk) {
        return None;
    }
    let outer = shape.iter().zip(tiles).take(cut.axis).all(|(&size, &tile)| tile <= 1 || size == 1);
    let passes = if (one && outer) || whole.is_fixed() { Passes::One } else { Passes::Two };
    // Bytes that hold elements of two pieces cannot be written by each.
    let bits = whole.qtype().storage.bits();
    let even = |elements: usize| elements.saturating_mul(bits).is_multiple_of(8);
    let fits = |shape: &[usize], chunk: usize| {
        let inner = product(&shape[cut.axis + 1..]);
        even(chunk.saturating_mul(inner)) && (cut.axis == 0 || even(shape[cut.axis].saturating_mul(inner)))
    };
    let packed = bits < 8;
    let values = !packed || fits(shape, cut.chunk);
    let scales =
        !packed || whole.is_fixed() || passes == Passes::Two || fits(whole.scale_shape(), cut.chunk / tile);
    let allowed = passes <= most && values && scales && (whole.joins() || passes == Passes::One);
    allowed.then_some(passes)
}

/// Whether each run of consecutive elements of a region begins and ends with a byte.
fn whole_bytes(shape: &[usize], region: &[Range<usize>], bits: usize) -> bool {
    let even = |elements: usize| elements.saturating_mul(bits).is_multiple_of(8);
    let (mut first, mut count) = (None, 0);
    let steps = qwix_array::strides(shape);
    let outer = region.iter().zip(&steps).zip(shape);
    // A run that is not the first begins some steps after it.
    let stepped = outer.clone().all(|((range, &step), _)| range.len() <= 1 || step == 1 || even(step));
    first_run(shape, region, |run, runs| (first, count) = (Some(run), runs));
    let Some(run) = first else { return true };
    let to_the_end = count == 1 && run.end == product(shape);
    even(run.start) && (even(run.len()) || to_the_end) && (count == 1 || stepped)
}

/// The first of the runs of a region, and how many there are.
fn first_run(shape: &[usize], region: &[Range<usize>], found: impl FnOnce(Range<usize>, usize)) {
    let sizes = sizes(region);
    if sizes.contains(&0) {
        return;
    }
    let (outer, len) = run_axes(shape, &sizes);
    let steps = qwix_array::strides(shape);
    let first: usize = region.iter().zip(&steps).map(|(range, &step)| range.start * step).sum();
    found(first..first + len, product(&sizes[..outer]));
}

/// How many axes are outside of the runs of a region, and how long a run is.
fn run_axes(shape: &[usize], sizes: &[usize]) -> (usize, usize) {
    // The last axes that are whole make one run with the axis before them.
    let mut split = sizes.len();
    while split > 0 && sizes[split - 1] == shape[split - 1] {
        split -= 1;
    }
    let mut outer = split.saturating_sub(1);
    // Axes of one index have no other run.
    while outer > 0 && sizes[..outer].iter().all(|&size| size == 1) {
        outer = 0;
    }
    (outer, product(&sizes[outer..]))
}

/// Calls with each run of consecutive elements of a region: the first element in the region, the elements in the whole.
pub(crate) fn runs(shape: &[usize], region: &[Range<usize>], mut each: impl FnMut(usize, Range<usize>)) {
    let sizes = sizes(region);
    if sizes.contains(&0) {
        return;
    }
    let steps = qwix_array::strides(shape);
    let (outer, len) = run_axes(shape, &sizes);
    let mut index = vec![0; outer];
    let mut done = 0;
    'runs: loop {
        let first: usize = (0..sizes.len())
            .map(|axis| (region[axis].start + index.get(axis).copied().unwrap_or(0)) * steps[axis])
            .sum();
        each(done, first..first + len);
        done += len;
        for axis in (0..outer).rev() {
            index[axis] += 1;
            if index[axis] < sizes[axis] {
                continue 'runs;
            }
            index[axis] = 0;
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwix_graph::SliceDim;

    fn numbers(shape: &[usize]) -> Array {
        Array::from_vec(shape, (0..product(shape) as u32).collect()).unwrap()
    }

    fn part(array: &Array, region: &[Range<usize>]) -> Array {
        let limits: Vec<usize> = region.iter().map(|r| r.end).collect();
        array.slice(&starts(region), &limits, &vec![1; region.len()]).unwrap()
    }

    /// A piece that is followed is the same part of the whole that went the same way.
    #[test]
    fn pieces_arrive_where_the_whole_has_them() {
        let cases: Vec<(Vec<usize>, Vec<Prep>)> = vec![
            (vec![6, 4], vec![]),
            (vec![6, 4], vec![Prep::Transpose(vec![1, 0])]),
            (vec![6, 4, 5], vec![Prep::Reshape(vec![6, 20])]),
            (vec![6, 4, 5], vec![Prep::Reshape(vec![24, 5])]),
            (vec![6, 4, 5], vec![Prep::Reshape(vec![24, 5]), Prep::Transpose(vec![1, 0])]),
            (vec![6, 20], vec![Prep::Reshape(vec![6, 4, 5]), Prep::Transpose(vec![2, 0, 1])]),
            (vec![1, 6, 1, 4], vec![Prep::Reshape(vec![6, 4])]),
            (vec![6, 4], vec![Prep::Slice(vec![full(6, 1, 5), full(4, 0, 4)])]),
            (vec![6, 4], vec![Prep::Slice(vec![full(6, 2, 3), full(4, 1, 3)]), Prep::Reshape(vec![2])]),
            (vec![4, 6], vec![Prep::Slice(vec![full(4, 0, 4), SliceDim { start: 1, limit: 6, stride: 2 }])]),
            (vec![5, 7], vec![Prep::Reshape(vec![35])]),
        ];
        let (mut wrong, mut followed_count) = (vec![], 0);
        for (shape, prep) in &cases {
            let whole = prepared(numbers(shape), &all(shape), shape, prep).unwrap();
            for axis in 0..shape.len() {
                for chunk in 1..=shape[axis] {
                    let cut = Cut { axis, chunk };
                    let mut seen = vec![];
                    for number in 0..cut.count(shape) {
                        let region = cut.region(shape, number);
                        let elements = span(shape, &region).unwrap();
                        seen.extend(elements.clone());
                        let Some(to) = followed(&region, shape, prep) else { continue };
                        followed_count += 1;
                        let piece = part(&numbers(shape), &region);
                        assert_eq!(piece.values::<u32>().unwrap()[..1], [elements.start as u32]);
                        let found = prepared(piece, &region, shape, prep).unwrap();
                        if to.iter().all(|r| !r.is_empty()) && found != part(&whole, &to) {
                            wrong.push(format!("{shape:?} {prep:?} {region:?}"));
                        }
                        let mut put = vec![];
                        runs(whole.shape(), &to, |_, run| {
                            put.extend(run.map(|i| whole.values::<u32>().unwrap()[i]))
                        });
                        if !put.is_empty() && put != found.values::<u32>().unwrap().as_ref() {
                            wrong.push(format!("runs of {shape:?} {prep:?} {region:?}: {put:?}"));
                        }
                    }
                    if !seen.iter().copied().eq(0..product(shape)) {
                        wrong.push(format!("{shape:?} in {cut:?}: {seen:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(followed_count > 300, "{followed_count}");
    }

    fn full(_size: usize, start: usize, limit: usize) -> SliceDim {
        SliceDim { start, limit, stride: 1 }
    }

    #[test]
    fn candidates_fit() {
        for (shape, most) in
            [(vec![7, 9], 20), (vec![7, 9], 5), (vec![3, 1000], 700), (vec![], 1), (vec![0, 3], 9)]
        {
            let cuts = Cut::candidates(&shape, most);
            for cut in &cuts {
                let region = cut.region(&shape, 0);
                assert!(product(&sizes(&region)) <= most, "{shape:?} {most} {cut:?}");
            }
            assert!(shape.is_empty() || shape.contains(&0) || !cuts.is_empty(), "{shape:?} {most}");
        }
    }
}
