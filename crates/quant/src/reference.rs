//! Products of plain arrays, in the obvious way; what faster ones are compared with.
//!
//! Integers are multiplied and summed without loss (64-bit products wrap, as in XLA). Floats are summed in f64, which
//! holds products of f32 and narrower numbers exactly, and rounded to f32 and from there to the result.

use qwix_array::{Array, DType};

use crate::{ConvDims, DotDims, QuantError};

/// A number that products are summed in.
trait Number: Copy + Default {
    fn accumulate(&mut self, a: Self, b: Self);
    fn read(array: &Array) -> Vec<Self>;
    fn write(values: Vec<Self>, dtype: DType, shape: &[usize]) -> Result<Array, QuantError>;
}

impl Number for f64 {
    #[inline(always)]
    fn accumulate(&mut self, a: f64, b: f64) {
        *self += a * b;
    }
    fn read(array: &Array) -> Vec<f64> {
        array.to_f64_vec()
    }
    fn write(values: Vec<f64>, dtype: DType, shape: &[usize]) -> Result<Array, QuantError> {
        let array = Array::from_vec(shape, values)?;
        Ok(if dtype == DType::F64 { array } else { array.convert(DType::F32).convert(dtype) })
    }
}

impl Number for i64 {
    #[inline(always)]
    fn accumulate(&mut self, a: i64, b: i64) {
        *self = self.wrapping_add(a.wrapping_mul(b));
    }
    fn read(array: &Array) -> Vec<i64> {
        array.to_i64_vec()
    }
    fn write(values: Vec<i64>, dtype: DType, shape: &[usize]) -> Result<Array, QuantError> {
        Ok(Array::from_vec(shape, values)?.convert(dtype))
    }
}

/// Sums of products of at most 8-bit integers, short enough not to overflow.
impl Number for i32 {
    #[inline(always)]
    fn accumulate(&mut self, a: i32, b: i32) {
        *self = self.wrapping_add(a.wrapping_mul(b));
    }
    fn read(array: &Array) -> Vec<i32> {
        array.to_i64_vec().into_iter().map(|x| x as i32).collect()
    }
    fn write(values: Vec<i32>, dtype: DType, shape: &[usize]) -> Result<Array, QuantError> {
        Ok(Array::from_vec(shape, values)?.convert(dtype))
    }
}

/// Which [`Number`] a product of `terms` summands is computed in.
enum Kind {
    Float,
    Wide,
    Narrow,
}

fn kind(lhs: &Array, rhs: &Array, terms: usize) -> Kind {
    let exact = |a: &Array| !a.dtype().is_float();
    let narrow = |a: &Array| a.dtype().bits() <= 8;
    match (exact(lhs) && exact(rhs), narrow(lhs) && narrow(rhs) && terms < 1 << 15) {
        (false, _) => Kind::Float,
        (true, false) => Kind::Wide,
        (true, true) => Kind::Narrow,
    }
}

/// A dot of two arrays of any dtypes, with a result of `dtype`.
///
/// # Errors
/// When shapes and dimension numbers do not fit.
pub fn dot(lhs: &Array, rhs: &Array, dims: &DotDims, dtype: DType) -> Result<Array, QuantError> {
    let shape = dims.output_shape(lhs.shape(), rhs.shape())?;
    let (lhs_free, rhs_free) = (dims.lhs_free(lhs.rank()), dims.rhs_free(rhs.rank()));
    let size = |array: &Array, axes: &[usize]| -> usize { axes.iter().map(|&a| array.shape()[a]).product() };
    let batch = size(lhs, &dims.lhs_batch);
    let (m, k, n) = (size(lhs, &lhs_free), size(lhs, &dims.lhs_contracting), size(rhs, &rhs_free));
    // [batch, m, k] and [batch, k, n].
    let lhs = lhs.transpose(&[&dims.lhs_batch[..], &lhs_free, &dims.lhs_contracting].concat())?;
    let rhs = rhs.transpose(&[&dims.rhs_batch[..], &dims.rhs_contracting, &rhs_free].concat())?;
    match kind(&lhs, &rhs, k) {
        Kind::Float => {
            f64::write(matmul(&f64::read(&lhs), &f64::read(&rhs), [batch, m, k, n]), dtype, &shape)
        }
        Kind::Wide => i64::write(matmul(&i64::read(&lhs), &i64::read(&rhs), [batch, m, k, n]), dtype, &shape),
        Kind::Narrow => {
            i32::write(matmul(&i32::read(&lhs), &i32::read(&rhs), [batch, m, k, n]), dtype, &shape)
        }
    }
}

fn matmul<T: Number>(lhs: &[T], rhs: &[T], [batch, m, k, n]: [usize; 4]) -> Vec<T> {
    let mut out = vec![T::default(); batch * m * n];
    if n == 0 {
        return out;
    }
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        let (b, lhs) = (row / m, &lhs[row * k..(row + 1) * k]);
        for (&x, rhs) in lhs.iter().zip(rhs[b * k * n..].chunks_exact(n)) {
            for (out, &y) in out.iter_mut().zip(rhs) {
                out.accumulate(x, y);
            }
        }
    }
    out
}

/// A convolution of two arrays of any dtypes, with a result of `dtype`.
///
/// # Errors
/// When shapes, dimension numbers and window do not fit.
pub fn conv(lhs: &Array, rhs: &Array, dims: &ConvDims, dtype: DType) -> Result<Array, QuantError> {
    let shape = dims.output_shape(lhs.shape(), rhs.shape())?;
    let order = |first: &[usize], spatial: &[usize], last: &[usize]| [first, spatial, last].concat();
    // [batch, spatial, features], [spatial, input features of a group, output features], [batch, spatial, features].
    let input = lhs.transpose(&order(&[dims.input_batch], &dims.input_spatial, &[dims.input_feature]))?;
    let kernel = rhs.transpose(&order(
        &[],
        &dims.kernel_spatial,
        &[dims.kernel_input_feature, dims.kernel_output_feature],
    ))?;
    let output = order(&[dims.output_batch], &dims.output_spatial, &[dims.output_feature]);
    let computed: Vec<usize> = output.iter().map(|&a| shape[a]).collect();
    let terms = kernel.len() / kernel.shape().last().copied().unwrap_or(1).max(1);
    let result = match kind(&input, &kernel, terms) {
        Kind::Float => f64::write(convolve::<f64>(&input, &kernel, &computed, dims), dtype, &computed)?,
        Kind::Wide => i64::write(convolve::<i64>(&input, &kernel, &computed, dims), dtype, &computed)?,
        Kind::Narrow => i32::write(convolve::<i32>(&input, &kernel, &computed, dims), dtype, &computed)?,
    };
    let mut back = vec![0; output.len()];
    for (from, &to) in output.iter().enumerate() {
        back[to] = from;
    }
    Ok(result.transpose(&back)?)
}

fn convolve<T: Number>(input: &Array, kernel: &Array, output: &[usize], dims: &ConvDims) -> Vec<T> {
    let (xs, ws) = (T::read(input), T::read(kernel));
    let spatial = dims.window.len();
    let features = input.shape()[spatial + 1];
    let (group_in, out_features) = (kernel.shape()[spatial], kernel.shape()[spatial + 1]);
    let input_sizes = &input.shape()[1..=spatial];
    let kernel_sizes = &kernel.shape()[..spatial];
    let output_sizes = &output[1..=spatial];
    let groups = dims.feature_group_count.max(dims.batch_group_count);
    let group_out = out_features / groups;
    let mut out = vec![T::default(); output.iter().product()];
    if out.is_empty() {
        return out;
    }
    let (positions, taps): (usize, usize) = (output_sizes.iter().product(), kernel_sizes.iter().product());
    let pixels: usize = input_sizes.iter().product();
    for (row, out) in out.chunks_exact_mut(out_features).enumerate() {
        let (batch, position) = (row / positions, row % positions);
        for tap in 0..taps {
            let Some(pixel) = pixel(position, tap, input_sizes, kernel_sizes, output_sizes, dims) else {
                continue;
            };
            for (group, out) in out.chunks_exact_mut(group_out).enumerate() {
                // Groups split either the features or the batch.
                let (image, first) = if dims.batch_group_count > 1 {
                    (group * output[0] + batch, 0)
                } else {
                    (batch, group * group_in)
                };
                let x = &xs[(image * pixels + pixel) * features + first..][..group_in];
                for (c, &x) in x.iter().enumerate() {
                    let w = &ws[(tap * group_in + c) * out_features + group * group_out..][..group_out];
                    for (out, &w) in out.iter_mut().zip(w) {
                        out.accumulate(x, w);
                    }
                }
            }
        }
    }
    out
}

/// The input element that one element of the kernel meets at one position, if it is neither padding nor a hole.
fn pixel(
    mut position: usize,
    mut tap: usize,
    input: &[usize],
    kernel: &[usize],
    output: &[usize],
    dims: &ConvDims,
) -> Option<usize> {
    let (mut pixel, mut step) = (0, 1);
    for axis in (0..input.len()).rev() {
        let window = &dims.window[axis];
        let (out, k) = (position % output[axis], tap % kernel[axis]);
        (position, tap) = (position / output[axis], tap / kernel[axis]);
        let k = if window.reversal { kernel[axis] - 1 - k } else { k };
        // The output shape has been computed from the same numbers, so none of this overflows.
        let at = (out * window.stride) as i64 + (k * window.window_dilation) as i64 - window.padding_low;
        let at = usize::try_from(at).ok()?;
        if at % window.base_dilation != 0 || at / window.base_dilation >= input[axis] {
            return None;
        }
        pixel += at / window.base_dilation * step;
        step *= input[axis];
    }
    Some(pixel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WindowDim;

    fn iota(dtype: DType, shape: &[usize], modulus: i64) -> Array {
        let values: Vec<i64> =
            (0..shape.iter().product::<usize>() as i64).map(|i| i * 7 % modulus - 3).collect();
        Array::from_i64(dtype, shape, &values).unwrap()
    }

    #[test]
    fn a_dot_sums_over_contracted_axes() {
        let dims = DotDims {
            lhs_contracting: vec![0, 3],
            rhs_contracting: vec![2, 1],
            lhs_batch: vec![2],
            rhs_batch: vec![0],
            ..DotDims::default()
        };
        let mut wrong = Vec::new();
        for dtype in [DType::S8, DType::S4, DType::S32, DType::U8, DType::F32, DType::BF16, DType::F8E4M3FN] {
            let (lhs, rhs) = (iota(dtype, &[2, 3, 4, 5], 9), iota(dtype, &[4, 5, 2, 3], 11));
            let (l, r) = (lhs.to_f64_vec(), rhs.to_f64_vec());
            let mut want = Vec::new();
            for b in 0..4 {
                for i in 0..3 {
                    for j in 0..3 {
                        let terms = (0..2).flat_map(|p| (0..5).map(move |q| (p, q)));
                        want.push(
                            terms
                                .map(|(p, q)| {
                                    l[((p * 3 + i) * 4 + b) * 5 + q] * r[((b * 5 + q) * 2 + p) * 3 + j]
                                })
                                .sum::<f64>(),
                        );
                    }
                }
            }
            let out = if dtype.is_float() { DType::F32 } else { DType::S32 };
            let found = dot(&lhs, &rhs, &dims, out).unwrap();
            if found.shape() != [4, 3, 3] || found.to_f64_vec() != want {
                wrong.push(dtype);
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn the_extremes_of_int8_do_not_overflow() {
        let lowest = Array::from_i64(DType::S8, &[1, 40_000], &[-128; 40_000]).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![1], ..DotDims::default() };
        let found = dot(&lowest, &lowest, &dims, DType::S32).unwrap();
        assert_eq!(found.to_i64_vec(), [40_000 * 128 * 128]);
    }

    /// Every index of the sum spelled out, over an input that is padded and dilated element by element.
    #[test]
    fn a_convolution_is_the_sum_it_stands_for() {
        let base = ConvDims {
            input_batch: 0,
            input_feature: 2,
            input_spatial: vec![1],
            kernel_output_feature: 2,
            kernel_input_feature: 1,
            kernel_spatial: vec![0],
            output_batch: 0,
            output_feature: 2,
            output_spatial: vec![1],
            window: vec![WindowDim::new(3)],
            feature_group_count: 1,
            batch_group_count: 1,
            operand_precision: Default::default(),
        };
        let mut wrong = Vec::new();
        for (stride, low, high, base_dilation, window_dilation, reversal, fgc, bgc) in [
            (1, 0, 0, 1, 1, false, 1, 1),
            (2, 1, 1, 1, 1, false, 1, 1),
            (1, 2, 2, 1, 2, false, 1, 1),
            (1, 2, 1, 2, 1, true, 1, 1),
            (3, -1, 4, 3, 2, false, 2, 1),
            (1, 0, -2, 1, 1, false, 4, 1),
            (1, 1, 1, 1, 1, true, 1, 2),
        ] {
            let window = WindowDim {
                size: 3,
                stride,
                padding_low: low,
                padding_high: high,
                base_dilation,
                window_dilation,
                reversal,
            };
            let dims = ConvDims {
                window: vec![window],
                feature_group_count: fgc,
                batch_group_count: bgc,
                ..base.clone()
            };
            let (input, kernel) = (iota(DType::S8, &[2, 7, 4], 9), iota(DType::S8, &[3, 4 / fgc, 8], 11));
            let shape = dims.output_shape(input.shape(), kernel.shape()).unwrap();
            let (x, w) = (input.to_i64_vec(), kernel.to_i64_vec());
            let at = |image: usize, i: i64, feature: usize| {
                let i = i - low;
                let inside = i >= 0 && i % base_dilation as i64 == 0 && i / (base_dilation as i64) < 7;
                if inside { x[(image * 7 + i as usize / base_dilation) * 4 + feature] } else { 0 }
            };
            let mut want = Vec::new();
            for b in 0..shape[0] {
                for o in 0..shape[1] {
                    for f in 0..8 {
                        let group = f / (8 / (fgc * bgc));
                        let (image, first) =
                            if bgc > 1 { (group * shape[0] + b, 0) } else { (b, group * (4 / fgc)) };
                        let mut sum = 0;
                        for k in 0..3 {
                            let tap = if reversal { 2 - k } else { k };
                            for c in 0..4 / fgc {
                                let i = (o * stride + tap * window_dilation) as i64;
                                sum += at(image, i, first + c) * w[(k * (4 / fgc) + c) * 8 + f];
                            }
                        }
                        want.push(sum);
                    }
                }
            }
            let found = conv(&input, &kernel, &dims, DType::S32).unwrap();
            if found.shape() != shape || found.to_i64_vec() != want {
                wrong.push(format!("{:?}", dims.window));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
