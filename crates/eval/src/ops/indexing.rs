//! Ops that pick or replace elements at places that are data.

use qwix_array::{Array, strides};
use qwix_graph::{ArrayType, Computation, GatherDims, ScatterDims};

use crate::EvalError;
use crate::cells::{Cells, each_index};
use crate::function::Function;
use crate::lanes::Lanes;
use crate::number::Scalar;
use crate::ops::shape::place;
use crate::run::Context;

/// An index as a position; those below 0 or beyond what a position can be saturate.
fn position(index: Scalar) -> Result<i64, EvalError> {
    match index {
        Scalar::Int(i) => Ok(i),
        Scalar::Uint(i) => Ok(i64::try_from(i).unwrap_or(i64::MAX)),
        Scalar::Float(_) | Scalar::Pred(_) => Err(EvalError::reason("an index should be an integer")),
    }
}

/// The start of a slice of `sizes`, moved so that the slice is inside `shape`.
pub(crate) fn clamped_starts(
    shape: &[usize],
    sizes: &[usize],
    starts: &[Array],
) -> Result<Vec<usize>, EvalError> {
    let fits = shape.len() == sizes.len()
        && shape.len() == starts.len()
        && sizes.iter().zip(shape).all(|(size, dim)| size <= dim)
        && starts.iter().all(|s| s.len() == 1);
    if !fits {
        return Err(EvalError::reason(format!(
            "a slice of {sizes:?} with {} start indices from an array of shape {shape:?}",
            starts.len()
        )));
    }
    starts
        .iter()
        .zip(shape.iter().zip(sizes))
        .map(|(start, (&dim, &size))| clamp(position(Lanes::read(start)?.get(0))?, dim - size))
        .collect()
}

fn clamp(start: i64, last: usize) -> Result<usize, EvalError> {
    Ok(usize::try_from(start.max(0)).unwrap_or(last).min(last))
}

/// A slice of `sizes` that starts at the operands.
pub(crate) fn dynamic_slice(x: &Array, starts: &[Array], sizes: &[usize]) -> Result<Array, EvalError> {
    let start = clamped_starts(x.shape(), sizes, starts)?;
    let limit: Vec<usize> = start.iter().zip(sizes).map(|(a, b)| a + b).collect();
    Ok(x.slice(&start, &limit, &vec![1; x.rank()])?)
}

/// The operand with a slice of it replaced.
pub(crate) fn dynamic_update_slice(x: &Array, update: &Array, starts: &[Array]) -> Result<Array, EvalError> {
    let start = clamped_starts(x.shape(), update.shape(), starts)?;
    if x.dtype() != update.dtype() {
        return Err(EvalError::reason(format!("dynamic-update-slice of {x:?} with {update:?}")));
    }
    let mut out = Cells::read(x)?;
    place(&mut out, x.shape(), update, &start, &vec![1; x.rank()])?;
    Ok(out.write(x.dtype(), x.shape())?)
}

/// Where the index vectors are in an array of indices, and which axes are batch axes.
struct Indices {
    values: Lanes,
    strides: Vec<usize>,
    /// Axes that do not hold index vectors, and their sizes.
    batch_axes: Vec<usize>,
    batch_shape: Vec<usize>,
    /// Distance between the components of an index vector, and how many there are.
    step: usize,
    count: usize,
}

impl Indices {
    fn new(indices: &Array, vector_axis: usize) -> Result<Self, EvalError> {
        let shape = indices.shape();
        if vector_axis > shape.len() {
            return Err(EvalError::reason(format!("index vectors along axis {vector_axis} of {indices:?}")));
        }
        let strides = strides(shape);
        let batch_axes: Vec<usize> = (0..shape.len()).filter(|&a| a != vector_axis).collect();
        Ok(Indices {
            values: Lanes::read(indices)?,
            batch_shape: batch_axes.iter().map(|&a| shape[a]).collect(),
            batch_axes,
            step: strides.get(vector_axis).copied().unwrap_or(0),
            count: shape.get(vector_axis).copied().unwrap_or(1),
            strides,
        })
    }

    /// One component of the index vector at a batch index.
    fn component(&self, batch: &[usize], component: usize) -> Result<i64, EvalError> {
        let base: usize = batch.iter().zip(&self.batch_axes).map(|(i, &a)| i * self.strides[a]).sum();
        position(self.values.get(base + component * self.step))
    }
}

/// Which axes of the operand a window has, and which of its axes go along with axes of the indices.
struct Windows {
    /// Operand axes that have an axis in the window.
    kept: Vec<usize>,
    /// Pairs of an operand axis and the place of its partner among the batch axes of the indices.
    paired: Vec<(usize, usize)>,
}

impl Windows {
    fn new(
        rank: usize,
        dropped: &[usize],
        operand_batch: &[usize],
        indices_batch: &[usize],
        indices: &Indices,
    ) -> Option<Self> {
        if operand_batch.len() != indices_batch.len() || operand_batch.iter().any(|&a| a >= rank) {
            return None;
        }
        let paired = operand_batch
            .iter()
            .zip(indices_batch)
            .map(|(&o, i)| Some((o, indices.batch_axes.iter().position(|a| a == i)?)))
            .collect::<Option<Vec<_>>>()?;
        let kept = (0..rank).filter(|a| !dropped.contains(a) && !operand_batch.contains(a)).collect();
        Some(Windows { kept, paired })
    }
}

/// Whether no axis stands in the lists twice.
fn distinct(lists: &[&[usize]]) -> bool {
    let mut all = lists.concat();
    all.sort_unstable();
    all.is_sorted_by(|a, b| a < b)
}

/// Slices of the operand, one for each index vector; a slice that would reach outside is moved inside.
pub(crate) fn gather(
    x: &Array,
    indices: &Array,
    dims: &GatherDims,
    ty: &ArrayType,
) -> Result<Array, EvalError> {
    let wrong = || EvalError::reason(format!("gather of {x:?} at {indices:?} into {ty} with {dims:?}"));
    let at = Indices::new(indices, dims.index_vector_dim)?;
    let windows = Windows::new(
        x.rank(),
        &dims.collapsed_slice_dims,
        &dims.operand_batching_dims,
        &dims.start_indices_batching_dims,
        &at,
    )
    .ok_or_else(wrong)?;
    let batch_out: Vec<usize> = (0..ty.shape.len()).filter(|a| !dims.offset_dims.contains(a)).collect();
    let fits = distinct(&[&dims.offset_dims])
        && distinct(&[&dims.start_index_map, &dims.operand_batching_dims])
        && dims.slice_sizes.len() == x.rank()
        && dims.slice_sizes.iter().zip(x.shape()).all(|(s, d)| s <= d)
        && dims.start_index_map.len() == at.count
        && dims.start_index_map.iter().all(|&a| a < x.rank())
        && (0..x.rank()).all(|a| windows.kept.contains(&a) || dims.slice_sizes[a] == 1)
        && windows.paired.iter().all(|&(o, i)| at.batch_shape[i] <= x.shape()[o])
        && batch_out.iter().map(|&a| ty.shape[a]).eq(at.batch_shape.iter().copied())
        && dims.offset_dims.len() == windows.kept.len()
        && dims
            .offset_dims
            .iter()
            .zip(&windows.kept)
            .all(|(&o, &k)| ty.shape.get(o).is_some_and(|&size| size == dims.slice_sizes[k]));
    if !fits {
        return Err(wrong());
    }
    let (from, to) = (strides(x.shape()), strides(&ty.shape));
    let window: Vec<usize> = windows.kept.iter().map(|&a| dims.slice_sizes[a]).collect();
    let source = Cells::read(x)?;
    let mut out = Cells::filled(&zero(ty)?, &ty.shape)?;
    each_index(&at.batch_shape, |batch| {
        let mut start = 0;
        for (component, &axis) in dims.start_index_map.iter().enumerate() {
            let first = at.component(batch, component)?;
            start += clamp(first, x.shape()[axis] - dims.slice_sizes[axis])? * from[axis];
        }
        start += windows.paired.iter().map(|&(o, i)| batch[i] * from[o]).sum::<usize>();
        let base: usize = batch.iter().zip(&batch_out).map(|(i, &a)| i * to[a]).sum();
        each_index(&window, |offset| {
            let read: usize = offset.iter().zip(&windows.kept).map(|(i, &a)| i * from[a]).sum();
            let write: usize = offset.iter().zip(&dims.offset_dims).map(|(i, &a)| i * to[a]).sum();
            out.copy(base + write, &source, start + read);
            Ok::<(), EvalError>(())
        })
    })?;
    Ok(out.write(ty.dtype, &ty.shape)?)
}

fn zero(ty: &ArrayType) -> Result<Array, EvalError> {
    Ok(Array::zeros(ty.dtype, &[])?)
}

/// Operands with windows of updates combined into them, in row-major order of the updates. A window of which any part
/// is outside is left out.
pub(crate) fn scatter(
    operands: &[Array],
    indices: &Array,
    updates: &[Array],
    dims: &ScatterDims,
    update: &Computation,
    context: Context<'_>,
) -> Result<Vec<Array>, EvalError> {
    let (Some(x), Some(u)) = (operands.first(), updates.first()) else {
        return Err(EvalError::reason("scatter without operands"));
    };
    let wrong = || EvalError::reason(format!("scatter of {u:?} into {x:?} at {indices:?} with {dims:?}"));
    let at = Indices::new(indices, dims.index_vector_dim)?;
    let windows = Windows::new(
        x.rank(),
        &dims.inserted_window_dims,
        &dims.input_batching_dims,
        &dims.scatter_indices_batching_dims,
        &at,
    )
    .ok_or_else(wrong)?;
    let batch_axes: Vec<usize> = (0..u.rank()).filter(|a| !dims.update_window_dims.contains(a)).collect();
    let fits = distinct(&[&dims.update_window_dims])
        && distinct(&[&dims.scatter_dims_to_operand_dims, &dims.input_batching_dims])
        && operands.len() == updates.len()
        && operands.iter().all(|o| o.shape() == x.shape())
        && updates.iter().all(|o| o.shape() == u.shape())
        && operands.iter().zip(updates).all(|(o, u)| o.dtype() == u.dtype())
        && dims.scatter_dims_to_operand_dims.len() == at.count
        && dims.scatter_dims_to_operand_dims.iter().all(|&a| a < x.rank())
        && batch_axes.iter().map(|&a| u.shape()[a]).eq(at.batch_shape.iter().copied())
        && windows.paired.iter().all(|&(o, i)| at.batch_shape[i] <= x.shape()[o])
        && dims.update_window_dims.len() == windows.kept.len()
        && dims
            .update_window_dims
            .iter()
            .zip(&windows.kept)
            .all(|(&w, &k)| u.shape().get(w).is_some_and(|&size| size <= x.shape()[k]));
    if !fits {
        return Err(wrong());
    }
    // The window in the operand's rank: 1 where updates have no axis.
    let mut sizes = vec![1; x.rank()];
    for (&w, &k) in dims.update_window_dims.iter().zip(&windows.kept) {
        sizes[k] = u.shape()[w];
    }
    let window: Vec<usize> = dims.update_window_dims.iter().map(|&w| u.shape()[w]).collect();
    let (to, from) = (strides(x.shape()), strides(u.shape()));
    let mut results = operands.iter().map(Lanes::read).collect::<Result<Vec<_>, _>>()?;
    let updates = updates.iter().map(Lanes::read).collect::<Result<Vec<_>, _>>()?;
    let dtypes: Vec<_> = operands.iter().chain(operands).map(Array::dtype).collect();
    let mut combine = Function::new(update, context);
    let (mut arguments, mut combined) = (Vec::new(), Vec::new());
    each_index(&at.batch_shape, |batch| {
        let mut start = vec![0i64; x.rank()];
        for (component, &axis) in dims.scatter_dims_to_operand_dims.iter().enumerate() {
            start[axis] = at.component(batch, component)?;
        }
        for &(o, i) in &windows.paired {
            start[o] = batch[i] as i64;
        }
        let inside = start.iter().zip(x.shape().iter().zip(&sizes)).all(|(&start, (&dim, &size))| {
            usize::try_from(start).is_ok_and(|start| start.checked_add(size).is_some_and(|end| end <= dim))
        });
        if !inside {
            return Ok(());
        }
        let first: usize = start.iter().zip(&to).map(|(&i, s)| i as usize * s).sum();
        let base: usize = batch.iter().zip(&batch_axes).map(|(i, &a)| i * from[a]).sum();
        each_index(&window, |offset| {
            let read: usize = offset.iter().zip(&dims.update_window_dims).map(|(i, &a)| i * from[a]).sum();
            let write: usize = offset.iter().zip(&windows.kept).map(|(i, &a)| i * to[a]).sum();
            arguments.clear();
            arguments.extend(results.iter().map(|r| r.get(first + write)));
            arguments.extend(updates.iter().map(|u| u.get(base + read)));
            combine.call(&dtypes, &arguments, &mut combined)?;
            for (result, &value) in results.iter_mut().zip(&combined) {
                result.set(first + write, value)?;
            }
            Ok::<(), EvalError>(())
        })
    })?;
    results.iter().zip(operands).map(|(r, o)| Ok(r.write(o.dtype(), o.shape())?)).collect()
}
