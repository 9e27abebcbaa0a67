//! Activation functions, each the ops that JAX lowers it to, in their order.

use qwix_array::DType;

use crate::Result;
use crate::tensor::Tensor;

/// max(x, 0).
pub fn relu(x: &Tensor) -> Tensor {
    x.inside("jit(relu)", || x.maximum(0))
}

/// min(max(x, 0), 6).
pub fn relu6(x: &Tensor) -> Tensor {
    x.inside("jit(relu6)", || x.maximum(0).minimum(6))
}

/// x · Φ(x) by tanh: 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))). Flax's default.
pub fn gelu(x: &Tensor) -> Tensor {
    let x = x.to_float();
    let root = (2.0 / std::f64::consts::PI).sqrt() as f32;
    let cube = x.square() * &x;
    let cdf = (((&x + cube * 0.044715) * root).tanh() + 1.0) * 0.5;
    x * cdf
}

/// x · Φ(x), exactly: 0.5 · x · erfc(−x / √2). `gelu(x, approximate=False)`.
pub fn gelu_exact(x: &Tensor) -> Tensor {
    let x = x.to_float();
    let half = &x * 0.5;
    half * erfc(&(-&x * std::f64::consts::FRAC_1_SQRT_2))
}

/// x · sigmoid(x), also called swish.
pub fn silu(x: &Tensor) -> Tensor {
    x.inside("jit(silu)", || x * x.sigmoid())
}

/// 1 / (1 + exp(−x)).
pub fn sigmoid(x: &Tensor) -> Tensor {
    x.inside("jit(sigmoid)", || x.sigmoid())
}

/// The hyperbolic tangent.
pub fn tanh(x: &Tensor) -> Tensor {
    x.tanh()
}

/// x where it is above 0, `alpha` · (exp(x) − 1) elsewhere.
pub fn elu(x: &Tensor, alpha: f64) -> Tensor {
    x.inside("jit(elu)", || {
        let positive = x.greater(0);
        let safe = positive.select(0.0, x).expm1();
        let negative = if alpha == 1.0 { safe } else { safe * alpha };
        positive.select(x, negative)
    })
}

/// max(x, 0) + `alpha` · (exp(min(x, 0) / `alpha`) − 1).
pub fn celu(x: &Tensor, alpha: f64) -> Tensor {
    x.inside("jit(celu)", || {
        let below = (x.minimum(0.0) / alpha).expm1();
        x.maximum(0.0) + if alpha == 1.0 { below } else { below * alpha }
    })
}

/// The self-normalising [`elu`].
pub fn selu(x: &Tensor) -> Tensor {
    x.inside("jit(selu)", || elu(x, 1.673_263_242_354_377_2) * 1.050_700_987_355_480_5)
}

/// x where it is not below 0, `slope` · x elsewhere (Flax's default slope: 0.01).
pub fn leaky_relu(x: &Tensor, slope: f64) -> Tensor {
    x.inside("jit(leaky_relu)", || x.greater_equal(0).select(x, x * slope))
}

/// log(1 + exp(x)).
pub fn softplus(x: &Tensor) -> Tensor {
    x.inside("jit(softplus)", || {
        let x = x.to_float();
        // XLA's logaddexp(x, 0): a NaN stays.
        let sum = x.maximum(0.0) + (-x.abs()).exp().log1p();
        x.not_equal(&x).select(&x, sum)
    })
}

/// log(sigmoid(x)).
pub fn log_sigmoid(x: &Tensor) -> Tensor {
    x.inside("jit(log_sigmoid)", || -softplus(&-x))
}

/// x / (|x| + 1).
pub fn soft_sign(x: &Tensor) -> Tensor {
    x.inside("jit(soft_sign)", || x / (x.abs() + 1.0))
}

/// Between −1 and 1.
pub fn hard_tanh(x: &Tensor) -> Tensor {
    x.inside("jit(hard_tanh)", || x.greater(1).select(1, x.less(-1).select(-1, x)))
}

/// relu6(x + 3) / 6.
pub fn hard_sigmoid(x: &Tensor) -> Tensor {
    x.inside("jit(hard_sigmoid)", || relu6(&(x + 3.0)) / 6.0)
}

/// x · hard_sigmoid(x), also called hard swish.
pub fn hard_silu(x: &Tensor) -> Tensor {
    x.inside("jit(hard_silu)", || x * hard_sigmoid(x))
}

/// The first half of an axis times the sigmoid of the second.
///
/// # Errors
/// When the axis has no halves.
pub fn glu(x: &Tensor, axis: isize) -> Result<Tensor> {
    match x.split(2, axis)?.as_slice() {
        [a, b] => (a * b.sigmoid()).ok(),
        _ => Err(x.tracer().op_error("glu", "an axis has two halves")),
    }
}

/// exp(x) over its sum along the axis, the largest value subtracted before.
pub fn softmax(x: &Tensor, axis: isize) -> Tensor {
    let x = x.to_float();
    let exp = (&x - largest(&x, axis)).exp();
    let sum = exp.sum_keepdims(&[axis]);
    exp / sum
}

/// log(softmax(x)).
pub fn log_softmax(x: &Tensor, axis: isize) -> Tensor {
    x.inside("jit(log_softmax)", || {
        let x = x.to_float();
        let shifted = &x - largest(&x, axis);
        let sum = shifted.exp().sum_keepdims(&[axis]);
        shifted - sum.log()
    })
}

/// The logarithm of the sum of exp(x) along the axis, which goes.
pub fn logsumexp(x: &Tensor, axis: isize) -> Tensor {
    let x = x.to_float();
    let largest = x.max_keepdims(&[axis]);
    // Infinities would make NaN of their difference.
    let shift = largest.is_finite().select(&largest, 0.0);
    let sum = (&x - &shift).exp().sum(&[axis]);
    sum.log() + shift.sum(&[axis])
}

/// The largest along the axis, as JAX takes it for softmax: not below −∞ even of nothing.
fn largest(x: &Tensor, axis: isize) -> Tensor {
    let max = x.max(&[axis]).maximum(f64::NEG_INFINITY);
    x.then(|ty| {
        let mut shape = ty.shape.clone();
        for at in x.sorted_axes("softmax", ty, &[axis])? {
            shape[at] = 1;
        }
        max.reshape(&shape).ok()
    })
}

/// 1 − erf(x): the rational approximations (after Cephes) that XLA has for f32; narrower floats pass through f32, and
/// f64 takes 1 − erf(x) as it is.
fn erfc(x: &Tensor) -> Tensor {
    x.then(|ty| match ty.dtype {
        DType::F64 => (1.0 - x.erf()).ok(),
        DType::F32 => erfc_f32(x).ok(),
        narrow => erfc_f32(&x.astype(DType::F32)).astype(narrow).ok(),
    })
}

/// Horner's scheme, the highest power first.
fn polynomial<const N: usize>(x: &Tensor, coefficients: &[f32; N]) -> Tensor {
    let [first, second, ..] = coefficients.as_slice() else { return x.clone() };
    coefficients[2..].iter().fold(x * *first + *second, |sum, &c| sum * x + c)
}

fn erfc_f32(x: &Tensor) -> Tensor {
    // Fitted, so not 2/√π to the last bit.
    #[allow(clippy::approx_constant)]
    const NEAR: [f32; 7] = [
        7.853_861_5e-5,
        -8.010_193_7e-4,
        5.188_327_7e-3,
        -2.685_381_3e-2,
        0.112_835_854,
        -0.376_126_26,
        1.128_379_1,
    ];
    const MIDDLE: [f32; 9] = [
        2.326_82e-2,
        -0.138_703_94,
        0.368_742_47,
        -0.582_473_3,
        0.621_000_47,
        -0.494_451_52,
        0.340_488,
        -0.274_112_7,
        0.563_825_96,
    ];
    const FAR: [f32; 8] = [
        -10.477_664,
        12.977_2,
        -7.495_518_7,
        2.921_019,
        -1.015_265_2,
        0.421_846_33,
        -0.282_076_75,
        0.564_189_5,
    ];
    const LOWEST: f32 = -88.722_84;
    let square = x.square();
    let near = 1.0 - x * polynomial(&square, &NEAR);
    let down = -&square;
    let absolute = x.abs();
    let scale = down.exp() * (1.0 / &absolute);
    let inverse = 1.0 / &square;
    let p = absolute.less(2.0).select(polynomial(&inverse, &MIDDLE), polynomial(&inverse, &FAR));
    let tail = down.less(LOWEST).select(0.0, scale * p);
    let tail = x.less(0.0).select(2.0 - &tail, &tail);
    absolute.less(1.0).select(near, tail)
}
