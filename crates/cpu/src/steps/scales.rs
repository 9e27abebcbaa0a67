//! What is done to the sums of a quantized product: zero points, scales, tiles.

use qwix_array::{Array, DType, strides};
use qwix_eval::EvalError;
use qwix_quant::{ScalePlan, promote};
use qwix_simd::{rescale_i32, round_to_bf16, round_to_f16};

use crate::values::{as_f32, fail};

/// Repeats the entries of `values`, of shape `from`, so that their shape is `to`: each entry serves a tile of every axis.
pub(crate) fn expand<T: Copy>(values: &[T], from: &[usize], to: &[usize]) -> Result<Vec<T>, EvalError> {
    let fits = from.len() == to.len()
        && values.len() == from.iter().product::<usize>()
        && from.iter().zip(to).all(|(&f, &t)| f != 0 && t % f == 0 || t == 0);
    if !fits {
        return Err(fail(format!("scales of shape {from:?} do not serve {to:?}")));
    }
    let mut current = values.to_vec();
    let mut shape = from.to_vec();
    for axis in (0..to.len()).rev() {
        let tile = to[axis].checked_div(shape[axis]).unwrap_or(1);
        if tile == 1 {
            continue;
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let mut next = Vec::with_capacity(current.len() * tile);
        for chunk in current.chunks(inner.max(1)) {
            (0..tile).for_each(|_| next.extend_from_slice(chunk));
        }
        current = next;
        shape[axis] = to[axis];
    }
    Ok(current)
}

/// One side's scales for a product: one f32 for each batch entry and free index of the side, as many as `sizes` counts. `axes` are the
/// product's axes that the side has.
pub(crate) fn dense_scales(
    scale: &Array,
    plan: &ScalePlan,
    product: &[usize],
    axes: &[usize],
) -> Result<Vec<f32>, EvalError> {
    let moved = scale.reshape(&plan.split)?.transpose(&plan.permutation)?;
    let from: Vec<usize> = axes.iter().map(|&a| plan.shape[a]).collect();
    let to: Vec<usize> = axes.iter().map(|&a| product[a]).collect();
    expand(&as_f32(&moved)?, &from, &to)
}

/// The zero points of one side in the same order as its scales: `array` is reshaped to `split`, which has the side's axes; those in
/// `axes` (batch, then free) stay.
pub(crate) fn dense_zero_points(
    array: &Array,
    split: &[usize],
    axes: &[usize],
    sizes: &[usize],
) -> Result<Vec<i32>, EvalError> {
    let values = array.convert(DType::S32);
    let values = values.values::<i32>()?;
    let steps = strides(split);
    let from: Vec<usize> = axes.iter().map(|&a| split[a]).collect();
    let mut moved = Vec::with_capacity(values.len());
    let view =
        crate::view::View { offset: 0, axes: axes.iter().map(|&a| (split[a], steps[a] as isize)).collect() };
    let count = view.len();
    if !view.fits(values.len()) {
        return Err(fail("zero points are missing"));
    }
    view.merged().walk(0, count, |at, stride, _, count| {
        moved.extend((0..count as isize).map(|i| values[(at as isize + i * stride) as usize]));
    });
    expand(&moved, &from, sizes)
}

/// In which dtypes a product is scaled: after the left scale, after the right one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    left: Option<DType>,
    right: Option<DType>,
}

impl Rounding {
    /// `None` when a dtype is not f32, bf16 or f16.
    pub(crate) fn new(accumulator: DType, left: Option<DType>, right: Option<DType>) -> Option<Self> {
        let narrow = |dtype| matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
        let left = left.map(|scale| promote(accumulator, scale));
        let right = right.map(|scale| promote(left.unwrap_or(accumulator), scale));
        (left.is_none_or(narrow) && right.is_none_or(narrow)).then_some(Rounding { left, right })
    }

    fn is_f32(self) -> bool {
        self.left.is_none_or(|d| d == DType::F32) && self.right.is_none_or(|d| d == DType::F32)
    }

    /// Scales a row of integer sums, added to `out` or set.
    pub(crate) fn integers(
        self,
        sums: &[i32],
        left: f32,
        right: &[f32],
        add: bool,
        out: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        if self.is_f32() {
            return rescale_i32(sums, left, right, add, out);
        }
        spare.clear();
        spare.extend(sums.iter().map(|&sum| sum as f32));
        self.floats(spare, left, right);
        put(spare, add, out);
    }

    /// Scales a row of sums in place.
    pub(crate) fn floats(self, values: &mut [f32], left: f32, right: &[f32]) {
        if let Some(dtype) = self.left {
            round(values, dtype);
            values.iter_mut().for_each(|v| *v *= left);
            round(values, dtype);
        }
        if let Some(dtype) = self.right {
            round(values, dtype);
            qwix_simd::multiply_f32(values, right);
            round(values, dtype);
        }
    }
}

/// Sets a row, or adds to it.
pub(crate) fn put(values: &[f32], add: bool, out: &mut [f32]) {
    if add {
        qwix_simd::fold_rows_f32(qwix_simd::Fold::Add, out, values);
    } else {
        out.copy_from_slice(values);
    }
}

/// Rounds to a dtype that f32 holds.
pub(crate) fn round(values: &mut [f32], dtype: DType) {
    match dtype {
        DType::BF16 => round_to_bf16(values),
        DType::F16 => round_to_f16(values),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_serve_tiles() {
        assert_eq!(expand(&[1, 2], &[2], &[4]).unwrap(), [1, 1, 2, 2]);
        assert_eq!(expand(&[1, 2], &[1, 2], &[2, 4]).unwrap(), [1, 1, 2, 2, 1, 1, 2, 2]);
        assert_eq!(expand(&[1, 2], &[2, 1], &[2, 2]).unwrap(), [1, 1, 2, 2]);
        assert_eq!(expand(&[7], &[], &[]).unwrap(), [7]);
        assert!(expand(&[1, 2], &[2], &[3]).is_err());
    }
}
