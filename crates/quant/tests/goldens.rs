//! What real Qwix says of arrays and products.

use std::path::PathBuf;

use qwix_array::{Array, DType, bf16, f16};
use qwix_quant::{
    Arithmetic, Codec, ConvDims, DotDims, Granularity, HowToQuantize, Operand, QArray, QType, Tile,
    WindowDim, conv_general_dilated, dequantize, dot_general, einsum, quantize_as,
    quantize_with_scale_zero_point,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

fn index(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(goldens().join("qarray").join(name)).unwrap()).unwrap()
}

fn tensor(file: &SafeTensors<'_>, key: &str) -> Option<Array> {
    let view = file.tensor(key).ok()?;
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I8 => DType::S8,
        Dtype::U8 => DType::U8,
        Dtype::I32 => DType::S32,
        other => panic!("{key} is {other:?}"),
    };
    Some(Array::from_bytes(dtype, view.shape(), view.data().to_vec()).unwrap())
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

/// How to quantize an array of so many axes.
fn how(
    rank: usize,
    qtype: &str,
    channelwise: &Value,
    tiled: &Value,
    method: &str,
) -> Result<HowToQuantize, String> {
    let mut granularity = vec![Granularity::Shared; rank];
    for axis in numbers(channelwise) {
        granularity[axis] = Granularity::Channelwise;
    }
    for (axis, tile) in tiled.as_object().unwrap() {
        let tile = match tile.as_u64() {
            Some(size) => Tile::Size(size as usize),
            None => Tile::Fraction(tile.as_f64().unwrap()),
        };
        granularity[axis.parse::<usize>().unwrap()] = Granularity::Tiled(tile);
    }
    let qtype = QType::by_name(qtype).map_err(|e| e.to_string())?;
    let calibration = method.parse().map_err(|e: qwix_quant::QuantError| e.to_string())?;
    HowToQuantize::new(qtype, granularity, calibration).map_err(|e| e.to_string())
}

/// How many units in the last place the furthest two elements are apart; 0 for the same bits.
fn apart(a: &Array, b: &Array) -> u64 {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return u64::MAX;
    }
    let order = |array: &Array| -> Vec<i64> {
        let signed = |bits: u64, width: u32| {
            let magnitude = (bits & (u64::MAX >> (65 - width))) as i64;
            if bits >> (width - 1) == 1 { -magnitude } else { magnitude }
        };
        match array.dtype() {
            DType::F32 => {
                array.values::<f32>().unwrap().iter().map(|x| signed(x.to_bits() as u64, 32)).collect()
            }
            DType::F64 => array.values::<f64>().unwrap().iter().map(|x| signed(x.to_bits(), 64)).collect(),
            DType::BF16 => {
                array.values::<bf16>().unwrap().iter().map(|x| signed(x.to_bits() as u64, 16)).collect()
            }
            DType::F16 => {
                array.values::<f16>().unwrap().iter().map(|x| signed(x.to_bits() as u64, 16)).collect()
            }
            _ => array.to_i64_vec(),
        }
    };
    order(a).iter().zip(order(b)).map(|(x, y)| x.abs_diff(y)).max().unwrap_or(0)
}

/// Stored values as the files have them.
fn plain(array: &Array) -> Array {
    match array.dtype() {
        DType::S2 | DType::S4 => array.convert(DType::S8),
        DType::U4 => array.convert(DType::U8),
        DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => array.convert(DType::F32),
        _ => array.clone(),
    }
}

#[test]
fn arrays_are_quantized_as_qwix_does() {
    let bytes = std::fs::read(goldens().join("qarray/quantize.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let index = index("quantize.json");
    let mut wrong = Vec::new();
    for (i, case) in index["cases"].as_array().unwrap().iter().enumerate() {
        let array = tensor(&file, &format!("in/{}", case["input"].as_str().unwrap())).unwrap();
        let text = |key: &str| case[key].as_str().unwrap();
        let how = how(
            array.rank(),
            text("qtype"),
            &case["channelwise_axes"],
            &case["tiled_axes"],
            text("calibration_method"),
        )
        .unwrap();
        let compiled = case["compiled"].as_bool().unwrap_or(false);
        let arithmetic = if compiled { Arithmetic::Compiled } else { Arithmetic::Eager };
        let found = quantize_as(&array, &how, arithmetic).unwrap();
        let want = |part: &str| tensor(&file, &format!("{i}/{part}"));
        let scales = apart(found.scale(), &want("scale").unwrap());
        let mut fail = |what: String| wrong.push(format!("{i} {case}: {what}"));
        if scales > 0 {
            fail(format!("scales are {scales} units apart"));
        }
        let values = apart(&plain(found.qvalue()), &want("qvalue").unwrap());
        if values > 0 && scales == 0 {
            let different = plain(found.qvalue()).to_f64_vec();
            let count =
                different.iter().zip(want("qvalue").unwrap().to_f64_vec()).filter(|(a, b)| **a != *b).count();
            fail(format!("{count} values differ"));
        }
        match (found.zero_point(), want("zero_point")) {
            (None, None) => {}
            (Some(found), Some(want)) if apart(&plain(found), &want) == 0 => {}
            other => fail(format!("zero points {other:?}")),
        }
        let parts = how.parts(array.shape(), array.dtype()).unwrap();
        let zero_point = found.zero_point().map(|z| (z.dtype(), z.shape().to_vec()));
        if parts.scale != (found.scale().dtype(), found.scale().shape().to_vec())
            || parts.zero_point != zero_point
        {
            fail(format!("announced as {parts:?}"));
        }
        if let Some(want) = want("dequantized")
            && apart(&dequantize(&found).unwrap(), &want) > 0
        {
            fail("dequantizes to other numbers".into());
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

#[test]
fn what_qwix_refuses_is_refused() {
    // These two are ours.
    let ours = ["int16", "mxfp8_16"];
    let mut wrong = Vec::new();
    for case in index("quantize.json")["refused"].as_array().unwrap() {
        let qtype = case["qtype"].as_str().unwrap();
        let method = case["calibration_method"].as_str().unwrap_or("absmax");
        let accepted = how(2, qtype, &case["channelwise_axes"], &case["tiled_axes"], method)
            .and_then(|how| how.validate(&[8, 64]).map_err(|e| e.to_string()))
            .is_ok();
        // An axis that is channelwise and tiled cannot even be written down here.
        let both = numbers(&case["channelwise_axes"])
            .iter()
            .any(|axis| case["tiled_axes"].as_object().unwrap().contains_key(&axis.to_string()));
        if case["error"].is_null() || (accepted && !ours.contains(&qtype) && !both) {
            wrong.push(case.to_string());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A side of a product: the array as it is, or quantized.
enum Quantized {
    Array(Array),
    QArray(QArray),
}

impl Quantized {
    fn new(array: Array, how_json: &Value) -> Self {
        if how_json.is_null() {
            return Quantized::Array(array);
        }
        let method = how_json["method"].as_str().unwrap();
        let how = how(
            array.rank(),
            how_json["q"].as_str().unwrap(),
            &how_json["channel"],
            &how_json["tiled"],
            method,
        )
        .unwrap();
        Quantized::QArray(quantize_as(&array, &how, Arithmetic::Eager).unwrap())
    }

    fn operand(&self) -> Operand<'_> {
        match self {
            Quantized::Array(array) => Operand::Array(array),
            Quantized::QArray(array) => Operand::QArray(array),
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Quantized::Array(array) => array.shape(),
            Quantized::QArray(array) => array.shape(),
        }
    }
}

/// JAX's arguments of a convolution of two spatial axes in HLO's terms.
fn conv_dims(case: &Value, input: &[usize], kernel: &[usize]) -> ConvDims {
    let names: Vec<Vec<char>> = case["dimension_numbers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap().chars().collect())
        .collect();
    let axis = |side: usize, c: char| names[side].iter().position(|d| *d == c).unwrap();
    let list = |key: &str| if case[key].is_null() { vec![1, 1] } else { numbers(&case[key]) };
    let (strides, base, dilation) = (list("window_strides"), list("lhs_dilation"), list("rhs_dilation"));
    let spatial = ['H', 'W'];
    let window = (0..2)
        .map(|i| {
            let size = kernel[axis(1, spatial[i])];
            let effective = (size - 1) * dilation[i] + 1;
            let from = input[axis(0, spatial[i])];
            let (low, high) = match case["padding"].as_str() {
                Some("VALID") => (0, 0),
                Some(_) => {
                    let out = from.div_ceil(strides[i]);
                    let total = ((out - 1) * strides[i] + effective).saturating_sub(from);
                    (total / 2, total - total / 2)
                }
                None => {
                    let pair = numbers(&case["padding"][i]);
                    (pair[0], pair[1])
                }
            };
            WindowDim {
                size,
                stride: strides[i],
                padding_low: low as i64,
                padding_high: high as i64,
                base_dilation: base[i],
                window_dilation: dilation[i],
                reversal: false,
            }
        })
        .collect();
    ConvDims {
        input_batch: axis(0, 'N'),
        input_feature: axis(0, 'C'),
        input_spatial: spatial.map(|c| axis(0, c)).to_vec(),
        kernel_output_feature: axis(1, 'O'),
        kernel_input_feature: axis(1, 'I'),
        kernel_spatial: spatial.map(|c| axis(1, c)).to_vec(),
        output_batch: axis(2, 'N'),
        output_feature: axis(2, 'C'),
        output_spatial: spatial.map(|c| axis(2, c)).to_vec(),
        window,
        feature_group_count: case["feature_group_count"].as_u64().unwrap_or(1) as usize,
        batch_group_count: case["batch_group_count"].as_u64().unwrap_or(1) as usize,
        operand_precision: Default::default(),
    }
}

#[test]
fn products_are_qwixs() {
    let bytes = std::fs::read(goldens().join("qarray/products.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let index = index("products.json");
    let mut wrong = Vec::new();
    for (i, case) in index["cases"].as_array().unwrap().iter().enumerate() {
        let side = |name: &str| {
            let array = tensor(&file, case[name].as_str().unwrap()).unwrap();
            Quantized::new(array, &case[format!("{name}_how")])
        };
        let (lhs, rhs) = (side("lhs"), side("rhs"));
        let preferred = case["preferred_element_type"].as_str().map(|name| name.parse().unwrap());
        let found = match case["fn"].as_str().unwrap() {
            "dot_general" => {
                let axes = |i: usize, j: usize| numbers(&case["dimension_numbers"][i][j]);
                let dims = DotDims {
                    lhs_contracting: axes(0, 0),
                    rhs_contracting: axes(0, 1),
                    lhs_batch: axes(1, 0),
                    rhs_batch: axes(1, 1),
                    ..DotDims::default()
                };
                dot_general(lhs.operand(), rhs.operand(), &dims, preferred)
            }
            "einsum" => einsum(case["equation"].as_str().unwrap(), lhs.operand(), rhs.operand(), preferred),
            _ => {
                let dims = conv_dims(case, lhs.shape(), rhs.shape());
                conv_general_dilated(lhs.operand(), rhs.operand(), &dims, preferred)
            }
        };
        let want = tensor(&file, &format!("{i}/out"));
        let mut fail = |what: String| wrong.push(format!("{i} {case}: {what}"));
        // An index of one operand alone should be summed over. Qwix leaves it in the result, which we refuse.
        let left_over = case["equation"].as_str().and_then(|e| e.split_once("->")).is_some_and(|(_, out)| {
            !out.contains('.') && want.as_ref().is_some_and(|want| want.rank() != out.len())
        });
        match (found, want) {
            (Err(_), Some(_)) if left_over => {}
            (Err(_), None) => {}
            (Ok(found), Some(want)) => {
                if found.dtype() != want.dtype() || found.shape() != want.shape() {
                    fail(format!("{found:?}, not {want:?}"));
                    continue;
                }
                let (x, y) = (found.to_f64_vec(), want.to_f64_vec());
                let largest = y.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                let error = x.iter().zip(&y).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
                // One unit in the last place of the largest number, in f32 a few of them.
                let allowed = match found.dtype() {
                    DType::BF16 => 2f64.powi(-7),
                    DType::F16 => 2f64.powi(-10),
                    _ => 1e-6,
                };
                if error > allowed * largest {
                    fail(format!("off by {:e} of the largest", error / largest));
                }
            }
            (found, want) => fail(format!("{found:?}, Qwix {want:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

/// Every bf16 and f16 number (and every bf16 one as f32), rounded, clipped and converted.
#[test]
fn every_number_becomes_the_code_that_qwix_gives_it() {
    let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut wrong = Vec::new();
    let mut files = 0;
    for from in ["bf16", "f16", "f32"] {
        let narrow = if from == "f16" { DType::F16 } else { DType::BF16 };
        let array =
            Array::from_bytes(narrow, &[65536], patterns.clone()).unwrap().convert(from.parse().unwrap());
        let scale = Array::from_f64(array.dtype(), &[1], &[1.0]).unwrap();
        for qtype in QType::all() {
            let path = goldens().join(format!("dtypes/qwix_{from}_{}.runs", qtype.name));
            let Ok(runs) = std::fs::read(path) else { continue };
            files += 1;
            let pairs: Vec<(u16, u16)> = runs
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&[a, b, c, d]| (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
                .collect();
            let quantized = quantize_with_scale_zero_point(&array, qtype, &scale, None).unwrap();
            let found: Vec<u16> = match qtype.codec {
                Codec::Int { .. } => {
                    quantized.qvalue().unpack_i8().unwrap().into_iter().map(|x| x as u8 as u16).collect()
                }
                Codec::Float | Codec::Codebook(_) => {
                    quantized.qvalue().unpack_u8().unwrap().iter().map(|&x| x as u16).collect()
                }
            };
            let numbers = array.to_f32_vec();
            let meant = quantized.qvalue().to_f32_vec();
            let different: Vec<String> = found
                .into_iter()
                .enumerate()
                .map(|(i, found)| (i, pairs[pairs.partition_point(|p| p.0 as usize <= i) - 1].1, found))
                .filter(|&(i, want, found)| want != found && !(numbers[i].is_nan() && meant[i].is_nan()))
                .map(|(i, want, found)| format!("{:e}: {found:#x}, not {want:#x}", numbers[i]))
                .collect();
            if let Some(first) = different.first() {
                wrong.push(format!("{from} {qtype}: {} differ, first {first}", different.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(files >= 30, "only {files} files");
}
