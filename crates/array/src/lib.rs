//! Arrays as XLA knows them: a shape, a [`DType`] and bytes.
//!
//! An [`Array`] is dense, row-major and immutable, and cheap to clone: the bytes are shared. They may
//! belong to the array, or to anything else that implements [`Buffer`] (a mapped file, say).
//! Types narrower than a byte are stored packed, the first element in the lowest bits.

#![forbid(unsafe_code)]

mod array;
mod convert;
mod dtype;
mod element;
mod error;
mod float;
mod layout;

pub use array::{Array, Buffer};
pub use dtype::DType;
pub use element::{Element, Pred};
pub use error::ArrayError;
pub use float::{F4E2M1FN, F8E4M3FN, F8E5M2};
pub use half::{bf16, f16};

/// The number of elements of a shape, or `None` when it does not fit a `usize`.
///
/// Empty axes count as 1 for what fits: strides and the sizes of parts of the shape are then safe to compute as well.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { count })
}

/// Row-major strides of a shape whose [`element_count`] is known, in elements; empty axes count as 1.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1].max(1);
    }
    strides
}
