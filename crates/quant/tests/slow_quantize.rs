//! Quantization spelled out element by element, and the fast one compared with it on awkward shapes.

use qwix_array::{Array, DType, F4E2M1FN, F8E4M3FN, F8E5M2};
use qwix_quant::{
    Calibration, Codec, Granularity, HowToQuantize, QArray, QType, ScaleRounding, Tile, dequantize, quantize,
};

/// A number rounded to a dtype.
fn round(dtype: DType, x: f64) -> f64 {
    Array::from_f64(dtype, &[], &[x]).unwrap().to_f64_vec()[0]
}

/// The index of each axis of element `flat`.
fn index(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        index[axis] = flat % shape[axis];
        flat /= shape[axis];
    }
    index
}

/// The entry of an array of `part`'s shape that serves the element at `index` of one of `shape`.
fn entry(shape: &[usize], part: &[usize], index: &[usize]) -> usize {
    (0..shape.len()).fold(0, |flat, a| flat * part[a] + index[a] / (shape[a] / part[a]))
}

/// Every number of a narrow float type with its code.
fn codes(storage: DType) -> Vec<(u8, f64)> {
    let value = |code: u8| match storage {
        DType::F8E4M3FN => F8E4M3FN(code).to_f32(),
        DType::F8E5M2 => F8E5M2(code).to_f32(),
        _ => F4E2M1FN(code).to_f32(),
    };
    let count = if storage == DType::F4E2M1FN { 16 } else { 256 };
    (0..count).map(|code| (code as u8, value(code as u8) as f64)).filter(|c| c.1.is_finite()).collect()
}

fn encode(qtype: &QType, known: &[(u8, f64)], dtype: DType, x: f64) -> i64 {
    match qtype.codec {
        Codec::Int { min, max } => x.round_ties_even().clamp(min as f64, max as f64) as i64,
        Codec::Codebook(values) => {
            let distance =
                |v: f32| if dtype == DType::F64 { (v as f64 - x).abs() } else { (v - x as f32).abs() as f64 };
            let mut best = 0;
            for (i, &v) in values.iter().enumerate() {
                if distance(v) < distance(values[best]) {
                    best = i;
                }
            }
            best as i64
        }
        Codec::Float => {
            let x = x.clamp(-qtype.symmetric_bound, qtype.symmetric_bound);
            let nearest = known.iter().filter(|c| c.1.is_sign_negative() == x.is_sign_negative());
            let key = |c: &(u8, f64)| ((c.1 - x).abs(), c.0 % 2);
            nearest.min_by(|a, b| key(a).partial_cmp(&key(b)).unwrap()).unwrap().0 as i64
        }
    }
}

/// Codes, scales and zero points.
fn slow(array: &Array, how: &HowToQuantize) -> (Vec<i64>, Vec<f64>, Option<Vec<i64>>) {
    let (dtype, shape, qtype) = (array.dtype(), array.shape(), how.qtype);
    let round = |x| round(dtype, x);
    let part: Vec<usize> = (0..shape.len())
        .map(|a| match (how.calibration, how.granularity[a]) {
            (Calibration::Fixed { .. }, _) | (_, Granularity::Shared) => 1,
            (_, Granularity::Channelwise) => shape[a],
            (_, Granularity::Tiled(Tile::Size(tile))) => shape[a] / tile,
            (_, Granularity::Tiled(Tile::Fraction(f))) => {
                shape[a] / (shape[a] as f64 * f).round_ties_even() as usize
            }
        })
        .collect();
    let entries: usize = part.iter().product();
    let values = array.to_f64_vec();
    let place: Vec<usize> = (0..values.len()).map(|i| entry(shape, &part, &index(shape, i))).collect();
    // The reciprocal stands for a division wherever XLA sees a broadcast, and the dtype is not bf16.
    let divide = |x: f64, by: f64, truly: bool| {
        if truly || dtype == DType::BF16 { round(x / by) } else { round(x * round(1.0 / by)) }
    };
    let tiny = match dtype {
        DType::F16 => 2f64.powi(-7),
        DType::F64 => 2f64.powi(-511),
        _ => 2f64.powi(-63),
    };
    let finish = |scale: f64| {
        let scale = if scale < tiny { 1.0 } else { scale };
        match qtype.scale {
            ScaleRounding::None => scale,
            ScaleRounding::E4M3 => F8E4M3FN::from_f64(scale.min(448.0)).to_f32() as f64,
            // The inputs below keep away from powers of two, where Qwix's own logarithm matters.
            ScaleRounding::PowerOfTwo => scale.log2().ceil().exp2(),
        }
    };
    let known = codes(qtype.storage);
    let mut scales = Vec::new();
    let mut zero_points = Vec::new();
    for e in 0..entries {
        let own: Vec<f64> = values.iter().zip(&place).filter(|p| *p.1 == e).map(|p| *p.0).collect();
        let factor = |x: f64, scale: Option<f64>| scale.map_or(x, |s| round(x * round(s)));
        let (min, max) = match how.calibration {
            Calibration::AbsMax { scale } => {
                let absmax = factor(own.iter().fold(0.0, |m: f64, x| m.max(x.abs())), scale);
                (-absmax, absmax)
            }
            Calibration::MinMax { scale } => (
                factor(own.iter().fold(0.0, |m: f64, x| m.min(*x)), scale),
                factor(own.iter().fold(0.0, |m: f64, x| m.max(*x)), scale),
            ),
            Calibration::Rms { .. } => unreachable!("the order of its sum is not spelled out here"),
            Calibration::Fixed { min, max } => (round(min), round(max)),
        };
        if how.calibration.is_asymmetric() {
            let (low, high) = qtype.asymmetric_bounds.unwrap();
            let scale = finish(divide(round(max - min), round(high - low), entries == 1));
            let zero_point = round(round(low) - round(min / scale)).round_ties_even();
            zero_points.push(zero_point.clamp(low, high) as i64);
            scales.push(scale);
        } else {
            scales.push(finish(divide(max, round(qtype.symmetric_bound), entries == 1)));
        }
    }
    let codes = values
        .iter()
        .zip(&place)
        .map(|(&x, &e)| {
            let scaled = divide(x, scales[e], part == shape);
            let moved = zero_points.get(e).map_or(scaled, |&z| round(scaled + round(z as f64)));
            encode(qtype, &known, dtype, moved)
        })
        .collect();
    (codes, scales, how.calibration.is_asymmetric().then_some(zero_points))
}

/// Repeatable numbers that are neither regular nor on powers of two.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(|_| (next() - 0.5) * 6.0 * (next() * 4.0).exp()).collect()
}

fn stored(array: &QArray) -> Vec<i64> {
    array.qvalue().to_i64_vec()
}

/// Codes as integers, also of floats.
fn code_numbers(array: &QArray) -> Vec<i64> {
    match array.qtype().codec {
        Codec::Float => array.qvalue().unpack_u8().unwrap().iter().map(|&c| c as i64).collect(),
        Codec::Int { .. } | Codec::Codebook(_) => stored(array),
    }
}

#[test]
fn fast_quantization_is_the_slow_one() {
    use Granularity::{Channelwise, Shared, Tiled};
    let tile = |n| Tiled(Tile::Size(n));
    let layouts: Vec<(Vec<usize>, Vec<Granularity>)> = vec![
        (vec![], vec![]),
        (vec![1], vec![Shared]),
        (vec![1], vec![Channelwise]),
        (vec![0, 3], vec![Shared, Channelwise]),
        (vec![7, 13], vec![Shared, Shared]),
        (vec![7, 13], vec![Channelwise, Shared]),
        (vec![7, 13], vec![Shared, Channelwise]),
        (vec![7, 13], vec![Channelwise, Channelwise]),
        (vec![1, 1023], vec![Channelwise, Shared]),
        (vec![2, 1024], vec![Channelwise, Shared]),
        (vec![3, 1025], vec![Channelwise, Shared]),
        (vec![1025, 3], vec![Shared, Channelwise]),
        (vec![64, 5], vec![tile(32), Channelwise]),
        (vec![5, 64], vec![Channelwise, tile(16)]),
        (vec![5, 64], vec![Channelwise, tile(32)]),
        (vec![4, 32, 6], vec![tile(2), Tiled(Tile::Fraction(0.25)), tile(3)]),
        (vec![3, 1, 32, 2], vec![Shared, Channelwise, tile(16), Channelwise]),
    ];
    let mut wrong = Vec::new();
    let mut compared = 0;
    for qtype in QType::all() {
        for (shape, granularity) in &layouts {
            for (method, seed) in
                [("absmax", 1), ("absmax,0.9", 2), ("minmax", 3), ("fixed,3", 4), ("fixed,-2,3.5", 5)]
            {
                let Ok(how) = HowToQuantize::new(qtype, granularity.clone(), method.parse().unwrap()) else {
                    continue;
                };
                for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                    let values = numbers(shape.iter().product(), seed);
                    let array = Array::from_f64(dtype, shape, &values).unwrap();
                    let fast = quantize(&array, &how).unwrap();
                    let (codes, scales, zero_points) = slow(&array, &how);
                    let alike = code_numbers(&fast) == codes
                        && fast.scale().to_f64_vec() == scales
                        && fast.zero_point().map(Array::to_i64_vec) == zero_points;
                    compared += 1;
                    if !alike {
                        wrong.push(format!("{qtype} {dtype} {shape:?} {granularity:?} {method}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ: {wrong:#?}", wrong.len());
    assert!(compared > 2000, "{compared} compared");
}

#[test]
fn dequantizing_is_the_slow_one() {
    use Granularity::{Channelwise, Shared, Tiled};
    let mut wrong = Vec::new();
    for qtype in QType::all() {
        let tile = Tile::Size(qtype.tile.unwrap_or(8));
        for method in ["absmax", "minmax"] {
            let granularity = vec![Channelwise, Tiled(tile), Shared];
            let Ok(how) = HowToQuantize::new(qtype, granularity, method.parse().unwrap()) else { continue };
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                let shape = [3, 64, 7];
                let array = Array::from_f64(dtype, &shape, &numbers(3 * 64 * 7, 9)).unwrap();
                let quantized = quantize(&array, &how).unwrap();
                let scales = quantized.scale().to_f64_vec();
                let zero_points = quantized.zero_point().map(Array::to_i64_vec);
                let numbers: Vec<f64> = match qtype.codec {
                    Codec::Codebook(values) => {
                        stored(&quantized).iter().map(|&c| values[c as usize] as f64).collect()
                    }
                    Codec::Int { .. } | Codec::Float => quantized.qvalue().to_f64_vec(),
                };
                let want: Vec<f64> = numbers
                    .iter()
                    .enumerate()
                    .map(|(i, &x)| {
                        let e = entry(&shape, quantized.scale().shape(), &index(&shape, i));
                        let zero_point = zero_points.as_ref().map_or(0.0, |z| round(dtype, z[e] as f64));
                        round(dtype, round(dtype, round(dtype, x) - zero_point) * scales[e])
                    })
                    .collect();
                if dequantize(&quantized).unwrap().to_f64_vec() != want {
                    wrong.push(format!("{qtype} {dtype} {method}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Quantizing and dequantizing moves no number further than its type can explain.
#[test]
fn errors_stay_within_the_budget_of_the_bits() {
    // Largest error over largest magnitude of a channel: half a step, and a whole one where the largest is clipped.
    let budgets = [
        ("int2", 0.34),
        ("int3", 0.15),
        ("int4", 0.067),
        ("int5", 0.033),
        ("int6", 0.016),
        ("int7", 0.0079),
        ("int8", 0.004),
        ("int16", 3.1e-5),
        ("nf4", 0.16),
        ("float8_e4m3fn", 0.036),
        ("float8_e5m2", 0.072),
        ("float4_e2m1fn", 0.17),
    ];
    let mut wrong = Vec::new();
    for (name, budget) in budgets {
        let granularity = vec![Granularity::Shared, Granularity::Channelwise];
        let how = HowToQuantize::new(QType::by_name(name).unwrap(), granularity, "absmax".parse().unwrap())
            .unwrap();
        let mut values = numbers(64 * 9, 11);
        // A channel of zeros, and one with a single huge value.
        values.chunks_mut(9).for_each(|row| row[3] = 0.0);
        values[4] = 1e9;
        let array = Array::from_f64(DType::F32, &[64, 9], &values).unwrap();
        let back = dequantize(&quantize(&array, &how).unwrap()).unwrap().to_f64_vec();
        for channel in 0..9 {
            let own = |v: &[f64]| v.chunks(9).map(|row| row[channel]).collect::<Vec<_>>();
            let (x, y) = (own(&array.to_f64_vec()), own(&back));
            let largest = x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let error = x.iter().zip(&y).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            if error > budget * largest {
                wrong.push(format!("{name}, channel {channel}: {} over {budget}", error / largest));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_not_finite_is_named() {
    use qwix_quant::{QuantError, check_finite};
    let mut wrong = Vec::new();
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        for (value, name) in
            [(f64::NAN, "a NaN"), (f64::INFINITY, "an infinity"), (f64::NEG_INFINITY, "an infinity")]
        {
            let mut values = vec![1.0; 15];
            values[8] = value;
            let array = Array::from_f64(dtype, &[3, 5], &values).unwrap();
            match check_finite(&array) {
                Err(QuantError::NotFinite { what, index }) if what == name && index == [1, 3] => {}
                other => wrong.push(format!("{dtype} {value}: {other:?}")),
            }
        }
        assert!(check_finite(&Array::from_f64(dtype, &[2], &[1e4, -0.0]).unwrap()).is_ok());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Below a few thousand elements the sum of squares is XLA's to the last bit; above, it is the exact one.
#[test]
fn means_of_squares_are_close_to_the_exact_ones() {
    let mut wrong = Vec::new();
    for shape in
        [vec![0, 3], vec![1, 1], vec![33, 3], vec![100, 7], vec![2, 50, 40], vec![70, 60], vec![3, 3, 64, 9]]
    {
        let mut granularity = vec![Granularity::Shared; shape.len()];
        *granularity.last_mut().unwrap() = Granularity::Channelwise;
        let how = HowToQuantize::new(QType::by_name("int8").unwrap(), granularity, "rms,3".parse().unwrap())
            .unwrap();
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let array = Array::from_f64(dtype, &shape, &numbers(shape.iter().product(), 5)).unwrap();
            let columns = *shape.last().unwrap();
            let rows = array.len() / columns;
            let values = array.to_f64_vec();
            let digits = match dtype {
                DType::F64 => 52,
                DType::F32 => 23,
                DType::F16 => 10,
                _ => 7,
            };
            for (c, found) in quantize(&array, &how).unwrap().scale().to_f64_vec().into_iter().enumerate() {
                let mean = values.chunks(columns).map(|row| row[c] * row[c]).sum::<f64>() / rows as f64;
                let want = if rows == 0 { f64::NAN } else { 3.0 * mean.sqrt() / 127.5 };
                // Four roundings, and in f16 too small a scale becomes 1.
                let near = (found - want).abs() <= want * 4.0 * 0.5f64.powi(digits);
                let empty = rows == 0 && found.is_nan();
                let small = found == 1.0 && want < 2f64.powi(-6);
                if !(near || empty || small) {
                    wrong.push(format!("{dtype} {shape:?} column {c}: {found}, not {want}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
