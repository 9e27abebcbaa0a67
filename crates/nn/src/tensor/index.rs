//! Picking elements by computed indices, and joining tensors.

use qwix_array::DType;
use qwix_graph::{GatherDims, Op, Type};

use super::{Operand, Scalar, Tensor};
use crate::{NnError, Result, promote_types};

impl Tensor {
    fn need_ints(&self, op: &str) -> Result<()> {
        let ty = self.array_type()?;
        if ty.dtype.is_int() {
            return Ok(());
        }
        Err(self.tracer.op_error(op, format!("indices should be integers, found {ty}")))
    }

    /// Indices from the front: those below 0 count from the back.
    fn wrapped(&self, size: usize) -> Tensor {
        self.less(0).select(self + size, self)
    }

    /// The elements of one axis at these indices, whose axes take its place. Indices below 0 count from the back, and
    /// an index outside gives NaN (of integers the smallest number, or the largest unsigned one). JAX's `take`.
    pub fn take(&self, indices: &Tensor, axis: isize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("take", ty, axis)?;
            indices.need_ints("take")?;
            let batch = indices.shape()?;
            let size = ty.shape[axis];
            if size == 0 {
                return Err(self.tracer.op_error("take", format!("axis {axis} of {ty} has no elements")));
            }
            let index = indices.astype(DType::S32).wrapped(size).expand_dims(-1);
            let inside = index.greater_equal(0) & index.less_equal(size - 1);
            let inside = inside.all(&[-1]);
            let offset_dims: Vec<usize> =
                (0..axis).chain(axis + batch.len()..ty.shape.len() + batch.len() - 1).collect();
            let mut slice_sizes = ty.shape.clone();
            slice_sizes[axis] = 1;
            let dims = GatherDims {
                offset_dims,
                collapsed_slice_dims: vec![axis],
                start_index_map: vec![axis],
                operand_batching_dims: vec![],
                start_indices_batching_dims: vec![],
                index_vector_dim: batch.len(),
                slice_sizes,
                indices_are_sorted: false,
            };
            let gathered = self.emit(Op::Gather(dims), &[self, &index], Type::Token)?;
            let shape = gathered.shape()?;
            let axes: Vec<usize> = (axis..axis + batch.len()).collect();
            let inside = inside.broadcast_axes(&shape, &axes);
            let outside = match ty.dtype.int_bounds() {
                Some((low, _)) if ty.dtype.is_signed_int() => gathered.full_like(low as i64),
                Some((_, high)) => gathered.full_like(high as i64),
                None if ty.dtype == DType::Pred => gathered.full_like(1),
                None => gathered.full_like(f64::NAN),
            };
            inside.select(gathered, outside).ok()
        })
    }

    /// For each index along the axis, the element there: `out[i][j] = self[i][indices[i][j]]` when the axis is the last.
    /// `indices` has this tensor's shape but for the axis. Indices below 0 count from the back; those outside are
    /// moved to the nearest end.
    pub fn take_along_axis(&self, indices: &Tensor, axis: isize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("take_along_axis", ty, axis)?;
            indices.need_ints("take_along_axis")?;
            let of = indices.array_type()?;
            let fits = of.shape.len() == ty.shape.len()
                && (0..ty.shape.len()).all(|a| a == axis || of.shape[a] == ty.shape[a]);
            if !fits {
                let reason = format!("indices {of} should have the shape of {ty} but for axis {axis}");
                return Err(self.tracer.op_error("take_along_axis", reason));
            }
            let index = indices.astype(DType::S32).wrapped(ty.shape[axis]).expand_dims(-1);
            let batching: Vec<usize> = (0..ty.shape.len()).filter(|&a| a != axis).collect();
            let dims = GatherDims {
                offset_dims: vec![],
                collapsed_slice_dims: vec![axis],
                start_index_map: vec![axis],
                operand_batching_dims: batching.clone(),
                start_indices_batching_dims: batching,
                index_vector_dim: ty.shape.len(),
                slice_sizes: vec![1; ty.shape.len()],
                indices_are_sorted: false,
            };
            self.emit(Op::Gather(dims), &[self, &index], Type::Token)
        })
    }

    /// Scalar start indices in s32, one an axis, counted from the back when negative.
    fn starts(&self, op: &str, starts: Vec<Operand>) -> Result<Vec<Tensor>> {
        let ty = self.array_type()?;
        if starts.len() != ty.shape.len() {
            return Err(self.tracer.op_error(op, format!("{} start indices for {ty}", starts.len())));
        }
        starts
            .into_iter()
            .zip(&ty.shape)
            .map(|(start, &size)| match start {
                Operand::Scalar(Scalar::Int(start)) if start >= 0 => {
                    self.tracer.scalar(Scalar::Int(start).array(DType::S32)?)
                }
                Operand::Scalar(scalar) => self.tracer.scalar(scalar.array(DType::S32)?)?.wrapped(size).ok(),
                Operand::Tensor(start) => {
                    start.need_ints(op)?;
                    start.astype(DType::S32).reshape(&[]).wrapped(size).ok()
                }
            })
            .collect()
    }

    /// The part of these sizes that starts at these indices (tensors or numbers). Negative ones count from the back, and
    /// all are moved so that the part lies inside.
    pub fn dynamic_slice(&self, starts: impl IntoIterator<Item = Operand>, sizes: &[usize]) -> Tensor {
        self.then(|_| {
            let starts = self.starts("dynamic_slice", starts.into_iter().collect())?;
            let operands: Vec<&Tensor> = [self].into_iter().chain(&starts).collect();
            self.emit(Op::DynamicSlice { sizes: sizes.to_vec() }, &operands, Type::Token)
        })
    }

    /// This with `update` written over the part that starts at these indices (tensors or numbers). Negative ones count
    /// from the back, and all are moved so that the part lies inside.
    pub fn dynamic_update_slice(&self, update: &Tensor, starts: impl IntoIterator<Item = Operand>) -> Tensor {
        self.then(|ty| {
            let update = update.astype(ty.dtype);
            let starts = self.starts("dynamic_update_slice", starts.into_iter().collect())?;
            let operands: Vec<&Tensor> = [self, &update].into_iter().chain(&starts).collect();
            self.emit(Op::DynamicUpdateSlice, &operands, Type::Token)
        })
    }

    /// 1 where the last axis, which is new, counts to the number, 0 elsewhere.
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Tensor {
        self.then(|ty| {
            self.need_ints("one_hot")?;
            let mut shape = ty.shape.clone();
            shape.push(classes);
            let last = shape.len() - 1;
            let count = self.emit(Op::Iota { dimension: last }, &[], Type::array(ty.dtype, shape))?;
            self.expand_dims(-1).equal(count).astype(dtype).ok()
        })
    }
}

/// Tensors one after the other along an axis.
pub fn concatenate<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, axis: isize) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = tensors.into_iter().collect();
    let Some(first) = tensors.first() else {
        return Err(NnError::Op {
            module: String::new(),
            op: "concatenate".to_owned(),
            reason: "takes at least one tensor".to_owned(),
        });
    };
    let ty = first.array_type()?;
    let dimension = first.axis("concatenate", ty, axis)?;
    let mut dtype = ty.dtype;
    for tensor in &tensors[1..] {
        let other = tensor.array_type()?;
        dtype = promote_types(dtype, other.dtype).ok_or_else(|| {
            first.tracer.op_error("concatenate", format!("{ty} and {other} have no common dtype"))
        })?;
    }
    let converted: Vec<Tensor> = tensors.iter().map(|t| t.astype(dtype)).collect();
    first.emit(Op::Concatenate { dimension }, &converted.iter().collect::<Vec<_>>(), Type::Token)
}

/// Tensors of one shape along a new axis.
pub fn stack<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, axis: isize) -> Result<Tensor> {
    let expanded: Vec<Tensor> = tensors.into_iter().map(|t| t.expand_dims(axis)).collect();
    concatenate(&expanded, axis)
}
