//! Normalisation.

use qwix_array::DType;

use super::options;
use crate::initializers::{ones, zeros};
use crate::tensor::{Tensor, computed_in};
use crate::{Initializer, Module, NnError, Result, Scope, promote_types};

/// Each position made mean 0 and variance 1 along the reduction axes, then scaled and shifted: parameters `scale` and
/// `bias` over the feature axes.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub epsilon: f64,
    /// The result's dtype; the common one of input and parameters when `None`.
    pub dtype: Option<DType>,
    /// The parameters' dtype.
    pub param_dtype: DType,
    /// Whether a bias is added.
    pub use_bias: bool,
    /// Whether there is a scale.
    pub use_scale: bool,
    /// How the bias starts.
    pub bias_init: Initializer,
    /// How the scale starts.
    pub scale_init: Initializer,
    /// The axes that mean and variance are taken over.
    pub reduction_axes: Vec<isize>,
    /// The axes that the parameters have.
    pub feature_axes: Vec<isize>,
    /// Whether the variance is the mean of squares less the square of the mean, not below 0 (Flax's default); else the
    /// mean of squared distances from the mean.
    pub use_fast_variance: bool,
}

impl LayerNorm {
    /// Over the last axis, with scale and bias, in f32.
    pub fn new() -> Self {
        LayerNorm {
            epsilon: 1e-6,
            dtype: None,
            param_dtype: DType::F32,
            use_bias: true,
            use_scale: true,
            bias_init: zeros(),
            scale_init: ones(),
            reduction_axes: vec![-1],
            feature_axes: vec![-1],
            use_fast_variance: true,
        }
    }
}

impl Default for LayerNorm {
    fn default() -> Self {
        LayerNorm::new()
    }
}

options!(LayerNorm {
    /// Added to the variance.
    epsilon: f64,
    /// The result's dtype.
    dtype: impl Into<Option<DType>>,
    /// The parameters' dtype.
    param_dtype: DType,
    /// Whether a bias is added.
    use_bias: bool,
    /// Whether there is a scale.
    use_scale: bool,
    /// How the bias starts.
    bias_init: Initializer,
    /// How the scale starts.
    scale_init: Initializer,
    /// The axes that mean and variance are taken over.
    reduction_axes: impl Into<Vec<isize>>,
    /// The axes that the parameters have.
    feature_axes: impl Into<Vec<isize>>,
    /// Whether the variance is the mean of squares less the square of the mean.
    use_fast_variance: bool,
});

impl Module for LayerNorm {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let wide = statistics(&x, self.dtype)?;
        let mean = wide.mean(&self.reduction_axes);
        let variance = if self.use_fast_variance {
            (wide.square().mean(&self.reduction_axes) - mean.square()).maximum(0.0)
        } else {
            let shape = kept(&x, &self.reduction_axes)?;
            (&wide - mean.reshape(&shape)).square().mean(&self.reduction_axes)
        };
        let parameters = Parameters {
            epsilon: self.epsilon,
            dtype: self.dtype,
            param_dtype: self.param_dtype,
            bias_init: self.use_bias.then_some(&self.bias_init),
            scale_init: self.use_scale.then_some(&self.scale_init),
            feature_axes: &self.feature_axes,
        };
        let shape = kept(&x, &self.reduction_axes)?;
        parameters.normalise(scope, &x, Some(&mean.reshape(&shape)), &variance.reshape(&shape))
    }
}

/// Each position divided by the root of its mean square along the reduction axes, then scaled: parameter `scale` over the
/// feature axes.
#[derive(Clone, Debug)]
pub struct RMSNorm {
    /// Added to the mean square.
    pub epsilon: f64,
    /// The result's dtype; the common one of input and parameter when `None`.
    pub dtype: Option<DType>,
    /// The parameter's dtype.
    pub param_dtype: DType,
    /// Whether there is a scale.
    pub use_scale: bool,
    /// How the scale starts.
    pub scale_init: Initializer,
    /// The axes that the mean is taken over.
    pub reduction_axes: Vec<isize>,
    /// The axes that the parameter has.
    pub feature_axes: Vec<isize>,
}

impl RMSNorm {
    /// Over the last axis, with a scale, in f32.
    pub fn new() -> Self {
        RMSNorm {
            epsilon: 1e-6,
            dtype: None,
            param_dtype: DType::F32,
            use_scale: true,
            scale_init: ones(),
            reduction_axes: vec![-1],
            feature_axes: vec![-1],
        }
    }
}

impl Default for RMSNorm {
    fn default() -> Self {
        RMSNorm::new()
    }
}

options!(RMSNorm {
    /// Added to the mean square.
    epsilon: f64,
    /// The result's dtype.
    dtype: impl Into<Option<DType>>,
    /// The parameter's dtype.
    param_dtype: DType,
    /// Whether there is a scale.
    use_scale: bool,
    /// How the scale starts.
    scale_init: Initializer,
    /// The axes that the mean is taken over.
    reduction_axes: impl Into<Vec<isize>>,
    /// The axes that the parameter has.
    feature_axes: impl Into<Vec<isize>>,
});

impl Module for RMSNorm {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let square = statistics(&x, self.dtype)?.square().mean(&self.reduction_axes);
        let parameters = Parameters {
            epsilon: self.epsilon,
            dtype: self.dtype,
            param_dtype: self.param_dtype,
            bias_init: None,
            scale_init: self.use_scale.then_some(&self.scale_init),
            feature_axes: &self.feature_axes,
        };
        let shape = kept(&x, &self.reduction_axes)?;
        parameters.normalise(scope, &x, None, &square.reshape(&shape))
    }
}

/// Normalisation by statistics of the training data, as at inference (`use_running_average=True`): variables `mean` and
/// `var` in the collection `batch_stats`, parameters `scale` and `bias`, all over one axis.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// The features' axis.
    pub axis: isize,
    /// Added to the variance.
    pub epsilon: f64,
    /// The result's dtype; the common one of input and parameters when `None`.
    pub dtype: Option<DType>,
    /// The parameters' dtype.
    pub param_dtype: DType,
    /// Whether a bias is added.
    pub use_bias: bool,
    /// Whether there is a scale.
    pub use_scale: bool,
    /// How the bias starts.
    pub bias_init: Initializer,
    /// How the scale starts.
    pub scale_init: Initializer,
}

impl BatchNorm {
    /// Over the last axis, with scale and bias, in f32.
    pub fn new() -> Self {
        BatchNorm {
            axis: -1,
            epsilon: 1e-5,
            dtype: None,
            param_dtype: DType::F32,
            use_bias: true,
            use_scale: true,
            bias_init: zeros(),
            scale_init: ones(),
        }
    }
}

impl Default for BatchNorm {
    fn default() -> Self {
        BatchNorm::new()
    }
}

options!(BatchNorm {
    /// The features' axis.
    axis: isize,
    /// Added to the variance.
    epsilon: f64,
    /// The result's dtype.
    dtype: impl Into<Option<DType>>,
    /// The parameters' dtype.
    param_dtype: DType,
    /// Whether a bias is added.
    use_bias: bool,
    /// Whether there is a scale.
    use_scale: bool,
    /// How the bias starts.
    bias_init: Initializer,
    /// How the scale starts.
    scale_init: Initializer,
});

impl Module for BatchNorm {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let features = x.dim(self.axis)?;
        let mean = scope.variable("batch_stats", "mean", &[features], DType::F32, &zeros())?;
        let variance = scope.variable("batch_stats", "var", &[features], DType::F32, &ones())?;
        let axis = x.front_axes("BatchNorm", &[self.axis])?;
        let shape: Vec<usize> =
            (0..x.rank()?).map(|a| if axis.contains(&a) { features } else { 1 }).collect();
        let parameters = Parameters {
            epsilon: self.epsilon,
            dtype: self.dtype,
            param_dtype: self.param_dtype,
            bias_init: self.use_bias.then_some(&self.bias_init),
            scale_init: self.use_scale.then_some(&self.scale_init),
            feature_axes: &[self.axis],
        };
        parameters.normalise(scope, &x, Some(&mean.reshape(&shape)), &variance.reshape(&shape))
    }
}

/// x for statistics: in f32 at least.
fn statistics(x: &Tensor, dtype: Option<DType>) -> Result<Tensor> {
    let dtype = match dtype {
        Some(dtype) => dtype,
        None => x.dtype()?,
    };
    let wide = promote_types(dtype, DType::F32).ok_or_else(|| NnError::Layer {
        module: x.tracer().place(),
        reason: format!("normalises floats of at least 16 bits, found {dtype}"),
    })?;
    x.astype(wide).ok()
}

/// The shape of x with these axes of size 1.
fn kept(x: &Tensor, axes: &[isize]) -> Result<Vec<usize>> {
    let mut shape = x.shape()?;
    for axis in x.front_axes("reduction_axes", axes)? {
        shape[axis] = 1;
    }
    Ok(shape)
}

struct Parameters<'a> {
    epsilon: f64,
    dtype: Option<DType>,
    param_dtype: DType,
    bias_init: Option<&'a Initializer>,
    scale_init: Option<&'a Initializer>,
    feature_axes: &'a [isize],
}

impl Parameters<'_> {
    /// (x − mean) · (rsqrt(variance + ε) · scale) + bias, in this order.
    fn normalise(
        &self,
        scope: &Scope,
        x: &Tensor,
        mean: Option<&Tensor>,
        variance: &Tensor,
    ) -> Result<Tensor> {
        let shape = x.shape()?;
        let mut axes = x.front_axes("feature_axes", self.feature_axes)?;
        let sizes: Vec<usize> = axes.iter().map(|&a| shape[a]).collect();
        axes.sort_unstable();
        let wide: Vec<usize> =
            shape.iter().enumerate().map(|(a, &size)| if axes.contains(&a) { size } else { 1 }).collect();
        let mut used = vec![x.clone()];
        let mut y = match mean {
            Some(mean) => x - mean,
            None => x.clone(),
        };
        let mut factor = (variance + self.epsilon).rsqrt();
        if let Some(init) = self.scale_init {
            let scale = scope.param("scale", &sizes, self.param_dtype, init)?.reshape(&wide);
            // Both are broadcast in the product with x: the factor is as large as scale and variance together.
            factor = factor * &scale;
            used.push(scale);
        }
        y = y * factor;
        if let Some(init) = self.bias_init {
            let bias = scope.param("bias", &sizes, self.param_dtype, init)?.reshape(&wide);
            y = y + &bias;
            used.push(bias);
        }
        let dtype = computed_in(self.dtype, &used.iter().collect::<Vec<_>>())?;
        y.astype(dtype).ok()
    }
}
