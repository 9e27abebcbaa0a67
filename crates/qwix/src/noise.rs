//! How far a quantized model is from its float model.

use qwix_array::Array;

/// The signal-to-quantization-noise ratio in dB: 10 · log₁₀(Σ reference² / Σ (reference − found)²).
///
/// Infinite when the two are equal, NaN when either holds a NaN or an infinity; `None` when the shapes differ.
pub fn sqnr(reference: &Array, found: &Array) -> Option<f64> {
    if reference.shape() != found.shape() {
        return None;
    }
    let (mut signal, mut noise) = (0f64, 0f64);
    for (r, f) in reference.to_f64_vec().into_iter().zip(found.to_f64_vec()) {
        signal += r * r;
        noise += (r - f) * (r - f);
    }
    Some(decibels(signal, noise))
}

/// The ratio of two powers in dB; infinite where there is no noise.
pub(crate) fn decibels(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_times_less_noise_is_twenty_decibels() {
        let of = |values: [f32; 2]| Array::from_vec(&[2], values.to_vec()).unwrap();
        let reference = of([3.0, 4.0]);
        let rows = [
            ([3.5, 4.0], Some(20.0)),
            ([3.05, 4.0], Some(40.0)),
            ([3.0, 4.0], Some(f64::INFINITY)),
            ([0.0, 0.0], Some(0.0)),
        ];
        for (found, expected) in rows {
            let result = sqnr(&reference, &of(found));
            let close = result.zip(expected).is_some_and(|(r, e)| r == e || (r - e).abs() < 1e-4);
            assert!(close, "{found:?}: {result:?}, expected {expected:?}");
        }
        assert!(sqnr(&reference, &of([f32::NAN, 0.0])).unwrap().is_nan());
        assert_eq!(sqnr(&reference, &Array::scalar(1f32)), None);
    }
}
