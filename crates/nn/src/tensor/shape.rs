//! Moving elements about.

use std::ops::Range;

use qwix_array::{DType, element_count};
use qwix_graph::{Op, PadDim, SliceDim, Type};

use super::{Scalar, Tensor};
use crate::Result;

impl Tensor {
    /// The same elements in another shape.
    pub fn reshape(&self, shape: &[usize]) -> Tensor {
        self.then(|ty| {
            if ty.shape == shape {
                return self.ok();
            }
            self.emit(Op::Reshape, &[self], Type::array(ty.dtype, shape))
        })
    }

    /// Axes from `first` to `last`, both included, as one.
    pub fn flatten(&self, first: isize, last: isize) -> Tensor {
        self.then(|ty| {
            let (first, last) = (self.axis("flatten", ty, first)?, self.axis("flatten", ty, last)?);
            if first > last {
                return Err(self.tracer.op_error("flatten", format!("axis {first} comes after axis {last}")));
            }
            let merged = ty.shape[first..=last].iter().product();
            let mut shape = ty.shape.clone();
            shape.splice(first..=last, [merged]);
            self.reshape(&shape).ok()
        })
    }

    /// One axis as several of these sizes.
    pub fn unflatten(&self, axis: isize, sizes: &[usize]) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("unflatten", ty, axis)?;
            if element_count(sizes) != Some(ty.shape[axis]) {
                let reason = format!("axis {axis} of {ty} does not split into {sizes:?}");
                return Err(self.tracer.op_error("unflatten", reason));
            }
            let mut shape = ty.shape.clone();
            shape.splice(axis..=axis, sizes.iter().copied());
            self.reshape(&shape).ok()
        })
    }

    /// Axis i of the result is axis `permutation[i]` of this; itself when that changes nothing.
    pub fn transpose(&self, permutation: &[isize]) -> Tensor {
        self.then(|ty| {
            let permutation = self.front_axes("transpose", permutation)?;
            if permutation.len() != ty.shape.len() {
                let reason = format!("{permutation:?} does not name each axis of {ty}");
                return Err(self.tracer.op_error("transpose", reason));
            }
            if permutation.is_sorted() {
                return self.ok();
            }
            self.emit(Op::Transpose { permutation }, &[self], Type::Token)
        })
    }

    /// The axes in the opposite order.
    pub fn t(&self) -> Tensor {
        self.then(|ty| {
            let permutation: Vec<isize> = (0..ty.shape.len() as isize).rev().collect();
            self.transpose(&permutation).ok()
        })
    }

    /// Two axes exchanged.
    pub fn swap_axes(&self, a: isize, b: isize) -> Tensor {
        self.then(|ty| {
            let (a, b) = (self.axis("swap_axes", ty, a)?, self.axis("swap_axes", ty, b)?);
            let mut permutation: Vec<isize> = (0..ty.shape.len() as isize).collect();
            permutation.swap(a, b);
            self.transpose(&permutation).ok()
        })
    }

    /// A new axis of size 1, which is this one of the result.
    pub fn expand_dims(&self, axis: isize) -> Tensor {
        self.then(|ty| {
            let rank = ty.shape.len() + 1;
            let at = if axis < 0 { rank.checked_sub(axis.unsigned_abs()) } else { Some(axis.unsigned_abs()) };
            let at = at.filter(|&at| at < rank).ok_or_else(|| {
                self.tracer.op_error("expand_dims", format!("{ty} can have no new axis {axis}"))
            })?;
            let mut shape = ty.shape.clone();
            shape.insert(at, 1);
            self.reshape(&shape).ok()
        })
    }

    /// Without an axis of size 1.
    pub fn squeeze(&self, axis: isize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("squeeze", ty, axis)?;
            if ty.shape[axis] != 1 {
                let reason = format!("axis {axis} of {ty} should have size 1");
                return Err(self.tracer.op_error("squeeze", reason));
            }
            let mut shape = ty.shape.clone();
            shape.remove(axis);
            self.reshape(&shape).ok()
        })
    }

    /// Repeated to this shape, NumPy's way: new axes come first, axes of size 1 repeat.
    pub fn broadcast_to(&self, shape: &[usize]) -> Tensor {
        self.then(|ty| {
            if ty.shape == shape {
                return self.ok();
            }
            let wrong =
                || self.tracer.op_error("broadcast_to", format!("{ty} does not broadcast to {shape:?}"));
            let new = shape.len().checked_sub(ty.shape.len()).ok_or_else(wrong)?;
            let mut kept = Vec::new();
            let mut dimensions = Vec::new();
            for (axis, &size) in ty.shape.iter().enumerate() {
                let to = shape[new + axis];
                if size == to {
                    kept.push(size);
                    dimensions.push(new + axis);
                } else if size != 1 {
                    return Err(wrong());
                }
            }
            // HLO's broadcast repeats no axis that the operand has.
            self.reshape(&kept).broadcast_axes(shape, &dimensions).ok()
        })
    }

    /// Axis i becomes axis `dimensions[i]` of the shape; its other axes repeat. HLO's broadcast.
    pub fn broadcast_axes(&self, shape: &[usize], dimensions: &[usize]) -> Tensor {
        self.then(|ty| {
            if ty.shape == shape && dimensions.iter().copied().eq(0..shape.len()) {
                return self.ok();
            }
            let op = Op::Broadcast { dimensions: dimensions.to_vec() };
            self.emit(op, &[self], Type::array(ty.dtype, shape))
        })
    }

    /// The elements `range` of one axis.
    pub fn slice(&self, axis: isize, range: Range<usize>) -> Tensor {
        self.slice_by(axis, range, 1)
    }

    /// Every `step`-th of the elements `range` of one axis.
    pub fn slice_by(&self, axis: isize, range: Range<usize>, step: usize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("slice", ty, axis)?;
            if range.start > range.end || range.end > ty.shape[axis] || step == 0 {
                let reason = format!("{range:?} by {step} is outside axis {axis} of {ty}");
                return Err(self.tracer.op_error("slice", reason));
            }
            let whole = |&limit: &usize| SliceDim { start: 0, limit, stride: 1 };
            let mut dims: Vec<SliceDim> = ty.shape.iter().map(whole).collect();
            dims[axis] = SliceDim { start: range.start, limit: range.end, stride: step };
            if step == 1 && range == (0..ty.shape[axis]) {
                return self.ok();
            }
            self.emit(Op::Slice(dims), &[self], Type::Token)
        })
    }

    /// One element of an axis, counted from the back when negative; the axis goes.
    pub fn index(&self, axis: isize, index: isize) -> Tensor {
        self.then(|ty| {
            let axis = self.axis("index", ty, axis)?;
            let size = ty.shape[axis];
            let at =
                if index < 0 { size.checked_sub(index.unsigned_abs()) } else { Some(index.unsigned_abs()) };
            let at = at.filter(|&at| at < size).ok_or_else(|| {
                self.tracer.op_error("index", format!("axis {axis} of {ty} has no element {index}"))
            })?;
            self.slice(axis as isize, at..at + 1).squeeze(axis as isize).ok()
        })
    }

    /// So many equal parts of one axis.
    ///
    /// # Errors
    /// When the axis does not split so, or the error that the tensor carries.
    pub fn split(&self, parts: usize, axis: isize) -> Result<Vec<Tensor>> {
        let ty = self.array_type()?;
        let axis = self.axis("split", ty, axis)?;
        let size = ty.shape[axis];
        if parts == 0 || size % parts != 0 {
            let reason = format!("axis {axis} of {ty} does not split into {parts} equal parts");
            return Err(self.tracer.op_error("split", reason));
        }
        let step = size / parts;
        (0..parts).map(|i| self.slice(axis as isize, i * step..(i + 1) * step).ok()).collect()
    }

    /// Backwards along these axes.
    pub fn reverse(&self, axes: &[isize]) -> Tensor {
        self.then(|ty| {
            let dimensions = self.sorted_axes("reverse", ty, axes)?;
            self.emit(Op::Reverse { dimensions }, &[self], Type::Token)
        })
    }

    /// So many elements of this value before and after each axis.
    pub fn pad(&self, widths: &[(usize, usize)], value: impl Into<Scalar>) -> Tensor {
        let value = value.into();
        self.then(|ty| {
            if widths.len() != ty.shape.len() {
                let reason = format!("{} pairs of widths for {ty}", widths.len());
                return Err(self.tracer.op_error("pad", reason));
            }
            let count = |n: usize| {
                i64::try_from(n)
                    .map_err(|_| self.tracer.op_error("pad", format!("{n} elements are too many")))
            };
            let dims = widths
                .iter()
                .map(|&(low, high)| Ok(PadDim { low: count(low)?, high: count(high)?, interior: 0 }))
                .collect::<Result<Vec<_>>>()?;
            let value = self.tracer.scalar(value.array(ty.dtype)?)?;
            self.emit(Op::Pad(dims), &[self, &value], Type::Token)
        })
    }

    /// The lower triangle of the last two axes, the rest 0: element (i, j) stays where j ≤ i + `diagonal`.
    pub fn tril(&self, diagonal: i64) -> Tensor {
        self.then(|ty| {
            let &[.., rows, columns] = ty.shape.as_slice() else {
                return Err(self.tracer.op_error("tril", format!("{ty} has no two axes")));
            };
            let count = |axis| {
                let ty = Type::array(DType::S32, [rows, columns]);
                self.emit(Op::Iota { dimension: axis }, &[], ty)
            };
            let keep = (count(0)? + diagonal).greater_equal(count(1)?);
            keep.select(self, self.full_like(0)).ok()
        })
    }
}
