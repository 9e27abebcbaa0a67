//! Ops that put elements in order.

use qwix_array::{Array, DType, strides};
use qwix_graph::Computation;

use crate::EvalError;
use crate::cells::{Cells, walk};
use crate::function::Function;
use crate::lanes::Lanes;
use crate::number::Scalar;
use crate::run::Context;

/// The first position of each row along an axis, the distance between its elements, and their number.
fn rows(shape: &[usize], axis: usize) -> (Vec<usize>, usize, usize) {
    let strides = strides(shape);
    let mut firsts = Vec::new();
    if !shape.contains(&0) {
        let mut heads = shape.to_vec();
        heads[axis] = 1;
        walk(&heads, &strides, 0, &mut |at| firsts.push(at));
    }
    (firsts, strides[axis], shape[axis])
}

/// A stable merge sort. Unlike the standard library's it puts up with comparisons that are no order at all.
fn merge_sort<E>(
    items: &mut [usize],
    spare: &mut Vec<usize>,
    less: &mut impl FnMut(usize, usize) -> Result<bool, E>,
) -> Result<(), E> {
    if items.len() < 2 {
        return Ok(());
    }
    let middle = items.len() / 2;
    merge_sort(&mut items[..middle], spare, less)?;
    merge_sort(&mut items[middle..], spare, less)?;
    spare.clear();
    let (mut left, mut right) = (0, middle);
    while left < middle && right < items.len() {
        if less(items[right], items[left])? {
            spare.push(items[right]);
            right += 1;
        } else {
            spare.push(items[left]);
            left += 1;
        }
    }
    spare.extend_from_slice(&items[left..middle]);
    spare.extend_from_slice(&items[right..]);
    items.copy_from_slice(spare);
    Ok(())
}

/// Sorts arrays of one shape together along an axis, by a computation on a pair of each array's elements. The order is
/// stable, whether asked for or not.
pub(crate) fn sort(
    arrays: &[Array],
    axis: usize,
    comparator: &Computation,
    context: Context<'_>,
) -> Result<Vec<Array>, EvalError> {
    let Some(first) = arrays.first().filter(|f| arrays.iter().all(|a| a.shape() == f.shape())) else {
        return Err(EvalError::reason(format!("sort takes arrays of one shape, found {arrays:?}")));
    };
    if axis >= first.rank() {
        return Err(EvalError::reason(format!("sort of {first:?} along axis {axis}")));
    }
    let lanes = arrays.iter().map(Lanes::read).collect::<Result<Vec<_>, _>>()?;
    let dtypes: Vec<DType> = arrays.iter().flat_map(|a| [a.dtype(), a.dtype()]).collect();
    let mut function = Function::new(comparator, context);
    let (mut pair, mut answer) = (Vec::new(), Vec::new());
    let mut less = |a: usize, b: usize| {
        pair.clear();
        pair.extend(lanes.iter().flat_map(|l| [l.get(a), l.get(b)]));
        function.call(&dtypes, &pair, &mut answer)?;
        Ok::<bool, EvalError>(answer.first() == Some(&Scalar::Pred(true)))
    };
    let sources = arrays.iter().map(Cells::read).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = arrays.iter().map(Cells::read).collect::<Result<Vec<_>, _>>()?;
    let (firsts, step, count) = rows(first.shape(), axis);
    let mut spare = Vec::new();
    for base in firsts {
        let mut order: Vec<usize> = (0..count).map(|i| base + i * step).collect();
        merge_sort(&mut order, &mut spare, &mut less)?;
        for (i, &from) in order.iter().enumerate() {
            for (sorted, source) in sorted.iter_mut().zip(&sources) {
                sorted.copy(base + i * step, source, from);
            }
        }
    }
    sorted.into_iter().zip(arrays).map(|(s, a)| Ok(s.write(a.dtype(), a.shape())?)).collect()
}

/// The k largest (or smallest) elements along the last axis, best first, and where they were. Floats are in total
/// order: NaN is the largest, 0 is larger than −0. Of equal elements the earlier comes first.
pub(crate) fn top_k(x: &Array, k: usize, largest: bool) -> Result<(Array, Array), EvalError> {
    let Some((&count, outer)) = x.shape().split_last().filter(|(count, _)| k <= **count) else {
        return Err(EvalError::reason(format!("the {k} largest of each row of {x:?}")));
    };
    let lanes = Lanes::read(x)?;
    let source = Cells::read(x)?;
    let shape = [outer, &[k]].concat();
    let mut values = Cells::filled(&Array::zeros(x.dtype(), &[])?, &shape)?;
    let mut indices: Vec<i32> = Vec::new();
    for row in 0..outer.iter().product::<usize>() {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (row * count + a, row * count + b);
            let (a, b) = if largest { (b, a) } else { (a, b) };
            match &lanes {
                Lanes::Float(v) => v[a].total_cmp(&v[b]),
                Lanes::Int(v) => v[a].cmp(&v[b]),
                Lanes::Uint(v) => v[a].cmp(&v[b]),
                Lanes::Pred(v) => v[a].cmp(&v[b]),
            }
        });
        for (i, &from) in order.iter().take(k).enumerate() {
            values.copy(row * k + i, &source, row * count + from);
            indices.push(i32::try_from(from).unwrap_or(i32::MAX));
        }
    }
    Ok((values.write(x.dtype(), &shape)?, Array::from_vec(&shape, indices)?))
}
