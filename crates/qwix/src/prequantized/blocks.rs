//! Which elements of a matrix share a scale, and packed words taken apart.

use qwix_array::{Array, ArrayError, DType};
use qwix_graph::{ArrayType, QArrayType, Type};
use qwix_quant::{Calibration, Granularity, HowToQuantize, QType, Tile};

/// How the indices of one axis fall into groups that share a scale.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Groups {
    /// The indices in an order that has each group in one piece; none when they are so already.
    pub order: Option<Vec<usize>>,
    /// So many indices (in that order) from each multiple of it on are of one group.
    pub tile: usize,
    /// The group of each tile.
    group_of_tile: Vec<usize>,
    /// How many groups there are in the file.
    pub count: usize,
}

impl Groups {
    /// One group.
    pub fn whole(size: usize) -> Self {
        Groups { order: None, tile: size.max(1), group_of_tile: vec![0; size.min(1)], count: 1 }
    }

    /// A group for each index.
    pub fn each(size: usize) -> Self {
        Self::regular(size, 1)
    }

    /// Groups of one size, the last of them perhaps cut short. A scale then stands for tiles of the largest size that
    /// divides both the groups and the axis, several tiles a group, which is exact.
    pub fn regular(size: usize, group_size: usize) -> Self {
        let group_size = group_size.max(1);
        let tile = if size <= group_size { size.max(1) } else { gcd(size, group_size) };
        let group_of_tile = (0..size / tile).map(|i| i * tile / group_size).collect();
        Groups { order: None, tile, group_of_tile, count: size.div_ceil(group_size) }
    }

    /// Groups by an index's own word: `index[i]` is the group of index `i`, below `count`.
    ///
    /// In order of their groups (stable, as everybody sorts them), unless `in_place`: then each index has its own scale.
    pub fn indexed(index: &[i64], count: usize, in_place: bool) -> Result<Self, String> {
        let mut groups = Vec::with_capacity(index.len());
        for (i, &group) in index.iter().enumerate() {
            match usize::try_from(group) {
                Ok(group) if group < count => groups.push(group),
                _ => return Err(format!("index {i} is of group {group}, and there are {count} groups")),
            }
        }
        if in_place && !groups.is_sorted() {
            return Ok(Groups { order: None, tile: 1, group_of_tile: groups, count });
        }
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|&i| groups[i]);
        let mut sizes = vec![0; count];
        groups.iter().for_each(|&group| sizes[group] += 1);
        let tile = sizes.iter().fold(0, |tile, &size| gcd(size, tile)).max(1);
        let group_of_tile = order.iter().step_by(tile).map(|&i| groups[i]).collect();
        Ok(Groups { order: (!groups.is_sorted()).then_some(order), tile, group_of_tile, count })
    }

    /// The granularity of scales along the axis.
    fn granularity(&self, size: usize) -> Granularity {
        match self.tile {
            // Without indices there are no scales either.
            _ if size == 0 => Granularity::Channelwise,
            tile if tile == size => Granularity::Shared,
            1 => Granularity::Channelwise,
            tile => Granularity::Tiled(Tile::Size(tile)),
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How the elements of a matrix fall into blocks that share a scale.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Blocks {
    pub shape: [usize; 2],
    pub rows: Groups,
    pub columns: Groups,
}

impl Blocks {
    /// The shape of the scales in the file.
    pub fn in_file(&self) -> [usize; 2] {
        [self.rows.count, self.columns.count]
    }

    /// The type of the quantized matrix with scales of this dtype.
    pub fn ty(&self, qtype: &'static QType, dtype: DType, zero_point: bool) -> Type {
        let [rows, columns] = self.shape;
        quantized(
            qtype,
            ArrayType::new(dtype, self.shape),
            vec![self.rows.granularity(rows), self.columns.granularity(columns)],
            zero_point,
        )
    }

    /// Scales or zero points, from one for each group to one for each tile.
    pub fn per_tile(&self, part: &Array) -> Result<Array, ArrayError> {
        take(&take(part, 0, &self.rows.group_of_tile)?, 1, &self.columns.group_of_tile)
    }

    /// A matrix with a byte an element, its rows and columns in the order that the groups ask for.
    pub fn in_order(&self, matrix: Array) -> Result<Array, ArrayError> {
        let mut matrix = matrix;
        for (axis, groups) in [&self.rows, &self.columns].into_iter().enumerate() {
            if let Some(order) = &groups.order {
                matrix = take(&matrix, axis, order)?;
            }
        }
        Ok(matrix)
    }
}

/// The type of a quantized array.
pub(super) fn quantized(
    qtype: &'static QType,
    array: ArrayType,
    granularity: Vec<Granularity>,
    zero_point: bool,
) -> Type {
    let calibration = match zero_point {
        true => Calibration::MinMax { scale: None },
        false => Calibration::AbsMax { scale: None },
    };
    Type::QArray(QArrayType { array, how: HowToQuantize { qtype, granularity, calibration } })
}

/// The slices of an array of whole bytes at these indices of an axis.
pub(super) fn take(array: &Array, axis: usize, indices: &[usize]) -> Result<Array, ArrayError> {
    let size = array.shape().get(axis).copied().unwrap_or(0);
    if indices.len() == size && indices.iter().enumerate().all(|(i, &index)| i == index) {
        return Ok(array.clone());
    }
    let mut shape = array.shape().to_vec();
    let outer: usize = shape.iter().take(axis).product();
    let inner: usize = shape.iter().skip(axis + 1).product::<usize>() * (array.dtype().bits() / 8);
    let bytes = array.bytes();
    let mut taken = Vec::with_capacity(outer.saturating_mul(indices.len()).saturating_mul(inner));
    for o in 0..outer {
        for &index in indices {
            let start = (o * size + index) * inner;
            // Out of range it is left out, and the length is then wrong.
            taken.extend_from_slice(bytes.get(start..start + inner).unwrap_or(&[]));
        }
    }
    if let Some(size) = shape.get_mut(axis) {
        *size = indices.len();
    }
    Array::from_bytes(array.dtype(), &shape, taken)
}

/// 32-bit words of a matrix [rows, columns], each with 32 / `bits` rows of a column from its lowest bits on: a byte an
/// element, of the first `rows` rows.
pub(super) fn unpack_rows(words: &Array, bits: usize, rows: usize) -> Result<Array, ArrayError> {
    let columns = words.shape().last().copied().unwrap_or(0);
    let values = words.values::<i32>()?;
    let (per, mask) = (32 / bits, (1u32 << bits) - 1);
    let mut codes = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let start = row / per * columns;
        let shift = row % per * bits;
        codes
            .extend(values.iter().skip(start).take(columns).map(|&word| (word as u32 >> shift & mask) as u8));
    }
    Array::from_bytes(DType::U8, &[rows, columns], codes)
}

/// 32-bit words of a matrix, each with 32 / `bits` columns of a row: column `j` of a word is at bits `bits` ·
/// `places[j]`. A byte an element, of the first `columns` columns.
pub(super) fn unpack_columns(
    words: &Array,
    bits: usize,
    columns: usize,
    places: &[usize],
) -> Result<Array, ArrayError> {
    let rows = words.shape().first().copied().unwrap_or(0);
    let width = words.shape().last().copied().unwrap_or(0);
    let values = words.values::<i32>()?;
    let mask = (1u32 << bits) - 1;
    let mut codes = Vec::with_capacity(rows * columns);
    for row in values.chunks_exact(width.max(1)) {
        let all = row
            .iter()
            .flat_map(|&word| places.iter().map(move |place| ((word as u32) >> (place * bits) & mask) as u8));
        codes.extend(all.take(columns));
    }
    Array::from_bytes(DType::U8, &[rows, columns], codes)
}

/// The places of columns in a word that holds them in order.
pub(super) fn in_sequence(bits: usize) -> Vec<usize> {
    (0..32 / bits).collect()
}

/// Unsigned codes, a byte each, as signed integers of `bits` bits: the middle of the range becomes 0.
pub(super) fn signed(codes: &Array, bits: usize) -> Result<Array, ArrayError> {
    // x − 2^(bits − 1) in two's complement is x with its highest bit turned over.
    let middle = 1u8 << (bits - 1);
    let shifted: Vec<u8> = codes.bytes().iter().map(|&code| code ^ middle).collect();
    Array::pack(if bits == 4 { DType::S4 } else { DType::S8 }, codes.shape(), &shifted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cut_short_have_tiles_that_divide() {
        let mut wrong = vec![];
        for (size, group, tile, of) in [
            (8, 4, 4, vec![0, 1]),
            (6, 4, 2, vec![0, 0, 1]),
            (7, 4, 1, vec![0, 0, 0, 0, 1, 1, 1]),
            (3, 4, 3, vec![0]),
            (4, 4, 4, vec![0]),
            (1, 1, 1, vec![0]),
            (0, 4, 1, vec![]),
        ] {
            let found = Groups::regular(size, group);
            if (found.tile, &found.group_of_tile) != (tile, &of) || found.count != size.div_ceil(group) {
                wrong.push(format!("{size} by {group}: {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn an_index_in_order_is_no_index() {
        let groups = |index: &[i64], in_place| Groups::indexed(index, 2, in_place).unwrap();
        assert_eq!(groups(&[0, 0, 1, 1], false), Groups::regular(4, 2));
        assert_eq!(groups(&[0, 0, 1, 1], true), Groups::regular(4, 2));
        let sorted = groups(&[1, 0, 1, 0], false);
        assert_eq!((sorted.order, sorted.tile), (Some(vec![1, 3, 0, 2]), 2));
        let uneven = groups(&[1, 0, 0, 0], false);
        assert_eq!((uneven.tile, uneven.group_of_tile), (1, vec![0, 0, 0, 1]));
        let in_place = groups(&[1, 0, 1, 0], true);
        assert_eq!((in_place.order, in_place.group_of_tile), (None, vec![1, 0, 1, 0]));
        for bad in [[0, 2], [0, -1], [i64::MAX, 0]] {
            assert!(Groups::indexed(&bad, 2, false).is_err(), "{bad:?}");
        }
    }
}
