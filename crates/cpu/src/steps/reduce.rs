//! Reductions. A sum, product, maximum or minimum of floats has kernels; any other computation runs as a program over many
//! elements at a time. HLO leaves the order open; here it depends on the shapes alone.

use std::borrow::Cow;

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{BinaryOp, Computation, NodeId, Op, Type};
use qwix_simd::vm::{BLOCK, Program, Source};
use qwix_simd::{Fold, fold_rows_f32, reduce_f32};

use crate::fuse::scalar_program;
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{from_f32, is_gemm_float};
use crate::values::{as_f32, fail, num, operand};
use crate::view::View;

/// The fold that a computation of two scalars is, if it is one.
pub(crate) fn fold_of(computation: &Computation) -> Option<Fold> {
    let root = computation.node(computation.root);
    let parameters = computation.parameters();
    let (&[a, b], [x, y]) = (&root.operands[..], &parameters[..]) else { return None };
    if !((a, b) == (*x, *y) || (a, b) == (*y, *x)) {
        return None;
    }
    match root.op {
        Op::Binary(BinaryOp::Add) => Some(Fold::Add),
        Op::Binary(BinaryOp::Multiply) => Some(Fold::Multiply),
        Op::Binary(BinaryOp::Maximum) => Some(Fold::Maximum),
        Op::Binary(BinaryOp::Minimum) => Some(Fold::Minimum),
        _ => None,
    }
}

/// A fold of f32 (or narrower floats, which are folded as f32 and rounded once).
struct FoldStep {
    fold: Fold,
    /// Sizes, and whether they are folded; neighbours differ.
    axes: Vec<(usize, bool)>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for FoldStep {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let init = as_f32(operand(&operands, 1)?)?.first().copied().unwrap_or(self.fold.identity());
        let mut values = as_f32(operand(&operands, 0)?)?;
        let mut axes = self.axes.clone();
        if values.len() != axes.iter().map(|a| a.0).product::<usize>() {
            return Err(fail("the operand has not its type's size"));
        }
        // The last folded axis first, with what is behind it kept.
        while let Some(at) = axes.iter().rposition(|&(_, folded)| folded) {
            let depth = axes[at].0;
            let outer: usize = axes[..at].iter().map(|a| a.0).product();
            let inner: usize = axes[at + 1..].iter().map(|a| a.0).product();
            let mut out = vec![0.0f32; outer * inner];
            fold_axis(self.fold, &values, depth, inner, &mut out)?;
            values = Cow::Owned(out);
            axes.remove(at);
        }
        let mut out = context.buffers.for_array(DType::F32, &self.shape)?;
        let result = out.values_mut::<f32>();
        if init.to_bits() == self.fold.identity().to_bits() {
            result.copy_from_slice(&values);
        } else {
            result.fill(init);
            fold_rows_f32(self.fold, result, &values);
        }
        Ok(Value::Array(from_f32(out, self.dtype, &self.shape, context)?))
    }
}

/// Folds the middle axis of [outer, depth, inner].
fn fold_axis(
    fold: Fold,
    values: &[f32],
    depth: usize,
    inner: usize,
    out: &mut [f32],
) -> Result<(), EvalError> {
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    let weight = depth.clamp(1, 1 << 12);
    parallel::fill(out, 4, weight, |start, out| {
        let out: &mut [f32] = bytemuck::cast_slice_mut(out);
        if inner == 1 {
            for (i, out) in out.iter_mut().enumerate() {
                *out = reduce_f32(fold, &values[(start + i) * depth..][..depth]);
            }
            return Ok(());
        }
        let mut done = 0;
        while done < out.len() {
            let (row, column) = ((start + done) / inner, (start + done) % inner);
            let count = (inner - column).min(out.len() - done);
            let out = &mut out[done..done + count];
            out.fill(fold.identity());
            for d in 0..depth {
                fold_rows_f32(fold, out, &values[(row * depth + d) * inner + column..][..count]);
            }
            done += count;
        }
        Ok(())
    })
}

/// Any reduction of arrays whose elements programs know.
struct General {
    program: Program,
    dtypes: Vec<DType>,
    /// Each operand's elements, in the order folded axes, kept axes; merged.
    by_depth: View,
    /// The same in the order kept, folded.
    by_place: View,
    depth: usize,
    shape: Vec<usize>,
    tuple: bool,
}

impl Step for General {
    fn name(&self) -> &'static str {
        "reduce-general"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let count = self.dtypes.len();
        let arrays: Vec<&Array> = (0..2 * count).map(|i| operand(&operands, i)).collect::<Result<_, _>>()?;
        let sizes: Vec<usize> = self.dtypes.iter().map(|d| d.bits() / 8).collect();
        for (array, size) in arrays.iter().zip(&sizes) {
            if !self.by_depth.fits(array.bytes().len() / size) {
                return Err(fail("an operand is smaller than its type"));
            }
        }
        let kept: usize = self.shape.iter().product();
        let mut outs = Vec::with_capacity(count);
        for &dtype in &self.dtypes {
            outs.push(context.buffers.for_array(dtype, &self.shape)?);
        }
        let mut run =
            Run { step: self, arrays: &arrays, sizes: &sizes, scratch: self.program.scratch(BLOCK) };
        if kept >= 32 || self.depth <= 32 {
            for start in (0..kept).step_by(BLOCK) {
                let lanes = BLOCK.min(kept - start);
                let mut totals = run.splat_inits(lanes);
                for d in 0..self.depth {
                    let next = run.read(&self.by_depth, d * kept + start, lanes);
                    totals = run.combine(&totals, &next, lanes);
                }
                for ((out, total), size) in outs.iter_mut().zip(&totals).zip(&sizes) {
                    out.bytes_mut()[start * size..][..lanes * size].copy_from_slice(&total[..lanes * size]);
                }
            }
        } else {
            for place in 0..kept {
                let first = place * self.depth;
                let mut lanes = BLOCK.min(self.depth);
                let mut totals = run.read(&self.by_place, first, lanes);
                for d in (lanes..self.depth).step_by(lanes) {
                    let some = lanes.min(self.depth - d);
                    let next = run.read(&self.by_place, first + d, some);
                    let folded = run.combine(&totals, &next, some);
                    for ((total, folded), size) in totals.iter_mut().zip(folded).zip(&sizes) {
                        total[..some * size].copy_from_slice(&folded[..some * size]);
                    }
                }
                while lanes > 1 {
                    let half = lanes / 2;
                    let upper: Vec<Vec<u8>> = totals
                        .iter()
                        .zip(&sizes)
                        .map(|(total, size)| total[(lanes - half) * size..lanes * size].to_vec())
                        .collect();
                    let folded = run.combine(&totals, &upper, half);
                    for ((total, folded), size) in totals.iter_mut().zip(folded).zip(&sizes) {
                        total[..half * size].copy_from_slice(&folded[..half * size]);
                    }
                    lanes -= half;
                }
                let inits = run.splat_inits(1);
                let totals = run.combine(&inits, &totals, 1);
                for ((out, total), &size) in outs.iter_mut().zip(&totals).zip(&sizes) {
                    out.bytes_mut()[place * size..][..size].copy_from_slice(&total[..size]);
                }
            }
        }
        let mut results = Vec::with_capacity(count);
        for (out, &dtype) in outs.into_iter().zip(&self.dtypes) {
            results.push(Value::Array(out.into_array(dtype, &self.shape)?));
        }
        match (self.tuple, results.len()) {
            (false, 1) => Ok(results.swap_remove(0)),
            _ => Ok(Value::Tuple(results)),
        }
    }
}

struct Run<'a> {
    step: &'a General,
    arrays: &'a [&'a Array],
    sizes: &'a [usize],
    scratch: qwix_simd::vm::Scratch,
}

impl Run<'_> {
    fn splat_inits(&self, lanes: usize) -> Vec<Vec<u8>> {
        let inits = &self.arrays[self.sizes.len()..];
        inits.iter().map(|init| init.bytes().repeat(lanes)).collect()
    }

    fn read(&self, view: &View, start: usize, lanes: usize) -> Vec<Vec<u8>> {
        self.arrays
            .iter()
            .zip(self.sizes)
            .map(|(array, &size)| {
                let mut words = vec![0u64; (lanes * size).div_ceil(8)];
                let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..lanes * size];
                view.read(array.bytes(), size, start, bytes);
                bytes.to_vec()
            })
            .collect()
    }

    fn combine(&mut self, totals: &[Vec<u8>], next: &[Vec<u8>], lanes: usize) -> Vec<Vec<u8>> {
        let sources: Vec<Source<'_>> = totals
            .iter()
            .chain(next)
            .zip(self.sizes.iter().chain(self.sizes))
            .map(|(bytes, size)| Source::Block(&bytes[..lanes * size]))
            .collect();
        let mut outs: Vec<Vec<u8>> = self.sizes.iter().map(|size| vec![0; lanes * size]).collect();
        let mut slices: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        self.step.program.run(&mut self.scratch, &sources, &mut slices, lanes);
        outs
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Reduce { dimensions, computation } = &node.op else { return None };
    let count = node.operands.len() / 2;
    let operand = planning.array_type(*node.operands.first()?)?;
    let folded: Vec<bool> = (0..operand.shape.len()).map(|a| dimensions.contains(&a)).collect();
    let kept: Vec<usize> = (0..folded.len()).filter(|&a| !folded[a]).collect();
    let shape: Vec<usize> = kept.iter().map(|&a| operand.shape[a]).collect();
    if count == 1
        && is_gemm_float(operand.dtype)
        && let Some(fold) = fold_of(computation)
        && let Type::Array(ty) = &node.ty
    {
        let mut axes: Vec<(usize, bool)> = Vec::new();
        for (&size, &folded) in operand.shape.iter().zip(&folded) {
            match axes.last_mut() {
                Some(last) if last.1 == folded => last.0 *= size,
                _ => axes.push((size, folded)),
            }
        }
        return Planned::of(node, FoldStep { fold, axes, dtype: ty.dtype, shape });
    }
    let program = scalar_program(computation)?;
    let mut dtypes = Vec::with_capacity(count);
    for &id in &node.operands[..count] {
        dtypes.push(planning.array_type(id)?.dtype);
    }
    let nums: Vec<_> = dtypes.iter().map(|&d| num(d)).collect::<Option<_>>()?;
    if !program.outputs().eq(nums.iter().copied()) || program.inputs() != [&nums[..], &nums[..]].concat() {
        return None;
    }
    let gone: Vec<usize> = (0..folded.len()).filter(|&a| folded[a]).collect();
    let dense = View::dense(&operand.shape);
    let step = General {
        program,
        dtypes,
        by_depth: dense.transpose(&[&gone[..], &kept[..]].concat())?.merged(),
        by_place: dense.transpose(&[&kept[..], &gone[..]].concat())?.merged(),
        depth: gone.iter().map(|&a| operand.shape[a]).product(),
        shape,
        tuple: matches!(node.ty, Type::Tuple(_)),
    };
    Planned::of(node, step)
}
