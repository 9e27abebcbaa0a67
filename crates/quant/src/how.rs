//! How to quantize an array: the type, a granularity for each axis, a calibration method.

use std::fmt;

use crate::QType;

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
