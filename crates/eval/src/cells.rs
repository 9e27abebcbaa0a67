//! Elements as bytes of one width, for ops that move elements without looking at them.

use std::borrow::Cow;

use qwix_array::{Array, ArrayError, DType, element_count};

/// The elements of an array, each in `width` bytes; those narrower than a byte take a whole one.
pub(crate) struct Cells<'a> {
    pub(crate) width: usize,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl<'a> Cells<'a> {
    pub(crate) fn read(array: &'a Array) -> Result<Self, ArrayError> {
        Ok(if array.dtype().is_packed() {
            Cells { width: 1, bytes: array.unpack_u8()? }
        } else {
            Cells { width: array.dtype().bits() / 8, bytes: Cow::Borrowed(array.bytes()) }
        })
    }

    /// As many copies of the first element as a shape has.
    pub(crate) fn filled(value: &Array, shape: &[usize]) -> Result<Cells<'static>, ArrayError> {
        let cells = Cells::read(value)?;
        let too_large = || ArrayError::TooLarge { dtype: value.dtype(), shape: shape.to_vec() };
        let count = element_count(shape).ok_or_else(too_large)?;
        let bytes = count.checked_mul(cells.width).ok_or_else(too_large)?;
        let mut filled = Vec::new();
        filled.try_reserve_exact(bytes).map_err(|_| too_large())?;
        if let Some(first) = cells.bytes.get(..cells.width) {
            for _ in 0..count {
                filled.extend_from_slice(first);
            }
        }
        Ok(Cells { width: cells.width, bytes: Cow::Owned(filled) })
    }

    /// An array of these cells.
    pub(crate) fn write(self, dtype: DType, shape: &[usize]) -> Result<Array, ArrayError> {
        if dtype.is_packed() {
            Array::pack(dtype, shape, &self.bytes)
        } else {
            Array::from_bytes(dtype, shape, self.bytes.into_owned())
        }
    }

    /// Copies one element; both places must be there.
    pub(crate) fn copy(&mut self, to: usize, source: &Cells<'_>, from: usize) {
        let width = self.width;
        self.bytes.to_mut()[to * width..(to + 1) * width]
            .copy_from_slice(&source.bytes[from * width..(from + 1) * width]);
    }
}

/// Calls `visit` with `start + Σ index · step` for every index of a shape, in row-major order.
pub(crate) fn walk(shape: &[usize], steps: &[usize], start: usize, visit: &mut impl FnMut(usize)) {
    match (shape, steps) {
        ([], _) | (_, []) => visit(start),
        ([size], [step, ..]) => (0..*size).for_each(|i| visit(start + i * step)),
        ([size, shape @ ..], [step, steps @ ..]) => {
            (0..*size).for_each(|i| walk(shape, steps, start + i * step, visit))
        }
    }
}

/// Calls `visit` with every index of a shape, in row-major order, until it fails.
pub(crate) fn each_index<E>(
    shape: &[usize],
    mut visit: impl FnMut(&[usize]) -> Result<(), E>,
) -> Result<(), E> {
    if shape.contains(&0) {
        return Ok(());
    }
    let mut index = vec![0; shape.len()];
    loop {
        visit(&index)?;
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return Ok(());
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}
