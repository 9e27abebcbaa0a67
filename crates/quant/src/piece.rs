//! Quantizing an array piece by piece, for arrays that memory does not hold: the pieces' values are those of the whole.

use qwix_array::Array;

use crate::calibrate::{apply_factor, raw_range};
use crate::quantize::encode_with;
use crate::scale::scale_of;
use crate::{Calibration, Granularity, HowToQuantize, QArray, QType, QuantError, Range, Tile};

/// What the arithmetic of a piece depends on in the whole array: XLA divides where another shape would have it multiply.
#[derive(Clone, PartialEq, Debug)]
pub struct Whole {
    how: HowToQuantize,
    shape: Vec<usize>,
    scale_shape: Vec<usize>,
    /// Elements that an entry of the scale serves along each axis.
    tiles: Vec<usize>,
}

impl Whole {
    /// For an array of this shape that is quantized so.
    ///
    /// # Errors
    /// When `how` does not fit the shape.
    pub fn new(shape: &[usize], how: &HowToQuantize) -> Result<Self, QuantError> {
        how.validate(shape)?;
        let scale_shape = how.scale_shape(shape)?;
        let tiles = shape.iter().zip(&scale_shape).map(|(&size, &count)| size / count.max(1)).collect();
        Ok(Whole { how: how.clone(), shape: shape.to_vec(), scale_shape, tiles })
    }

    /// The type of the quantized values.
    pub fn qtype(&self) -> &'static QType {
        self.how.qtype
    }

    /// The whole array's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape of its scale.
    pub fn scale_shape(&self) -> &[usize] {
        &self.scale_shape
    }

    /// How many elements of each axis share a scale.
    pub fn tiles(&self) -> &[usize] {
        &self.tiles
    }

    /// Whether ranges of pieces may be joined: not so for means, whose sums depend on their order.
    pub fn joins(&self) -> bool {
        match self.how.calibration {
            Calibration::AbsMax { .. } | Calibration::MinMax { .. } | Calibration::Fixed { .. } => true,
            Calibration::Rms { .. } => false,
        }
    }

    /// Whether the scale needs no look at the values.
    pub fn is_fixed(&self) -> bool {
        matches!(self.how.calibration, Calibration::Fixed { .. })
    }

    /// How a piece of this shape is quantized by itself: an axis of which it has part of a tile is shared.
    fn of_piece(&self, shape: &[usize]) -> Result<HowToQuantize, QuantError> {
        if shape.len() != self.shape.len() {
            return Err(QuantError::Invalid(format!("a piece of shape {shape:?} of {:?}", self.shape)));
        }
        let axis = |(axis, &size): (usize, &usize)| match self.how.granularity[axis] {
            Granularity::Channelwise => Granularity::Channelwise,
            Granularity::Shared => Granularity::Shared,
            Granularity::Tiled(_) if size < self.tile(axis) => Granularity::Shared,
            Granularity::Tiled(_) => Granularity::Tiled(Tile::Size(self.tile(axis))),
        };
        Ok(HowToQuantize {
            qtype: self.how.qtype,
            granularity: shape.iter().enumerate().map(axis).collect(),
            calibration: self.how.calibration,
        })
    }

    /// The tile of an axis; unlike [`tiles`](Self::tiles) also where a fixed range makes one scale of all.
    fn tile(&self, axis: usize) -> usize {
        match self.how.granularity[axis] {
            Granularity::Shared => self.shape[axis],
            Granularity::Channelwise => 1,
            Granularity::Tiled(Tile::Size(size)) => size,
            Granularity::Tiled(Tile::Fraction(fraction)) => {
                (self.shape[axis] as f64 * fraction).round_ties_even() as usize
            }
        }
    }

    /// The range of a piece, before the calibration's factor; an axis that the piece has part of a tile of has one entry.
    ///
    /// # Errors
    /// When the piece cuts tiles unevenly or its dtype cannot be quantized.
    pub fn range(&self, piece: &Array) -> Result<Range, QuantError> {
        raw_range(piece, &self.of_piece(piece.shape())?, self.shape.iter().product())
    }

    /// Scale and zero point of a range that [`range`](Self::range) found, or that was joined from several.
    ///
    /// # Errors
    /// When the range is asymmetric and the type has no asymmetric form.
    pub fn scale(&self, range: &Range) -> Result<(Array, Option<Array>), QuantError> {
        let range = apply_factor(range, self.how.calibration)?;
        scale_of(&range, self.how.qtype, self.scale_shape.iter().product::<usize>() == 1)
    }

    /// The stored values of a piece, with the entries of scale and zero point that serve it.
    ///
    /// # Errors
    /// When they do not fit the piece.
    pub fn encode(
        &self,
        piece: &Array,
        scale: &Array,
        zero_point: Option<&Array>,
    ) -> Result<Array, QuantError> {
        encode_with(piece, self.how.qtype, scale, zero_point, self.scale_shape == self.shape)
    }

    /// Range, scale and values of a piece that shares no scale with another.
    ///
    /// # Errors
    /// As [`range`](Self::range) and [`encode`](Self::encode).
    pub fn quantize(&self, piece: &Array) -> Result<QArray, QuantError> {
        let (scale, zero_point) = self.scale(&self.range(piece)?)?;
        let qvalue = self.encode(piece, &scale, zero_point.as_ref())?;
        QArray::new(qvalue, scale, zero_point, self.how.qtype)
    }
}

/// Joins ranges of pieces into the range of the whole.
#[derive(Debug)]
pub struct RangeSoFar {
    shape: Vec<usize>,
    /// Lower and upper bounds, or magnitudes alone.
    low: Option<Vec<f64>>,
    high: Vec<f64>,
    dtype: qwix_array::DType,
}

impl RangeSoFar {
    /// Nothing seen: every range is 0.
    pub fn new(whole: &Whole, dtype: qwix_array::DType) -> Self {
        let entries = whole.scale_shape.iter().product();
        let low = whole.how.calibration.is_asymmetric().then(|| vec![0.0; entries]);
        RangeSoFar { shape: whole.scale_shape.clone(), low, high: vec![0.0; entries], dtype }
    }

    /// Widens the range by a piece's, whose first entry is at `at`.
    ///
    /// # Errors
    /// When it is not inside.
    pub fn join(&mut self, range: &Range, at: &[usize]) -> Result<(), QuantError> {
        let (low, high) = match range {
            Range::Symmetric { absmax } => (None, absmax),
            Range::Asymmetric { min, max } => (Some(min), max),
        };
        let part = high.shape();
        let inside = part.len() == self.shape.len()
            && at.len() == part.len()
            && part.iter().zip(at).zip(&self.shape).all(|((&n, &at), &size)| at + n <= size);
        if !inside || low.is_some() != self.low.is_some() {
            return Err(QuantError::Invalid(format!(
                "a range of shape {part:?} at {at:?} of one of {:?}",
                self.shape
            )));
        }
        let steps = qwix_array::strides(&self.shape);
        let first: usize = at.iter().zip(&steps).map(|(&at, &step)| at * step).sum();
        let mut index = vec![0; part.len()];
        let highs = high.to_f64_vec();
        let lows = low.map(Array::to_f64_vec);
        for (i, &high) in highs.iter().enumerate() {
            let to = first + index.iter().zip(&steps).map(|(&i, &step)| i * step).sum::<usize>();
            self.high[to] = self.high[to].max(high);
            if let (Some(own), Some(lows)) = (&mut self.low, &lows) {
                own[to] = own[to].min(lows[i]);
            }
            for (index, &size) in index.iter_mut().zip(part).rev() {
                *index += 1;
                if *index < size {
                    break;
                }
                *index = 0;
            }
        }
        Ok(())
    }

    /// The range of all that was joined.
    ///
    /// # Errors
    /// Never for floats.
    pub fn range(&self) -> Result<Range, QuantError> {
        let array = |values: &[f64]| Array::from_f64(self.dtype, &self.shape, values);
        Ok(match &self.low {
            None => Range::Symmetric { absmax: array(&self.high)? },
            Some(low) => Range::Asymmetric { min: array(low)?, max: array(&self.high)? },
        })
    }
}
