//! Convolution.

use qwix_array::DType;
use qwix_graph::{ConvDims, WindowDim};

use super::options;
use super::pool::same_padding;
use crate::initializers::{lecun_normal, zeros};
use crate::tensor::{Tensor, computed_in, concatenate};
use crate::{Initializer, Module, Result, Scope};

/// What a convolution sees beyond the edges of its input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConvPadding {
    /// Zeros, so many that the result is as large as the input over the stride.
    Same,
    /// Nothing: the window stays inside.
    Valid,
    /// The opposite edge.
    Circular,
    /// The input mirrored at its first and last element.
    Reflect,
    /// Zeros before the first element only, so that no position sees a later one; one spatial axis.
    Causal,
    /// So many zeros before and after each spatial axis; elements go when negative.
    Explicit(Vec<(i64, i64)>),
}

impl From<&[(i64, i64)]> for ConvPadding {
    fn from(widths: &[(i64, i64)]) -> Self {
        ConvPadding::Explicit(widths.to_vec())
    }
}

impl<const N: usize> From<[(i64, i64); N]> for ConvPadding {
    fn from(widths: [(i64, i64); N]) -> Self {
        ConvPadding::Explicit(widths.to_vec())
    }
}

/// A convolution over the axes before the last, channels last ([batch…, spatial…, features]): parameters `kernel`
/// [window…, inputs / groups, features] and `bias` `[features]`.
///
/// Several batch axes count as one; none as one of size 1.
#[derive(Clone, Debug)]
pub struct Conv {
    /// The size of the result's last axis.
    pub features: usize,
    /// The window's size along each spatial axis.
    pub kernel_size: Vec<usize>,
    /// Steps of the window: one entry a spatial axis, or one for all.
    pub strides: Vec<usize>,
    /// What is seen beyond the edges.
    pub padding: ConvPadding,
    /// Distance between neighbours of the input: one entry a spatial axis, or one for all.
    pub input_dilation: Vec<usize>,
    /// Distance between neighbours of the window: one entry a spatial axis, or one for all.
    pub kernel_dilation: Vec<usize>,
    /// Groups that features are split into; as many as input features for a depthwise convolution.
    pub feature_group_count: usize,
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
}

impl Conv {
    /// To so many features by a window of this size, step 1, padding [`ConvPadding::Same`], with a bias, in f32.
    pub fn new(features: usize, kernel_size: impl Into<Vec<usize>>) -> Self {
        Conv {
            features,
            kernel_size: kernel_size.into(),
            strides: vec![1],
            padding: ConvPadding::Same,
            input_dilation: vec![1],
            kernel_dilation: vec![1],
            feature_group_count: 1,
            use_bias: true,
            dtype: None,
            param_dtype: DType::F32,
            kernel_init: lecun_normal(),
            bias_init: zeros(),
        }
    }

    /// Steps of the window: one entry a spatial axis, or one for all.
    pub fn strides(mut self, strides: impl Into<Vec<usize>>) -> Self {
        self.strides = strides.into();
        self
    }

    /// What is seen beyond the edges.
    pub fn padding(mut self, padding: impl Into<ConvPadding>) -> Self {
        self.padding = padding.into();
        self
    }

    /// Distance between neighbours of the input: one entry a spatial axis, or one for all.
    pub fn input_dilation(mut self, dilation: impl Into<Vec<usize>>) -> Self {
        self.input_dilation = dilation.into();
        self
    }

    /// Distance between neighbours of the window: one entry a spatial axis, or one for all.
    pub fn kernel_dilation(mut self, dilation: impl Into<Vec<usize>>) -> Self {
        self.kernel_dilation = dilation.into();
        self
    }
}

options!(Conv {
    /// Groups that features are split into.
    feature_group_count: usize,
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
});

/// One entry a spatial axis.
pub(super) fn for_each_axis(scope: &Scope, what: &str, values: &[usize], axes: usize) -> Result<Vec<usize>> {
    let all = match values {
        [one] => vec![*one; axes],
        several => several.to_vec(),
    };
    if all.len() != axes || all.contains(&0) {
        let reason = format!("{what} {values:?} should be one number above 0, or {axes} of them");
        return Err(scope.error(reason));
    }
    Ok(all)
}

impl Module for Conv {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let n = self.kernel_size.len();
        let shape = x.shape()?;
        if n == 0 || shape.len() < n + 1 {
            return Err(scope.error(format!(
                "a window {:?} takes an input of at least {} axes, found {}",
                self.kernel_size,
                n + 1,
                x.ty()?
            )));
        }
        let strides = for_each_axis(scope, "strides", &self.strides, n)?;
        let input_dilation = for_each_axis(scope, "input_dilation", &self.input_dilation, n)?;
        let kernel_dilation = for_each_axis(scope, "kernel_dilation", &self.kernel_dilation, n)?;
        for_each_axis(scope, "kernel_size", &self.kernel_size, n)?;

        let (batch, rest) = shape.split_at(shape.len() - n - 1);
        let x = x.reshape(&[&[batch.iter().product::<usize>()], rest].concat());
        let inputs = x.dim(-1)?;
        if self.feature_group_count == 0 || inputs % self.feature_group_count != 0 {
            let reason =
                format!("{inputs} input features do not split into {} groups", self.feature_group_count);
            return Err(scope.error(reason));
        }
        let dilated: Vec<usize> = self
            .kernel_size
            .iter()
            .zip(&kernel_dilation)
            .map(|(size, by)| (size - 1).saturating_mul(*by).saturating_add(1))
            .collect();
        let (x, padding) = self.padded(scope, x, &dilated, &strides)?;

        let kernel_shape =
            [&self.kernel_size[..], &[inputs / self.feature_group_count, self.features]].concat();
        let kernel = scope.param("kernel", &kernel_shape, self.param_dtype, &self.kernel_init)?;
        let bias = match self.use_bias {
            true => Some(scope.param("bias", &[self.features], self.param_dtype, &self.bias_init)?),
            false => None,
        };
        let window = (0..n)
            .map(|i| WindowDim {
                stride: strides[i],
                padding_low: padding[i].0,
                padding_high: padding[i].1,
                base_dilation: input_dilation[i],
                window_dilation: kernel_dilation[i],
                ..WindowDim::new(self.kernel_size[i])
            })
            .collect();
        convolve(&x, &kernel, bias.as_ref(), window, self.feature_group_count, self.dtype, batch)
    }
}

/// The convolution of x [batch, spatial…, inputs] with a kernel [window…, inputs / groups, features], and the bias; then
/// the batch axes as they were.
pub(super) fn convolve(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    window: Vec<WindowDim>,
    feature_group_count: usize,
    dtype: Option<DType>,
    batch: &[usize],
) -> Result<Tensor> {
    let n = window.len();
    let all: Vec<&Tensor> = [x, kernel].into_iter().chain(bias).collect();
    let dtype = computed_in(dtype, &all)?;
    let spatial: Vec<usize> = (1..=n).collect();
    let dims = ConvDims {
        input_batch: 0,
        input_feature: n + 1,
        input_spatial: spatial.clone(),
        kernel_input_feature: n,
        kernel_output_feature: n + 1,
        kernel_spatial: (0..n).collect(),
        output_batch: 0,
        output_feature: n + 1,
        output_spatial: spatial,
        window,
        feature_group_count,
        batch_group_count: 1,
        operand_precision: Default::default(),
    };
    let mut y = x.astype(dtype).convolution(&kernel.astype(dtype), &dims);
    if let Some(bias) = bias {
        let mut wide = vec![1; n + 1];
        wide.push(bias.dim(0)?);
        y = y + bias.astype(dtype).reshape(&wide);
    }
    let out = [batch, &y.shape()?[1..]].concat();
    y.reshape(&out).ok()
}

impl Conv {
    /// The input with what the padding copies into it, and the zeros that the convolution itself adds.
    fn padded(
        &self,
        scope: &Scope,
        x: Tensor,
        window: &[usize],
        strides: &[usize],
    ) -> Result<(Tensor, Vec<(i64, i64)>)> {
        let n = window.len();
        let none = vec![(0, 0); n];
        let shape = x.shape()?;
        Ok(match &self.padding {
            ConvPadding::Valid => (x, none),
            ConvPadding::Same => {
                let widths = (0..n).map(|i| same_padding(shape[i + 1], window[i], strides[i]));
                (x, widths.collect())
            }
            ConvPadding::Explicit(widths) if widths.len() == n => (x, widths.clone()),
            ConvPadding::Explicit(widths) => {
                let reason = format!("{} pairs of padding for a window of {n} axes", widths.len());
                return Err(scope.error(reason));
            }
            ConvPadding::Causal => {
                let &[window] = window else {
                    return Err(scope.error(format!("causal padding is for one spatial axis, found {n}")));
                };
                (x.pad(&[(0, 0), (window - 1, 0), (0, 0)], 0).ok()?, none)
            }
            ConvPadding::Circular | ConvPadding::Reflect => {
                let mirrored = self.padding == ConvPadding::Reflect;
                let mut x = x;
                for (i, size) in window.iter().enumerate() {
                    x = extended(scope, &x, i + 1, ((size - 1) / 2, size / 2), mirrored)?;
                }
                (x, none)
            }
        })
    }
}

/// x with copies of its own elements before and after one axis: of the opposite edge, or mirrored at the edge.
fn extended(
    scope: &Scope,
    x: &Tensor,
    axis: usize,
    (low, high): (usize, usize),
    mirrored: bool,
) -> Result<Tensor> {
    let axis = axis as isize;
    let size = x.dim(axis)?;
    if low.max(high) + usize::from(mirrored) > size {
        let reason = format!("a window that reaches {} beyond axis {axis} of {}", low.max(high), x.ty()?);
        return Err(scope.error(reason));
    }
    let mut parts = Vec::new();
    let (before, after) =
        if mirrored { (1..low + 1, size - 1 - high..size - 1) } else { (size - low..size, 0..high) };
    let copied = |range: std::ops::Range<usize>| {
        let part = x.slice(axis, range);
        if mirrored { part.reverse(&[axis]) } else { part }
    };
    if low > 0 {
        parts.push(copied(before));
    }
    parts.push(x.clone());
    if high > 0 {
        parts.push(copied(after));
    }
    concatenate(&parts, axis)
}
