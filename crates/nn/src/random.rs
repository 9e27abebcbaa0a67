//! JAX's random numbers: keys, bits and the distributions that initializers draw from.
//!
//! Keys are ThreeFry-2x32's (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011), and element i
//! of an array has the counter i, as since JAX 0.5. Bits and uniform numbers are JAX's bit for bit; normal ones are
//! JAX's to a few units in the last place, because XLA's `log1p` is an approximation of its own.

use qwix_array::{Array, DType, element_count};
use qwix_graph::ArrayType;
use sha1::{Digest, Sha1};

use crate::{NnError, Result};

/// A key of random numbers: `jax.random.key`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key([u32; 2]);

impl Key {
    /// The key of a seed, `jax.random.key(seed)`: of larger seeds JAX takes the low 32 bits (unless in 64-bit mode).
    pub fn new(seed: u32) -> Self {
        Key([0, seed])
    }

    /// The key of these words, `jax.random.wrap_key_data`.
    pub fn from_words(words: [u32; 2]) -> Self {
        Key(words)
    }

    /// Its words, `jax.random.key_data`.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Another key, for a number: `jax.random.fold_in`.
    pub fn fold_in(self, data: u32) -> Self {
        Key(threefry(self.0, [0, data]))
    }

    /// Another key, for a text: what Flax folds in is the start of the text's SHA-1.
    pub(crate) fn fold_in_bytes(self, data: &[u8]) -> Self {
        let digest = Sha1::digest(data);
        let word = digest.iter().take(4).fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        self.fold_in(word)
    }

    /// So many keys: `jax.random.split`.
    pub fn split(self, count: usize) -> Vec<Self> {
        (0..count as u64).map(|i| Key(self.block(i))).collect()
    }

    fn block(self, counter: u64) -> [u32; 2] {
        threefry(self.0, [(counter >> 32) as u32, counter as u32])
    }

    /// The i-th 32 bits.
    fn bits(self, i: u64) -> u32 {
        let [x, y] = self.block(i);
        x ^ y
    }
}

/// Twenty rounds of ThreeFry-2x32.
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let [mut x, mut y] = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for group in 0..5usize {
        for rotation in ROTATIONS[group % 2] {
            x = x.wrapping_add(y);
            y = y.rotate_left(rotation) ^ x;
        }
        x = x.wrapping_add(keys[(group + 1) % 3]);
        y = y.wrapping_add(keys[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [x, y]
}

/// A float dtype as the samplers compute in it: each step is rounded to it.
#[derive(Clone, Copy)]
struct Float {
    dtype: DType,
    mantissa: u32,
}

impl Float {
    fn of(dtype: DType) -> Result<Self> {
        let mantissa = match dtype {
            DType::F32 => 23,
            DType::BF16 => 7,
            DType::F16 => 10,
            _ => {
                return Err(NnError::Layer {
                    module: "initializer".to_owned(),
                    reason: format!("random numbers are made in f32, bf16 and f16, found {dtype}"),
                });
            }
        };
        Ok(Float { dtype, mantissa })
    }

    /// The nearest of its values; f32 holds both narrower types.
    fn round(self, x: f32) -> f32 {
        match self.dtype {
            DType::BF16 => half::bf16::from_f32(x).to_f32(),
            DType::F16 => half::f16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    /// Random in [0, 1): mantissa bits under the exponent of 1.
    fn unit(self, key: Key, i: u64) -> f32 {
        let bits = match self.dtype {
            DType::F32 => key.bits(i) >> (32 - self.mantissa),
            // Sixteen bits are the low half of a word; bf16 has fewer than eight of mantissa and takes the low eight.
            DType::F16 => (key.bits(i) & 0xffff) >> (16 - self.mantissa),
            _ => (key.bits(i) & 0xff) >> (8 - self.mantissa),
        };
        bits as f32 / (1u32 << self.mantissa) as f32
    }

    /// Random in [low, high).
    fn uniform(self, key: Key, i: u64, low: f32, high: f32) -> f32 {
        let span = self.round(high - low);
        let x = match self.dtype {
            // XLA's CPU compiler contracts product and sum.
            DType::F32 => self.unit(key, i).mul_add(span, low),
            _ => self.round(self.round(self.unit(key, i) * span) + low),
        };
        low.max(x)
    }
}

fn samples(ty: &ArrayType, f: impl Fn(u64) -> f32) -> Result<Array> {
    let count = element_count(&ty.shape)
        .ok_or_else(|| qwix_array::ArrayError::TooLarge { dtype: ty.dtype, shape: ty.shape.clone() })?;
    let values: Vec<f32> = (0..count as u64).map(f).collect();
    Ok(Array::from_vec(&ty.shape, values)?.convert(ty.dtype))
}

/// Uniform in [low, high): `jax.random.uniform`.
///
/// # Errors
/// When the dtype is none of f32, bf16 and f16, or the shape cannot be counted.
pub fn uniform(key: Key, ty: &ArrayType, low: f32, high: f32) -> Result<Array> {
    let float = Float::of(ty.dtype)?;
    let (low, high) = (float.round(low), float.round(high));
    samples(ty, |i| float.uniform(key, i, low, high))
}

/// Normal, of mean 0 and variance 1: `jax.random.normal`.
///
/// # Errors
/// When the dtype is none of f32, bf16 and f16, or the shape cannot be counted.
pub fn normal(key: Key, ty: &ArrayType) -> Result<Array> {
    let float = Float::of(ty.dtype)?;
    let root = float.round(std::f32::consts::SQRT_2);
    // The next value after −1, towards 0: half a step below 1, as steps are halved there.
    let low = -1.0 + 0.5 / (1u32 << float.mantissa) as f32;
    samples(ty, |i| float.round(root * float.round(erf_inv(float.uniform(key, i, low, 1.0)))))
}

/// Normal, of mean 0 and variance 1, between two bounds: `jax.random.truncated_normal`.
///
/// # Errors
/// When the dtype is none of f32, bf16 and f16, or the shape cannot be counted.
pub fn truncated_normal(key: Key, ty: &ArrayType, lower: f32, upper: f32) -> Result<Array> {
    let float = Float::of(ty.dtype)?;
    let root = float.round(std::f32::consts::SQRT_2);
    let (lower, upper) = (float.round(lower), float.round(upper));
    let erf = |x: f32| {
        // XLA multiplies by reciprocals of constants, but for bf16.
        let x = match ty.dtype {
            DType::BF16 => x / root,
            _ => x * float.round(1.0 / root),
        };
        float.round(erf(float.round(x)))
    };
    let (a, b) = (erf(lower), erf(upper));
    let inner = (next(float, lower, true), next(float, upper, false));
    samples(ty, |i| {
        let x = float.round(root * float.round(erf_inv(float.uniform(key, i, a, b))));
        x.max(inner.0).min(inner.1)
    })
}

/// The neighbouring value of the dtype.
fn next(float: Float, x: f32, up: bool) -> f32 {
    match float.dtype {
        DType::BF16 | DType::F16 => {
            // One step of the narrow type: its last mantissa bit, scaled by the exponent (of the lower binade at a
            // power of two on the way to 0).
            let exponent = if x == 0.0 { -14.0 } else { x.abs().log2().floor() };
            let towards_zero = (x > 0.0) != up;
            let shrinks = towards_zero && x.abs() == exponent.exp2();
            let step = (exponent - float.mantissa as f32 - if shrinks { 1.0 } else { 0.0 }).exp2();
            if up { x + step } else { x - step }
        }
        _ if up => x.next_up(),
        _ => x.next_down(),
    }
}

/// The error function in f32, by the rational approximation that XLA uses (after Eigen's), sums and products contracted.
fn erf(x: f32) -> f32 {
    // Fitted, so not 2/√π to the last bit.
    #[allow(clippy::approx_constant)]
    const NUMERATOR: [f32; 5] = [2.2905065e-4, 3.408291e-3, 5.0955694e-2, 1.8520832e-1, 1.1283791];
    const DENOMINATOR: [f32; 7] =
        [-1.1791603e-7, 2.3547966e-5, 1.0179626e-3, 1.407047e-2, 1.1098505e-1, 4.9746925e-1, 1.0];
    // From here on it is 1 in f32.
    const LAST: f32 = 3.743_921_2;
    let x = x.clamp(-LAST, LAST);
    let square = x * x;
    let polynomial = |c: &[f32]| c.iter().fold(0.0f32, |sum, &c| sum.mul_add(square, c));
    x * polynomial(&NUMERATOR) / polynomial(&DENOMINATOR)
}

/// The inverse of the error function in f32: the polynomials of Giles, "Approximating the erfinv function" (2010), which
/// XLA uses.
fn erf_inv(x: f32) -> f32 {
    const NEAR: [f32; 9] = [
        2.810_226_4e-8,
        3.432_739_4e-7,
        -3.523_387_7e-6,
        -4.391_506_5e-6,
        2.185_808_7e-4,
        -1.253_725e-3,
        -4.177_681_6e-3,
        0.246_640_73,
        1.501_409_4,
    ];
    const FAR: [f32; 9] = [
        -2.002_142_6e-4,
        1.009_505_6e-4,
        1.349_343_2e-3,
        -3.673_428_4e-3,
        5.739_507_7e-3,
        -7.622_461_3e-3,
        9.438_870_5e-3,
        1.001_674,
        2.832_976_8,
    ];
    if x.abs() == 1.0 {
        return x * f32::INFINITY;
    }
    let w = -libm::log1p(f64::from(x * -x)) as f32;
    let (coefficients, w) = if w < 5.0 { (&NEAR, w - 2.5) } else { (&FAR, w.sqrt() - 3.0) };
    let mut p = coefficients[0];
    for &c in &coefficients[1..] {
        p = p.mul_add(w, c);
    }
    p * x
}
