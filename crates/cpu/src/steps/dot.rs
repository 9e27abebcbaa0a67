//! Products of floats: views of the operands go to the GEMM as they lie in memory whenever strides can say it.

use std::borrow::Cow;

use qwix_array::{Array, DType, bf16, f16};
use qwix_eval::{EvalError, Value};
use qwix_graph::{DotDims, NodeId, Op};
use qwix_simd::{MatMut, MatRef, gemm_f32};
use rayon::prelude::*;

use crate::fuse::{Source, look_through};
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::moves::copy_walk;
use crate::values::{as_f32, fail, operand};
use crate::view::View;

/// The sizes of a product: `batch` products of `rows` × `depth` by `depth` × `columns`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
}

/// One side: its elements in the order batch axes, free axes, contracted axes.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    batch: View,
    /// Stride along the free axes taken as one, and along the contracted ones.
    free: isize,
    contracted: isize,
}

impl Side {
    /// Reads a view of an operand, in the operand's shape, as a side. `None` when the free axes, or the contracted ones, do not go
    /// by one stride.
    pub(crate) fn new(view: &View, batch: &[usize], free: &[usize], contracted: &[usize]) -> Option<Self> {
        let stride = |axes: &[usize]| match view.transpose(axes)?.merged().axes[..] {
            [] => Some(0),
            [(_, stride)] if stride >= 0 => Some(stride),
            _ => None,
        };
        Some(Side { batch: view.transpose(batch)?, free: stride(free)?, contracted: stride(contracted)? })
    }

    /// A side that lies densely: batch, free, contracted.
    pub(crate) fn dense(batch: usize, free: usize, contracted: usize) -> Self {
        let view = View { offset: 0, axes: vec![(batch, (free * contracted) as isize)] };
        Side { batch: view, free: contracted as isize, contracted: 1 }
    }

    /// A side whose matrices lie so far apart, by its strides along the free and the contracted axes.
    pub(crate) fn strided(batch: usize, between: usize, free: usize, contracted: usize) -> Self {
        let view = View { offset: 0, axes: vec![(batch, between as isize)] };
        Side { batch: view, free: free as isize, contracted: contracted as isize }
    }

    /// How far apart the matrices lie, when it is always as far.
    pub(crate) fn batch_stride(&self) -> Option<usize> {
        match self.batch.merged().axes[..] {
            [] => Some(0),
            [(_, stride)] => usize::try_from(stride).ok(),
            _ => None,
        }
    }

    /// The stride along the free axes.
    pub(crate) fn free(&self) -> isize {
        self.free
    }

    /// The stride along the contracted axes.
    pub(crate) fn contracted(&self) -> isize {
        self.contracted
    }

    /// Where the matrices start, in the order of the batch.
    pub(crate) fn starts(&self, batch: usize) -> Vec<usize> {
        let mut starts = Vec::with_capacity(batch);
        self.batch.merged().walk(0, batch, |at, stride, _, count| {
            starts.extend((0..count as isize).map(|i| (at as isize + i * stride) as usize));
        });
        starts
    }
}

/// How one operand becomes a side.
#[derive(Clone, Debug)]
enum Layout {
    /// As it lies.
    InPlace(Side),
    /// Copied in the order batch, free, contracted.
    Copied(View),
}

#[derive(Clone, Debug)]
pub(crate) struct FloatSide {
    layout: Layout,
}

/// The axes of one side of a dot by kind: batch, free, contracted.
pub(crate) fn axes(rank: usize, batch: &[usize], contracted: &[usize]) -> Vec<usize> {
    (0..rank).filter(|a| !batch.contains(a) && !contracted.contains(a)).collect()
}

impl FloatSide {
    pub(crate) fn new(view: &View, batch: &[usize], contracted: &[usize]) -> Option<Self> {
        let free = axes(view.axes.len(), batch, contracted);
        let layout = match Side::new(view, batch, &free, contracted) {
            Some(side) => Layout::InPlace(side),
            None => {
                let order: Vec<usize> = batch.iter().chain(&free).chain(contracted).copied().collect();
                Layout::Copied(view.transpose(&order)?.merged())
            }
        };
        Some(FloatSide { layout })
    }

    /// The operand's elements as f32, and how to read them.
    pub(crate) fn read<'a>(
        &self,
        array: &'a Array,
        sizes: (usize, usize, usize),
    ) -> Result<(Cow<'a, [f32]>, Side), EvalError> {
        match &self.layout {
            Layout::InPlace(side) => Ok((as_f32(array)?, side.clone())),
            Layout::Copied(view) => {
                // Widened first: a copy of f32 goes straight to where it is read from.
                let dense = as_f32(array)?;
                let mut values = vec![0.0f32; view.len()];
                copy_walk(view, bytemuck::cast_slice(&dense), 4, bytemuck::cast_slice_mut(&mut values))?;
                Ok((Cow::Owned(values), Side::dense(sizes.0, sizes.1, sizes.2)))
            }
        }
    }
}

struct Dot {
    lhs: FloatSide,
    rhs: FloatSide,
    sizes: Sizes,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for Dot {
    fn name(&self) -> &'static str {
        "dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let product = product(
            &self.lhs,
            &self.rhs,
            operand(&operands, 0)?,
            operand(&operands, 1)?,
            self.sizes,
            &self.shape,
            context,
        )?;
        Ok(Value::Array(from_f32(product, self.dtype, &self.shape, context)?))
    }
}

/// The f32 product of two float operands.
pub(crate) fn product(
    lhs: &FloatSide,
    rhs: &FloatSide,
    a: &Array,
    b: &Array,
    sizes: Sizes,
    shape: &[usize],
    context: &Context<'_>,
) -> Result<crate::buffers::Block, EvalError> {
    let (a, lhs) = lhs.read(a, (sizes.batch, sizes.rows, sizes.depth))?;
    let (b, rhs) = rhs.read(b, (sizes.batch, sizes.columns, sizes.depth))?;
    let mut out = context.buffers.for_array(DType::F32, shape)?;
    multiply(&a, &lhs, &b, &rhs, sizes, out.values_mut())?;
    Ok(out)
}

/// An f32 buffer as an array of a float dtype, rounded once.
pub(crate) fn from_f32(
    mut values: crate::buffers::Block,
    dtype: DType,
    shape: &[usize],
    context: &Context<'_>,
) -> Result<Array, EvalError> {
    match dtype {
        DType::F32 => values.into_array(dtype, shape),
        DType::BF16 => {
            let mut out = context.buffers.for_array(dtype, shape)?;
            qwix_simd::f32_to_bf16(values.values_mut(), out.values_mut::<bf16>());
            out.into_array(dtype, shape)
        }
        DType::F16 => {
            let mut out = context.buffers.for_array(dtype, shape)?;
            qwix_simd::f32_to_f16(values.values_mut(), out.values_mut::<f16>());
            out.into_array(dtype, shape)
        }
        _ => Ok(values.into_array(DType::F32, shape)?.convert(dtype)),
    }
}

/// out = batch of lhs · rhs, dense. How it is cut depends on the sizes alone, so that sums are in one order on any machine.
pub(crate) fn multiply(
    a: &[f32],
    lhs: &Side,
    b: &[f32],
    rhs: &Side,
    sizes: Sizes,
    out: &mut [f32],
) -> Result<(), EvalError> {
    let Sizes { batch, rows, depth, columns } = sizes;
    if out.is_empty() {
        return Ok(());
    }
    let (row_piece, column_piece) = pieces(sizes);
    let mut tasks = Vec::new();
    let starts = lhs.starts(batch).into_iter().zip(rhs.starts(batch));
    for ((at, bt), out) in starts.zip(out.chunks_exact_mut(rows * columns)) {
        let view = |data, at, rows, columns, row: isize, column: isize| {
            let data: &[f32] = data;
            MatRef::new(data.get(at..)?, rows, columns, row as usize, column as usize)
        };
        let left = view(a, at, rows, depth, lhs.free, lhs.contracted);
        let right = view(b, bt, depth, columns, rhs.contracted, rhs.free);
        let (Some(left), Some(right), Some(mut rest)) = (left, right, MatMut::new(out, rows, columns)) else {
            return Err(fail("an operand is smaller than its type"));
        };
        let mut row = 0;
        while rest.rows() > 0 {
            let (mut band, below) = rest.split_rows(row_piece);
            rest = below;
            let left = left.rows(row, row_piece);
            let mut column = 0;
            while band.cols() > 0 {
                let (tile, beyond) = band.split_columns(column_piece);
                band = beyond;
                tasks.push((tile, left, right.columns(column, column_piece)));
                column += column_piece;
            }
            row += row_piece;
        }
    }
    run_tasks(tasks, sizes, |(mut tile, left, right)| gemm_f32(&mut tile, left, right, false));
    Ok(())
}

/// Side by side when the work is worth it.
pub(crate) fn run_tasks<T: Send>(tasks: Vec<T>, sizes: Sizes, f: impl Fn(T) + Sync + Send) {
    let work = sizes.batch * sizes.rows * sizes.columns * sizes.depth.max(1);
    if tasks.len() > 1 && work > 1 << 17 && rayon::current_num_threads() > 1 {
        // Small products go several to a thread.
        let least = ((1 << 16) * tasks.len() / work.max(1)).max(1);
        tasks.into_par_iter().with_min_len(least).for_each(f);
    } else {
        tasks.into_iter().for_each(f);
    }
}

/// Rows and columns of a task: about 2^23 multiplications, of columns in whole vectors.
fn pieces(sizes: Sizes) -> (usize, usize) {
    const TASK: usize = 1 << 23;
    // One row at a time is bound by memory, not by multiplications.
    let task = if sizes.rows < 8 { TASK >> 5 } else { TASK };
    let (mut rows, mut columns) = (sizes.rows, sizes.columns.next_multiple_of(64));
    while rows.saturating_mul(columns).saturating_mul(sizes.depth) > 2 * task {
        if columns >= 2 * rows && columns > 128 {
            columns = (columns / 2).next_multiple_of(64);
        } else if rows > 64 {
            rows = (rows / 2).next_multiple_of(16);
        } else if columns > 128 {
            columns = (columns / 2).next_multiple_of(64);
        } else {
            break;
        }
    }
    (rows.max(1), columns.max(1))
}

/// The sizes of a dot of these shapes.
pub(crate) fn sizes(dims: &DotDims, lhs: &[usize], rhs: &[usize]) -> Sizes {
    let product = |shape: &[usize], axes: &[usize]| axes.iter().map(|&a| shape[a]).product();
    Sizes {
        batch: product(lhs, &dims.lhs_batch),
        rows: product(lhs, &axes(lhs.len(), &dims.lhs_batch, &dims.lhs_contracting)),
        depth: product(lhs, &dims.lhs_contracting),
        columns: product(rhs, &axes(rhs.len(), &dims.rhs_batch, &dims.rhs_contracting)),
    }
}

/// Whether a dtype's products are computed in f32.
pub(crate) fn is_gemm_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Dot(dims) = &node.op else { return None };
    let &[lhs, rhs] = &node.operands[..] else { return None };
    let (ty, left, right) = (planning.array_type(id)?, planning.array_type(lhs)?, planning.array_type(rhs)?);
    if !(is_gemm_float(ty.dtype) && is_gemm_float(left.dtype) && is_gemm_float(right.dtype)) {
        return None;
    }
    let sizes = sizes(dims, &left.shape, &right.shape);
    let side = |id: NodeId, batch: &[usize], contracted: &[usize]| {
        let (from, view) = match look_through(planning, id, true)? {
            (Source::Node(from), view) => (from, view),
            (Source::Fixed(_), _) => (id, View::dense(&planning.array_type(id)?.shape)),
        };
        Some((FloatSide::new(&view, batch, contracted)?, from))
    };
    let (lhs, a) = side(lhs, &dims.lhs_batch, &dims.lhs_contracting)?;
    let (rhs, b) = side(rhs, &dims.rhs_batch, &dims.rhs_contracting)?;
    let step = Dot { lhs, rhs, sizes, dtype: ty.dtype, shape: ty.shape.clone() };
    Some(Planned { step: Box::new(step), operands: vec![a, b] })
}
