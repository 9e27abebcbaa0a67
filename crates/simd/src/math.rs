//! Functions of one f32, without branches, so that a loop over them becomes vector code.
//!
//! The polynomials are least-squares fits, reweighted towards the least largest error, made for this file. Each function's error is stated in units in
//! the last place (ulp) of the true value and held by the tests below. None uses a fused multiply-add: every machine gives the same bits.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has so few bits that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding 1.5 · 2^23 rounds to an integer, half to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 2^n for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// e^x, within 2 ulp where the result is normal; subnormal results are rounded.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Comparisons that NaN fails leave it alone.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    // NaN leaves any bits in n; keep the shift below within bounds.
    let n = n.clamp(-151, 129);
    let whole = shifted - ROUND;
    let r = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    let tail = 1.395_171_7e-3;
    let tail = tail * r + 8.369_599e-3;
    let tail = tail * r + 4.166_618_7e-2;
    let tail = tail * r + 1.666_651_2e-1;
    let tail = tail * r + 0.5;
    let y = tail * (r * r) + r + 1.0;
    // In two steps, as 2^n itself may be out of range when y · 2^n is not.
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n - half)
}

/// tanh x, within 3 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let u = x * x;
    let p = -5.717_037e-3;
    let p = p * u + 2.065_057_9e-2;
    let p = p * u - 5.374_349_7e-2;
    let p = p * u + 1.333_149_1e-1;
    let p = p * u - 3.333_328_4e-1;
    // The sum of −0 and 0 is 0.
    let small = (p * u * x + x).copysign(x);
    let e = exp(x.abs() * 2.0);
    let large = (1.0 - 2.0 / (e + 1.0)).copysign(x);
    if x.abs() < 0.625 { small } else { large }
}

/// 1 / (1 + e^−x), within 4 ulp where the result is normal.
#[inline(always)]
pub fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, within 3 ulp.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let u = x * x;
    let p = -9.680_137e-6;
    let p = p * u + 1.127_054_5e-4;
    let p = p * u - 8.484_711e-4;
    let p = p * u + 5.221_075e-3;
    let p = p * u - 2.686_544_5e-2;
    let p = p * u + 1.128_378_3e-1;
    let p = p * u - 3.761_263_8e-1;
    let p = p * u + std::f32::consts::FRAC_2_SQRT_PI;
    let small = p * x;
    // Above 1, one less e to the power of a polynomial for ln erfc; at 4 the result is 1.
    let a = if a > 4.0 { 4.0 } else { a };
    let q = -2.168_685e-5;
    let q = q * a + 4.413_363_6e-4;
    let q = q * a - 4.204_562e-3;
    let q = q * a + 2.520_825_7e-2;
    let q = q * a - 1.084_185_8e-1;
    let q = q * a - 6.332_199e-1;
    let q = q * a - 1.129_578_5;
    let q = q * a + 1.880_402_3e-4;
    let large = (1.0 - exp(q)).copysign(x);
    if x.abs() < 1.0 || x.is_nan() { small } else { large }
}

/// ln x, within 2 ulp.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let scaled = if subnormal { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // x = m · 2^e with m in [√½, √2).
    let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(e << 23) as u32);
    let e = e as f32 - if subnormal { 23.0 } else { 0.0 };
    let f = m - 1.0;
    let p = 6.915_368e-2;
    let p = p * f - 1.178_980_8e-1;
    let p = p * f + 1.187_297_6e-1;
    let p = p * f - 1.238_434_8e-1;
    let p = p * f + 1.421_865_8e-1;
    let p = p * f - 1.666_925_1e-1;
    let p = p * f + 2.000_222_7e-1;
    let p = p * f - 2.499_998_7e-1;
    let p = p * f + 3.333_331e-1;
    let u = f * f;
    let y = (p * f * u + e * LN2_LOW) - 0.5 * u + f + e * LN2_HIGH;
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the true value in units in the last place of the nearest f32 to it; where that is subnormal, anything
    /// up to the smallest normal is none.
    fn ulps(found: f32, truth: f64) -> f64 {
        let nearest = truth as f32;
        if found.is_nan() || nearest.is_nan() {
            return if found.is_nan() && nearest.is_nan() { 0.0 } else { f64::INFINITY };
        }
        if nearest.is_infinite() || found.is_infinite() {
            return if found == nearest { 0.0 } else { f64::INFINITY };
        }
        let magnitude = nearest.abs();
        if magnitude < f32::MIN_POSITIVE {
            return if found.abs() <= f32::MIN_POSITIVE { 0.0 } else { f64::INFINITY };
        }
        let ulp = (f32::from_bits(magnitude.to_bits() + 1) - magnitude) as f64;
        (found as f64 - truth).abs() / ulp
    }

    #[test]
    fn errors_are_within_the_stated_bounds() {
        type Row = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);
        let rows: [Row; 5] = [
            ("exp", exp, f64::exp, 2.0),
            ("tanh", tanh, f64::tanh, 3.0),
            ("logistic", logistic, |x| 1.0 / (1.0 + (-x).exp()), 4.0),
            ("erf", erf, libm::erf, 3.0),
            ("ln", ln, f64::ln, 2.0),
        ];
        let mut failures = Vec::new();
        for (name, ours, truth, bound) in rows {
            let (mut worst, mut at) = (0.0, 0.0);
            // Every sign and exponent, some thousand mantissas each.
            for bits in (0..=u32::MAX).step_by(4093) {
                let x = f32::from_bits(bits);
                let error = ulps(ours(x), truth(x as f64));
                if error > worst {
                    (worst, at) = (error, x);
                }
            }
            if worst > bound {
                failures.push(format!("{name}({at:e}): {worst} ulp, stated {bound}"));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(erf(f32::NEG_INFINITY), -1.0);
        assert_eq!(logistic(f32::NEG_INFINITY), 0.0);
        assert_eq!(ln(1.0), 0.0);
    }
}
