//! Parameters that were quantized elsewhere, for a model: as Qwix takes them.

mod common;

use std::collections::BTreeMap;

use qwix_array::{Array, DType};
use qwix_eval::{Params, ReferenceBackend, Value};
use qwix_graph::Path;
use qwix_ptq::{
    ProcessPrequantized, PtqModel, PtqProvider, QuantizationRule, RestoreRules, RestoredActs, Rules,
    TileSize, process_prequantized_params, quantize_model, quantize_params, restore_quantization_rules,
    type_of_qarray,
};
use qwix_quant::{QArray, QType};
use serde_json::Value as Json;

const EXACT: ProcessPrequantized = ProcessPrequantized { allow_extra_params: false, allow_rounding: false };

fn quantized(model: &str, rules: Vec<QuantizationRule>) -> PtqModel {
    quantize_model(&common::model(model).unwrap(), &PtqProvider::new(rules).unwrap()).unwrap()
}

/// The parameters of a case, put together from `<path>/qvalue` and so on.
fn params(tensors: &BTreeMap<String, Array>, prefix: &str, qtypes: &Json) -> Params {
    let mut params = Params::new();
    let mut keys: Vec<&str> = tensors.keys().filter_map(|key| key.strip_prefix(prefix)).collect();
    keys.retain(|key| !key.ends_with("/scale") && !key.ends_with("/zero_point"));
    for key in keys {
        let array = tensors[&format!("{prefix}{key}")].clone();
        let Some(path) = key.strip_suffix("/qvalue") else {
            params.insert(Path::new(key), Value::Array(array));
            continue;
        };
        let part = |part: &str| tensors.get(&format!("{prefix}{path}/{part}"));
        let qtype = QType::by_name(qtypes[path].as_str().unwrap()).unwrap();
        let narrow = |array: &Array| array.convert_exactly(qtype.storage).unwrap();
        let q = QArray::new(
            narrow(&array),
            part("scale").unwrap().clone(),
            part("zero_point").map(narrow),
            qtype,
        );
        params.insert(Path::new(path), Value::QArray(q.unwrap()));
    }
    params
}

#[test]
fn parameters_are_taken_as_qwix_takes_them() {
    let folder = common::goldens().join("prequantized/qwix");
    let (cases, tensors) =
        (common::json(&folder.join("cases.json")), common::tensors(&folder.join("arrays.safetensors")));
    let model = quantized("nnx_mlp", QuantizationRule::from_json(&cases["rules"].to_string()).unwrap());
    let template = model.abstract_params();
    let targets: Json = serde_json::from_str(
        r#"{"layers/0/lin/kernel": "int4", "layers/1/lin/kernel": "int8", "out/kernel": "float8_e4m3fn"}"#,
    )
    .unwrap();
    let (mut wrong, mut refused) = (vec![], 0);
    for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
        let name = case["name"].as_str().unwrap();
        let given = params(&tensors, &format!("in/{number}/"), &case["qtypes"]);
        let want = params(&tensors, &format!("out/{number}/"), &targets);
        match process_prequantized_params(&given, &template, EXACT) {
            Ok(_) if case.get("refused").is_some() => wrong.push(format!("{name}: taken, Qwix refuses it")),
            Ok(found) if found == want => {}
            Ok(found) => wrong.push(format!("{name}: {found:?}, not {want:?}")),
            Err(e) if case.get("refused").is_some() => {
                refused += 1;
                let path = given.keys().next().unwrap().to_string();
                if !e.to_string().contains(&path) {
                    wrong.push(format!("{name}: `{e}` does not name `{path}`"));
                }
            }
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(refused, 7);
}

#[test]
fn rules_are_restored_as_qwix_restores_them() {
    let folder = common::goldens().join("prequantized/qwix");
    let (cases, tensors) =
        (common::json(&folder.join("cases.json")), common::tensors(&folder.join("arrays.safetensors")));
    let mut compared = 0;
    for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
        let given = params(&tensors, &format!("in/{number}/"), &case["qtypes"]);
        for (key, act_qtype) in [("rules", RestoredActs::AsWeights), ("weight_only", RestoredActs::Float)] {
            let Some(want) = case.get(key) else { continue };
            let options = RestoreRules { tile_size: Some(TileSize::Elements(8)), act_qtype };
            let found: Vec<Json> = restored(&given, &options)
                .iter()
                .map(|rule| {
                    let all = serde_json::to_value(rule).unwrap();
                    let fields = want[0].as_object().unwrap().keys();
                    Json::Object(fields.map(|field| (field.clone(), all[field].clone())).collect())
                })
                .collect();
            assert_eq!(Json::Array(found), *want, "{}", case["name"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 4);
}

fn restored(params: &Params, options: &RestoreRules) -> Vec<QuantizationRule> {
    let types: Vec<_> = params
        .iter()
        .filter_map(|(path, value)| match value {
            Value::QArray(q) => Some((path.clone(), type_of_qarray(q))),
            Value::Array(_) | Value::Tuple(_) => None,
        })
        .collect();
    restore_quantization_rules(types.iter().map(|(path, ty)| (path, ty)), options).unwrap()
}

/// Quantized parameters, the rules restored from them, and the model quantized by these: the parameters fit, and the outputs
/// are those of the model that they come from.
#[test]
fn restored_rules_fit_the_parameters_that_they_come_from() {
    let backend = ReferenceBackend::default();
    let w8a8 = || QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8");
    let mut wrong = vec![];
    for (name, rules) in [
        ("nnx_mlp", vec![w8a8()]),
        (
            "nnx_mlp",
            vec![QuantizationRule::new("layers/0/.*").weight_qtype("int4").act_qtype("int4"), w8a8()],
        ),
        (
            "nnx_mlp",
            vec![
                QuantizationRule::new(".*")
                    .weight_qtype("int4")
                    .act_qtype("int4")
                    .tile_size(8)
                    .weight_calibration_method("minmax"),
            ],
        ),
        ("linen_mlp", vec![w8a8()]),
        (
            "linen_mlp_64",
            vec![QuantizationRule::new(".*").weight_qtype("mxfp4").act_qtype("mxfp4").tile_size(32)],
        ),
    ] {
        let floats = common::params(name);
        let model = quantized(name, rules.clone());
        let params = quantize_params(&floats, &model.abstract_params(), None).unwrap();
        let again = quantized(name, restored(&params, &RestoreRules::default()));
        let processed = process_prequantized_params(&params, &again.abstract_params(), EXACT);
        match processed.and_then(|params| Ok(again.abstract_params().finish(params)?)) {
            Ok(found) if found == params => {}
            other => wrong.push(format!("{name} by {rules:?}: {other:?}")),
        }
        let inputs =
            common::numbered(&common::goldens().join("models").join(name).join("inputs.safetensors"));
        let run = |model: &PtqModel| model.compile(&backend, params.clone()).unwrap().run(&inputs).unwrap();
        if run(&model) != run(&again) {
            wrong.push(format!("{name} by {rules:?}: other outputs"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_that_differ_get_rules_of_their_own() {
    let int8 = |tile: usize| {
        let scale = Array::zeros(DType::F32, &[32 / tile, 4]).unwrap();
        let qvalue = Array::zeros(DType::S8, &[32, 4]).unwrap();
        Value::QArray(QArray::new(qvalue, scale, None, QType::by_name("int8").unwrap()).unwrap())
    };
    let params: Params = [
        ("blocks/0/a.b/kernel", int8(32)),
        ("blocks/1/a.b/kernel", int8(16)),
        ("blocks/0/up/kernel/array", int8(8)),
        ("blocks/1/up/kernel/array", int8(8)),
        ("head", int8(1)),
    ]
    .into_iter()
    .map(|(path, value)| (Path::new(path), value))
    .collect();
    let rules =
        restored(&params, &RestoreRules { act_qtype: RestoredActs::Float, ..RestoreRules::default() });
    let told: Vec<(&str, Option<TileSize>)> =
        rules.iter().map(|rule| (rule.module_path.as_str(), rule.tile_size)).collect();
    let tile = |size| Some(TileSize::Elements(size));
    let want =
        [(r"blocks/0/a\.b", None), (r"blocks/1/a\.b", tile(16)), ("blocks/[^/]+/up", tile(8)), ("", tile(1))];
    assert_eq!(told, want);
    Rules::new(rules).unwrap();
}

/// Weights that a model reshapes, transposes or slices before it multiplies: the quantized source goes the same way.
#[test]
fn what_a_model_does_to_a_weight_is_done_to_a_quantized_one() {
    let backend = ReferenceBackend::default();
    let (mut wrong, mut moved) = (vec![], 0);
    for name in ["linen_mlp", "encoder_einsum", "encoder_mha", "weight_views", "einsums"] {
        let model = quantized(name, vec![QuantizationRule::new(".*").weight_qtype("int8")]);
        let (floats, template) = (common::params(name), model.abstract_params());
        let inputs =
            common::numbered(&common::goldens().join("models").join(name).join("inputs.safetensors"));
        let mut given = Params::new();
        for (path, value) in &floats {
            let quantized = template.made_of(path).any(|p| matches!(p.ty, qwix_graph::Type::QArray(_)));
            let Value::Array(array) = value else { continue };
            // One scale for all, which every step leaves in place.
            let how = qwix_quant::HowToQuantize::new(
                QType::by_name("int8").unwrap(),
                vec![qwix_quant::Granularity::Shared; array.rank()],
                qwix_quant::Calibration::AbsMax { scale: None },
            );
            let value = if quantized {
                Value::QArray(qwix_quant::quantize(array, &how.unwrap()).unwrap())
            } else {
                value.clone()
            };
            given.insert(path.clone(), value);
        }
        let params = match process_prequantized_params(&given, &template, EXACT) {
            Ok(params) => params,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        let params = template.finish(params).unwrap();
        let floats: Params = given
            .iter()
            .map(|(path, value)| match value {
                Value::QArray(q) => (path.clone(), Value::Array(qwix_quant::dequantize(q).unwrap())),
                Value::Array(_) | Value::Tuple(_) => (path.clone(), value.clone()),
            })
            .collect();
        moved += template
            .parameters()
            .values()
            .filter(|p| {
                p.slot.as_ref().and_then(|slot| slot.as_weight()).is_some_and(|slot| !slot.prep.is_empty())
            })
            .count();
        let found = model.compile(&backend, params).unwrap().run(&inputs).unwrap();
        let float = quantized(name, vec![QuantizationRule::new("no such module")]);
        let want = float.compile(&backend, floats).unwrap().run(&inputs).unwrap();
        for (found, want) in found.iter().zip(&want) {
            let (found, want) = (found.to_f64_vec(), want.to_f64_vec());
            let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
            let off = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
            if off > 1e-5 * largest {
                wrong.push(format!("{name}: off by {off} of {largest}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(moved > 0, "no model moves a weight");
}

#[test]
fn numbers_change_only_where_that_is_allowed() {
    let model = quantized("linen_mlp_bf16_params", vec![QuantizationRule::new(".*").weight_qtype("int8")]);
    let template = model.abstract_params();
    let (path, parameter) = template
        .parameters()
        .iter()
        .find(|(_, p)| matches!(&p.ty, qwix_graph::Type::QArray(q) if q.array.dtype == DType::BF16))
        .unwrap();
    let shape = parameter.ty.as_array().unwrap().shape.clone();
    let int8 = QType::by_name("int8").unwrap();
    let params = |scale: f32| -> Params {
        let scale = Array::from_vec(&[1, 1], vec![scale]).unwrap();
        let q = QArray::new(Array::zeros(DType::S8, &shape).unwrap(), scale, None, int8).unwrap();
        Params::from([(path.clone(), Value::QArray(q))])
    };
    // 1/4 is a bf16 number, 1/3 is none.
    assert!(process_prequantized_params(&params(0.25), &template, EXACT).is_ok());
    let error = process_prequantized_params(&params(1.0 / 3.0), &template, EXACT).unwrap_err().to_string();
    assert!(error.contains(path.as_str()) && error.contains("bf16"), "{error}");
    let rounding = ProcessPrequantized { allow_rounding: true, ..EXACT };
    let found = process_prequantized_params(&params(1.0 / 3.0), &template, rounding).unwrap();
    let Value::QArray(q) = &found[path] else { panic!("is not quantized") };
    assert_eq!(q.scale().to_f32_vec()[0], 0.333_984_38);
}
