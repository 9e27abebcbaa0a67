//! How parameters start: Flax's initializers.

use std::fmt;
use std::sync::Arc;

use qwix_array::{Array, DType, element_count};
use qwix_graph::ArrayType;

use crate::random::{self, Key};
use crate::{NnError, Result};

type Function = dyn Fn(Key, &ArrayType) -> Result<Array> + Send + Sync;

/// Makes a parameter's first value from a key, a shape and a dtype.
#[derive(Clone)]
pub struct Initializer {
    name: &'static str,
    function: Arc<Function>,
}

impl Initializer {
    /// Any function of a key and a type; the array that it makes is to be of that type.
    pub fn new(function: impl Fn(Key, &ArrayType) -> Result<Array> + Send + Sync + 'static) -> Self {
        Initializer { name: "custom", function: Arc::new(function) }
    }

    fn named(
        name: &'static str,
        function: impl Fn(Key, &ArrayType) -> Result<Array> + Send + Sync + 'static,
    ) -> Self {
        Initializer { name, function: Arc::new(function) }
    }

    /// The array for this key.
    ///
    /// # Errors
    /// When the initializer does not take the shape or dtype.
    pub fn call(&self, key: Key, ty: &ArrayType) -> Result<Array> {
        (self.function)(key, ty)
    }

    /// Makes the parameter in another shape of as many elements, then reshapes it: what layers of several axes do, so
    /// that fans are those of the matrix they amount to.
    pub(crate) fn in_shape(&self, shape: Vec<usize>) -> Self {
        let inner = self.clone();
        Initializer::named(self.name, move |key, ty| {
            Ok(inner.call(key, &ArrayType::new(ty.dtype, shape.clone()))?.reshape(&ty.shape)?)
        })
    }
}

impl fmt::Debug for Initializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All of one number.
pub fn constant(value: f64) -> Initializer {
    Initializer::named("constant", move |_, ty| filled(ty, value))
}

/// Zeros.
pub fn zeros() -> Initializer {
    Initializer::named("zeros", |_, ty| filled(ty, 0.0))
}

/// Ones.
pub fn ones() -> Initializer {
    Initializer::named("ones", |_, ty| filled(ty, 1.0))
}

fn filled(ty: &ArrayType, value: f64) -> Result<Array> {
    let scalar = if ty.dtype.is_float() {
        Array::from_f64(ty.dtype, &[], &[value])?
    } else {
        Array::from_i64(ty.dtype, &[], &[value as i64])?
    };
    Ok(scalar.broadcast_in_dim(&ty.shape, &[])?)
}

/// Normal, of this standard deviation.
pub fn normal(stddev: f64) -> Initializer {
    Initializer::named("normal", move |key, ty| scaled(random::normal(key, ty)?, stddev as f32))
}

/// Normal within `lower` and `upper` standard deviations, then times `stddev`.
pub fn truncated_normal(stddev: f64, lower: f64, upper: f64) -> Initializer {
    Initializer::named("truncated_normal", move |key, ty| {
        scaled(random::truncated_normal(key, ty, lower as f32, upper as f32)?, stddev as f32)
    })
}

/// Uniform in [0, `scale`).
pub fn uniform(scale: f64) -> Initializer {
    Initializer::named("uniform", move |key, ty| scaled(random::uniform(key, ty, 0.0, 1.0)?, scale as f32))
}

/// The number of inputs or outputs that a variance is scaled by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fan {
    /// The inputs.
    In,
    /// The outputs.
    Out,
    /// Their mean.
    Average,
    /// Their geometric mean.
    GeometricAverage,
}

/// What a variance-scaling initializer draws from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// Normal within two standard deviations.
    TruncatedNormal,
    /// Normal.
    Normal,
    /// Uniform around 0.
    Uniform,
}

/// A parameter's axes in the eyes of a variance-scaling initializer; the others are a convolution's window. Negative
/// ones count from the back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FanAxes {
    /// The inputs'.
    pub input: Vec<isize>,
    /// The outputs'.
    pub output: Vec<isize>,
    /// Those that repeat the layer.
    pub batch: Vec<isize>,
}

impl Default for FanAxes {
    fn default() -> Self {
        FanAxes { input: vec![-2], output: vec![-1], batch: vec![] }
    }
}

/// Of mean 0 and variance `scale` / fan.
pub fn variance_scaling(scale: f64, fan: Fan, distribution: Distribution) -> Initializer {
    variance_scaling_with(scale, fan, distribution, FanAxes::default())
}

/// [`variance_scaling`] of a parameter with its inputs and outputs on other axes.
pub fn variance_scaling_with(scale: f64, fan: Fan, distribution: Distribution, axes: FanAxes) -> Initializer {
    Initializer::named("variance_scaling", move |key, ty| {
        let (fan_in, fan_out) = fans(ty, &axes)?;
        let denominator = match fan {
            Fan::In => fan_in,
            Fan::Out => fan_out,
            Fan::Average => (fan_in + fan_out) / 2.0,
            Fan::GeometricAverage => (fan_in * fan_out).sqrt(),
        };
        let variance = rounded(ty.dtype, (scale / denominator) as f32);
        match distribution {
            Distribution::TruncatedNormal => {
                // The standard deviation of a normal distribution cut off at two of its own.
                let cut = rounded(ty.dtype, 0.879_625_7);
                let stddev = rounded(ty.dtype, rounded(ty.dtype, variance.sqrt()) / cut);
                scaled(random::truncated_normal(key, ty, -2.0, 2.0)?, stddev)
            }
            Distribution::Normal => scaled(random::normal(key, ty)?, variance.sqrt()),
            Distribution::Uniform => {
                let bound = rounded(ty.dtype, 3.0 * variance).sqrt();
                scaled(random::uniform(key, ty, -1.0, 1.0)?, bound)
            }
        }
    })
}

/// Truncated normal of variance 1 / inputs: the kernels' default.
pub fn lecun_normal() -> Initializer {
    variance_scaling(1.0, Fan::In, Distribution::TruncatedNormal)
}

/// Uniform of variance 1 / inputs.
pub fn lecun_uniform() -> Initializer {
    variance_scaling(1.0, Fan::In, Distribution::Uniform)
}

/// Truncated normal of variance 2 / inputs.
pub fn he_normal() -> Initializer {
    variance_scaling(2.0, Fan::In, Distribution::TruncatedNormal)
}

/// Uniform of variance 2 / inputs.
pub fn he_uniform() -> Initializer {
    variance_scaling(2.0, Fan::In, Distribution::Uniform)
}

/// Truncated normal of variance 2 / (inputs + outputs).
pub fn xavier_normal() -> Initializer {
    variance_scaling(1.0, Fan::Average, Distribution::TruncatedNormal)
}

/// Uniform of variance 2 / (inputs + outputs).
pub fn xavier_uniform() -> Initializer {
    variance_scaling(1.0, Fan::Average, Distribution::Uniform)
}

/// Normal of variance 1 / features: embeddings' default.
pub fn embedding() -> Initializer {
    let axes = FanAxes { output: vec![0], ..FanAxes::default() };
    // The input axis and the output axis are one here, as in Flax, so that the other counts as a window.
    variance_scaling_with(1.0, Fan::In, Distribution::Normal, axes)
}

fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        DType::F16 => half::f16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Times a number, in the array's own dtype.
fn scaled(array: Array, factor: f32) -> Result<Array> {
    let factor = rounded(array.dtype(), factor);
    let values: Vec<f32> = array.to_f32_vec().into_iter().map(|x| x * factor).collect();
    Ok(Array::from_vec(array.shape(), values)?.convert(array.dtype()))
}

fn fans(ty: &ArrayType, axes: &FanAxes) -> Result<(f64, f64)> {
    let wrong = |what: &str| NnError::Layer {
        module: "initializer".to_owned(),
        reason: format!("variance scaling of {ty}: {what}"),
    };
    let size = |axes: &[isize]| -> Result<f64> {
        let mut product = 1.0;
        for &axis in axes {
            let rank = ty.shape.len();
            let at = if axis < 0 { rank.checked_sub(axis.unsigned_abs()) } else { Some(axis.unsigned_abs()) };
            let size = at
                .and_then(|at| ty.shape.get(at))
                .ok_or_else(|| wrong(&format!("there is no axis {axis}")))?;
            product *= *size as f64;
        }
        Ok(product)
    };
    let (input, output, batch) = (size(&axes.input)?, size(&axes.output)?, size(&axes.batch)?);
    let count = element_count(&ty.shape).ok_or_else(|| wrong("too large"))? as f64;
    if count == 0.0 {
        return Err(wrong("it has no elements"));
    }
    let window = count / input / output / batch;
    Ok((input * window, output * window))
}
