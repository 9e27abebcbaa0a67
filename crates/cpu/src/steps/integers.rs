//! The arithmetic of a product of bytes: sums by the int8 kernels, zero points, scales, tiles.

use qwix_eval::EvalError;
use qwix_simd::{MatMut, Packed, Rows, Workspace, best, multiply};

use crate::steps::dot::{Sizes, run_tasks};
use crate::steps::scales::Rounding;
use crate::values::fail;

/// The left side: rows of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [i8],
    /// Where each batch entry's rows start, and how far apart they are.
    pub(crate) starts: &'a [usize],
    pub(crate) stride: usize,
    /// One for each batch entry and row; so the zero points.
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: Option<&'a [i32]>,
}

/// The right side: a packed matrix for each batch entry.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) panels: &'a [Packed<'a>],
    /// One for each batch entry and column; so the zero points.
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: Option<&'a [i32]>,
}

/// A product of bytes whose sums are scaled. Of the batch the last axes are tiles, which are summed.
#[derive(Clone, Copy)]
pub(crate) struct Integers<'a> {
    pub(crate) left: Left<'a>,
    pub(crate) right: Right<'a>,
    pub(crate) sizes: Sizes,
    pub(crate) tiles: usize,
    pub(crate) rounding: Rounding,
}

impl Integers<'_> {
    /// Sets `out`, [batch / tiles, rows, columns], to the product.
    pub(crate) fn multiply(&self, out: &mut [f32]) -> Result<(), EvalError> {
        let Integers { left, right, sizes, tiles, rounding } = *self;
        let Sizes { batch, rows, depth, columns } = sizes;
        out.fill(0.0);
        if out.is_empty() || tiles == 0 {
            return Ok(());
        }
        self.check(out.len())?;
        // Correcting for a right zero point takes the sums of the left rows.
        let row_sums = right.zero_points.map(|_| {
            let mut sums = Vec::with_capacity(batch * rows);
            for &start in left.starts {
                for row in 0..rows {
                    let at = start + row * left.stride;
                    let row = &left.values[at..at + depth];
                    sums.push(row.iter().fold(0i32, |s, &v| s.wrapping_add(v.into())));
                }
            }
            sums
        });
        let (row_piece, column_piece) = pieces(sizes);
        let mut tasks = Vec::new();
        for (o, out) in out.chunks_exact_mut(rows * columns).enumerate() {
            let mut rest =
                MatMut::new(out, rows, columns).ok_or_else(|| fail("the output has another size"))?;
            let mut row = 0;
            while rest.rows() > 0 {
                let (mut band, below) = rest.split_rows(row_piece);
                rest = below;
                let mut column = 0;
                while band.cols() > 0 {
                    let (tile, beyond) = band.split_columns(column_piece);
                    band = beyond;
                    tasks.push((o, row, column, tile));
                    column += column_piece;
                }
                row += row_piece;
            }
        }
        let kernel = best();
        run_tasks(tasks, sizes, |(o, row, column, mut tile)| {
            let (count, width) = (tile.rows(), tile.cols());
            let mut sums = vec![0i32; count * width];
            let (mut space, mut spare) = (Workspace::default(), Vec::new());
            for t in 0..tiles {
                let b = o * tiles + t;
                let values = left.values.get(left.starts[b] + row * left.stride..).unwrap_or_default();
                let Some(values) = Rows::new(values, count, depth, left.stride) else { continue };
                let panels = right.panels[b];
                multiply(kernel, values, panels, column..column + width, &mut sums, &mut space);
                for (r, sums) in sums.chunks_exact_mut(width).enumerate() {
                    if let Some(z) = left.zero_points {
                        let z = z[b * rows + row + r];
                        for (sum, &column_sum) in sums.iter_mut().zip(&panels.column_sums()[column..]) {
                            *sum = sum.wrapping_sub(z.wrapping_mul(column_sum));
                        }
                    }
                    if let (Some(z), Some(row_sums)) = (right.zero_points, &row_sums) {
                        let row_sum = row_sums[b * rows + row + r];
                        for (sum, &z) in sums.iter_mut().zip(&z[b * columns + column..]) {
                            *sum = sum.wrapping_sub(z.wrapping_mul(row_sum));
                        }
                    }
                    let scales = &right.scales[b * columns + column..][..width];
                    let scale = left.scales[b * rows + row + r];
                    rounding.integers(sums, scale, scales, t > 0, tile.row_mut(r), &mut spare);
                }
            }
        });
        Ok(())
    }

    /// Refuses parts that are smaller than the sizes say.
    fn check(&self, out: usize) -> Result<(), EvalError> {
        let Integers { left, right, sizes, tiles, .. } = self;
        let Sizes { batch, rows, depth, columns } = *sizes;
        let values = left.starts.iter().max().map_or(0, |start| start + (rows - 1) * left.stride + depth);
        let at_least = |part: Option<&[i32]>, count| part.is_none_or(|part| part.len() >= count);
        let fits = batch % tiles == 0
            && out == batch / tiles * rows * columns
            && left.values.len() >= values
            && left.starts.len() == batch
            && left.scales.len() >= batch * rows
            && at_least(left.zero_points, batch * rows)
            && right.panels.len() == batch
            && right.panels.iter().all(|p| (p.rows(), p.columns()) == (depth, columns))
            && right.scales.len() >= batch * columns
            && at_least(right.zero_points, batch * columns);
        if fits { Ok(()) } else { Err(fail("an operand has not its type's size")) }
    }
}

/// Rows and columns of a task: about 2^23 multiplications, of columns in whole panels.
fn pieces(sizes: Sizes) -> (usize, usize) {
    const TASK: usize = 1 << 23;
    let task = if sizes.rows < 8 { TASK >> 5 } else { TASK };
    let (mut rows, mut columns) = (sizes.rows, sizes.columns.next_multiple_of(32));
    while rows.saturating_mul(columns).saturating_mul(sizes.depth) > 2 * task || rows * columns > 1 << 15 {
        if columns >= 2 * rows && columns > 64 {
            columns = (columns / 2).next_multiple_of(32);
        } else if rows > 48 {
            rows = (rows / 2).next_multiple_of(12);
        } else if columns > 64 {
            columns = (columns / 2).next_multiple_of(32);
        } else {
            break;
        }
    }
    (rows.max(1), columns.max(1))
}
