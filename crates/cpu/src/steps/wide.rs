//! Products of numbers that have no kernel of their own: f64, integers of more than a byte. Row by row, side by side.

use std::borrow::Cow;
use std::ops::{Add, Mul};

use qwix_array::{Array, DType, Element};
use qwix_eval::{EvalError, Value};
use qwix_graph::{DotDims, NodeId, Op};
use qwix_quant::{OperandInfo, QuantizedDot};
use qwix_simd::axpy_i32;

use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{Sizes, axes, from_f32, run_tasks, sizes};
use crate::steps::moves::copy_walk;
use crate::steps::qdot::{check, left_scales, right_scales, stored};
use crate::steps::scales::Rounding;
use crate::values::{fail, operand};
use crate::view::View;

/// How the sides come to lie as [batch, rows, depth] and [batch, depth, columns].
struct Order {
    lhs: View,
    rhs: View,
    sizes: Sizes,
}

impl Order {
    fn new(dims: &DotDims, lhs: &[usize], rhs: &[usize]) -> Option<Self> {
        let lhs_free = axes(lhs.len(), &dims.lhs_batch, &dims.lhs_contracting);
        let rhs_free = axes(rhs.len(), &dims.rhs_batch, &dims.rhs_contracting);
        let left = [&dims.lhs_batch[..], &lhs_free, &dims.lhs_contracting].concat();
        let right = [&dims.rhs_batch[..], &dims.rhs_contracting, &rhs_free].concat();
        Some(Order {
            lhs: View::dense(lhs).transpose(&left)?.merged(),
            rhs: View::dense(rhs).transpose(&right)?.merged(),
            sizes: sizes(dims, lhs, rhs),
        })
    }

    /// The sides as `T`, in order.
    fn read<T: Element>(&self, a: &Array, b: &Array) -> Result<(Vec<T>, Vec<T>), EvalError> {
        let side = |array: &Array, view: &View| {
            let array = array.convert(T::DTYPE);
            let mut out = vec![T::zeroed(); array.len()];
            copy_walk(view, array.bytes(), size_of::<T>(), bytemuck::cast_slice_mut(&mut out))?;
            Ok::<_, EvalError>(out)
        };
        Ok((side(a, &self.lhs)?, side(b, &self.rhs)?))
    }

    /// The product; `axpy` adds a multiple of a row to totals.
    fn multiply<T: Element>(
        &self,
        a: &[T],
        b: &[T],
        out: &mut [T],
        axpy: impl Fn(&mut [T], T, &[T]) + Sync + Send,
    ) -> Result<(), EvalError> {
        let Sizes { batch, rows, depth, columns } = self.sizes;
        if a.len() != batch * rows * depth || b.len() != batch * depth * columns {
            return Err(fail("an operand has not its type's size"));
        }
        if out.is_empty() {
            return Ok(());
        }
        let tasks: Vec<_> = out.chunks_exact_mut(columns).enumerate().collect();
        run_tasks(tasks, self.sizes, |(i, out)| {
            out.fill(T::zeroed());
            let right = &b[i / rows * depth * columns..][..depth * columns];
            for (&factor, row) in a[i * depth..][..depth].iter().zip(right.chunks_exact(columns)) {
                axpy(out, factor, row);
            }
        });
        Ok(())
    }
}

fn add_multiple<T: Element + Add<Output = T> + Mul<Output = T>>(totals: &mut [T], factor: T, row: &[T]) {
    for (total, &v) in totals.iter_mut().zip(row) {
        *total = *total + factor * v;
    }
}

fn add_multiple_i64(totals: &mut [i64], factor: i64, row: &[i64]) {
    for (total, &v) in totals.iter_mut().zip(row) {
        *total = total.wrapping_add(factor.wrapping_mul(v));
    }
}

struct Plain {
    order: Order,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for Plain {
    fn name(&self) -> &'static str {
        "wide-dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let (a, b) = (operand(&operands, 0)?, operand(&operands, 1)?);
        // Integers are exact modulo a power of two: the widest that the result needs will do.
        let wide = match self.dtype {
            DType::F64 | DType::S64 | DType::U64 => self.dtype,
            _ => DType::S32,
        };
        let mut out = context.buffers.for_array(wide, &self.shape)?;
        match wide {
            DType::F64 => {
                let (a, b) = self.order.read::<f64>(a, b)?;
                self.order.multiply(&a, &b, out.values_mut(), add_multiple)?;
            }
            DType::S32 => {
                let (a, b) = self.order.read::<i32>(a, b)?;
                self.order.multiply(&a, &b, out.values_mut(), axpy_i32)?;
            }
            _ => {
                let (a, b) = self.order.read::<i64>(a, b)?;
                let out: &mut [i64] = bytemuck::cast_slice_mut(out.bytes_mut());
                self.order.multiply(&a, &b, out, add_multiple_i64)?;
            }
        }
        Ok(Value::Array(out.into_array(wide, &self.shape)?.convert(self.dtype)))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Dot(dims) = &node.op else { return None };
    let &[a, b] = &node.operands[..] else { return None };
    let (ty, lhs, rhs) = (planning.array_type(id)?, planning.array_type(a)?, planning.array_type(b)?);
    let ints = ty.dtype.is_int() && !ty.dtype.is_packed() && lhs.dtype.is_int() && rhs.dtype.is_int();
    let doubles = ty.dtype == DType::F64 && lhs.dtype.is_wide_float() && rhs.dtype.is_wide_float();
    if !ints && !doubles {
        return None;
    }
    let order = Order::new(dims, &lhs.shape, &rhs.shape)?;
    Planned::of(node, Plain { order, dtype: ty.dtype, shape: ty.shape.clone() })
}

/// Quantized sides stored in more than a byte (int16), summed modulo 2^32 as XLA does.
struct Quantized {
    order: Order,
    plan: QuantizedDot,
    infos: [OperandInfo; 2],
    tiles: usize,
    rounding: Rounding,
    dtype: DType,
    known: Option<Value>,
}

impl Step for Quantized {
    fn name(&self) -> &'static str {
        "wide-quantized-dot"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let missing = || fail("an operand is missing");
        let left = operands.first().ok_or_else(missing)?;
        let right = self.known.as_ref().or(operands.get(1)).ok_or_else(missing)?;
        check(left, &self.infos[0])?;
        check(right, &self.infos[1])?;
        let (a, b) = (stored(left)?, stored(right)?);
        let (a, b) =
            self.order.read::<i32>(&a.reshape(&self.plan.lhs.shape)?, &b.reshape(&self.plan.rhs.shape)?)?;
        let Sizes { batch, rows, columns, .. } = self.order.sizes;
        let mut sums = vec![0i32; batch * rows * columns];
        self.order.multiply(&a, &b, &mut sums, axpy_i32)?;
        let (left_scales, left_zeros) = left_scales(&self.plan, self.order.sizes, left)?;
        let (right_scales, right_zeros) = right_scales(&self.plan, self.order.sizes, right)?;
        let depth = self.order.sizes.depth;
        let mut out = context.buffers.for_array(DType::F32, &self.plan.shape)?;
        let result = out.values_mut::<f32>();
        result.fill(0.0);
        let mut spare = Vec::new();
        for (i, sums) in sums.chunks_exact_mut(columns.max(1)).enumerate() {
            let (batch, row) = (i / rows, i % rows);
            let right = &b[batch * depth * columns..][..depth * columns];
            if let Some(z) = left_zeros.as_ref().map(|z| z[i]) {
                for of_right in right.chunks_exact(columns) {
                    axpy_i32(sums, z.wrapping_neg(), of_right);
                }
            }
            if let Some(z) = &right_zeros {
                let total = a[i * depth..][..depth].iter().fold(0i32, |s, &v| s.wrapping_add(v));
                axpy_i32(sums, total.wrapping_neg(), &z[batch * columns..]);
            }
            let (o, t) = (batch / self.tiles, batch % self.tiles);
            let scales: Cow<'_, [f32]> = Cow::Borrowed(&right_scales[batch * columns..][..columns]);
            let out = &mut result[(o * rows + row) * columns..][..columns];
            self.rounding.integers(sums, left_scales[i], &scales, t > 0, out, &mut spare);
        }
        crate::steps::scales::round(out.values_mut(), self.plan.result);
        Ok(Value::Array(from_f32(out, self.dtype, &self.plan.shape, context)?))
    }
}

/// A step for a quantized product whose sums are integers.
pub(super) fn quantized(
    planning: &Planning<'_>,
    [a, b]: [NodeId; 2],
    plan: QuantizedDot,
    infos: [OperandInfo; 2],
    tiles: usize,
    rounding: Rounding,
    dtype: DType,
) -> Option<Planned> {
    let order = Order::new(&plan.dims, &plan.lhs.shape, &plan.rhs.shape)?;
    let known = planning.known[b.index()].clone();
    let operands = if known.is_some() { vec![a] } else { vec![a, b] };
    let step = Quantized { order, plan, infos, tiles, rounding, dtype, known };
    Some(Planned { step: Box::new(step), operands })
}
