//! The quantized array.

use std::cmp::Ordering;

use qwix_array::{Array, DType, element_count};

use crate::{QType, QuantError};

/// Values of a [`QType`] with the scales that make numbers of them; valid by construction.
///
/// original ≈ (qvalue − zero_point) · scale, where scale and zero point have the rank of qvalue, each of their
/// dimensions divides qvalue's, and an entry serves a whole tile.
#[derive(Clone, PartialEq, Debug)]
pub struct QArray {
    qvalue: Array,
    scale: Array,
    zero_point: Option<Array>,
    qtype: &'static QType,
}

impl QArray {
    /// Puts the parts together.
    ///
    /// # Errors
    /// When dtypes or shapes do not fit each other.
    pub fn new(
        qvalue: Array,
        scale: Array,
        zero_point: Option<Array>,
        qtype: &'static QType,
    ) -> Result<Self, QuantError> {
        if qvalue.dtype() != qtype.storage {
            return Err(QuantError::Invalid(format!(
                "qvalue of {qtype} is stored as {}, found {}",
                qtype.storage,
                qvalue.dtype()
            )));
        }
        if !scale.dtype().is_wide_float() {
            return Err(QuantError::Invalid(format!("a scale cannot be {}", scale.dtype())));
        }
        fits("scale", &scale, &qvalue)?;
        if let Some(zero_point) = &zero_point {
            fits("zero point", zero_point, &qvalue)?;
            if zero_point.dtype() != qvalue.dtype() {
                return Err(QuantError::Invalid(format!(
                    "zero point should be {} as qvalue is, found {}",
                    qvalue.dtype(),
                    zero_point.dtype()
                )));
            }
        }
        Ok(QArray { qvalue, scale, zero_point, qtype })
    }

    /// The stored values, of the original's shape.
    pub fn qvalue(&self) -> &Array {
        &self.qvalue
    }

    /// The scales.
    pub fn scale(&self) -> &Array {
        &self.scale
    }

    /// What stands for 0 in asymmetric quantization.
    pub fn zero_point(&self) -> Option<&Array> {
        self.zero_point.as_ref()
    }

    /// The logical type.
    pub fn qtype(&self) -> &'static QType {
        self.qtype
    }

    /// The original's shape.
    pub fn shape(&self) -> &[usize] {
        self.qvalue.shape()
    }

    /// The dtype of the numbers that this array stands for: the scale's.
    pub fn dtype(&self) -> DType {
        self.scale.dtype()
    }

    /// The same parts moved alike.
    fn map(&self, f: impl Fn(&Array) -> Result<Array, QuantError>) -> Result<Self, QuantError> {
        QArray::new(
            f(&self.qvalue)?,
            f(&self.scale)?,
            self.zero_point.as_ref().map(f).transpose()?,
            self.qtype,
        )
    }

    /// The axes in another order: axis `i` of the result is axis `permutation[i]` of this array.
    ///
    /// # Errors
    /// When `permutation` does not name each axis once.
    pub fn transpose(&self, permutation: &[usize]) -> Result<Self, QuantError> {
        self.map(|part| Ok(part.transpose(permutation)?))
    }

    /// The same values in another shape, where the scales can follow: axes that are joined or split as a group must
    /// share one scale, or have a scale for every index, or have scales along the first of them alone.
    ///
    /// # Errors
    /// When the number of elements differs or the scales cannot follow.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, QuantError> {
        let groups = reshape_groups(self.shape(), shape)?;
        self.map(|part| {
            let mut sizes = Vec::with_capacity(shape.len());
            let mut axis = 0;
            for (old, new) in &groups {
                let own = &part.shape()[axis..axis + old.len()];
                axis += old.len();
                let count: usize = own.iter().product();
                match (own.first(), new.first()) {
                    _ if own == old.as_slice() => sizes.extend(new),
                    _ if count == 1 => sizes.extend(new.iter().map(|_| 1)),
                    (Some(&first), Some(&outer)) if first == count && first > 0 && outer % first == 0 => {
                        sizes.push(first);
                        sizes.extend(new[1..].iter().map(|_| 1));
                    }
                    _ => {
                        return Err(QuantError::Invalid(format!(
                            "cannot reshape {:?} into {shape:?} with scales of shape {:?}: they do not follow the axes {old:?} into {new:?}",
                            self.shape(),
                            part.shape()
                        )));
                    }
                }
            }
            Ok(part.reshape(&sizes)?)
        })
    }

    /// The values from `start` to before `limit` of an axis, with their scales.
    ///
    /// # Errors
    /// When the axis or the range is not there, or the range cuts a tile.
    pub fn slice(&self, axis: usize, start: usize, limit: usize) -> Result<Self, QuantError> {
        let fail = |why: &str| {
            QuantError::Invalid(format!(
                "cannot take {start}..{limit} of axis {axis} of a quantized array of shape {:?} with scales {:?}: {why}",
                self.shape(),
                self.scale.shape()
            ))
        };
        let size = *self.shape().get(axis).ok_or_else(|| fail("there is no such axis"))?;
        if start > limit || limit > size {
            return Err(fail("the range is not inside the axis"));
        }
        self.map(|part| {
            let count = part.shape()[axis];
            if count == 1 && size != 1 {
                return Ok(part.clone());
            }
            let tile = size.checked_div(count).unwrap_or(1).max(1);
            if !start.is_multiple_of(tile) || !limit.is_multiple_of(tile) {
                return Err(fail("the range cuts a tile"));
            }
            let mut starts = vec![0; part.rank()];
            let mut limits = part.shape().to_vec();
            (starts[axis], limits[axis]) = (start / tile, limit / tile);
            Ok(part.slice(&starts, &limits, &vec![1; part.rank()])?)
        })
    }
}

/// Axes before and after a reshape.
pub type Group = (Vec<usize>, Vec<usize>);

/// The smallest groups of consecutive axes that a reshape keeps apart: sizes before and after, of one product.
///
/// # Errors
/// When the numbers of elements differ.
pub fn reshape_groups(old: &[usize], new: &[usize]) -> Result<Vec<Group>, QuantError> {
    if element_count(old) != element_count(new) {
        return Err(QuantError::Invalid(format!(
            "cannot reshape {old:?} into {new:?}: the numbers of elements differ"
        )));
    }
    if old.contains(&0) {
        return Ok(vec![(old.to_vec(), new.to_vec())]);
    }
    let mut groups = Vec::new();
    let (mut from, mut to): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let (a, b): (usize, usize) = (from.iter().product(), to.iter().product());
        // The side that is behind takes its next axis; level, the smaller axis goes first, so that an axis of size 1 is
        // a group of its own.
        let take_old = match a.cmp(&b) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => i < old.len() && new.get(j).is_none_or(|&size| old[i] <= size),
        };
        if take_old {
            from.push(old[i]);
            i += 1;
        } else {
            to.push(new[j]);
            j += 1;
        }
        if from.iter().product::<usize>() == to.iter().product() {
            groups.push((std::mem::take(&mut from), std::mem::take(&mut to)));
        }
    }
    Ok(groups)
}

fn fits(what: &str, part: &Array, qvalue: &Array) -> Result<(), QuantError> {
    let ok = part.rank() == qvalue.rank()
        && qvalue.shape().iter().zip(part.shape()).all(|(&q, &p)| if p == 0 { q == 0 } else { q % p == 0 });
    if ok {
        Ok(())
    } else {
        Err(QuantError::Invalid(format!(
            "{what} of shape {:?} does not divide qvalue of shape {:?}",
            part.shape(),
            qvalue.shape()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Calibration, Granularity, HowToQuantize, Tile, dequantize, quantize};
    use Granularity::{Channelwise, Shared, Tiled};

    fn quantized(shape: &[usize], granularity: &[Granularity]) -> QArray {
        let values: Vec<f64> = (0..shape.iter().product::<usize>()).map(|i| (i as f64).sin()).collect();
        let array = Array::from_f64(DType::F32, shape, &values).unwrap();
        let calibration = Calibration::MinMax { scale: None };
        let how =
            HowToQuantize::new(QType::by_name("int4").unwrap(), granularity.to_vec(), calibration).unwrap();
        quantize(&array, &how).unwrap()
    }

    #[test]
    fn scales_follow_reshapes_where_they_can() {
        let mut wrong = Vec::new();
        let tiled = Tiled(Tile::Size(2));
        for (shape, granularity, new, want) in [
            (vec![2, 2, 6], vec![Channelwise, Shared, tiled], vec![4, 3, 2], Some(vec![2, 3, 1])),
            (vec![2, 2, 6], vec![Shared, Channelwise, tiled], vec![4, 3, 2], None),
            (vec![2, 2, 6], vec![Channelwise, Channelwise, Shared], vec![4, 1, 3, 2], Some(vec![4, 1, 1, 1])),
            (vec![2, 2, 6], vec![Shared, Shared, Shared], vec![24], Some(vec![1])),
            (vec![12], vec![Channelwise], vec![3, 4], Some(vec![3, 4])),
            (vec![12], vec![tiled], vec![6, 2], Some(vec![6, 1])),
            (vec![12], vec![tiled], vec![3, 4], None),
            (vec![12], vec![tiled], vec![12, 1], Some(vec![6, 1])),
            (vec![12, 1], vec![tiled, Shared], vec![12], Some(vec![6])),
            (vec![12], vec![tiled], vec![1, 12], Some(vec![1, 6])),
            (vec![12], vec![tiled], vec![11], None),
            (vec![0, 3], vec![Shared, Shared], vec![3, 0], Some(vec![1, 1])),
        ] {
            let array = quantized(&shape, &granularity);
            let found = array.reshape(&new).ok();
            if found.as_ref().map(|a| a.scale().shape().to_vec()) != want {
                wrong.push(format!("{shape:?} into {new:?}: {found:?}"));
            }
            if let Some(found) = found
                && dequantize(&found).unwrap() != dequantize(&array).unwrap().reshape(&new).unwrap()
            {
                wrong.push(format!("{shape:?} into {new:?}: other values"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn moving_and_dequantizing_commute() {
        let array = quantized(&[4, 6, 5], &[Tiled(Tile::Size(2)), Shared, Channelwise]);
        let plain = dequantize(&array).unwrap();
        let turned = array.transpose(&[2, 0, 1]).unwrap();
        assert_eq!(turned.scale().shape(), [5, 2, 1]);
        assert_eq!(dequantize(&turned).unwrap(), plain.transpose(&[2, 0, 1]).unwrap());
        for (axis, start, limit) in [(0, 2, 4), (1, 1, 4), (2, 0, 2), (2, 3, 3)] {
            let mut starts = [0; 3];
            let mut limits = [4, 6, 5];
            (starts[axis], limits[axis]) = (start, limit);
            let want = plain.slice(&starts, &limits, &[1; 3]).unwrap();
            assert_eq!(dequantize(&array.slice(axis, start, limit).unwrap()).unwrap(), want, "axis {axis}");
        }
        assert!(array.slice(0, 1, 3).is_err(), "cuts a tile");
        assert!(
            array.slice(1, 0, 7).is_err() && array.slice(1, 3, 2).is_err() && array.slice(3, 0, 1).is_err()
        );
    }
}
