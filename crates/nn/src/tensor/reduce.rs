//! Reductions along axes.

use std::sync::Arc;

use qwix_array::{Array, DType};
use qwix_graph::{
    ArrayType, BinaryOp, CompareOrder, Comparison, Computation, ComputationBuilder, Op, Type, WindowDim,
    reducer,
};

use super::Tensor;
use crate::Result;

/// What nothing gives: the initial value of a reduction.
fn initial(op: BinaryOp, dtype: DType) -> Result<Array> {
    let extreme = |largest: bool| match dtype.int_bounds() {
        Some((low, high)) => {
            let bound = if largest { high } else { low };
            // Bounds of u64 are past i64; their bits are the same.
            Ok(Array::from_i64(dtype, &[], &[bound as i64])?)
        }
        None if dtype == DType::Pred => Ok(Array::from_i64(dtype, &[], &[i64::from(largest)])?),
        None => {
            let infinity = if largest { f64::INFINITY } else { f64::NEG_INFINITY };
            Ok(Array::from_f64(dtype, &[], &[infinity])?)
        }
    };
    match op {
        BinaryOp::Maximum => extreme(false),
        BinaryOp::Minimum => extreme(true),
        BinaryOp::Multiply | BinaryOp::And => Ok(Array::from_i64(dtype, &[], &[1])?),
        BinaryOp::Add
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::Atan2
        | BinaryOp::Divide
        | BinaryOp::Power
        | BinaryOp::Remainder
        | BinaryOp::ShiftLeft
        | BinaryOp::ShiftRightArithmetic
        | BinaryOp::ShiftRightLogical
        | BinaryOp::Subtract => Ok(Array::from_i64(dtype, &[], &[0])?),
    }
}

impl Tensor {
    /// Reduced over these axes (all, when there are none given).
    fn reduce(&self, op: BinaryOp, axes: &[isize]) -> Result<Tensor> {
        let ty = self.array_type()?;
        let dimensions = self.reduced_axes(ty, axes)?;
        let initial = self.tracer.scalar(initial(op, ty.dtype)?)?;
        let computation = reducer(op, ty.dtype)?;
        self.emit(Op::Reduce { dimensions, computation }, &[self, &initial], Type::Token)
    }

    fn reduced_axes(&self, ty: &ArrayType, axes: &[isize]) -> Result<Vec<usize>> {
        if axes.is_empty() { Ok((0..ty.shape.len()).collect()) } else { self.sorted_axes("reduce", ty, axes) }
    }

    /// `reduced` with the axes that went put back as axes of size 1.
    fn keep_dims(&self, reduced: &Tensor, axes: &[isize]) -> Tensor {
        self.then(|ty| {
            let mut shape = ty.shape.clone();
            for axis in self.reduced_axes(ty, axes)? {
                shape[axis] = 1;
            }
            reduced.reshape(&shape).ok()
        })
    }

    /// A sum or mean in f32 of narrower floats, as JAX does it, and how many elements each comes from.
    fn sum_wide(&self, axes: &[isize]) -> Result<(Tensor, usize)> {
        let ty = self.array_type()?;
        let wide = match ty.dtype {
            DType::F16 | DType::BF16 => self.astype(DType::F32),
            DType::Pred => self.astype(DType::S32),
            _ => self.clone(),
        };
        let count = self.reduced_axes(ty, axes)?.iter().map(|&axis| ty.shape[axis]).product();
        Ok((wide.reduce(BinaryOp::Add, axes)?, count))
    }

    /// The sum over these axes, or over all when there are none given. bf16 and f16 are summed in f32.
    pub fn sum(&self, axes: &[isize]) -> Tensor {
        self.then(|ty| {
            let dtype = if ty.dtype == DType::Pred { DType::S32 } else { ty.dtype };
            self.sum_wide(axes)?.0.astype(dtype).ok()
        })
    }

    /// [`Tensor::sum`] with the axes kept, of size 1.
    pub fn sum_keepdims(&self, axes: &[isize]) -> Tensor {
        self.keep_dims(&self.sum(axes), axes)
    }

    /// The mean over these axes, or over all when there are none given: sum, then division, bf16 and f16 in f32.
    pub fn mean(&self, axes: &[isize]) -> Tensor {
        self.then(|ty| {
            let (sum, count) = self.to_float().sum_wide(axes)?;
            let dtype = if ty.dtype.is_float() { ty.dtype } else { DType::F32 };
            (sum / count).astype(dtype).ok()
        })
    }

    /// [`Tensor::mean`] with the axes kept, of size 1.
    pub fn mean_keepdims(&self, axes: &[isize]) -> Tensor {
        self.then(|ty| {
            let (sum, count) = self.to_float().sum_wide(axes)?;
            let dtype = if ty.dtype.is_float() { ty.dtype } else { DType::F32 };
            (self.keep_dims(&sum, axes) / count).astype(dtype).ok()
        })
    }

    /// The mean of squared distances from the mean, over these axes.
    pub fn var(&self, axes: &[isize]) -> Tensor {
        let x = self.to_float();
        (&x - x.mean_keepdims(axes)).square().mean(axes)
    }

    /// The largest over these axes, or over all when there are none given.
    pub fn max(&self, axes: &[isize]) -> Tensor {
        self.then(|_| self.reduce(BinaryOp::Maximum, axes))
    }

    /// [`Tensor::max`] with the axes kept, of size 1.
    pub fn max_keepdims(&self, axes: &[isize]) -> Tensor {
        self.keep_dims(&self.max(axes), axes)
    }

    /// The smallest over these axes, or over all when there are none given.
    pub fn min(&self, axes: &[isize]) -> Tensor {
        self.then(|_| self.reduce(BinaryOp::Minimum, axes))
    }

    /// The product over these axes, or over all when there are none given.
    pub fn prod(&self, axes: &[isize]) -> Tensor {
        self.then(|_| self.reduce(BinaryOp::Multiply, axes))
    }

    /// Whether all are true (or other than 0).
    pub fn all(&self, axes: &[isize]) -> Tensor {
        self.then(|_| self.astype(DType::Pred).reduce(BinaryOp::And, axes))
    }

    /// Whether any is true (or other than 0).
    pub fn any(&self, axes: &[isize]) -> Tensor {
        self.then(|_| self.astype(DType::Pred).reduce(BinaryOp::Or, axes))
    }

    /// Where along the axis the largest is, the first of equals, in s32; a NaN counts as the largest.
    pub fn argmax(&self, axis: isize) -> Tensor {
        self.then(|ty| self.arg(ty, axis, Comparison::Gt, BinaryOp::Maximum))
    }

    /// Where along the axis the smallest is, the first of equals, in s32; a NaN counts as the smallest.
    pub fn argmin(&self, axis: isize) -> Tensor {
        self.then(|ty| self.arg(ty, axis, Comparison::Lt, BinaryOp::Minimum))
    }

    fn arg(&self, ty: &ArrayType, axis: isize, better: Comparison, op: BinaryOp) -> Result<Tensor> {
        let axis = self.axis("argmax", ty, axis)?;
        if ty.shape[axis] == 0 {
            return Err(self.tracer.op_error("argmax", format!("axis {axis} of {ty} has no elements")));
        }
        let index =
            self.emit(Op::Iota { dimension: axis }, &[], Type::array(DType::S32, ty.shape.clone()))?;
        let worst = self.tracer.scalar(initial(op, ty.dtype)?)?;
        let first = self.tracer.scalar(Array::scalar(0i32))?;
        let computation = arg_reducer(better, ty.dtype)?;
        let op = Op::Reduce { dimensions: vec![axis], computation };
        let both = self.emit(op, &[self, &index, &worst, &first], Type::Token)?;
        self.emit(Op::GetTupleElement(1), &[&both], Type::Token)
    }

    /// The k largest along the last axis, largest first, and where they are (s32).
    ///
    /// # Errors
    /// When there are not so many, or the error that the tensor carries.
    pub fn top_k(&self, k: usize) -> Result<(Tensor, Tensor)> {
        let both = self.emit(Op::TopK { k, largest: true }, &[self], Type::Token)?;
        let element = |i| self.emit(Op::GetTupleElement(i), &[&both], Type::Token);
        Ok((element(0)?, element(1)?))
    }

    /// Running sums along an axis.
    pub fn cumsum(&self, axis: isize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("cumsum", ty, axis)?;
            let size = ty.shape[axis];
            if size == 0 {
                return self.ok();
            }
            let before = i64::try_from(size - 1)
                .map_err(|_| self.tracer.op_error("cumsum", format!("axis {axis} of {ty} is too large")))?;
            let mut window = vec![WindowDim::new(1); ty.shape.len()];
            window[axis] = WindowDim { padding_low: before, ..WindowDim::new(size) };
            self.reduce_window(BinaryOp::Add, &window)
        })
    }

    /// Windows reduced by one op.
    pub(crate) fn reduce_window(&self, op: BinaryOp, window: &[WindowDim]) -> Result<Tensor> {
        let dtype = self.dtype()?;
        let initial = self.tracer.scalar(initial(op, dtype)?)?;
        let computation = reducer(op, dtype)?;
        let op = Op::ReduceWindow { window: window.to_vec(), computation };
        self.emit(op, &[self, &initial], Type::Token)
    }
}

/// (value, index), (value, index) → the better of the two: NaN first, then by value, then the lower index.
fn arg_reducer(better: Comparison, dtype: DType) -> Result<Arc<Computation>> {
    let mut b = ComputationBuilder::new("argmax");
    let x = b.parameter("x", Type::array(dtype, []))?;
    let i = b.parameter("i", Type::array(DType::S32, []))?;
    let y = b.parameter("y", Type::array(dtype, []))?;
    let j = b.parameter("j", Type::array(DType::S32, []))?;
    let compare = |b: &mut ComputationBuilder, comparison, x, y| {
        b.add(Op::Compare { comparison, order: CompareOrder::Partial }, &[x, y])
    };
    let is_better = compare(&mut b, better, x, y)?;
    let is_nan = compare(&mut b, Comparison::Ne, x, x)?;
    let takes = b.binary(BinaryOp::Or, is_better, is_nan)?;
    let value = b.select(takes, x, y)?;
    let equal = compare(&mut b, Comparison::Eq, x, y)?;
    let earlier = compare(&mut b, Comparison::Lt, i, j)?;
    let tie = b.binary(BinaryOp::And, equal, earlier)?;
    let keeps = b.binary(BinaryOp::Or, takes, tie)?;
    let index = b.select(keeps, i, j)?;
    let root = b.tuple(&[value, index])?;
    Ok(Arc::new(b.finish(root)?))
}
