//! Functions of floats, in f64. Callers round to the dtype.
//!
//! Transcendental functions are `libm`'s, so that every machine gets the same bits; in f64 they are within about an
//! ulp, and for the narrower floats the rounded result is the correctly rounded one but for the rarest of cases.

use qwix_graph::{BinaryOp, CompareOrder, Comparison, UnaryOp};

/// The function of an op on floats, or `None` when it has none (or does not yield a float).
pub(crate) fn unary(op: UnaryOp) -> Option<fn(f64) -> f64> {
    Some(match op {
        UnaryOp::Abs => f64::abs,
        UnaryOp::Cbrt => libm::cbrt,
        UnaryOp::Ceil => f64::ceil,
        UnaryOp::Copy => |x| x,
        UnaryOp::Cos => libm::cos,
        UnaryOp::Erf => libm::erf,
        UnaryOp::Exp => libm::exp,
        UnaryOp::Expm1 => libm::expm1,
        UnaryOp::Floor => f64::floor,
        UnaryOp::Log => libm::log,
        UnaryOp::Log1p => libm::log1p,
        UnaryOp::Logistic => |x| 1.0 / (1.0 + libm::exp(-x)),
        UnaryOp::Negate => |x| -x,
        UnaryOp::RoundNearestAfz => f64::round,
        UnaryOp::RoundNearestEven => f64::round_ties_even,
        UnaryOp::Rsqrt => |x| 1.0 / x.sqrt(),
        UnaryOp::Sign => sign,
        UnaryOp::Sin => libm::sin,
        UnaryOp::Sqrt => f64::sqrt,
        UnaryOp::Tan => libm::tan,
        UnaryOp::Tanh => libm::tanh,
        UnaryOp::Clz | UnaryOp::IsFinite | UnaryOp::Not | UnaryOp::PopulationCount => return None,
    })
}

/// The function of an op on two floats.
pub(crate) fn binary(op: BinaryOp) -> Option<fn(f64, f64) -> f64> {
    Some(match op {
        BinaryOp::Add => |x, y| x + y,
        BinaryOp::Atan2 => libm::atan2,
        BinaryOp::Divide => |x, y| x / y,
        BinaryOp::Maximum => maximum,
        BinaryOp::Minimum => minimum,
        BinaryOp::Multiply => |x, y| x * y,
        BinaryOp::Power => libm::pow,
        BinaryOp::Remainder => |x, y| x % y,
        BinaryOp::Subtract => |x, y| x - y,
        BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::ShiftLeft
        | BinaryOp::ShiftRightArithmetic
        | BinaryOp::ShiftRightLogical
        | BinaryOp::Xor => return None,
    })
}

/// The larger; NaN when either is, and 0 rather than −0.
pub(crate) fn maximum(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.is_nan() {
        f64::NAN
    } else if x == y {
        if x.is_sign_negative() { y } else { x }
    } else if x > y {
        x
    } else {
        y
    }
}

/// The smaller; NaN when either is, and −0 rather than 0.
pub(crate) fn minimum(x: f64, y: f64) -> f64 {
    -maximum(-x, -y)
}

/// −1, 1, the zero itself, or NaN.
fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

/// Whether a comparison holds. In the total order −NaN < −∞ < … < −0 < 0 < … < ∞ < NaN.
pub(crate) fn compare(comparison: Comparison, order: CompareOrder) -> fn(f64, f64) -> bool {
    match (order, comparison) {
        (CompareOrder::Partial, Comparison::Eq) => |x, y| x == y,
        (CompareOrder::Partial, Comparison::Ne) => |x, y| x != y,
        (CompareOrder::Partial, Comparison::Lt) => |x, y| x < y,
        (CompareOrder::Partial, Comparison::Le) => |x, y| x <= y,
        (CompareOrder::Partial, Comparison::Gt) => |x, y| x > y,
        (CompareOrder::Partial, Comparison::Ge) => |x, y| x >= y,
        (CompareOrder::Total, Comparison::Eq) => |x, y| x.total_cmp(&y).is_eq(),
        (CompareOrder::Total, Comparison::Ne) => |x, y| x.total_cmp(&y).is_ne(),
        (CompareOrder::Total, Comparison::Lt) => |x, y| x.total_cmp(&y).is_lt(),
        (CompareOrder::Total, Comparison::Le) => |x, y| x.total_cmp(&y).is_le(),
        (CompareOrder::Total, Comparison::Gt) => |x, y| x.total_cmp(&y).is_gt(),
        (CompareOrder::Total, Comparison::Ge) => |x, y| x.total_cmp(&y).is_ge(),
    }
}

/// Rounds an f32-or-narrower value to `mantissa_bits`, then to the range of `exponent_bits`: what is too large
/// becomes an infinity, what would be subnormal becomes zero. `own` are the exponent and mantissa bits of the value's
/// own dtype; fields at least that wide leave it alone.
pub(crate) fn reduce_precision(x: f64, exponent_bits: u32, mantissa_bits: u32, own: (u32, u32)) -> f64 {
    if x.is_nan() || x.is_infinite() || x == 0.0 {
        return x;
    }
    let (own_exponent, own_mantissa) = own;
    // The value on the grid of its own dtype: the rounding counts mantissa bits below the dtype's leading bit, which
    // for its subnormals stays at the smallest normal's place.
    let smallest_exponent = 2 - (1i32 << (own_exponent - 1));
    let exponent = exponent(x).max(smallest_exponent);
    let rounded = if mantissa_bits < own_mantissa {
        // With the unit in the last place brought to 1, rounding is rounding to an integer.
        let ulp = exponent - mantissa_bits as i32;
        libm::scalbn(libm::scalbn(x, -ulp).round_ties_even(), ulp)
    } else {
        x
    };
    // Past the largest finite value of the own dtype.
    let largest =
        libm::scalbn(2.0 - libm::scalbn(1.0, -(own_mantissa as i32)), (1 << (own_exponent - 1)) - 1);
    if rounded.abs() > largest {
        return f64::INFINITY.copysign(x);
    }
    if exponent_bits >= own_exponent || rounded == 0.0 {
        return if rounded == 0.0 { 0f64.copysign(x) } else { rounded };
    }
    let bias = (1i32 << (exponent_bits.max(1) - 1)) - 1;
    let reached = self::exponent(rounded);
    if reached > bias {
        f64::INFINITY.copysign(x)
    } else if reached <= -bias {
        0f64.copysign(x)
    } else {
        rounded
    }
}

/// The exponent of the leading bit of a finite number that is not 0.
fn exponent(x: f64) -> i32 {
    libm::ilogb(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_nans_of_maximum_and_minimum() {
        assert!(maximum(0.0, -0.0).is_sign_positive() && maximum(-0.0, 0.0).is_sign_positive());
        assert!(minimum(0.0, -0.0).is_sign_negative() && minimum(-0.0, 0.0).is_sign_negative());
        assert!(maximum(1.0, f64::NAN).is_nan() && minimum(f64::NAN, 1.0).is_nan());
        assert_eq!((maximum(1.0, 2.0), minimum(1.0, 2.0)), (2.0, 1.0));
    }

    /// XLA's answers (jax 0.10, CPU), from f32.
    #[test]
    fn reduced_precision() {
        let inf = f64::INFINITY;
        let x = [1e-6, 6e-8, 65519.0, 65520.0, -70000.0, inf, 1e-40, 1.0009765625, 1.00048828125, -0.0];
        let rows = [
            ((5, 10), [0.0, 0.0, 65504.0, inf, -inf, inf, 0.0, 1.0009765625, 1.0, -0.0]),
            (
                (8, 7),
                [
                    9.98377799987793e-07,
                    6.007030606269836e-08,
                    65536.0,
                    65536.0,
                    -70144.0,
                    inf,
                    9.183549615799121e-41,
                    1.0,
                    1.0,
                    -0.0,
                ],
            ),
            ((4, 3), [0.0, 0.0, inf, inf, -inf, inf, 0.0, 1.0, 1.0, -0.0]),
            ((5, 2), [0.0, 0.0, inf, inf, -inf, inf, 0.0, 1.0, 1.0, -0.0]),
            (
                (8, 0),
                [
                    9.5367431640625e-07,
                    5.960464477539063e-08,
                    65536.0,
                    65536.0,
                    -65536.0,
                    inf,
                    0.0,
                    1.0,
                    1.0,
                    -0.0,
                ],
            ),
            ((1, 1), [0.0, 0.0, inf, inf, -inf, inf, 0.0, 0.0, 0.0, -0.0]),
        ];
        let mut wrong = Vec::new();
        for ((e, m), want) in rows {
            for (x, want) in x.into_iter().zip(want) {
                let found = reduce_precision(f64::from(x as f32), e, m, (8, 23));
                if found.to_bits() != want.to_bits() {
                    wrong.push((e, m, x, found, want));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
