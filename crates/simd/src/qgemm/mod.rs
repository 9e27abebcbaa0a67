//! int8 by int8 products, summed in int32 and exact (modulo 2^32) for every input, −128 · −128 included.
//!
//! The right side is packed once: panels of [`PANEL`] columns, in each of them groups of four rows, in each group the
//! four values of one column side by side. Every kernel reads this one layout.

mod arch;
mod scalar;

use std::ops::Range;
use std::sync::OnceLock;

/// Columns of a panel.
pub const PANEL: usize = 32;
/// Rows that stand side by side.
const GROUP: usize = 4;

/// A right side, packed.
#[derive(Clone, Debug)]
pub struct PackedB {
    data: Vec<i8>,
    /// The sum of each column, padded to whole panels.
    sums: Vec<i32>,
    rows: usize,
    columns: usize,
}

impl PackedB {
    /// Packs `rows` × `columns` values, the value of row k and column n at `k · row_stride + n · column_stride`.
    /// `None` when that reaches past the end of `values`.
    pub fn new(
        values: &[i8],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Option<Self> {
        if rows > 0 && columns > 0 {
            let last =
                (rows - 1).checked_mul(row_stride)?.checked_add((columns - 1).checked_mul(column_stride)?)?;
            values.get(last)?;
        }
        let (bytes, sums) = Packed::sizes(rows, columns)?;
        let panel_bytes = rows.div_ceil(GROUP) * (GROUP * PANEL);
        let mut data = vec![0; bytes];
        let mut sums = vec![0i32; sums];
        if panel_bytes > 0 {
            for (p, panel) in data.chunks_exact_mut(panel_bytes).enumerate() {
                let width = PANEL.min(columns - p * PANEL);
                for k in 0..rows {
                    let base = k * row_stride + p * PANEL * column_stride;
                    let group = &mut panel[k / GROUP * (GROUP * PANEL)..][..GROUP * PANEL];
                    for n in 0..width {
                        let value = values[base + n * column_stride];
                        group[n * GROUP + k % GROUP] = value;
                        sums[p * PANEL + n] += value as i32;
                    }
                }
            }
        }
        Some(PackedB { data, sums, rows, columns })
    }

    /// What kernels read.
    pub fn view(&self) -> Packed<'_> {
        Packed { data: &self.data, sums: &self.sums, rows: self.rows, columns: self.columns }
    }
}

/// A packed right side that lies elsewhere: in a [`PackedB`], or in memory of somebody else's that was filled from one.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    data: &'a [i8],
    sums: &'a [i32],
    rows: usize,
    columns: usize,
}

impl<'a> Packed<'a> {
    /// How many bytes a right side takes, and how many sums; `None` when they cannot be counted.
    pub fn sizes(rows: usize, columns: usize) -> Option<(usize, usize)> {
        let panels = columns.div_ceil(PANEL);
        let bytes = rows.div_ceil(GROUP).checked_mul(GROUP * PANEL)?.checked_mul(panels)?;
        Some((bytes, panels.checked_mul(PANEL)?))
    }

    /// Takes [`Packed::data`] and [`Packed::sums`] of a right side of this size. `None` when they have another size.
    pub fn new(data: &'a [i8], sums: &'a [i32], rows: usize, columns: usize) -> Option<Self> {
        let fits = Self::sizes(rows, columns)? == (data.len(), sums.len());
        fits.then_some(Packed { data, sums, rows, columns })
    }

    /// The number of rows: what is summed over.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values, packed; those beyond the last row and column are 0.
    pub fn data(&self) -> &'a [i8] {
        self.data
    }

    /// The sum of each column, padded with 0 to whole panels.
    pub fn sums(&self) -> &'a [i32] {
        self.sums
    }

    /// The sum of each column.
    pub fn column_sums(&self) -> &'a [i32] {
        &self.sums[..self.columns]
    }

    fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// A panel's bytes: `groups() · GROUP · PANEL`.
    fn panel(&self, panel: usize) -> &'a [i8] {
        let bytes = self.groups() * GROUP * PANEL;
        &self.data[panel * bytes..][..bytes]
    }
}

/// Left rows, each of `length` values, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    values: &'a [i8],
    count: usize,
    length: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows from the start of `values`. `None` when they reach past its end.
    pub fn new(values: &'a [i8], count: usize, length: usize, stride: usize) -> Option<Self> {
        if count > 0 {
            values.get(..(count - 1).checked_mul(stride)?.checked_add(length)?)?;
        }
        Some(Rows { values, count, length, stride })
    }

    fn row(&self, row: usize) -> &'a [i8] {
        &self.values[row * self.stride..][..self.length]
    }
}

/// Memory that a kernel uses again from call to call.
#[derive(Debug, Default)]
#[allow(dead_code)] // No machine's kernels use all of it.
pub struct Workspace {
    bytes: Vec<u8>,
    words: Vec<i16>,
}

/// An instruction set's way to multiply. Who holds one may call it: its constructor asked the machine.
pub trait Kernel: Send + Sync {
    /// The instruction set.
    fn name(&self) -> &'static str;

    /// Sets `out`, `rows.count` rows of `columns.len()` values, to the product with these columns of `b`.
    /// `columns` starts at a multiple of [`PANEL`]. Checked by [`multiply`], which is the way to call this.
    fn run(
        &self,
        rows: Rows<'_>,
        b: Packed<'_>,
        columns: Range<usize>,
        out: &mut [i32],
        space: &mut Workspace,
    );
}

/// Sets `out`, one row of `columns.len()` values for each left row, to the product with these columns of `b`.
///
/// # Panics
/// When the rows have not the length that `b` has rows, `columns` does not start a panel or ends past the last column, or
/// `out` has another size.
pub fn multiply(
    kernel: &dyn Kernel,
    rows: Rows<'_>,
    b: Packed<'_>,
    columns: Range<usize>,
    out: &mut [i32],
    space: &mut Workspace,
) {
    assert_eq!(rows.length, b.rows, "the sides sum over different lengths");
    assert!(
        columns.start.is_multiple_of(PANEL) && columns.start <= columns.end && columns.end <= b.columns,
        "columns {columns:?} of {}",
        b.columns
    );
    assert_eq!(out.len(), rows.count * columns.len(), "the output's size");
    if !out.is_empty() {
        kernel.run(rows, b, columns, out, space);
    }
}

/// All kernels that this machine can run, best first.
pub fn kernels() -> Vec<Box<dyn Kernel>> {
    let mut kernels = arch::kernels();
    kernels.push(Box::new(scalar::Scalar));
    kernels
}

/// The best kernel that this machine can run.
pub fn best() -> &'static dyn Kernel {
    static BEST: OnceLock<Box<dyn Kernel>> = OnceLock::new();
    BEST.get_or_init(|| kernels().swap_remove(0)).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<i8> {
        let mut state = seed.wrapping_mul(747796405).wrapping_add(1);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 24) as i8
            })
            .collect()
    }

    fn obvious(a: &[i8], b: &[i8], m: usize, k: usize, n: usize) -> Vec<i32> {
        let mut out = vec![0i32; m * n];
        for row in 0..m {
            for column in 0..n {
                for i in 0..k {
                    out[row * n + column] += a[row * k + i] as i32 * b[i * n + column] as i32;
                }
            }
        }
        out
    }

    #[test]
    fn every_kernel_is_exact_on_awkward_shapes() {
        let mut failures = Vec::new();
        for kernel in kernels() {
            for m in [0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 24, 25, 31] {
                for k in [0, 1, 2, 3, 4, 5, 7, 8, 13, 31, 32, 33, 127, 128, 129] {
                    for n in [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97] {
                        let (a, b) = (values(m * k, 1), values(k * n, 2));
                        let packed = PackedB::new(&b, k, n, n, 1).unwrap();
                        let mut out = vec![-1; m * n];
                        let rows = Rows::new(&a, m, k, k).unwrap();
                        multiply(
                            kernel.as_ref(),
                            rows,
                            packed.view(),
                            0..n,
                            &mut out,
                            &mut Workspace::default(),
                        );
                        if out != obvious(&a, &b, m, k, n) {
                            failures.push(format!("{} {m}x{k}x{n}", kernel.name()));
                        }
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn extremes_are_exact() {
        for kernel in kernels() {
            for (x, y) in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
                let (m, k, n) = (13, 4099, 35);
                let (a, b) = (vec![x; m * k], vec![y; k * n]);
                let packed = PackedB::new(&b, k, n, n, 1).unwrap();
                let mut out = vec![0; m * n];
                let rows = Rows::new(&a, m, k, k).unwrap();
                multiply(kernel.as_ref(), rows, packed.view(), 0..n, &mut out, &mut Workspace::default());
                let expected = x as i32 * y as i32 * k as i32;
                assert!(out.iter().all(|&v| v == expected), "{} {x}·{y}", kernel.name());
            }
        }
    }

    #[test]
    fn some_columns_and_a_transposed_side() {
        let (m, k, n) = (5, 19, 97);
        let (a, b) = (values(m * (k + 3), 3), values(n * k, 4));
        let straight: Vec<i8> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
        let packed = PackedB::new(&b, k, n, 1, k).unwrap();
        let dense: Vec<i8> = a.chunks(k + 3).flat_map(|row| &row[..k]).copied().collect();
        let expected = obvious(&dense, &straight, m, k, n);
        for kernel in kernels() {
            let rows = Rows::new(&a, m, k, k + 3).unwrap();
            let mut out = vec![0; m * 38];
            multiply(kernel.as_ref(), rows, packed.view(), 32..70, &mut out, &mut Workspace::default());
            for row in 0..m {
                assert_eq!(out[row * 38..][..38], expected[row * n + 32..][..38], "{}", kernel.name());
            }
        }
        let sums: Vec<i32> = (0..n).map(|c| b[c * k..][..k].iter().map(|&v| v as i32).sum()).collect();
        assert_eq!(packed.view().column_sums(), sums);
    }

    #[test]
    fn sides_past_the_end_are_refused() {
        assert!(PackedB::new(&[0; 5], 2, 3, 3, 1).is_none());
        assert!(PackedB::new(&[0; 5], usize::MAX, 3, usize::MAX, 1).is_none());
        assert!(Rows::new(&[0; 5], 2, 3, 3).is_none());
        let packed = PackedB::new(&[1; 6], 2, 3, 3, 1).unwrap();
        let (data, sums) = (packed.view().data(), packed.view().sums());
        let rows = [(2, 3, true), (4, 3, true), (5, 3, false), (2, 33, false), (usize::MAX, 3, false)];
        for (rows, columns, fits) in rows {
            assert_eq!(Packed::new(data, sums, rows, columns).is_some(), fits, "{rows} × {columns}");
        }
        assert!(Packed::new(data, &sums[1..], 2, 3).is_none());
    }
}
