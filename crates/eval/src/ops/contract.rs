//! Products: `dot` and `convolution`.
//!
//! Floats are multiplied and summed in f64 and rounded to the result's dtype once; integers are exact before they wrap
//! into it. When the result is a float and the operands are integers (or the other way round), operands are converted
//! to the result's dtype first, as XLA does.

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, ConvDims, DotDims};

use crate::EvalError;
use crate::cells::{each_index, strides};
use crate::lanes::Lanes;
use crate::number::Class;

/// Multiplication and addition of one type.
trait Number: Copy {
    const ZERO: Self;
    fn add_product(self, x: Self, y: Self) -> Self;
}

impl Number for f64 {
    const ZERO: f64 = 0.0;
    fn add_product(self, x: f64, y: f64) -> f64 {
        self + x * y
    }
}

impl Number for i64 {
    const ZERO: i64 = 0;
    fn add_product(self, x: i64, y: i64) -> i64 {
        self.wrapping_add(x.wrapping_mul(y))
    }
}

impl Number for u64 {
    const ZERO: u64 = 0;
    fn add_product(self, x: u64, y: u64) -> u64 {
        self.wrapping_add(x.wrapping_mul(y))
    }
}

impl Number for bool {
    const ZERO: bool = false;
    fn add_product(self, x: bool, y: bool) -> bool {
        self | (x & y)
    }
}

/// Elements in the class of a dtype.
fn read(x: &Array, dtype: DType) -> Result<Lanes, EvalError> {
    if Class::of(x.dtype()) == Class::of(dtype) {
        return Ok(Lanes::read(x)?);
    }
    // A signed and an unsigned integer meet in the result's class without a loss.
    Ok(Lanes::read(&x.convert(if x.dtype().is_float() || dtype.is_float() { dtype } else { widest(dtype) }))?)
}

fn widest(dtype: DType) -> DType {
    match Class::of(dtype) {
        Class::Float => DType::F64,
        Class::Int => DType::S64,
        Class::Uint => DType::U64,
        Class::Pred => DType::Pred,
    }
}

fn same_shape(what: &str, found: &[usize], ty: &ArrayType) -> Result<(), EvalError> {
    if found == ty.shape {
        Ok(())
    } else {
        Err(EvalError::reason(format!("{what} yields the shape {found:?}, expected {ty}")))
    }
}

/// A product summed over some axes.
pub(crate) fn dot(lhs: &Array, rhs: &Array, dims: &DotDims, ty: &ArrayType) -> Result<Array, EvalError> {
    same_shape("dot", &dims.output_shape(lhs.shape(), rhs.shape())?, ty)?;
    let (lhs_free, rhs_free) = (dims.lhs_free(lhs.rank()), dims.rhs_free(rhs.rank()));
    let size = |x: &Array, axes: &[usize]| axes.iter().map(|&a| x.shape()[a]).product::<usize>();
    let sizes = [
        size(lhs, &dims.lhs_batch),
        size(lhs, &lhs_free),
        size(lhs, &dims.lhs_contracting),
        size(rhs, &rhs_free),
    ];
    // As matrices: batch, rows, summed; and batch, summed, columns.
    let lhs = lhs.transpose(&[&dims.lhs_batch[..], &lhs_free, &dims.lhs_contracting].concat())?;
    let rhs = rhs.transpose(&[&dims.rhs_batch[..], &dims.rhs_contracting, &rhs_free].concat())?;
    let product = match (read(&lhs, ty.dtype)?, read(&rhs, ty.dtype)?) {
        (Lanes::Float(x), Lanes::Float(y)) => Lanes::Float(multiply(&x, &y, sizes)),
        (Lanes::Int(x), Lanes::Int(y)) => Lanes::Int(multiply(&x, &y, sizes)),
        (Lanes::Uint(x), Lanes::Uint(y)) => Lanes::Uint(multiply(&x, &y, sizes)),
        (Lanes::Pred(x), Lanes::Pred(y)) => Lanes::Pred(multiply(&x, &y, sizes)),
        (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => {
            return Err(EvalError::reason(format!("dot of {lhs:?} and {rhs:?} into {ty}")));
        }
    };
    Ok(product.write(ty.dtype, &ty.shape)?)
}

/// Matrix products, batch by batch.
fn multiply<T: Number>(x: &[T], y: &[T], [batches, rows, summed, columns]: [usize; 4]) -> Vec<T> {
    let mut out = vec![T::ZERO; batches * rows * columns];
    if summed == 0 || columns == 0 {
        return out;
    }
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        let x = &x[row * summed..(row + 1) * summed];
        let y = &y[row / rows * summed * columns..][..summed * columns];
        for (&x, y) in x.iter().zip(y.chunks_exact(columns)) {
            for (out, &y) in out.iter_mut().zip(y) {
                *out = out.add_product(x, y);
            }
        }
    }
    out
}

/// A kernel moved over an input.
pub(crate) fn convolution(
    input: &Array,
    kernel: &Array,
    dims: &ConvDims,
    ty: &ArrayType,
) -> Result<Array, EvalError> {
    same_shape("convolution", &dims.output_shape(input.shape(), kernel.shape())?, ty)?;
    let plan = Conv::new(input, kernel, dims, ty);
    // Of each output feature, the kernel's elements one after another: spatial axes, then input features.
    let order =
        [&[dims.kernel_output_feature], &dims.kernel_spatial[..], &[dims.kernel_input_feature]].concat();
    let kernel = kernel.transpose(&order)?;
    let product = match (read(input, ty.dtype)?, read(&kernel, ty.dtype)?) {
        (Lanes::Float(x), Lanes::Float(y)) => Lanes::Float(plan.run(&x, &y)),
        (Lanes::Int(x), Lanes::Int(y)) => Lanes::Int(plan.run(&x, &y)),
        (Lanes::Uint(x), Lanes::Uint(y)) => Lanes::Uint(plan.run(&x, &y)),
        (Lanes::Pred(x), Lanes::Pred(y)) => Lanes::Pred(plan.run(&x, &y)),
        (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => {
            return Err(EvalError::reason(format!("convolution of {input:?} and {kernel:?} into {ty}")));
        }
    };
    Ok(product.write(ty.dtype, &ty.shape)?)
}

struct Conv<'a> {
    dims: &'a ConvDims,
    input: &'a [usize],
    input_strides: Vec<usize>,
    window: Vec<usize>,
    /// Input features of a group, output features in all.
    features: usize,
    output_features: usize,
    output: &'a [usize],
    output_strides: Vec<usize>,
}

impl<'a> Conv<'a> {
    fn new(input: &'a Array, kernel: &Array, dims: &'a ConvDims, ty: &'a ArrayType) -> Self {
        Conv {
            dims,
            input: input.shape(),
            input_strides: strides(input.shape()),
            window: dims.kernel_spatial.iter().map(|&a| kernel.shape()[a]).collect(),
            features: kernel.shape()[dims.kernel_input_feature],
            output_features: kernel.shape()[dims.kernel_output_feature],
            output: &ty.shape,
            output_strides: strides(&ty.shape),
        }
    }

    /// Pairs of a place in the input (of batch and feature 0) and in the kernel's window, for one spatial position.
    fn taps(&self, at: &[usize]) -> Vec<(usize, usize)> {
        let mut taps = vec![(0, 0)];
        for (i, window) in self.dims.window.iter().enumerate() {
            let axis = self.dims.input_spatial[i];
            let places: Vec<(usize, usize)> = (0..self.window[i])
                .filter_map(|k| {
                    let place = input_position(window, at[i], k).filter(|&p| p < self.input[axis])?;
                    let k = if window.reversal { self.window[i] - 1 - k } else { k };
                    Some((place * self.input_strides[axis], k))
                })
                .collect();
            taps = taps
                .iter()
                .flat_map(|&(p, k)| places.iter().map(move |&(q, l)| (p + q, k * self.window[i] + l)))
                .collect();
        }
        taps
    }

    fn run<T: Number>(&self, input: &[T], kernel: &[T]) -> Vec<T> {
        let dims = self.dims;
        let mut out = vec![T::ZERO; self.output.iter().product()];
        let spatial: Vec<usize> = dims.output_spatial.iter().map(|&a| self.output[a]).collect();
        let per_feature = self.window.iter().product::<usize>() * self.features;
        let feature_group = (self.output_features / dims.feature_group_count).max(1);
        let batch_group = (self.output_features / dims.batch_group_count).max(1);
        let batches = self.output[dims.output_batch];
        let (batch_step, feature_step) =
            (self.input_strides[dims.input_batch], self.input_strides[dims.input_feature]);
        let walked = each_index(&spatial, |at| {
            let taps = self.taps(at);
            let place: usize =
                at.iter().zip(&dims.output_spatial).map(|(i, &a)| i * self.output_strides[a]).sum();
            for batch in 0..batches {
                for feature in 0..self.output_features {
                    let first = feature / feature_group * self.features * feature_step
                        + (feature / batch_group * batches + batch) * batch_step;
                    let kernel = &kernel[feature * per_feature..(feature + 1) * per_feature];
                    let mut sum = T::ZERO;
                    for &(p, k) in &taps {
                        for (c, &y) in kernel[k * self.features..(k + 1) * self.features].iter().enumerate() {
                            sum = sum.add_product(input[first + p + c * feature_step], y);
                        }
                    }
                    out[place
                        + batch * self.output_strides[dims.output_batch]
                        + feature * self.output_strides[dims.output_feature]] = sum;
                }
            }
            Ok::<(), std::convert::Infallible>(())
        });
        match walked {
            Ok(()) => out,
            Err(never) => match never {},
        }
    }
}

/// The element of the base that element `k` of the window at position `at` lies on, or `None` where there is padding
/// or a gap of dilation; it may be past the base's end.
pub(crate) fn input_position(window: &qwix_graph::WindowDim, at: usize, k: usize) -> Option<usize> {
    let place = at as i128 * window.stride as i128 + k as i128 * window.window_dilation as i128
        - i128::from(window.padding_low);
    let dilation = window.base_dilation.max(1) as i128;
    if place < 0 || place % dilation != 0 {
        return None;
    }
    usize::try_from(place / dilation).ok()
}
