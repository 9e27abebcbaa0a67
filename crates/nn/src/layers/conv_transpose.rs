//! Transposed convolution.

use qwix_array::DType;
use qwix_graph::WindowDim;

use super::conv::{convolve, for_each_axis};
use super::options;
use crate::initializers::{lecun_normal, zeros};
use crate::tensor::Tensor;
use crate::{ConvPadding, Initializer, Module, Result, Scope};

/// A convolution that makes its input larger by the strides, channels last ([batch…, spatial…, features]): parameters
/// `kernel` [window…, inputs, features] and `bias` `[features]`.
#[derive(Clone, Debug)]
pub struct ConvTranspose {
    /// The size of the result's last axis.
    pub features: usize,
    /// The window's size along each spatial axis.
    pub kernel_size: Vec<usize>,
    /// How much larger the result is: one entry a spatial axis, or one for all.
    pub strides: Vec<usize>,
    /// [`ConvPadding::Same`], [`ConvPadding::Valid`] or [`ConvPadding::Explicit`]; the others are refused.
    pub padding: ConvPadding,
    /// Distance between neighbours of the window: one entry a spatial axis, or one for all.
    pub kernel_dilation: Vec<usize>,
    /// Whether a bias is added.
    pub use_bias: bool,
    /// The dtype to compute in; the common one of input and parameters when `None`.
    pub dtype: Option<DType>,
    /// The parameters' dtype.
    pub param_dtype: DType,
    /// How the kernel starts.
    pub kernel_init: Initializer,
    /// How the bias starts.
    pub bias_init: Initializer,
    /// Whether the kernel is that of the convolution that this one undoes: [window…, features, inputs], and walked
    /// backwards.
    pub transpose_kernel: bool,
}

impl ConvTranspose {
    /// To so many features by a window of this size, step 1, padding [`ConvPadding::Same`], with a bias, in f32.
    pub fn new(features: usize, kernel_size: impl Into<Vec<usize>>) -> Self {
        ConvTranspose {
            features,
            kernel_size: kernel_size.into(),
            strides: vec![1],
            padding: ConvPadding::Same,
            kernel_dilation: vec![1],
            use_bias: true,
            dtype: None,
            param_dtype: DType::F32,
            kernel_init: lecun_normal(),
            bias_init: zeros(),
            transpose_kernel: false,
        }
    }

    /// Elements that the dilated input gets before and after each spatial axis.
    fn widths(&self, scope: &Scope, window: &[usize], strides: &[usize]) -> Result<Vec<(i64, i64)>> {
        let each = |total: fn(usize, usize) -> (usize, usize)| {
            window
                .iter()
                .zip(strides)
                .map(|(&k, &s)| total(k, s))
                .map(|(low, high)| (low as i64, high as i64))
                .collect()
        };
        match &self.padding {
            ConvPadding::Same => Ok(each(|k, s| {
                let total = (k + s).saturating_sub(2);
                let low = if s > k - 1 { k - 1 } else { total.div_ceil(2) };
                (low, total.saturating_sub(low))
            })),
            ConvPadding::Valid => Ok(each(|k, s| {
                let total = (k + s).saturating_sub(2).saturating_add(k.saturating_sub(s));
                (k - 1, total.saturating_sub(k - 1))
            })),
            ConvPadding::Explicit(widths) if widths.len() == window.len() => Ok(widths.clone()),
            ConvPadding::Explicit(widths) => {
                let (found, n) = (widths.len(), window.len());
                Err(scope.error(format!("{found} pairs of padding for a window of {n} axes")))
            }
            ConvPadding::Circular | ConvPadding::Reflect | ConvPadding::Causal => {
                Err(scope.error(format!("{:?} is no padding of a transposed convolution", self.padding)))
            }
        }
    }
}

options!(ConvTranspose {
    /// How much larger the result is: one entry a spatial axis, or one for all.
    strides: impl Into<Vec<usize>>,
    /// How it is padded.
    padding: impl Into<ConvPadding>,
    /// Distance between neighbours of the window: one entry a spatial axis, or one for all.
    kernel_dilation: impl Into<Vec<usize>>,
    /// Whether a bias is added.
    use_bias: bool,
    /// The dtype to compute in.
    dtype: impl Into<Option<DType>>,
    /// The parameters' dtype.
    param_dtype: DType,
    /// How the kernel starts.
    kernel_init: Initializer,
    /// How the bias starts.
    bias_init: Initializer,
    /// Whether the kernel is that of the convolution that this one undoes.
    transpose_kernel: bool,
});

impl Module for ConvTranspose {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let n = self.kernel_size.len();
        let shape = x.shape()?;
        if n == 0 || shape.len() < n + 1 {
            let (window, found) = (&self.kernel_size, x.ty()?);
            let reason =
                format!("a window {window:?} takes an input of at least {} axes, found {found}", n + 1);
            return Err(scope.error(reason));
        }
        let strides = for_each_axis(scope, "strides", &self.strides, n)?;
        let dilation = for_each_axis(scope, "kernel_dilation", &self.kernel_dilation, n)?;
        for_each_axis(scope, "kernel_size", &self.kernel_size, n)?;
        let sizes = self.kernel_size.iter().chain(&strides).chain(&dilation);
        if sizes.into_iter().any(|&size| size > u32::MAX as usize) {
            return Err(scope.error("window, strides and dilation should be below 2^32"));
        }

        let (batch, rest) = shape.split_at(shape.len() - n - 1);
        let x = x.reshape(&[&[batch.iter().product::<usize>()], rest].concat());
        let inputs = x.dim(-1)?;
        let ends = if self.transpose_kernel { [self.features, inputs] } else { [inputs, self.features] };
        let kernel_shape = [&self.kernel_size[..], &ends].concat();
        let mut kernel = scope.param("kernel", &kernel_shape, self.param_dtype, &self.kernel_init)?;
        let bias = match self.use_bias {
            true => Some(scope.param("bias", &[self.features], self.param_dtype, &self.bias_init)?),
            false => None,
        };
        if self.transpose_kernel {
            let spatial: Vec<isize> = (0..n as isize).collect();
            kernel = kernel.reverse(&spatial).swap_axes(-1, -2);
        }
        let window: Vec<usize> =
            self.kernel_size.iter().zip(&dilation).map(|(size, by)| (size - 1) * by + 1).collect();
        let widths = self.widths(scope, &window, &strides)?;
        let window = (0..n)
            .map(|i| WindowDim {
                padding_low: widths[i].0,
                padding_high: widths[i].1,
                base_dilation: strides[i],
                window_dilation: dilation[i],
                ..WindowDim::new(self.kernel_size[i])
            })
            .collect();
        convolve(&x, &kernel, bias.as_ref(), window, 1, self.dtype, batch)
    }
}
