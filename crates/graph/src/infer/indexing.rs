//! Types of ops that pick elements.

use qwix_array::DType;

use super::{Reason, array_list, arrays, dense, distinct_axes, plain, quantized, scalar_computation};
use crate::{ArrayType, Computation, GatherDims, ScatterDims, SliceDim, Type};

pub(super) fn slice(operands: &[&Type], dims: &[SliceDim]) -> Result<Type, Reason> {
    super::count(operands, 1)?;
    let x = dense(0, operands[0])?;
    if dims.len() != x.shape.len() {
        return Err(format!("{} dimensions for a slice of {x}", dims.len()));
    }
    let mut shape = Vec::with_capacity(dims.len());
    for (axis, (&size, dim)) in x.shape.iter().zip(dims).enumerate() {
        if dim.stride == 0 || dim.start > dim.limit || dim.limit > size {
            return Err(format!(
                "[{}:{}:{}] along axis {axis} of {x}: expected 0 <= start <= limit <= {size}, stride > 0",
                dim.start, dim.limit, dim.stride
            ));
        }
        shape.push((dim.limit - dim.start).div_ceil(dim.stride));
    }
    match operands[0] {
        Type::QArray(q) => Ok(quantized::slice(q, dims, shape)?.into()),
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => Ok(Type::array(x.dtype, shape)),
    }
}

/// That the starts are scalar integers, one an axis.
fn starts(operands: &[&Type], rank: usize) -> Result<(), Reason> {
    if operands.len() != rank {
        return Err(format!("takes a start for each of {rank} axes, found {}", operands.len()));
    }
    for &ty in operands {
        match ty {
            Type::Array(a) if a.shape.is_empty() && a.dtype.is_int() => {}
            Type::Array(_) | Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                return Err(format!("a start should be a scalar integer, found {ty}"));
            }
        }
    }
    Ok(())
}

pub(super) fn dynamic_slice(operands: &[&Type], sizes: &[usize]) -> Result<Type, Reason> {
    let [x_type, start @ ..] = operands else {
        return Err("takes an operand and its starts, found none".into());
    };
    let x = dense(0, x_type)?;
    starts(start, x.shape.len())?;
    if sizes.len() != x.shape.len() || sizes.iter().zip(&x.shape).any(|(s, d)| s > d) {
        return Err(format!("a slice of {sizes:?} does not fit {x}"));
    }
    match x_type {
        Type::QArray(q) => Ok(quantized::dynamic_slice(q, sizes)?.into()),
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => Ok(Type::array(x.dtype, sizes)),
    }
}

pub(super) fn dynamic_update_slice(operands: &[&Type]) -> Result<Type, Reason> {
    let [x, update, start @ ..] = operands else {
        return Err(format!("takes an operand, an update and starts, found {} operands", operands.len()));
    };
    let (x, update) = (plain(0, x)?, plain(1, update)?);
    starts(start, x.shape.len())?;
    let fits = update.dtype == x.dtype
        && update.shape.len() == x.shape.len()
        && update.shape.iter().zip(&x.shape).all(|(u, d)| u <= d);
    if fits { Ok(x.clone().into()) } else { Err(format!("an update {update} does not fit {x}")) }
}

/// The axes of the indices that are not index vectors, batch axes in this order, and the length of a vector.
fn index_batch(indices: &ArrayType, vector_dim: usize) -> Result<(Vec<usize>, usize), Reason> {
    if !indices.dtype.is_int() {
        return Err(format!("indices should be integers, found {indices}"));
    }
    let rank = indices.shape.len();
    if vector_dim > rank {
        return Err(format!("index_vector_dim {vector_dim} of indices {indices}"));
    }
    let batch = (0..rank).filter(|&a| a != vector_dim).map(|a| indices.shape[a]).collect();
    Ok((batch, indices.shape.get(vector_dim).copied().unwrap_or(1)))
}

/// That batching axes of operand and indices are paired and of one size.
fn batching(
    x: &ArrayType,
    indices: &ArrayType,
    ours: &[usize],
    theirs: &[usize],
    vector: usize,
) -> Result<(), Reason> {
    distinct_axes("operand batching dims", ours, x.shape.len())?;
    distinct_axes("indices batching dims", theirs, indices.shape.len())?;
    let fits = ours.len() == theirs.len()
        && !theirs.contains(&vector)
        && ours.iter().zip(theirs).all(|(&a, &b)| x.shape[a] == indices.shape[b]);
    if fits {
        Ok(())
    } else {
        Err(format!("batching dims {ours:?} of {x} and {theirs:?} of indices {indices} do not pair"))
    }
}

fn sorted(what: &str, axes: &[usize]) -> Result<(), Reason> {
    if axes.is_sorted() { Ok(()) } else { Err(format!("{what} {axes:?} should ascend")) }
}

pub(super) fn gather(operands: &[&Type], dims: &GatherDims) -> Result<Type, Reason> {
    let [x, indices] = arrays(operands)?;
    let rank = x.shape.len();
    let (batch, depth) = index_batch(indices, dims.index_vector_dim)?;
    if depth != dims.start_index_map.len() {
        return Err(format!("index vectors of {depth} for start_index_map {:?}", dims.start_index_map));
    }
    distinct_axes("start_index_map", &dims.start_index_map, rank)?;
    distinct_axes("collapsed_slice_dims", &dims.collapsed_slice_dims, rank)?;
    batching(
        x,
        indices,
        &dims.operand_batching_dims,
        &dims.start_indices_batching_dims,
        dims.index_vector_dim,
    )?;
    if dims.slice_sizes.len() != rank || dims.slice_sizes.iter().zip(&x.shape).any(|(s, d)| s > d) {
        return Err(format!("slice_sizes {:?} do not fit {x}", dims.slice_sizes));
    }
    let gone =
        |axis: &usize| dims.collapsed_slice_dims.contains(axis) || dims.operand_batching_dims.contains(axis);
    if let Some(axis) = (0..rank).find(|a| gone(a) && dims.slice_sizes[*a] > 1) {
        return Err(format!("axis {axis} is collapsed, but its slice size is {}", dims.slice_sizes[axis]));
    }
    let window: Vec<usize> = (0..rank).filter(|a| !gone(a)).map(|a| dims.slice_sizes[a]).collect();
    if window.len() != dims.offset_dims.len() {
        return Err(format!("{} offset_dims for a slice of shape {window:?}", dims.offset_dims.len()));
    }
    sorted("offset_dims", &dims.offset_dims)?;
    let out = batch.len() + window.len();
    distinct_axes("offset_dims", &dims.offset_dims, out)?;
    Ok(Type::array(x.dtype, interleave(out, &dims.offset_dims, &window, &batch)))
}

/// A shape whose axes `at` come from `window`, the others from `batch`, both in order.
fn interleave(rank: usize, at: &[usize], window: &[usize], batch: &[usize]) -> Vec<usize> {
    let (mut window, mut batch) = (window.iter(), batch.iter());
    (0..rank)
        .map(|axis| if at.contains(&axis) { window.next() } else { batch.next() }.copied().unwrap_or(1))
        .collect()
}

pub(super) fn scatter(operands: &[&Type], dims: &ScatterDims, update: &Computation) -> Result<Type, Reason> {
    let n = operands.len() / 2;
    if operands.len() != 2 * n + 1 || n == 0 {
        return Err(format!("takes n operands, indices and n updates, found {} operands", operands.len()));
    }
    let list = array_list(operands)?;
    let (xs, indices, updates) = (&list[..n], list[n], &list[n + 1..]);
    let (x, u) = (xs[0], updates[0]);
    for (x2, u2) in xs.iter().zip(updates) {
        if x2.shape != x.shape || u2.shape != u.shape || u2.dtype != x2.dtype {
            return Err(format!(
                "operands and updates should be alike, found {x} with {u} and {x2} with {u2}"
            ));
        }
    }
    let rank = x.shape.len();
    let (batch, depth) = index_batch(indices, dims.index_vector_dim)?;
    if depth != dims.scatter_dims_to_operand_dims.len() {
        return Err(format!(
            "index vectors of {depth} for scatter_dims_to_operand_dims {:?}",
            dims.scatter_dims_to_operand_dims
        ));
    }
    distinct_axes("scatter_dims_to_operand_dims", &dims.scatter_dims_to_operand_dims, rank)?;
    distinct_axes("inserted_window_dims", &dims.inserted_window_dims, rank)?;
    batching(
        x,
        indices,
        &dims.input_batching_dims,
        &dims.scatter_indices_batching_dims,
        dims.index_vector_dim,
    )?;
    let window: Vec<usize> = (0..rank)
        .filter(|a| !dims.inserted_window_dims.contains(a) && !dims.input_batching_dims.contains(a))
        .map(|a| x.shape[a])
        .collect();
    let out = batch.len() + window.len();
    sorted("update_window_dims", &dims.update_window_dims)?;
    distinct_axes("update_window_dims", &dims.update_window_dims, out)?;
    if dims.update_window_dims.len() != window.len() || u.shape.len() != out {
        return Err(format!(
            "updates {u} should have {} window axes and {} others",
            window.len(),
            batch.len()
        ));
    }
    // A window may be smaller than the operand.
    let limit = interleave(out, &dims.update_window_dims, &window, &batch);
    let fits = |a: usize| {
        if dims.update_window_dims.contains(&a) { u.shape[a] <= limit[a] } else { u.shape[a] == limit[a] }
    };
    if !(0..out).all(fits) {
        return Err(format!("updates {u} do not fit, expected at most {limit:?}"));
    }
    let dtypes: Vec<DType> = xs.iter().map(|x| x.dtype).collect();
    scalar_computation("update", update, &[dtypes.clone(), dtypes.clone()].concat(), Some(&dtypes))?;
    Ok(one_or_tuple(xs.iter().map(|&x| x.clone().into()).collect()))
}

/// HLO's way with several results: one comes alone, others as a tuple.
pub(super) fn one_or_tuple(mut types: Vec<Type>) -> Type {
    if types.len() == 1 { types.remove(0) } else { Type::Tuple(types) }
}

pub(super) fn top_k(operands: &[&Type], k: usize) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    let mut shape = x.shape.clone();
    match shape.last_mut() {
        Some(last) if *last >= k => *last = k,
        _ => return Err(format!("the {k} largest along the last axis of {x}")),
    }
    Ok(Type::Tuple(vec![Type::array(x.dtype, shape.clone()), Type::array(DType::S32, shape)]))
}
