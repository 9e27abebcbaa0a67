//! Float products, by the `gemm` library, behind views that are checked once.

use std::marker::PhantomData;

/// A matrix that is read: rows and columns at any distance, none negative.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// The last index that a strided matrix reaches plus one, or `None` when it overflows.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let down = (rows - 1).checked_mul(row_stride)?;
    let across = (cols - 1).checked_mul(col_stride)?;
    let extent = down.checked_add(across)?.checked_add(1)?;
    (extent <= isize::MAX as usize).then_some(extent)
}

impl<'a> MatRef<'a> {
    /// `rows` × `cols` elements of `data`, from its start. `None` when they reach past its end.
    pub fn new(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Option<Self> {
        (extent(rows, cols, row_stride, col_stride)? <= data.len()).then_some(MatRef {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        })
    }

    /// Columns `start..start + count`; fewer where the matrix ends.
    pub fn columns(self, start: usize, count: usize) -> Self {
        let start = start.min(self.cols);
        let cols = count.min(self.cols - start);
        let data = self.data.get(start * self.col_stride..).unwrap_or_default();
        MatRef { data, cols, ..self }
    }

    /// Rows `start..start + count`; fewer where the matrix ends.
    pub fn rows(self, start: usize, count: usize) -> Self {
        let start = start.min(self.rows);
        let rows = count.min(self.rows - start);
        let data = self.data.get(start * self.row_stride..).unwrap_or_default();
        MatRef { data, rows, ..self }
    }
}

/// A matrix that is written, row after row; it can be split, so that several threads write parts of it.
#[derive(Debug)]
pub struct MatMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatMut` is the only way to its elements while it lives, as a `&mut [f32]` would be.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// All of `data` as `rows` × `cols`. `None` when it has not so many elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Option<Self> {
        (rows.checked_mul(cols)? == data.len()).then_some(MatMut {
            start: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            life: PhantomData,
        })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The first `at` columns, and the rest.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        let at = at.min(self.cols);
        // SAFETY: `at` is at most the number of columns, so this is inside the matrix or one past the end of its first row.
        // The two parts share no element: their columns differ and a row is at least `cols` long.
        let right = unsafe { self.start.add(if self.rows == 0 { 0 } else { at }) };
        let (rows, row_stride, life) = (self.rows, self.row_stride, PhantomData);
        (
            MatMut { start: self.start, rows, cols: at, row_stride, life },
            MatMut { start: right, rows, cols: self.cols - at, row_stride, life },
        )
    }

    /// The first `at` rows, and the rest.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let at = at.min(self.rows);
        let (cols, row_stride, life) = (self.cols, self.row_stride, PhantomData);
        let step = if at == self.rows { 0 } else { at * row_stride };
        // SAFETY: when `at` is less than the number of rows, row `at` is inside the matrix; otherwise nothing is added.
        // The two parts share no element: their rows differ.
        let below = unsafe { self.start.add(step) };
        (
            MatMut { start: self.start, rows: at, cols, row_stride, life },
            MatMut { start: below, rows: self.rows - at, cols, row_stride, life },
        )
    }

    /// One row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is inside the matrix, and `self` is the only way to its elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.cols) }
    }
}

/// out = lhs · rhs, on the calling thread; or out += lhs · rhs. The order of summation depends on the shapes alone.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn gemm_f32(out: &mut MatMut<'_>, lhs: MatRef<'_>, rhs: MatRef<'_>, accumulate: bool) {
    assert!(
        out.rows == lhs.rows && out.cols == rhs.cols && lhs.cols == rhs.rows,
        "{}x{} by {}x{} into {}x{}",
        lhs.rows,
        lhs.cols,
        rhs.rows,
        rhs.cols,
        out.rows,
        out.cols
    );
    if out.rows == 0 || out.cols == 0 {
        return;
    }
    if lhs.cols == 0 {
        if !accumulate {
            (0..out.rows).for_each(|row| out.row_mut(row).fill(0.0));
        }
        return;
    }
    let gemm = gemm_f32::gemm::f32::get_gemm_fn();
    // The library wants the output's columns together, so it computes the transposed product.
    // SAFETY: the shapes agree (asserted above). `MatRef::new` checked that every element which the strides reach is in its
    // slice and that offsets fit an isize, and `columns` and `rows` only narrow; the elements of `out` are its own.
    unsafe {
        gemm(
            out.cols,
            out.rows,
            lhs.cols,
            out.start,
            out.row_stride as isize,
            1,
            accumulate,
            rhs.data.as_ptr(),
            rhs.row_stride as isize,
            rhs.col_stride as isize,
            lhs.data.as_ptr(),
            lhs.row_stride as isize,
            lhs.col_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32)
            .map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 20) as f32 / 2048.0 - 1.0)
            .collect()
    }

    #[test]
    fn agrees_with_the_obvious_product() {
        let sizes = [0, 1, 2, 3, 7, 16, 17, 31, 64, 97, 129];
        let mut failures = Vec::new();
        for &m in &sizes {
            for &k in &sizes {
                for &n in &[0, 1, 5, 16, 33, 100] {
                    for transposed in [false, true] {
                        let (a, b) = (values(m * k, 1), values(k * n, 2));
                        let strides = if transposed { (1, k) } else { (n, 1) };
                        let at = |r: usize, c: usize| b[r * strides.0 + c * strides.1];
                        let mut out = vec![f32::NAN; m * n];
                        let mut view = MatMut::new(&mut out, m, n).unwrap();
                        let lhs = MatRef::new(&a, m, k, k, 1).unwrap();
                        let rhs = MatRef::new(&b, k, n, strides.0, strides.1).unwrap();
                        gemm_f32(&mut view, lhs, rhs, false);
                        for r in 0..m {
                            for c in 0..n {
                                let exact: f64 = (0..k).map(|i| a[r * k + i] as f64 * at(i, c) as f64).sum();
                                let size: f64 =
                                    (0..k).map(|i| (a[r * k + i] as f64 * at(i, c) as f64).abs()).sum();
                                if (out[r * n + c] as f64 - exact).abs() > size * k as f64 * 6e-8 {
                                    failures.push((m, k, n, transposed, r, c));
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{failures:?}");
    }

    #[test]
    fn parts_are_written_alone() {
        let (a, b) = (values(6 * 5, 1), values(5 * 8, 2));
        let (lhs, rhs) = (MatRef::new(&a, 6, 5, 5, 1).unwrap(), MatRef::new(&b, 5, 8, 8, 1).unwrap());
        let mut whole = vec![0.0; 48];
        gemm_f32(&mut MatMut::new(&mut whole, 6, 8).unwrap(), lhs, rhs, false);
        let mut parts = vec![0.0; 48];
        let (top, mut bottom) = MatMut::new(&mut parts, 6, 8).unwrap().split_rows(2);
        let (mut left, mut right) = top.split_columns(3);
        gemm_f32(&mut left, lhs.rows(0, 2), rhs.columns(0, 3), false);
        gemm_f32(&mut right, lhs.rows(0, 2), rhs.columns(3, 5), false);
        gemm_f32(&mut bottom, lhs.rows(2, 4), rhs, false);
        for (w, p) in whole.iter().zip(&parts) {
            assert!((w - p).abs() < 1e-6);
        }
        gemm_f32(&mut MatMut::new(&mut parts, 6, 8).unwrap(), lhs, rhs, true);
        assert!((parts[0] - 2.0 * whole[0]).abs() < 1e-6);
    }

    #[test]
    fn views_past_the_end_are_refused() {
        assert!(MatRef::new(&[0.0; 5], 2, 3, 3, 1).is_none());
        assert!(MatRef::new(&[0.0; 5], usize::MAX, 3, usize::MAX, 1).is_none());
        assert!(MatMut::new(&mut [0.0; 5], 2, 3).is_none());
    }
}
