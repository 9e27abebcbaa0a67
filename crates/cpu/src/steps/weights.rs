//! Quantized weights in float products: codes stay as they are stored, and panels of columns are dequantized as they are needed.

use std::ops::Range;

use qwix_array::{Array, DType};
use qwix_eval::EvalError;
use qwix_quant::{Codec, QArray};
use qwix_simd::{MatMut, MatRef, decode_bytes, decode_nibbles, gemm_f32, multiply_f32, widen_i8};

use crate::steps::dot::{Side, Sizes, run_tasks};
use crate::steps::scales::{expand, round};
use crate::values::{as_f32, fail};
use crate::view::View;

/// Rows of a panel: with [`COLUMNS`] of f32 it stays in a core's second cache.
const DEPTH: usize = 512;
/// Columns of a panel.
const COLUMNS: usize = 128;

/// How codes become numbers.
#[derive(Clone, Copy)]
pub(crate) enum Codes<'a> {
    /// Signed bytes, which are their own numbers.
    Bytes(&'a [u8]),
    /// A byte a code, by a table.
    Table(&'a [u8], &'a [f32; 256]),
    /// Two codes a byte, by a table.
    Nibbles(&'a [u8], &'a [f32; 16]),
}

/// The right side of a product, dequantized in panels. The result is that of dequantizing first.
#[derive(Clone, Copy)]
pub(crate) struct Codebook<'a> {
    pub(crate) codes: Codes<'a>,
    pub(crate) side: &'a Side,
    /// A scale for each batch entry, group and column; and zero points like it.
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: Option<&'a [f32]>,
    /// The group of each row.
    pub(crate) group: &'a [u32],
    /// How many groups there are.
    pub(crate) groups: usize,
    pub(crate) dtype: DType,
}

/// A quantized weight, ready to be dequantized in panels.
pub(crate) struct Weight {
    /// As they are stored.
    pub(crate) codes: Array,
    /// The number of each code; none where codes are their own numbers.
    pub(crate) table: Vec<f32>,
    pub(crate) side: Side,
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Option<Vec<f32>>,
    pub(crate) group: Vec<u32>,
    pub(crate) groups: usize,
    dtype: DType,
}

impl<'a> Codes<'a> {
    /// Bytes of codes and the table that they need; `None` when it has not an entry for each code of some width.
    pub(crate) fn new(bytes: &'a [u8], table: &'a [f32]) -> Option<Self> {
        match table.len() {
            0 => Some(Codes::Bytes(bytes)),
            16 => Some(Codes::Nibbles(bytes, table.try_into().ok()?)),
            _ => Some(Codes::Table(bytes, table.try_into().ok()?)),
        }
    }
}

/// Some rows and columns of one batch entry.
struct Panel {
    batch: usize,
    /// Where the entry's codes begin.
    start: usize,
    rows: Range<usize>,
    first: usize,
    columns: usize,
    /// Columns of the whole entry.
    total: usize,
}

/// The scales (or zero points) of the right side as [batch, groups, columns].
fn by_group(part: &Array, shape: &[usize], [batch, contracted, free]: &[Vec<usize>; 3]) -> Option<Vec<f32>> {
    let order = [&batch[..], contracted, free].concat();
    let moved = View::dense(part.shape()).transpose(&order)?.merged();
    let values = as_f32(part).ok()?;
    let mut dense = Vec::with_capacity(values.len());
    moved.walk(0, values.len(), |at, stride, _, count| {
        dense.extend((0..count as isize).map(|i| values[(at as isize + i * stride) as usize]));
    });
    let from: Vec<usize> = order.iter().map(|&a| part.shape()[a]).collect();
    // Contracted axes keep their groups; the others are filled.
    let to: Vec<usize> =
        order.iter().map(|&a| if contracted.contains(&a) { part.shape()[a] } else { shape[a] }).collect();
    expand(&dense, &from, &to).ok()
}

impl Weight {
    /// `None` when the type has more than a byte a code, or zero points of another shape than the scales.
    pub(crate) fn new(q: &QArray, side: Side, axes: &[Vec<usize>; 3], sizes: Sizes) -> Option<Self> {
        let (qvalue, qtype) = (q.qvalue(), q.qtype());
        if qvalue.is_empty() || !matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            return None;
        }
        let number = |code: u8| -> f32 {
            match qtype.codec {
                Codec::Int { .. } => {
                    (((code << (8 - qtype.storage.bits())) as i8) >> (8 - qtype.storage.bits())) as f32
                }
                Codec::Codebook(values) => values.get(code as usize).copied().unwrap_or(0.0),
                Codec::Float => {
                    let one = Array::pack(qtype.storage, &[1], &[code]).map(|a| a.convert(DType::F32));
                    one.ok().and_then(|a| a.values::<f32>().ok()?.first().copied()).unwrap_or(f32::NAN)
                }
            }
        };
        let codes = match (qtype.storage.bits(), qtype.codec) {
            (8, Codec::Int { .. }) => 0,
            (8, _) => 256,
            (4, _) => 16,
            _ => return None,
        };
        let mut table: Vec<f32> = (0..codes).map(|code| number(code as u8)).collect();
        round(&mut table, q.dtype());
        let scale = q.scale();
        if q.zero_point().is_some_and(|z| z.shape() != scale.shape()) {
            return None;
        }
        let contracted = &axes[1];
        let groups = contracted.iter().map(|&a| scale.shape()[a]).product();
        let group = (0..sizes.depth)
            .map(|row| {
                // The row's index along each contracted axis, and the entry of the scale that serves it.
                let (mut rest, mut entry, mut step) = (row, 0, 1);
                for &a in contracted.iter().rev() {
                    let (size, scales) = (q.shape()[a], scale.shape()[a]);
                    entry += rest % size / (size / scales) * step;
                    rest /= size;
                    step *= scales;
                }
                entry as u32
            })
            .collect();
        Some(Weight {
            codes: qvalue.clone(),
            table,
            side,
            scales: by_group(scale, q.shape(), axes)?,
            zero_points: match q.zero_point() {
                Some(z) => Some(by_group(&z.convert(DType::F32), q.shape(), axes)?),
                None => None,
            },
            group,
            groups,
            dtype: q.dtype(),
        })
    }

    /// What is multiplied by.
    pub(crate) fn view(&self) -> Option<Codebook<'_>> {
        Some(Codebook {
            codes: Codes::new(self.codes.bytes(), &self.table)?,
            side: &self.side,
            scales: &self.scales,
            zero_points: self.zero_points.as_deref(),
            group: &self.group,
            groups: self.groups,
            dtype: self.dtype,
        })
    }
}

impl Codebook<'_> {
    /// Numbers of `out.len()` codes that lie together from element `at` on.
    fn decode(&self, at: usize, out: &mut [f32]) {
        match self.codes {
            Codes::Bytes(bytes) => {
                widen_i8(bytemuck::cast_slice(bytes.get(at..).unwrap_or_default()), out);
            }
            Codes::Table(bytes, table) => decode_bytes(bytes.get(at..).unwrap_or_default(), table, out),
            Codes::Nibbles(bytes, table) => {
                let bytes = bytes.get(at / 2..).unwrap_or_default();
                if at.is_multiple_of(2) {
                    decode_nibbles(bytes, table, out);
                } else if let (Some((first, rest)), Some((byte, bytes))) =
                    (out.split_first_mut(), bytes.split_first())
                {
                    *first = table[(byte >> 4) as usize];
                    decode_nibbles(bytes, table, rest);
                }
            }
        }
    }

    /// Dequantizes a panel. Returns the strides of rows and of columns in `out`.
    fn panel(&self, panel: Panel, out: &mut [f32]) -> (usize, usize) {
        let Panel { batch, start, rows, first, columns, total } = panel;
        let (down, across) = (self.side.contracted() as usize, self.side.free() as usize);
        let entry = |row: usize| (batch * self.groups + self.group[row] as usize) * total + first;
        if across == 1 || columns == 1 {
            for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                self.decode(start + row * down + first * across, out);
                if let Some(z) = &self.zero_points {
                    out.iter_mut().zip(&z[entry(row)..]).for_each(|(v, z)| *v -= z);
                    round(out, self.dtype);
                }
                multiply_f32(out, &self.scales[entry(row)..]);
                round(out, self.dtype);
            }
            return (columns, 1);
        }
        // Columns lie together (or nothing does): a column after the other.
        let depth = rows.len();
        for (column, out) in out.chunks_exact_mut(depth).take(columns).enumerate() {
            if down == 1 {
                self.decode(start + rows.start + (first + column) * across, out);
            } else {
                for (row, out) in rows.clone().zip(out.iter_mut()) {
                    self.decode(start + row * down + (first + column) * across, std::slice::from_mut(out));
                }
            }
            let mut done = 0;
            while done < depth {
                // Rows of one group.
                let group = self.group[rows.start + done];
                let run = self.group[rows.start + done..rows.end].iter().take_while(|&&g| g == group).count();
                let at = entry(rows.start + done) + column;
                let out = &mut out[done..done + run];
                if let Some(z) = &self.zero_points {
                    out.iter_mut().for_each(|v| *v -= z[at]);
                    round(out, self.dtype);
                }
                let scale = self.scales[at];
                out.iter_mut().for_each(|v| *v *= scale);
                done += run;
            }
            round(out, self.dtype);
        }
        (1, depth)
    }

    /// out = batch of lhs · weight.
    pub(crate) fn multiply(
        &self,
        values: &[f32],
        lhs: &Side,
        sizes: Sizes,
        out: &mut [f32],
    ) -> Result<(), EvalError> {
        let Sizes { batch, rows, depth, columns } = sizes;
        if out.is_empty() {
            return Ok(());
        }
        if depth == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let lefts = lhs.starts(batch);
        let rights = self.side.starts(batch);
        let mut tasks = Vec::new();
        for (b, out) in out.chunks_exact_mut(rows * columns).enumerate() {
            let left = values
                .get(lefts[b]..)
                .and_then(|v| MatRef::new(v, rows, depth, lhs.free() as usize, lhs.contracted() as usize))
                .ok_or_else(|| fail("an operand is smaller than its type"))?;
            let mut rest =
                MatMut::new(out, rows, columns).ok_or_else(|| fail("the output has another size"))?;
            let mut first = 0;
            while rest.cols() > 0 {
                let (tile, beyond) = rest.split_columns(COLUMNS);
                rest = beyond;
                tasks.push((b, first, left, tile));
                first += COLUMNS;
            }
        }
        run_tasks(tasks, sizes, |(b, first, left, mut tile)| {
            let width = tile.cols();
            let mut panel = vec![0.0f32; DEPTH.min(depth) * width];
            for start in (0..depth).step_by(DEPTH) {
                let end = depth.min(start + DEPTH);
                let panel = &mut panel[..(end - start) * width];
                let of = Panel {
                    batch: b,
                    start: rights[b],
                    rows: start..end,
                    first,
                    columns: width,
                    total: columns,
                };
                let (down, across) = self.panel(of, panel);
                let left = left.columns(start, end - start);
                if let Some(right) = MatRef::new(panel, end - start, width, down, across) {
                    gemm_f32(&mut tile, left, right, start > 0);
                }
            }
        });
        Ok(())
    }
}
