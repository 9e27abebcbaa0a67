//! Sorting along an axis by any comparator, and the k largest.

use std::cmp::Ordering;

use qwix_array::{Array, DType, Element};
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, Type};
use qwix_simd::vm::{Program, Scratch, Source};
use rayon::prelude::*;

use crate::fuse::scalar_program;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::moves::copy_walk;
use crate::values::{element_size, num, operand};
use crate::view::View;

struct Sort {
    comparator: Program,
    dtypes: Vec<DType>,
    shape: Vec<usize>,
    dimension: usize,
    tuple: bool,
}

/// The comparator's answer for two places of a row of each operand.
fn before(
    program: &Program,
    scratch: &mut Scratch,
    rows: &[&[u8]],
    sizes: &[usize],
    a: usize,
    b: usize,
) -> bool {
    let mut sources = Vec::with_capacity(2 * rows.len());
    for (row, &size) in rows.iter().zip(sizes) {
        sources.push(Source::Block(&row[a * size..][..size]));
        sources.push(Source::Block(&row[b * size..][..size]));
    }
    let mut answer = [0u8];
    program.run(scratch, &sources, &mut [&mut answer], 1);
    answer[0] != 0
}

/// Sorts places stably: runs are merged, and of two elements the later goes first only when the comparator says so.
fn merge_sort(order: &mut [u32], less: &mut impl FnMut(usize, usize) -> bool) {
    let mut other = order.to_vec();
    let mut width = 1;
    while width < order.len() {
        for (from, to) in order.chunks(2 * width).zip(other.chunks_mut(2 * width)) {
            let (left, right) = from.split_at(width.min(from.len()));
            let (mut l, mut r) = (0, 0);
            for to in to {
                let takes_right =
                    l == left.len() || r < right.len() && less(right[r] as usize, left[l] as usize);
                if takes_right {
                    *to = right[r];
                    r += 1;
                } else {
                    *to = left[l];
                    l += 1;
                }
            }
        }
        order.copy_from_slice(&other);
        width *= 2;
    }
}

impl Step for Sort {
    fn name(&self) -> &'static str {
        "sort"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let length = self.shape[self.dimension];
        let rank = self.shape.len();
        // Rows along the sorted axis, and back.
        let mut order: Vec<usize> = (0..rank).filter(|&a| a != self.dimension).collect();
        order.push(self.dimension);
        let mut back: Vec<usize> = (0..rank - 1).collect();
        back.insert(self.dimension, rank - 1);
        let in_rows: Vec<usize> = order.iter().map(|&a| self.shape[a]).collect();
        let sizes: Vec<usize> = self.dtypes.iter().map(|d| d.bits() / 8).collect();
        let missing = || crate::values::fail("axes are missing");
        let view = View::dense(&self.shape).transpose(&order).ok_or_else(missing)?.merged();
        let home = View::dense(&in_rows).transpose(&back).ok_or_else(missing)?.merged();
        let mut rows = Vec::with_capacity(sizes.len());
        for (i, (&dtype, &size)) in self.dtypes.iter().zip(&sizes).enumerate() {
            let mut block = context.buffers.for_array(dtype, &in_rows)?;
            copy_walk(&view, operand(&operands, i)?.bytes(), size, block.bytes_mut())?;
            rows.push(block.into_array(dtype, &in_rows)?);
        }
        let count = self.shape.iter().product::<usize>().checked_div(length).unwrap_or(0);
        let orders: Vec<Vec<u32>> = (0..count)
            .into_par_iter()
            .map(|row| {
                let parts: Vec<&[u8]> = rows
                    .iter()
                    .zip(&sizes)
                    .map(|(array, &size)| &array.bytes()[row * length * size..][..length * size])
                    .collect();
                let mut scratch = self.comparator.scratch(1);
                let mut order: Vec<u32> = (0..length as u32).collect();
                merge_sort(&mut order, &mut |a, b| {
                    before(&self.comparator, &mut scratch, &parts, &sizes, a, b)
                });
                order
            })
            .collect();
        let mut results = Vec::with_capacity(rows.len());
        for ((array, &dtype), &size) in rows.iter().zip(&self.dtypes).zip(&sizes) {
            let mut sorted = context.buffers.for_array(dtype, &in_rows)?;
            let from = array.bytes().chunks_exact((length * size).max(1));
            let to = sorted.bytes_mut().chunks_exact_mut((length * size).max(1));
            for ((from, to), order) in from.zip(to).zip(&orders) {
                for (to, &at) in to.chunks_exact_mut(size).zip(order) {
                    to.copy_from_slice(&from[at as usize * size..][..size]);
                }
            }
            let mut out = context.buffers.for_array(dtype, &self.shape)?;
            let sorted = sorted.into_array(dtype, &in_rows)?;
            copy_walk(&home, sorted.bytes(), size, out.bytes_mut())?;
            results.push(Value::Array(out.into_array(dtype, &self.shape)?));
        }
        Ok(match (self.tuple, results.len()) {
            (false, 1) => results.swap_remove(0),
            _ => Value::Tuple(results),
        })
    }
}

struct TopK {
    k: usize,
    largest: bool,
}

impl TopK {
    /// The k first of each row by `order`; of equals the earlier.
    fn pick<T: Element>(
        &self,
        source: &Array,
        order: impl Fn(&T, &T) -> Ordering + Sync,
    ) -> Result<Value, EvalError> {
        let values = source.values::<T>()?;
        let length = source.shape().last().copied().unwrap_or(1);
        let shape = [&source.shape()[..source.rank().saturating_sub(1)], &[self.k]].concat();
        let (mut found, mut places) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(length.max(1)) {
            let compare = |a: &u32, b: &u32| {
                let by_value = order(&row[*a as usize], &row[*b as usize]);
                let by_value = if self.largest { by_value.reverse() } else { by_value };
                by_value.then(a.cmp(b))
            };
            let mut best: Vec<u32> = (0..length as u32).collect();
            let k = self.k.min(length);
            if k < length && k > 0 {
                best.select_nth_unstable_by(k - 1, compare);
                best.truncate(k);
            }
            best.truncate(k);
            best.sort_unstable_by(compare);
            found.extend(best.iter().map(|&i| row[i as usize]));
            places.extend(best.iter().map(|&i| i as i32));
        }
        Ok(Value::Tuple(vec![
            Array::from_vec(&shape, found)?.into(),
            Array::from_vec(&shape, places)?.into(),
        ]))
    }
}

impl Step for TopK {
    fn name(&self) -> &'static str {
        "top-k"
    }

    fn run(&self, operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        let source = operand(&operands, 0)?;
        match source.dtype() {
            DType::F32 => self.pick::<f32>(source, f32::total_cmp),
            DType::S32 => self.pick::<i32>(source, i32::cmp),
            other => Err(crate::values::fail(format!("no kernel for {other}"))),
        }
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    match &node.op {
        Op::Sort { dimension, stable: _, comparator } => {
            let comparator = scalar_program(comparator)?;
            let mut dtypes = Vec::new();
            for &operand in &node.operands {
                let dtype = planning.array_type(operand)?.dtype;
                element_size(dtype)?;
                dtypes.push(dtype);
            }
            let shape = planning.array_type(*node.operands.first()?)?.shape.clone();
            let pairs = dtypes.iter().flat_map(|&d| [num(d), num(d)]).collect::<Option<Vec<_>>>()?;
            if comparator.inputs() != pairs || comparator.outputs().len() != 1 || shape.len() <= *dimension {
                return None;
            }
            if shape[*dimension] > u32::MAX as usize {
                return None;
            }
            let tuple = matches!(node.ty, Type::Tuple(_));
            Planned::of(node, Sort { comparator, dtypes, shape, dimension: *dimension, tuple })
        }
        Op::TopK { k, largest } => {
            let ty = planning.array_type(*node.operands.first()?)?;
            let known = matches!(ty.dtype, DType::F32 | DType::S32) && !ty.shape.is_empty();
            let fits = ty.shape.last().is_some_and(|&n| *k <= n && n <= i32::MAX as usize);
            if known && fits { Planned::of(node, TopK { k: *k, largest: *largest }) } else { None }
        }
        _ => None,
    }
}
