//! Every case of the goldens: quantized parameters and outputs, against real Qwix's.

mod common;

use std::collections::BTreeMap;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::Path;
use qwix_ptq::{PtqModel, PtqProvider, QuantizationRule, quantize_model, quantize_params};

/// A parameter's parts as the goldens store them: sub-byte ints as I8 (U8 unsigned), fp8 and fp4 as F32.
fn storable(array: &Array) -> Array {
    match array.dtype() {
        DType::S2 | DType::S4 => Array::from_vec(array.shape(), array.unpack_i8().unwrap()).unwrap(),
        DType::U4 => Array::from_vec(array.shape(), array.unpack_u8().unwrap().into_owned()).unwrap(),
        DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => array.convert(DType::F32),
        _ => array.clone(),
    }
}

fn flat(params: &Params) -> BTreeMap<String, Array> {
    let mut flat = BTreeMap::new();
    for (path, value) in params {
        match value {
            Value::Array(a) => drop(flat.insert(path.to_string(), a.clone())),
            Value::QArray(q) => {
                flat.insert(format!("{path}/qvalue"), storable(q.qvalue()));
                flat.insert(format!("{path}/scale"), q.scale().clone());
                if let Some(zero_point) = q.zero_point() {
                    flat.insert(format!("{path}/zero_point"), storable(zero_point));
                }
            }
            Value::Tuple(_) => panic!("{path} is a tuple"),
        }
    }
    flat
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| (a - b).abs().max(m))
}

struct Case {
    name: String,
    model: String,
    info: serde_json::Value,
    rules: Vec<QuantizationRule>,
    expected: Option<BTreeMap<String, Array>>,
}

fn cases() -> Vec<Case> {
    common::folders("cases")
        .into_iter()
        .map(|(name, folder)| {
            let info = common::json(&folder.join("case.json"));
            let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
            let expected = folder.join("expected.safetensors");
            Case {
                model: info["model"].as_str().unwrap().to_owned(),
                rules: QuantizationRule::from_json(&text).unwrap_or_else(|e| panic!("{name}: {e}")),
                expected: expected.exists().then(|| common::tensors(&expected)),
                info,
                name,
            }
        })
        .collect()
}

fn quantized(case: &Case) -> Result<(PtqModel, Params), String> {
    let qwix_compat = case.info["qwix_compat"].as_bool().unwrap_or(false);
    let graph = common::model(&case.model)?;
    let provider = PtqProvider::new(case.rules.clone()).map_err(|e| e.to_string())?.qwix_compat(qwix_compat);
    let model = quantize_model(&graph, &provider).map_err(|e| e.to_string())?;
    let params = quantize_params(&common::params(&case.model), &model.abstract_params(), None)
        .map_err(|e| e.to_string())?;
    Ok((model, params))
}

/// What is wrong with the quantized parameters of a case.
fn check_params(case: &Case, expected: &BTreeMap<String, Array>, params: &Params) -> Vec<String> {
    let found = flat(params);
    // Means and square roots are summed in another order.
    let ulps = if case.rules.iter().any(|r| r.weight_calibration_method.starts_with("rms")) { 1 } else { 0 };
    let mut wrong = vec![];
    for (path, wanted) in expected.iter().filter(|(path, _)| !path.starts_with("out/")) {
        match found.get(path) {
            None => wrong.push(format!("{path} is missing")),
            Some(found) if found == wanted => {}
            Some(found) if (found.shape(), found.dtype()) != (wanted.shape(), wanted.dtype()) => {
                wrong.push(format!("{path} is {found:?}, not {wanted:?}"));
            }
            Some(found) => {
                let (a, b) = (found.to_f64_vec(), wanted.to_f64_vec());
                let unequal = a.iter().zip(&b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let near = ulps > 0
                    && path.ends_with("/scale")
                    && a.iter()
                        .zip(&b)
                        .all(|(a, b)| ((*a as f32).to_bits().abs_diff((*b as f32).to_bits())) <= ulps);
                if !near && unequal > 0 {
                    let worst = a
                        .iter()
                        .zip(&b)
                        .map(|(a, b)| (*a as f32).to_bits().abs_diff((*b as f32).to_bits()))
                        .max();
                    wrong.push(format!(
                        "{path}: {unequal} of {} values differ, by up to {worst:?} ulp",
                        a.len()
                    ));
                }
            }
        }
    }
    // Qwix's tree has no running statistics; as floats they pass.
    let float = common::params(&case.model);
    let passed = |path: &str| float.get(&Path::new(path)) == params.get(&Path::new(path));
    let extra = found.keys().filter(|path| !expected.contains_key(*path) && !passed(path));
    wrong.extend(extra.map(|path| format!("{path} is not Qwix's")));
    wrong
}

#[test]
fn parameters_are_qwix_bit_for_bit() {
    let mut failures = vec![];
    let mut checked = 0;
    for case in cases() {
        let Some(expected) = &case.expected else { continue };
        checked += 1;
        match quantized(&case) {
            Err(e) => failures.push(format!("{}: {e}", case.name)),
            Ok((_, params)) => {
                let wrong = check_params(&case, expected, &params);
                if !wrong.is_empty() {
                    failures.push(format!("{}: {}", case.name, wrong.join("; ")));
                }
            }
        }
    }
    assert!(checked > 0);
    assert!(failures.is_empty(), "{} of {checked} cases:\n{}", failures.len(), failures.join("\n"));
}

fn run(model: &PtqModel, params: Params, inputs: &[Array]) -> Result<Vec<Array>, String> {
    let executable = ReferenceBackend::default().compile(&model.graph, params).map_err(|e| e.to_string())?;
    executable.run(inputs).map_err(|e| e.to_string())
}

/// How far an output may be from Qwix's, relative to its largest value, where the arithmetic is the same.
fn budget(case: &Case, found: &Array) -> f64 {
    let notes = case.info["notes"].as_array().into_iter().flatten().filter_map(|n| n.as_str());
    // In a mixed model Qwix goes on in f32 where the float model, and we, round each step to bf16.
    let steps = if notes.into_iter().any(|n| n.contains("Qwix returns float32, the float model says")) {
        3.0
    } else {
        1.0
    };
    let params = common::params(&case.model);
    let narrow = |dtype: DType| {
        let of = |value: &Value| matches!(value, Value::Array(a) if a.dtype() == dtype);
        found.dtype() == dtype || params.values().any(of)
    };
    // A unit in the last place of what is largest, where numbers pass through a narrow type.
    if narrow(DType::BF16) {
        steps * 2f64.powi(-7)
    } else if narrow(DType::F16) {
        steps * 2f64.powi(-10)
    } else {
        1e-5
    }
}

fn check_outputs(
    case: &Case,
    expected: &BTreeMap<String, Array>,
    outputs: &[Array],
    float: &[Array],
) -> Vec<String> {
    let mut wrong = vec![];
    for (i, found) in outputs.iter().enumerate() {
        let Some(wanted) = expected.get(&format!("out/{i}")) else {
            wrong.push(format!("output {i} is not Qwix's"));
            continue;
        };
        // Where Qwix promotes a mixed model to f32, the float model's dtype is compared.
        let wanted = wanted.convert(found.dtype());
        let (a, b, f) = (found.to_f64_vec(), wanted.to_f64_vec(), float[i].to_f64_vec());
        if a.len() != b.len() {
            wrong.push(format!("output {i} is {found:?}, not {wanted:?}"));
            continue;
        }
        let relative = difference(&a, &b) / largest(&b).max(1e-30);
        if relative <= budget(case, found) {
            continue;
        }
        if case.info["comparison"] == "exact" {
            wrong.push(format!("output {i} differs by {relative:.2e}"));
            continue;
        }
        let (ours, theirs): (Vec<f64>, Vec<f64>) =
            a.iter().zip(&b).zip(&f).map(|((a, b), f)| (a - f, b - f)).unzip();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (n, m) = (dot(&ours, &ours).sqrt(), dot(&theirs, &theirs).sqrt());
        let cosine = dot(&ours, &theirs) / (n * m).max(1e-30);
        let ratio = (n / m).max(m / n);
        // No more alike than Qwix is to itself, when what it reads moves by an ulp.
        let noise = |key: &str, otherwise: f64| case.info[key].as_f64().unwrap_or(otherwise);
        let (least, most) = (noise("noise_cosine", 0.9).min(0.9), noise("noise_norms", 1.25).max(1.25));
        if cosine.is_nan() || cosine < least || ratio > most {
            wrong.push(format!(
                "output {i}: cosine {cosine:.3} (at least {least}), norms {n:.3e} and {m:.3e}, differs by {relative:.2e}"
            ));
        }
    }
    wrong
}

#[test]
fn outputs_are_qwix() {
    let mut failures = vec![];
    let mut checked = 0;
    for case in cases() {
        let Some(expected) = &case.expected else { continue };
        checked += 1;
        let folder = common::goldens().join("models").join(&case.model);
        let inputs = common::numbered(&folder.join("inputs.safetensors"));
        let float = common::numbered(&folder.join("float.safetensors"));
        let outputs = quantized(&case).and_then(|(model, params)| run(&model, params, &inputs));
        match outputs {
            Err(e) => failures.push(format!("{}: {e}", case.name)),
            Ok(outputs) => {
                let wrong = check_outputs(&case, expected, &outputs, &float);
                if !wrong.is_empty() {
                    failures.push(format!("{}: {}", case.name, wrong.join("; ")));
                }
            }
        }
    }
    assert!(checked > 0);
    assert!(failures.is_empty(), "{} of {checked} cases:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn unused_rules_are_qwix() {
    let mut failures = vec![];
    for case in cases() {
        if case.expected.is_none() {
            continue;
        }
        let wanted: Vec<usize> = case.info["unused_rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|i| i.as_u64().unwrap() as usize)
            .collect();
        match quantized(&case) {
            Err(e) => failures.push(format!("{}: {e}", case.name)),
            Ok((model, _)) => {
                let unused = model.get_unused_rules();
                let wanted: Vec<&QuantizationRule> = wanted.iter().map(|&i| &case.rules[i]).collect();
                if unused != wanted {
                    failures.push(format!("{}: {unused:?}, not {wanted:?}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What Qwix refuses for its own reasons we quantize, no worse than int8 is elsewhere; what cannot be, we refuse too, by
/// the name of the site.
#[test]
fn what_qwix_refuses() {
    let mut failures = vec![];
    let mut checked = 0;
    for case in cases() {
        let Some(refusal) = case.info["qwix_refuses"].as_str() else { continue };
        checked += 1;
        let folder = common::goldens().join("models").join(&case.model);
        let inputs = common::numbered(&folder.join("inputs.safetensors"));
        let float = common::numbered(&folder.join("float.safetensors"));
        let impossible = ["cannot be tiled", "can be asymmetric"].iter().any(|words| refusal.contains(words));
        match quantized(&case).and_then(|(model, params)| run(&model, params, &inputs)) {
            Err(e) if impossible && e.contains("site `Dense_0` dot_general0 (rules[0])") => {}
            Err(e) => failures.push(format!("{}: {e}", case.name)),
            Ok(_) if impossible => failures.push(format!("{} is quantized", case.name)),
            Ok(outputs) => {
                for (i, (a, b)) in outputs.iter().zip(&float).enumerate() {
                    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
                    let relative = difference(&a, &b) / largest(&b).max(1e-30);
                    // Written so that NaN fails.
                    if relative.is_nan() || relative > 0.08 {
                        failures.push(format!(
                            "{}: output {i} differs from the float one by {relative:.2e}",
                            case.name
                        ));
                    }
                }
            }
        }
    }
    assert!(checked > 0);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Quantizing layer by layer gives what quantizing all at once gives.
#[test]
fn any_subtree_is_a_part_of_the_whole() {
    for case in cases().into_iter().filter(|c| c.expected.is_some()) {
        let Ok((model, whole)) = quantized(&case) else { continue };
        let template = model.abstract_params();
        let all = common::params(&case.model);
        let mut together = Params::new();
        let mut modules: Vec<Path> = all.keys().map(Path::parent).collect();
        modules.dedup();
        for module in modules {
            let part: Params = all
                .iter()
                .filter(|(p, _)| p.parent() == module)
                .map(|(p, v)| (p.clone(), v.clone()))
                .collect();
            together.extend(quantize_params(&part, &template, None).unwrap());
        }
        assert_eq!(together, whole, "{}", case.name);
        assert_eq!(template.missing(&together), Vec::<&Path>::new(), "{}", case.name);
    }
}
