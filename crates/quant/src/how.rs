//! How to quantize an array: the type, a granularity for each axis, a calibration method.

use std::fmt;
use std::str::FromStr;

use qwix_array::DType;

use crate::{QType, QuantError};

/// The size of a tile along an axis.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tile {
    /// So many elements.
    Size(usize),
    /// This fraction of the axis, rounded half to even: Qwix's float tile size, "1 / tile count".
    Fraction(f64),
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tile::Size(size) => write!(f, "{size}"),
            Tile::Fraction(fraction) => write!(f, "{fraction:?} of the axis"),
        }
    }
}

/// How scales are shared along one axis.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Granularity {
    /// One scale for the whole axis.
    Shared,
    /// A scale for every index.
    Channelwise,
    /// A scale for every tile.
    Tiled(Tile),
}

/// How the range of values is found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Calibration {
    /// scale · max ‖x‖, symmetric.
    AbsMax {
        /// A factor, 1 unless given.
        scale: Option<f64>,
    },
    /// scale · min and scale · max, asymmetric.
    MinMax {
        /// A factor, 1 unless given.
        scale: Option<f64>,
    },
    /// scale · sqrt(mean x²), symmetric.
    Rms {
        /// The factor.
        scale: f64,
    },
    /// A given range, per tensor; symmetric when min = −max.
    Fixed {
        /// At most 0.
        min: f64,
        /// At least 0.
        max: f64,
    },
}

/// How to quantize an array of as many axes as `granularity` has entries.
#[derive(Clone, PartialEq, Debug)]
pub struct HowToQuantize {
    /// The type of the quantized values.
    pub qtype: &'static QType,
    /// One entry an axis.
    pub granularity: Vec<Granularity>,
    /// How the range is found.
    pub calibration: Calibration,
}

/// The shapes and dtypes of a quantized array that does not exist yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    /// The stored values' dtype and shape.
    pub qvalue: (DType, Vec<usize>),
    /// The scale's dtype and shape.
    pub scale: (DType, Vec<usize>),
    /// The zero point's dtype and shape, when the quantization is asymmetric.
    pub zero_point: Option<(DType, Vec<usize>)>,
}

impl HowToQuantize {
    /// Checks that type, granularity and calibration go together.
    ///
    /// # Errors
    /// When a block format (mxfp8, nvfp4, …) has no tiled axis or one of another tile size, or the range is asymmetric
    /// and the type has no asymmetric form.
    pub fn new(
        qtype: &'static QType,
        granularity: Vec<Granularity>,
        calibration: Calibration,
    ) -> Result<Self, QuantError> {
        let how = HowToQuantize { qtype, granularity, calibration };
        how.check()?;
        Ok(how)
    }

    /// What [`new`](Self::new) checks.
    fn check(&self) -> Result<(), QuantError> {
        let qtype = self.qtype;
        if let Some(tile) = qtype.tile {
            let mut tiles = self.granularity.iter().enumerate().filter_map(|(axis, g)| match g {
                Granularity::Tiled(tile) => Some((axis, *tile)),
                Granularity::Shared | Granularity::Channelwise => None,
            });
            if tiles.clone().next().is_none() {
                return Err(QuantError::Invalid(format!(
                    "{qtype} needs an axis in tiles of {tile}, and none is tiled: set tile_size to {tile}"
                )));
            }
            if let Some((axis, found)) = tiles.find(|t| t.1 != Tile::Size(tile)) {
                return Err(QuantError::Invalid(format!(
                    "{qtype} needs tiles of {tile}, axis {axis} has {found}: set tile_size to {tile}"
                )));
            }
        }
        if self.calibration.is_asymmetric() && qtype.asymmetric_bounds.is_none() {
            return Err(QuantError::Invalid(format!(
                "{qtype} has no asymmetric quantization, which calibration method `{}` asks for",
                self.calibration
            )));
        }
        Ok(())
    }

    /// Checks that an array of this shape can be quantized so.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`scale_shape`](Self::scale_shape).
    pub fn validate(&self, shape: &[usize]) -> Result<(), QuantError> {
        self.check()?;
        self.tiles(shape).map(drop)
    }

    /// The tile of each axis: 1 for channelwise, the whole axis for shared.
    ///
    /// # Errors
    /// When the rank is another, or a tile does not divide its axis.
    pub fn tiles(&self, shape: &[usize]) -> Result<Vec<usize>, QuantError> {
        if shape.len() != self.granularity.len() {
            return Err(QuantError::Invalid(format!(
                "an array of shape {shape:?} has {} axes, its granularity {}",
                shape.len(),
                self.granularity.len()
            )));
        }
        let tile = |axis: usize, size: usize| match self.granularity[axis] {
            Granularity::Shared => Ok(size),
            Granularity::Channelwise => Ok(1),
            Granularity::Tiled(tile) => {
                let resolved = match tile {
                    Tile::Size(tile) => tile,
                    // The cast saturates: what is negative or not a number is an error as 0 is.
                    Tile::Fraction(fraction) => (size as f64 * fraction).round_ties_even() as usize,
                };
                if resolved == 0 || !size.is_multiple_of(resolved) {
                    return Err(QuantError::Tile { axis, shape: shape.to_vec(), tile: tile.to_string() });
                }
                Ok(resolved)
            }
        };
        shape.iter().enumerate().map(|(axis, &size)| tile(axis, size)).collect()
    }

    /// The shape of the statistics when the range is found in the array: shared axes are 1.
    fn statistics_shape(&self, shape: &[usize]) -> Result<Vec<usize>, QuantError> {
        let tiles = self.tiles(shape)?;
        Ok((0..shape.len())
            .map(|axis| match self.granularity[axis] {
                Granularity::Shared => 1,
                Granularity::Channelwise => shape[axis],
                Granularity::Tiled(_) => shape[axis] / tiles[axis],
            })
            .collect())
    }

    /// The shape of scale and zero point; all 1 for a fixed range, which is per tensor.
    ///
    /// # Errors
    /// When the rank is another, or a tile does not divide its axis.
    pub fn scale_shape(&self, shape: &[usize]) -> Result<Vec<usize>, QuantError> {
        let statistics = self.statistics_shape(shape)?;
        Ok(match self.calibration {
            Calibration::Fixed { .. } => vec![1; shape.len()],
            Calibration::AbsMax { .. } | Calibration::MinMax { .. } | Calibration::Rms { .. } => statistics,
        })
    }

    /// Dtypes and shapes of what quantizing an array of this shape and dtype gives.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and when the dtype cannot be quantized.
    pub fn parts(&self, shape: &[usize], dtype: DType) -> Result<Parts, QuantError> {
        if !dtype.is_wide_float() {
            return Err(QuantError::NotFloat { dtype });
        }
        self.check()?;
        let scale = self.scale_shape(shape)?;
        let storage = self.qtype.storage;
        Ok(Parts {
            qvalue: (storage, shape.to_vec()),
            zero_point: self.calibration.is_asymmetric().then(|| (storage, scale.clone())),
            scale: (dtype, scale),
        })
    }
}

impl Calibration {
    /// Whether the range has its own minimum and maximum, and the quantized array a zero point.
    pub fn is_asymmetric(&self) -> bool {
        match *self {
            Calibration::AbsMax { .. } | Calibration::Rms { .. } => false,
            Calibration::MinMax { .. } => true,
            Calibration::Fixed { min, max } => min + max != 0.0,
        }
    }
}

impl FromStr for Calibration {
    type Err = QuantError;

    /// Reads `absmax`, `absmax,0.9`, `minmax`, `rms,3`, `fixed,5`, `fixed,-10,10`; case does not matter, and numbers
    /// after the last one that counts are ignored, as in Qwix.
    fn from_str(text: &str) -> Result<Self, QuantError> {
        let fail = |reason: String| QuantError::Calibration { text: text.to_owned(), reason };
        let lower = text.to_lowercase();
        let mut fields = lower.split(',');
        let method = fields.next().unwrap_or_default();
        if !["absmax", "minmax", "rms", "fixed"].contains(&method) {
            return Err(fail(format!("`{method}` is not a method; known are absmax, minmax, rms, fixed")));
        }
        let numbers = fields
            .map(|field| match field.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                Ok(_) | Err(_) => Err(fail(format!("`{field}` is not a number"))),
            })
            .collect::<Result<Vec<f64>, _>>()?;
        match (method, numbers.as_slice()) {
            ("absmax", numbers) => Ok(Calibration::AbsMax { scale: numbers.first().copied() }),
            ("minmax", numbers) => Ok(Calibration::MinMax { scale: numbers.first().copied() }),
            ("rms", [scale, ..]) => Ok(Calibration::Rms { scale: *scale }),
            ("rms", []) => Err(fail("a factor is required, as in `rms,3`".into())),
            (_, &[max]) => fixed(-max, max).ok_or_else(|| fail(FIXED.into())),
            (_, &[min, max]) => fixed(min, max).ok_or_else(|| fail(FIXED.into())),
            _ => Err(fail("one bound or two are required, as in `fixed,5` or `fixed,-10,10`".into())),
        }
    }
}

const FIXED: &str = "the range must contain 0 and not be empty";

fn fixed(min: f64, max: f64) -> Option<Calibration> {
    (min <= 0.0 && max >= 0.0 && min < max).then_some(Calibration::Fixed { min, max })
}

impl fmt::Display for Calibration {
    /// Writes what [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Calibration::AbsMax { scale: None } => f.write_str("absmax"),
            Calibration::AbsMax { scale: Some(scale) } => write!(f, "absmax,{scale}"),
            Calibration::MinMax { scale: None } => f.write_str("minmax"),
            Calibration::MinMax { scale: Some(scale) } => write!(f, "minmax,{scale}"),
            Calibration::Rms { scale } => write!(f, "rms,{scale}"),
            Calibration::Fixed { min, max } if *min == -*max => write!(f, "fixed,{max}"),
            Calibration::Fixed { min, max } => write!(f, "fixed,{min},{max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Granularity::{Channelwise, Shared, Tiled};

    #[test]
    fn methods_are_read_and_written() {
        let mut wrong = Vec::new();
        for (text, want) in [
            ("absmax", "absmax"),
            ("AbsMax", "absmax"),
            ("absmax,0.9", "absmax,0.9"),
            ("minmax", "minmax"),
            ("MINMAX, 1e-1", "minmax,0.1"),
            ("rms,3", "rms,3"),
            ("fixed,5", "fixed,5"),
            ("fixed,-10,10", "fixed,10"),
            ("fixed,-10,2.5", "fixed,-10,2.5"),
            ("fixed,0,1", "fixed,0,1"),
        ] {
            match text.parse::<Calibration>() {
                Ok(found) if found.to_string() == want => {}
                other => wrong.push(format!("{text}: {other:?}")),
            }
        }
        for text in [
            "",
            "max",
            " absmax",
            "absmax,",
            "absmax,x",
            "rms",
            "fixed",
            "fixed,0",
            "fixed,1,2",
            "fixed,-2,-1",
            "fixed,2,1",
            "fixed,-5",
            "fixed,1,2,3",
            "absmax,nan",
            "fixed,inf",
        ] {
            if let Ok(found) = text.parse::<Calibration>() {
                wrong.push(format!("{text}: accepted as {found}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn tiles_are_resolved() {
        let int8 = QType::by_name("int8").unwrap();
        let absmax = Calibration::AbsMax { scale: None };
        let how = |g: Granularity| HowToQuantize::new(int8, vec![g, Channelwise], absmax).unwrap();
        let mut wrong = Vec::new();
        for (granularity, size, want) in [
            (Shared, 12, Some(1)),
            (Channelwise, 12, Some(12)),
            (Tiled(Tile::Size(4)), 12, Some(3)),
            (Tiled(Tile::Size(5)), 12, None),
            (Tiled(Tile::Size(0)), 12, None),
            (Tiled(Tile::Fraction(0.25)), 12, Some(4)),
            (Tiled(Tile::Fraction(1.0)), 12, Some(1)),
            // 2.5 rounds to 2, 7.5 to 8.
            (Tiled(Tile::Fraction(0.25)), 10, Some(5)),
            (Tiled(Tile::Fraction(0.25)), 30, None),
            (Tiled(Tile::Fraction(0.01)), 12, None),
            (Tiled(Tile::Fraction(-1.0)), 12, None),
            (Tiled(Tile::Fraction(f64::NAN)), 12, None),
        ] {
            let found = how(granularity).scale_shape(&[size, 7]).ok();
            if found != want.map(|count| vec![count, 7]) {
                wrong.push(format!("{granularity:?} of {size}: {found:?}, not {want:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(how(Shared).scale_shape(&[2]).is_err());
        let message = how(Tiled(Tile::Size(5))).scale_shape(&[12, 7]).unwrap_err().to_string();
        assert!(message.contains("[12, 7]"), "{message}");
    }

    #[test]
    fn types_say_what_they_need() {
        let absmax = Calibration::AbsMax { scale: None };
        let minmax = Calibration::MinMax { scale: None };
        let tiled = |n| vec![Channelwise, Tiled(Tile::Size(n))];
        let mut wrong = Vec::new();
        for (qtype, granularity, calibration, ok) in [
            ("mxfp8", tiled(32), absmax, true),
            ("mxfp8", tiled(16), absmax, false),
            ("mxfp8_16", tiled(16), absmax, true),
            ("mxfp4", vec![Channelwise, Shared], absmax, false),
            ("nvfp4", tiled(16), absmax, true),
            ("nvfp4", vec![Tiled(Tile::Fraction(0.5))], absmax, false),
            ("int8", tiled(3), minmax, true),
            ("int3", tiled(3), minmax, false),
            ("nf4", tiled(3), Calibration::Fixed { min: -1.0, max: 2.0 }, false),
            ("nf4", tiled(3), Calibration::Fixed { min: -1.0, max: 1.0 }, true),
        ] {
            let qtype = QType::by_name(qtype).unwrap();
            if HowToQuantize::new(qtype, granularity.clone(), calibration).is_ok() != ok {
                wrong.push(format!("{qtype} {granularity:?} {calibration}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn parts_need_no_array() {
        let int4 = QType::by_name("int4").unwrap();
        let granularity = vec![Tiled(Tile::Size(32)), Channelwise];
        let how = HowToQuantize::new(int4, granularity.clone(), Calibration::MinMax { scale: None }).unwrap();
        let parts = how.parts(&[64, 3], DType::BF16).unwrap();
        assert_eq!(parts.qvalue, (DType::S4, vec![64, 3]));
        assert_eq!(parts.scale, (DType::BF16, vec![2, 3]));
        assert_eq!(parts.zero_point, Some((DType::S4, vec![2, 3])));
        let fixed =
            HowToQuantize::new(int4, granularity, Calibration::Fixed { min: -1.0, max: 1.0 }).unwrap();
        assert_eq!(fixed.parts(&[64, 3], DType::F32).unwrap().scale.1, [1, 1]);
        assert!(fixed.parts(&[64, 3], DType::S8).is_err());
    }
}
