//! Ops that put arrays together, cut them, and pick from them by computed indices.

use qwix_array::{Array, DType, strides};
use qwix_eval::{EvalError, Value};
use qwix_graph::{GatherDims, NodeId, Op, PadDim};

use crate::buffers::Block;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::moves::copy_walk;
use crate::values::{element_size, fail, operand, take};
use crate::view::View;

struct Concatenate {
    dimension: usize,
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
}

impl Step for Concatenate {
    fn name(&self) -> &'static str {
        "concatenate"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        let inner: usize = self.shape[self.dimension + 1..].iter().product::<usize>() * self.size;
        let row = self.shape[self.dimension] * inner;
        let mut at = 0;
        for i in 0..operands.len() {
            let part = operand(&operands, i)?;
            let width = part.shape()[self.dimension] * inner;
            if width > 0 {
                let rows = out.bytes_mut().chunks_exact_mut(row.max(1));
                for (out, part) in rows.zip(part.bytes().chunks_exact(width)) {
                    out[at..at + width].copy_from_slice(part);
                }
            }
            at += width;
        }
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

/// Fills a buffer with one element.
pub(crate) fn fill(out: &mut [u8], element: &[u8]) {
    match element {
        [byte] => out.fill(*byte),
        _ if element.iter().all(|&byte| byte == 0) => out.fill(0),
        _ => out.chunks_exact_mut(element.len()).for_each(|out| out.copy_from_slice(element)),
    }
}

/// HLO's pad of a dense array of `from`, into a buffer.
pub(crate) fn pad_into(
    source: &[u8],
    from: &[usize],
    dims: &[PadDim],
    value: &[u8],
    shape: &[usize],
    out: &mut Block,
) -> Result<(), EvalError> {
    let size = value.len();
    fill(out.bytes_mut(), value);
    // Along each axis, which elements of the source land inside, and where the first of them does.
    let steps = strides(shape);
    let dense = View::dense(from);
    let mut read = View { offset: 0, axes: Vec::new() };
    let mut write = View { offset: 0, axes: Vec::new() };
    for (axis, dim) in dims.iter().enumerate() {
        let step = dim.interior as i128 + 1;
        let (low, count, room) = (dim.low as i128, from[axis] as i128, shape[axis] as i128);
        let first = if low < 0 { (-low + step - 1) / step } else { 0 };
        let last = if room - low <= 0 { 0 } else { ((room - low + step - 1) / step).min(count) };
        if last <= first {
            return Ok(());
        }
        let taken = (last - first) as usize;
        read.offset += first as usize * dense.axes[axis].1 as usize;
        read.axes.push((taken, dense.axes[axis].1));
        write.offset += (low + first * step) as usize * steps[axis];
        write.axes.push((taken, step as isize * steps[axis] as isize));
    }
    let (read, write) = (read.merged(), write.merged());
    if !write.fits(out.bytes_mut().len() / size) {
        return Err(fail("the padded operand does not fit its type"));
    }
    if read.offset == 0 && read.len() * size == source.len() {
        write.write(source, size, out.bytes_mut());
    } else {
        let mut taken = vec![0u64; (read.len() * size).div_ceil(8)];
        let taken = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut taken)[..read.len() * size];
        copy_walk(&read, source, size, taken)?;
        write.write(taken, size, out.bytes_mut());
    }
    Ok(())
}

struct Pad {
    dims: Vec<PadDim>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let (source, value) = (operand(&operands, 0)?, operand(&operands, 1)?);
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        pad_into(source.bytes(), source.shape(), &self.dims, value.bytes(), &self.shape, &mut out)?;
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

/// An integer scalar.
pub(crate) fn index(array: &Array) -> Result<i128, EvalError> {
    let bytes = array.bytes();
    element(bytes, array.dtype(), 0).ok_or_else(|| fail(format!("{array:?} is no index")))
}

/// An integer of an array's bytes.
fn element(bytes: &[u8], dtype: DType, at: usize) -> Option<i128> {
    let size = element_size(dtype)?;
    let bytes = bytes.get(at * size..(at + 1) * size)?;
    Some(match dtype {
        DType::S8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::S16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::S32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::S64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        DType::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
        _ => return None,
    })
}

/// The start of a window of `window` in `size`, moved so that it fits.
pub(crate) fn clamped(start: i128, size: usize, window: usize) -> usize {
    start.clamp(0, size.saturating_sub(window) as i128) as usize
}

/// The window of `sizes` that starts at the scalars from `first` on.
fn window(operands: &[Value], first: usize, shape: &[usize], sizes: &[usize]) -> Result<View, EvalError> {
    let mut view = View::dense(shape);
    for (axis, &size) in sizes.iter().enumerate() {
        let start = clamped(index(operand(operands, first + axis)?)?, shape[axis], size);
        let (_, stride) = view.axes[axis];
        view.offset += start * stride as usize;
        view.axes[axis].0 = size;
    }
    Ok(view.merged())
}

struct DynamicSlice {
    dtype: DType,
    size: usize,
    sizes: Vec<usize>,
}

impl Step for DynamicSlice {
    fn name(&self) -> &'static str {
        "dynamic-slice"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let source = operand(&operands, 0)?;
        let view = window(&operands, 1, source.shape(), &self.sizes)?;
        let mut out = context.buffers.for_array(self.dtype, &self.sizes)?;
        copy_walk(&view, source.bytes(), self.size, out.bytes_mut())?;
        Ok(Value::Array(out.into_array(self.dtype, &self.sizes)?))
    }
}

/// In place when nobody else holds the operand: a cache is updated without a copy.
struct DynamicUpdateSlice {
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
}

impl Step for DynamicUpdateSlice {
    fn name(&self) -> &'static str {
        "dynamic-update-slice"
    }

    fn run(&self, mut operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let mut target = take(&mut operands, 0)?;
        let update = operand(&operands, 1)?;
        let view = window(&operands, 2, &self.shape, update.shape())?;
        if !view.fits(target.bytes().len() / self.size) {
            return Err(fail("the update does not fit the operand"));
        }
        if let Some(bytes) = target.bytes_mut() {
            view.write(update.bytes(), self.size, bytes);
            return Ok(Value::Array(target));
        }
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        out.bytes_mut().copy_from_slice(target.bytes());
        view.write(update.bytes(), self.size, out.bytes_mut());
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

struct Gather {
    dims: GatherDims,
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
}

/// Which index vector is which: the axes of the indices but the vectors' own, and the vectors' stride.
pub(crate) struct Indices<'a> {
    array: &'a Array,
    batch: View,
    step: usize,
}

impl<'a> Indices<'a> {
    pub(crate) fn new(array: &'a Array, vector: usize) -> Self {
        let dense = View::dense(array.shape());
        let step = dense.axes.get(vector).map_or(1, |a| a.1 as usize);
        let axes =
            dense.axes.iter().enumerate().filter(|(a, _)| *a != vector).map(|(_, &axis)| axis).collect();
        Indices { array, batch: View { offset: 0, axes }, step }
    }

    /// The batch's shape.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.batch.axes.iter().map(|a| a.0).collect()
    }

    /// Component `component` of the vector at a place of the batch.
    pub(crate) fn get(&self, place: &[usize], component: usize) -> Result<i128, EvalError> {
        let at: usize = place.iter().zip(&self.batch.axes).map(|(&i, a)| i * a.1 as usize).sum();
        element(self.array.bytes(), self.array.dtype(), at + component * self.step)
            .ok_or_else(|| fail("an index is missing"))
    }
}

/// Goes to the next index in row-major order; false after the last.
pub(crate) fn advance(index: &mut [usize], shape: &[usize]) -> bool {
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < size {
            return true;
        }
        *i = 0;
    }
    false
}

impl Step for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let (source, indices) = (operand(&operands, 0)?, operand(&operands, 1)?);
        let dims = &self.dims;
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        if out.bytes_mut().is_empty() {
            return Ok(Value::Array(out.into_array(self.dtype, &self.shape)?));
        }
        let from = View::dense(source.shape());
        let to = strides(&self.shape);
        // The slice's axes that the result has, in the operand and in the result.
        let kept: Vec<usize> = (0..source.rank())
            .filter(|a| !dims.collapsed_slice_dims.contains(a) && !dims.operand_batching_dims.contains(a))
            .collect();
        let read =
            View { offset: 0, axes: kept.iter().map(|&a| (dims.slice_sizes[a], from.axes[a].1)).collect() };
        let write = View {
            offset: 0,
            axes: kept
                .iter()
                .zip(&dims.offset_dims)
                .map(|(&a, &o)| (dims.slice_sizes[a], to[o] as isize))
                .collect(),
        };
        let batch_axes: Vec<usize> =
            (0..self.shape.len()).filter(|a| !dims.offset_dims.contains(a)).collect();
        let (read, write) = (read.merged(), write.merged());
        let dense = read.is_dense() && write.is_dense();
        let bytes = read.len() * self.size;
        let indices = Indices::new(indices, dims.index_vector_dim);
        let batch = indices.shape();
        let mut place = vec![0; batch.len()];
        let mut slice = vec![0u64; bytes.div_ceil(8)];
        loop {
            let mut at = 0;
            for (component, &axis) in dims.start_index_map.iter().enumerate() {
                let start = indices.get(&place, component)?;
                at +=
                    clamped(start, source.shape()[axis], dims.slice_sizes[axis]) * from.axes[axis].1 as usize;
            }
            for (&axis, &b) in dims.operand_batching_dims.iter().zip(&dims.start_indices_batching_dims) {
                // Batch axes of the indices, without the vectors' own.
                let b = if b > dims.index_vector_dim { b - 1 } else { b };
                at += place[b] * from.axes[axis].1 as usize;
            }
            let goes: usize = place.iter().zip(&batch_axes).map(|(&i, &a)| i * to[a]).sum();
            if dense {
                out.bytes_mut()[goes * self.size..][..bytes]
                    .copy_from_slice(&source.bytes()[at * self.size..][..bytes]);
            } else {
                let slice = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut slice)[..bytes];
                View { offset: at, ..read.clone() }.read(source.bytes(), self.size, 0, slice);
                View { offset: goes, ..write.clone() }.write(slice, self.size, out.bytes_mut());
            }
            if !advance(&mut place, &batch) {
                break;
            }
        }
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let ty = planning.array_type(id)?;
    let (dtype, shape) = (ty.dtype, ty.shape.clone());
    let size = element_size(dtype)?;
    planning.array_type(*node.operands.first()?)?;
    match &node.op {
        Op::Concatenate { dimension } => {
            Planned::of(node, Concatenate { dimension: *dimension, dtype, size, shape })
        }
        Op::Pad(dims) => Planned::of(node, Pad { dims: dims.clone(), dtype, shape }),
        Op::DynamicSlice { sizes } => Planned::of(node, DynamicSlice { dtype, size, sizes: sizes.clone() }),
        Op::DynamicUpdateSlice => Planned::of(node, DynamicUpdateSlice { dtype, size, shape }),
        Op::Gather(dims) => {
            element_size(planning.array_type(*node.operands.get(1)?)?.dtype)?;
            Planned::of(node, Gather { dims: dims.clone(), dtype, size, shape })
        }
        _ => None,
    }
}
