//! Products with quantized sides against eager Qwix, by the goldens of `goldens/qarray`.

mod common;

use std::fmt::Write;

use common::{Tensors, difference, goldens};
use qwix_array::{Array, DType};
use qwix_eval::{Value, evaluate};
use qwix_graph::{ConvDims, DotDims, Op, Type, WindowDim};
use qwix_quant::{Granularity, HowToQuantize, QType, Tile, quantize};
use serde_json::Value as Json;

/// Relative to the largest value, for sums in another order: an f16 may fall on the other side of a tie, none of the bf16
/// does.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 0.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 1e-6,
    }
}

fn numbers(json: &Json) -> Vec<usize> {
    json.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

/// `in/float32[5,64]` as an array.
fn input(tensors: &Tensors, key: &str) -> Array {
    let (dtype, shape) = key.trim_start_matches("in/").trim_end_matches(']').split_once('[').unwrap();
    let shape: Vec<usize> = shape.split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
    tensors.array(key, &Type::array(dtype.parse().unwrap(), shape))
}

fn side(array: Array, how: &Json) -> Value {
    if how.is_null() {
        return array.into();
    }
    let mut granularity = vec![Granularity::Shared; array.rank()];
    for axis in numbers(&how["channel"]) {
        granularity[axis] = Granularity::Channelwise;
    }
    for (axis, tile) in how["tiled"].as_object().unwrap() {
        let tile =
            tile.as_u64().map_or_else(|| Tile::Fraction(tile.as_f64().unwrap()), |n| Tile::Size(n as usize));
        granularity[axis.parse::<usize>().unwrap()] = Granularity::Tiled(tile);
    }
    let qtype = QType::by_name(how["q"].as_str().unwrap()).unwrap();
    let calibration = how["method"].as_str().unwrap().parse().unwrap();
    quantize(&array, &HowToQuantize::new(qtype, granularity, calibration).unwrap()).unwrap().into()
}

fn dot_dims(case: &Json) -> DotDims {
    let axes = |i: usize, j: usize| numbers(&case["dimension_numbers"][i][j]);
    DotDims {
        lhs_contracting: axes(0, 0),
        rhs_contracting: axes(0, 1),
        lhs_batch: axes(1, 0),
        rhs_batch: axes(1, 1),
        ..DotDims::default()
    }
}

fn conv_dims(case: &Json, input: &[usize], kernel: &[usize]) -> ConvDims {
    let axis = |i: usize, letter: char| case["dimension_numbers"][i].as_str().unwrap().find(letter).unwrap();
    let pair = |key: &str, i: usize| case[key].get(i).map_or(1, |n| n.as_u64().unwrap() as usize);
    let window = ['H', 'W'].into_iter().enumerate().map(|(i, letter)| {
        let mut dim = WindowDim::new(kernel[axis(1, letter)]);
        dim.stride = pair("window_strides", i);
        dim.window_dilation = pair("rhs_dilation", i);
        dim.base_dilation = pair("lhs_dilation", i);
        let size = input[axis(0, letter)];
        (dim.padding_low, dim.padding_high) = match &case["padding"] {
            Json::String(s) if s == "SAME" => {
                let reach = (dim.size - 1) * dim.window_dilation + 1;
                let total =
                    ((size.div_ceil(dim.stride) - 1) * dim.stride + reach).saturating_sub(size) as i64;
                (total / 2, total - total / 2)
            }
            Json::String(_) => (0, 0),
            pads => (pads[i][0].as_i64().unwrap(), pads[i][1].as_i64().unwrap()),
        };
        dim
    });
    ConvDims {
        input_batch: axis(0, 'N'),
        input_feature: axis(0, 'C'),
        input_spatial: vec![axis(0, 'H'), axis(0, 'W')],
        kernel_input_feature: axis(1, 'I'),
        kernel_output_feature: axis(1, 'O'),
        kernel_spatial: vec![axis(1, 'H'), axis(1, 'W')],
        output_batch: axis(2, 'N'),
        output_feature: axis(2, 'C'),
        output_spatial: vec![axis(2, 'H'), axis(2, 'W')],
        window: window.collect(),
        feature_group_count: case["feature_group_count"].as_u64().unwrap_or(1) as usize,
        batch_group_count: 1,
        operand_precision: Default::default(),
    }
}

#[test]
fn products_agree_with_qwix() {
    let folder = goldens().join("qarray");
    let json: Json = serde_json::from_slice(&std::fs::read(folder.join("products.json")).unwrap()).unwrap();
    let tensors = Tensors::open(&folder.join("products.safetensors"));
    let mut wrong = String::new();
    let mut tried = 0;
    for (i, case) in json["cases"].as_array().unwrap().iter().enumerate() {
        let (lhs, rhs) =
            (input(&tensors, case["lhs"].as_str().unwrap()), input(&tensors, case["rhs"].as_str().unwrap()));
        let (op, shape) = match case["fn"].as_str().unwrap() {
            "dot_general" => {
                let dims = dot_dims(case);
                let shape = dims.output_shape(lhs.shape(), rhs.shape()).unwrap();
                (Op::Dot(dims), shape)
            }
            "conv_general_dilated" => {
                let dims = conv_dims(case, lhs.shape(), rhs.shape());
                let shape = dims.output_shape(lhs.shape(), rhs.shape()).unwrap();
                (Op::Convolution(dims), shape)
            }
            // An einsum is a dot and a transpose, which is its caller's business.
            _ => continue,
        };
        // A graph does not hold what the author preferred, only what the product came to.
        if case.get("preferred_element_type").is_some() {
            continue;
        }
        tried += 1;
        let refused = case.get("error").is_some();
        let ty = Type::array(qwix_quant::promote(lhs.dtype(), rhs.dtype()), shape);
        let sides = [side(lhs, &case["lhs_how"]), side(rhs, &case["rhs_how"])];
        match evaluate(&op, &ty, &sides) {
            Ok(Value::Array(_)) if refused => writeln!(wrong, "{i}: not refused: {case}").unwrap(),
            Ok(Value::Array(found)) => {
                let want = tensors.array(&format!("{i}/out"), &ty);
                let d = difference(&found, &want);
                if d.relative > bound(found.dtype()) || d.kind > 0 {
                    writeln!(wrong, "{i}: {ty}: relative {:e}, {} ulp: {case}", d.relative, d.ulp).unwrap();
                }
            }
            Ok(other) => writeln!(wrong, "{i}: {other:?}").unwrap(),
            Err(error) if !refused => writeln!(wrong, "{i}: {error}: {case}").unwrap(),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "of {tried}:\n{wrong}");
    assert!(tried > 100, "only {tried}");
}
