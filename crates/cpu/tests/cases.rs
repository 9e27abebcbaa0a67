//! Every quantized case of the goldens on the native engine: its outputs against the reference evaluator's.

#[path = "../../ptq/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::Graph;
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model, quantize_params};

struct Case {
    name: String,
    model: String,
    exact: bool,
    graph: Graph,
    params: Params,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, folder) in common::folders("cases") {
        let info = common::json(&folder.join("case.json"));
        if !folder.join("expected.safetensors").exists() {
            continue;
        }
        let model = info["model"].as_str().unwrap().to_owned();
        let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
        let provider = PtqProvider::new(QuantizationRule::from_json(&text).unwrap())
            .unwrap()
            .qwix_compat(info["qwix_compat"].as_bool().unwrap_or(false));
        let quantized = quantize_model(&common::model(&model).unwrap(), &provider).unwrap();
        let params = quantize_params(&common::params(&model), &quantized.abstract_params(), None).unwrap();
        let exact = info["comparison"] == "exact";
        cases.push(Case { name, model, exact, graph: quantized.graph, params });
    }
    assert!(!cases.is_empty());
    cases
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// How far apart two outputs are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(b).fold(0.0, far) / largest(b).max(1e-30)
}

fn budget(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 1e-5,
    }
}

/// Whether two outputs are of one mind about the float model's: the cosine of their errors, and the errors' norms.
fn alike(a: &[f64], b: &[f64], float: &[f64]) -> Result<(), String> {
    let (ours, theirs): (Vec<f64>, Vec<f64>) =
        a.iter().zip(b).zip(float).map(|((a, b), f)| (a - f, b - f)).unzip();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (n, m) = (dot(&ours, &ours).sqrt(), dot(&theirs, &theirs).sqrt());
    let cosine = dot(&ours, &theirs) / (n * m).max(1e-30);
    // Written so that NaN fails.
    if cosine >= 0.9 && (0.8..1.25).contains(&(n / m)) {
        Ok(())
    } else {
        Err(format!("cosine {cosine:.3}, norms {n:.3e} and {m:.3e}"))
    }
}

/// The parameters left in float, some of them one unit in the last place up: what a different order of summation does.
fn nudged(params: &Params, which: usize) -> Params {
    let nudge = |value: &Value| match value {
        Value::Array(array) if array.dtype() == DType::F32 => {
            let up = |v: f32| if v == 0.0 { 1e-30 } else { f32::from_bits(v.to_bits() + 1) };
            let values = array.values::<f32>().unwrap();
            let values =
                values.iter().enumerate().map(|(i, &v)| if i % which == 0 { up(v) } else { v }).collect();
            Value::Array(Array::from_vec(array.shape(), values).unwrap())
        }
        other => other.clone(),
    };
    params.iter().map(|(path, value)| (path.clone(), nudge(value))).collect()
}

/// What is wrong with an output, if anything. The reference evaluator is held to Qwix by tests of its own.
fn complaint(
    case: &Case,
    index: usize,
    found: &[f64],
    reference: &[Array],
    nudged: &[Vec<Array>],
    float: &[f64],
) -> Option<String> {
    let expected = reference[index].to_f64_vec();
    let relative = apart(found, &expected);
    if relative <= budget(reference[index].dtype()) {
        return None;
    }
    if case.exact {
        return Some(format!("differs by {relative:.2e}"));
    }
    // The largest activation of every row lies on a rounding tie, and a last bit decides: where the reference does not agree with
    // itself a last bit later, nothing can be asked of the engine.
    let complaint = alike(found, &expected, float).err()?;
    let steady = |nudged: &Vec<Array>| alike(&nudged[index].to_f64_vec(), &expected, float).is_ok();
    nudged.iter().all(steady).then_some(complaint)
}

#[test]
fn outputs_are_the_references() {
    let mut wrong = String::new();
    let mut fallbacks: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases() {
        let folder = common::goldens().join("models").join(&case.model);
        let inputs = common::numbered(&folder.join("inputs.safetensors"));
        let float = common::numbered(&folder.join("float.safetensors"));
        let reference = |params: Params| {
            ReferenceBackend::default().compile(&case.graph, params).and_then(|m| m.run(&inputs)).unwrap()
        };
        let expected = reference(case.params.clone());
        let nudged: Vec<_> =
            (1..if case.exact { 1 } else { 6 }).map(|n| reference(nudged(&case.params, n))).collect();
        let run = CpuBackend::default()
            .prepare(&case.graph, case.params.clone())
            .and_then(|model| model.profile(&inputs));
        match run {
            Err(error) => writeln!(wrong, "{}: {error}", case.name).unwrap(),
            Ok((outputs, times)) => {
                for time in times.iter().filter(|t| t.step == "reference") {
                    let op = time.node.split('.').next().unwrap_or_default();
                    *fallbacks.entry(op.to_owned()).or_default() += 1;
                }
                for (i, found) in outputs.iter().enumerate() {
                    let (found, float) = (found.to_f64_vec(), float[i].to_f64_vec());
                    if let Some(complaint) = complaint(&case, i, &found, &expected, &nudged, &float) {
                        writeln!(wrong, "{}: output {i} {complaint}", case.name).unwrap();
                    }
                }
            }
        }
    }
    // For whoever asks: what had no kernel.
    println!("on the reference evaluator: {fallbacks:?}");
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut wrong = String::new();
    for case in cases() {
        let folder = common::goldens().join("models").join(&case.model);
        let inputs = common::numbered(&folder.join("inputs.safetensors"));
        let run = |threads| {
            CpuBackend::with_threads(threads)
                .compile(&case.graph, case.params.clone())
                .and_then(|m| m.run(&inputs))
        };
        if run(1) != run(3) {
            writeln!(wrong, "{}", case.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
