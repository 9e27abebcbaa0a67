//! Many values to one.

use crate::versions::versions;

/// How two values become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Fold {
    Add,
    Multiply,
    Maximum,
    Minimum,
}

impl Fold {
    /// What leaves every other value as it is.
    pub fn identity(self) -> f32 {
        match self {
            Fold::Add => 0.0,
            Fold::Multiply => 1.0,
            Fold::Maximum => f32::NEG_INFINITY,
            Fold::Minimum => f32::INFINITY,
        }
    }

    #[inline(always)]
    fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            Fold::Add => a + b,
            Fold::Multiply => a * b,
            Fold::Maximum => {
                if a > b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
            Fold::Minimum => {
                if a < b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
        }
    }
}

/// Sums run in this many lanes, whatever the machine, so that every machine adds in one order.
const LANES: usize = 64;

#[inline(always)]
fn lanes_with(values: &[f32], identity: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    if values.len() < LANES {
        return values.iter().fold(identity, |a, &b| f(a, b));
    }
    let mut lanes = [identity; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, v);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn reduce_body(fold: Fold, values: &[f32]) -> f32 {
    match fold {
        Fold::Add => lanes_with(values, 0.0, |a, b| a + b),
        Fold::Multiply => lanes_with(values, 1.0, |a, b| a * b),
        Fold::Maximum => lanes_with(values, f32::NEG_INFINITY, |a, b| Fold::Maximum.apply(a, b)),
        Fold::Minimum => lanes_with(values, f32::INFINITY, |a, b| Fold::Minimum.apply(a, b)),
    }
}

#[inline(always)]
fn rows_with(totals: &mut [f32], values: &[f32], f: impl Fn(f32, f32) -> f32) {
    for (total, &v) in totals.iter_mut().zip(values) {
        *total = f(*total, v);
    }
}

#[inline(always)]
fn fold_rows_body(fold: Fold, totals: &mut [f32], values: &[f32]) {
    match fold {
        Fold::Add => rows_with(totals, values, |a, b| a + b),
        Fold::Multiply => rows_with(totals, values, |a, b| a * b),
        Fold::Maximum => rows_with(totals, values, |a, b| Fold::Maximum.apply(a, b)),
        Fold::Minimum => rows_with(totals, values, |a, b| Fold::Minimum.apply(a, b)),
    }
}

versions! {
    /// All values to one; the fold's identity when there is none. NaN wins over all numbers.
    pub fn reduce_f32(fold: Fold, values: &[f32]) -> f32 = reduce_body
}
versions! {
    /// Folds a row of values into a row of totals; as many as the shorter slice has.
    pub fn fold_rows_f32(fold: Fold, totals: &mut [f32], values: &[f32]) = fold_rows_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_fold() {
        let mut failures = Vec::new();
        for fold in [Fold::Add, Fold::Multiply, Fold::Maximum, Fold::Minimum] {
            for count in [0, 1, 2, 31, 63, 64, 65, 127, 1000] {
                let values: Vec<f32> = (0..count).map(|i| 1.0 + (i * 37 % 11) as f32 / 1024.0).collect();
                let plain = values.iter().fold(fold.identity(), |a, &b| fold.apply(a, b));
                let ours = reduce_f32(fold, &values);
                if ours != plain && (ours - plain).abs() > plain.abs() * 1e-5 {
                    failures.push((fold, count, ours, plain));
                }
                let mut totals = vec![2.0; count];
                fold_rows_f32(fold, &mut totals, &values);
                assert!(totals.iter().zip(&values).all(|(&t, &v)| t == fold.apply(2.0, v)));
            }
        }
        assert!(failures.is_empty(), "{failures:?}");
        assert!(reduce_f32(Fold::Maximum, &[1.0, f32::NAN, 2.0]).is_nan());
    }
}
