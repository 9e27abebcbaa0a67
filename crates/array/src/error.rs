//! What can be wrong with an array.

use crate::DType;

/// Why an array could not be made, read or converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayError {
    /// A name that is no dtype.
    #[error("unknown dtype `{name}`")]
    UnknownDType {
        /// What was given.
        name: String,
    },
    /// The shape's number of elements or bytes overflows.
    #[error("shape {shape:?} of {dtype} is too large for this machine")]
    TooLarge {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Vec<usize>,
    },
    /// More or fewer bytes (or elements) than the shape needs.
    #[error("shape {shape:?} of {dtype} needs {expected} {unit}, found {found}")]
    WrongLength {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Vec<usize>,
        /// `bytes` or `elements`.
        unit: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The array has another dtype than the caller asked for.
    #[error("expected an array of {expected}, found {found}")]
    WrongDType {
        /// What was asked for.
        expected: DType,
        /// What the array is.
        found: DType,
    },
    /// A reshape that changes the number of elements.
    #[error("cannot reshape {from:?} into {to:?}: the numbers of elements differ")]
    Reshape {
        /// The array's shape.
        from: Vec<usize>,
        /// The shape asked for.
        to: Vec<usize>,
    },
    /// Axes, sizes or bounds that do not fit an array's shape.
    #[error("cannot {what} an array of shape {shape:?}: {why}")]
    Layout {
        /// The operation.
        what: &'static str,
        /// The array's shape.
        shape: Vec<usize>,
        /// What does not fit.
        why: String,
    },
}
