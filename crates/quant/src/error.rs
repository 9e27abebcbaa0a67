//! Why something cannot be quantized.

use qwix_array::{ArrayError, DType};

/// What can go wrong between a float array and its quantized form.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// An array could not be made or read.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A name that is no qtype.
    #[error("`{name}` is not a qtype; known are {known}")]
    UnknownQType {
        /// What was given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A calibration method that cannot be read.
    #[error("calibration method `{text}`: {reason}")]
    Calibration {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tile that does not divide its axis.
    #[error("axis {axis} of shape {shape:?} cannot be split into tiles of {tile}")]
    Tile {
        /// The axis.
        axis: usize,
        /// The array's shape.
        shape: Vec<usize>,
        /// The tile, as the user wrote it.
        tile: String,
    },
    /// Only f16, bf16, f32 and f64 can be quantized.
    #[error("an array of {dtype} cannot be quantized; f16, bf16, f32 and f64 can")]
    NotFloat {
        /// The array's dtype.
        dtype: DType,
    },
    /// The values hold a NaN or an infinity.
    #[error("the values hold {what} at index {index:?}: they have no range to quantize into")]
    NotFinite {
        /// `NaN` or `infinity`.
        what: &'static str,
        /// Where the first one is.
        index: Vec<usize>,
    },
    /// Anything else that shapes, types or arguments rule out.
    #[error("{0}")]
    Invalid(String),
}
