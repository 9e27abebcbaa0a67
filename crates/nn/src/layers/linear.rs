//! Linear layers.

use qwix_array::DType;
use qwix_graph::DotDims;

use super::options;
use crate::initializers::{lecun_normal, zeros};
use crate::tensor::{Tensor, computed_in, dot_general};
use crate::{Initializer, Module, Result, Scope};

/// A linear map of the last axis: parameters `kernel` [inputs, features] and `bias` `[features]`.
#[derive(Clone, Debug)]
pub struct Dense {
    /// The size of the result's last axis.
    pub features: usize,
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

impl Dense {
    /// To so many features, with a bias, in f32.
    pub fn new(features: usize) -> Self {
        Dense {
            features,
            use_bias: true,
            dtype: None,
            param_dtype: DType::F32,
            kernel_init: lecun_normal(),
            bias_init: zeros(),
        }
    }
}

options!(Dense {
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

impl Module for Dense {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let rank = x.rank()?;
        if rank == 0 {
            return Err(scope.error("takes an input with at least one axis, found a scalar"));
        }
        let inputs = x.dim(-1)?;
        let kernel = scope.param("kernel", &[inputs, self.features], self.param_dtype, &self.kernel_init)?;
        let bias = match self.use_bias {
            true => Some(scope.param("bias", &[self.features], self.param_dtype, &self.bias_init)?),
            false => None,
        };
        let dims =
            DotDims { lhs_contracting: vec![rank - 1], rhs_contracting: vec![0], ..DotDims::default() };
        let mut wide = vec![1; rank - 1];
        wide.push(self.features);
        affine(self.dtype, &x, &kernel, bias.as_ref(), |x, kernel| dot_general(x, kernel, &dims), &wide)
    }
}

/// The product and then the bias, all in one dtype.
fn affine(
    dtype: Option<DType>,
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    product: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    bias_shape: &[usize],
) -> Result<Tensor> {
    let all: Vec<&Tensor> = [x, kernel].into_iter().chain(bias).collect();
    let dtype = computed_in(dtype, &all)?;
    let y = product(&x.astype(dtype), &kernel.astype(dtype));
    match bias {
        Some(bias) => (y + bias.astype(dtype).reshape(bias_shape)).ok(),
        None => y.ok(),
    }
}

/// A linear map of any axes to any number of axes: parameters `kernel` [batch axes, mapped axes, features] and `bias`
/// [batch axes, features].
#[derive(Clone, Debug)]
pub struct DenseGeneral {
    /// The sizes of the result's last axes.
    pub features: Vec<usize>,
    /// The axes that are mapped; negative ones count from the back.
    pub axis: Vec<isize>,
    /// Leading axes with a map of their own for each index.
    pub batch_dims: Vec<usize>,
    /// Whether a bias is added.
    pub use_bias: bool,
    /// The dtype to compute in; the common one of input and parameters when `None`.
    pub dtype: Option<DType>,
    /// The parameters' dtype.
    pub param_dtype: DType,
    /// How the kernel starts, as a matrix.
    pub kernel_init: Initializer,
    /// How the bias starts, as a vector.
    pub bias_init: Initializer,
}

impl DenseGeneral {
    /// Of the last axis to axes of these sizes, with a bias, in f32.
    pub fn new(features: impl Into<Vec<usize>>) -> Self {
        DenseGeneral {
            features: features.into(),
            axis: vec![-1],
            batch_dims: vec![],
            use_bias: true,
            dtype: None,
            param_dtype: DType::F32,
            kernel_init: lecun_normal(),
            bias_init: zeros(),
        }
    }

    /// The axes that are mapped; negative ones count from the back.
    pub fn axis(mut self, axis: impl Into<Vec<isize>>) -> Self {
        self.axis = axis.into();
        self
    }

    /// Leading axes with a map of their own for each index.
    pub fn batch_dims(mut self, batch_dims: impl Into<Vec<usize>>) -> Self {
        self.batch_dims = batch_dims.into();
        self
    }
}

options!(DenseGeneral {
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

impl Module for DenseGeneral {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let shape = x.shape()?;
        let axis = x.front_axes("DenseGeneral", &self.axis)?;
        let batch = self.batch_dims.len();
        if axis.is_empty() {
            return Err(scope.error("maps at least one axis, found none"));
        }
        let mut sorted = self.batch_dims.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..batch) || batch > shape.len() {
            let reason = format!("batch_dims {:?} should be the first axes of {shape:?}", self.batch_dims);
            return Err(scope.error(reason));
        }
        if let Some(both) = axis.iter().find(|a| self.batch_dims.contains(a)) {
            return Err(scope.error(format!("axis {both} is both mapped and in batch_dims")));
        }
        let batch_shape: Vec<usize> = self.batch_dims.iter().map(|&a| shape[a]).collect();
        let mapped: Vec<usize> = axis.iter().map(|&a| shape[a]).collect();
        let product = |sizes: &[usize]| -> Result<usize> {
            qwix_array::element_count(sizes)
                .ok_or_else(|| scope.error(format!("sizes {sizes:?} are too large")))
        };
        let rows = product(&[&batch_shape[..], &mapped].concat())?;
        let columns = product(&self.features)?;
        let kernel_init = self.kernel_init.in_shape(vec![rows, columns]);
        let kernel_shape = [&batch_shape[..], &mapped, &self.features].concat();
        let kernel = scope.param("kernel", &kernel_shape, self.param_dtype, &kernel_init)?;
        let bias = match self.use_bias {
            true => {
                let init =
                    self.bias_init.in_shape(vec![product(&[&batch_shape[..], &self.features].concat())?]);
                let shape = [&batch_shape[..], &self.features].concat();
                Some(scope.param("bias", &shape, self.param_dtype, &init)?)
            }
            false => None,
        };
        let dims = DotDims {
            lhs_contracting: axis.clone(),
            rhs_contracting: (batch..batch + axis.len()).collect(),
            lhs_batch: self.batch_dims.clone(),
            rhs_batch: (0..batch).collect(),
            ..DotDims::default()
        };
        // The result's axes: batch, the rest of the input's, features.
        let kept = (0..shape.len())
            .filter(|a| !axis.contains(a))
            .map(|a| if self.batch_dims.contains(&a) { shape[a] } else { 1 });
        let wide: Vec<usize> = kept.chain(self.features.iter().copied()).collect();
        affine(self.dtype, &x, &kernel, bias.as_ref(), |x, kernel| dot_general(x, kernel, &dims), &wide)
    }
}

/// A linear map written as an einsum of the input and the parameter `kernel`; the parameter `bias` has the axes that
/// come from the kernel.
#[derive(Clone, Debug)]
pub struct Einsum {
    /// The kernel's shape.
    pub shape: Vec<usize>,
    /// The equation, such as `bsd,dhk->bshk`.
    pub einsum_str: String,
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

impl Einsum {
    /// With a kernel of this shape and a bias, in f32.
    pub fn new(shape: impl Into<Vec<usize>>, einsum_str: &str) -> Self {
        Einsum {
            shape: shape.into(),
            einsum_str: einsum_str.to_owned(),
            use_bias: true,
            dtype: None,
            param_dtype: DType::F32,
            kernel_init: lecun_normal(),
            bias_init: zeros(),
        }
    }
}

options!(Einsum {
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

impl Module for Einsum {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        // As in Flax, so that an equation with blanks gives the op the name that it has there.
        let equation: String = self.einsum_str.chars().filter(|c| *c != ' ').collect();
        let kernel = scope.param("kernel", &self.shape, self.param_dtype, &self.kernel_init)?;
        let names = crate::tensor::letters(&equation, x.rank()?, self.shape.len());
        let [_, of_kernel, out] = names.map_err(|why| scope.error(format!("einsum `{equation}`: {why}")))?;
        let size = |c: &char| of_kernel.iter().position(|d| d == c).map(|axis| self.shape[axis]);
        let wide: Vec<usize> = out.iter().map(|c| size(c).unwrap_or(1)).collect();
        let bias_shape: Vec<usize> = out.iter().filter_map(size).collect();
        let bias = match self.use_bias {
            true => Some(scope.param("bias", &bias_shape, self.param_dtype, &self.bias_init)?),
            false => None,
        };
        affine(self.dtype, &x, &kernel, bias.as_ref(), |x, kernel| x.einsum(&equation, kernel), &wide)
    }
}
