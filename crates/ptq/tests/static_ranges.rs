//! Static ranges against real Qwix: statistics after several batches, scales and zero points, outputs of QT while it
//! calibrates and when it is evaluated, and outputs of the quantized model.

mod common;

use std::collections::BTreeMap;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::passes::lower_quant;
use qwix_graph::{Computation, Graph, Op, Path};
use qwix_ptq::{
    Calibrator, PtqProvider, QtProvider, QuantStats, QuantizationRule, quantize_model, quantize_params,
};

struct Case {
    name: String,
    model: String,
    rules: Vec<QuantizationRule>,
    batches: Vec<Vec<Array>>,
    expected: BTreeMap<String, Array>,
    /// Whether real Qwix makes a PTQ model of it.
    ptq: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (model, folder) in common::folders("static") {
        let batches = batches(&folder.join("batches.safetensors"));
        for (rules, folder) in common::folders(&format!("static/{model}")) {
            let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
            cases.push(Case {
                name: format!("{model}/{rules}"),
                model: model.clone(),
                rules: QuantizationRule::from_json(&text).unwrap_or_else(|e| panic!("{rules}: {e}")),
                batches: batches.clone(),
                expected: common::tensors(&folder.join("expected.safetensors")),
                ptq: common::json(&folder.join("case.json"))["ptq_refuses"].is_null(),
            });
        }
    }
    cases
}

/// The tensors `<batch>/<input>` of a file.
fn batches(path: &std::path::Path) -> Vec<Vec<Array>> {
    let mut batches: BTreeMap<usize, BTreeMap<usize, Array>> = BTreeMap::new();
    for (key, array) in common::tensors(path) {
        let (batch, input) = key.split_once('/').unwrap();
        batches.entry(batch.parse().unwrap()).or_default().insert(input.parse().unwrap(), array);
    }
    batches.into_values().map(|batch| batch.into_values().collect()).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// What is wrong with a group of arrays, keys `<group>/…`: one is missing, too many, or further away than allowed.
fn compare(
    case: &Case,
    group: &str,
    found: &BTreeMap<String, Array>,
    budget: impl Fn(&Array) -> f64,
) -> Vec<String> {
    let mut wrong = vec![];
    let prefix = format!("{group}/");
    let wanted: BTreeMap<&str, &Array> =
        case.expected.iter().filter_map(|(key, array)| Some((key.strip_prefix(&prefix)?, array))).collect();
    for key in found.keys().filter(|key| !wanted.contains_key(key.as_str())) {
        wrong.push(format!("{group}: `{key}` is not Qwix's"));
    }
    for (key, wanted) in wanted {
        let Some(found) = found.get(key) else {
            wrong.push(format!("{group}: `{key}` is missing"));
            continue;
        };
        if found.shape() != wanted.shape() {
            wrong.push(format!("{group}: `{key}` is {found:?}, not {wanted:?}"));
            continue;
        }
        // Where Qwix goes on in f32 after a promotion, we round each step to the float model's dtype, which is compared.
        let steps = if wanted.dtype() != found.dtype() { 3.0 } else { 1.0 };
        let (a, b) = (found.to_f64_vec(), wanted.convert(found.dtype()).to_f64_vec());
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        // Statistics, scales and zero points are held one by one, outputs against the largest.
        let relative = if group == "stats" || group == "params" {
            apart.zip(&b).map(|(d, b)| if d == 0.0 { 0.0 } else { d / b.abs() }).fold(0.0, f64::max)
        } else {
            apart.fold(0.0, f64::max) / largest(&b).max(1e-30)
        };
        if relative.is_nan() || relative > steps * budget(found) {
            wrong.push(format!("{group}: `{key}` differs by {relative:.2e}"));
        }
    }
    wrong
}

fn keyed(arrays: Vec<Array>) -> BTreeMap<String, Array> {
    arrays.into_iter().enumerate().map(|(i, a)| (i.to_string(), a)).collect()
}

fn arrays(params: &Params) -> BTreeMap<String, Array> {
    params
        .iter()
        .filter_map(|(path, value)| match value {
            Value::Array(array) => Some((path.to_string(), array.clone())),
            Value::QArray(_) | Value::Tuple(_) => None,
        })
        .collect()
}

/// Quantized parameters in the parts that lowering makes of them.
fn parts(params: Params) -> Params {
    let mut parts = Params::new();
    for (path, value) in params {
        match value {
            Value::QArray(q) => {
                parts.insert(path.join("qvalue"), q.qvalue().clone().into());
                parts.insert(path.join("scale"), q.scale().clone().into());
                if let Some(zero_point) = q.zero_point() {
                    parts.insert(path.join("zero_point"), zero_point.clone().into());
                }
            }
            Value::Array(_) | Value::Tuple(_) => drop(parts.insert(path, value)),
        }
    }
    parts
}

/// Sub-byte integers as the goldens store them.
fn storable(array: &Array) -> Array {
    match array.dtype() {
        DType::S4 => Array::from_vec(array.shape(), array.unpack_i8().unwrap()).unwrap(),
        _ => array.clone(),
    }
}

/// How far an output may be from Qwix's, relative to its largest value.
fn budget(output: &Array) -> f64 {
    match output.dtype() {
        DType::BF16 => 2f64.powi(-7),
        _ => 1e-5,
    }
}

fn check(case: &Case) -> Result<Vec<String>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let graph = common::model(&case.model)?;
    let params = common::params(&case.model);
    let backend = ReferenceBackend::default();
    let mut wrong = vec![];

    let qt =
        QtProvider::new(case.rules.clone()).and_then(|p| quantize_model(&graph, &p)).map_err(|e| text(&e))?;
    let mut calibrator = Calibrator::new(&qt, &params, &backend, None).map_err(|e| text(&e))?;
    let mut outputs = vec![];
    for batch in &case.batches {
        outputs = calibrator.step(batch).map_err(|e| text(&e))?;
    }
    let stats = calibrator.finish();
    wrong.extend(compare(case, "stats", &arrays(&stats.to_params()), |_| 1e-6));
    wrong.extend(compare(case, "calibrate", &keyed(outputs), budget));

    // What follows does not depend on how near our statistics are.
    let theirs: Params = case
        .expected
        .iter()
        .filter_map(|(key, array)| Some((Path::new(key.strip_prefix("stats/")?), array.clone().into())))
        .collect();
    let theirs = QuantStats::from_params(&theirs).map_err(|e| text(&e))?;
    let run = |graph: &Graph, params: Params| {
        let executable = backend.compile(graph, params).map_err(|e| text(&e))?;
        executable.run(&case.batches[0]).map_err(|e| text(&e))
    };
    let evaluated = quantize_params(&params, &qt.abstract_params(), Some(&theirs)).map_err(|e| text(&e))?;
    wrong.extend(compare(case, "qt", &keyed(run(&qt.graph, evaluated)?), budget));

    let ptq = PtqProvider::new(case.rules.clone())
        .and_then(|p| quantize_model(&graph, &p))
        .map_err(|e| text(&e))?;
    let quantized = quantize_params(&params, &ptq.abstract_params(), Some(&theirs));
    if !case.ptq {
        if quantized.is_ok() {
            wrong.push("Qwix refuses these statistics, and they were taken".to_owned());
        }
        return Ok(wrong);
    }
    let quantized = quantized.map_err(|e| text(&e))?;
    let scales = arrays(&quantized)
        .into_iter()
        .filter(|(key, _)| key.ends_with("_scale") || key.ends_with("_zero_point"))
        .map(|(key, array)| (key, storable(&array)))
        .collect();
    wrong.extend(compare(case, "params", &scales, |_| 1e-6));
    wrong.extend(compare(case, "ptq", &keyed(run(&ptq.graph, quantized.clone())?), budget));
    let lowered = lower_quant(&ptq.graph).map_err(|e| text(&e))?;
    let found = keyed(run(&lowered, parts(quantized))?);
    wrong.extend(compare(case, "ptq", &found, budget).into_iter().map(|w| format!("lowered: {w}")));
    Ok(wrong)
}

#[test]
fn statistics_scales_and_outputs_are_qwix() {
    let mut failures = vec![];
    let cases = cases();
    for case in &cases {
        match check(case) {
            Err(e) => failures.push(format!("{}: {e}", case.name)),
            Ok(wrong) if wrong.is_empty() => {}
            Ok(wrong) => failures.push(format!("{}: {}", case.name, wrong.join("; "))),
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn each_node(computation: &Computation, f: &mut impl FnMut(&Computation, &qwix_graph::Node)) {
    for node in &computation.nodes {
        f(computation, node);
        for called in node.op.called() {
            each_node(called, f);
        }
    }
}

/// Every activation is quantized with a scale that is given, and nothing that finds a range is left: the float graph's
/// reductions are all that the lowered one has.
#[test]
fn static_graphs_find_no_ranges() {
    let mut failures = vec![];
    let count = |graph: &Graph| {
        let (mut reductions, mut absolutes) = (0, 0);
        each_node(&graph.entry, &mut |_, node| match node.op {
            Op::Reduce { .. } => reductions += 1,
            Op::Unary(qwix_graph::UnaryOp::Abs) => absolutes += 1,
            _ => {}
        });
        (reductions, absolutes)
    };
    for case in cases() {
        let graph = common::model(&case.model).unwrap();
        let model = quantize_model(&graph, &PtqProvider::new(case.rules.clone()).unwrap()).unwrap();
        let mut quantized = 0;
        each_node(&model.graph.entry, &mut |_, node| {
            if let Op::Quantize(_) = node.op {
                quantized += 1;
                if node.operands.len() < 2 {
                    failures.push(format!("{}: `{}` has no scale", case.name, node.name));
                }
            }
        });
        if quantized == 0 {
            failures.push(format!("{}: nothing is quantized", case.name));
        }
        let lowered = count(&lower_quant(&model.graph).unwrap());
        let tiled = case.rules.iter().any(|r| r.tile_size.is_some());
        // Tiles are summed after the product.
        if lowered != count(&graph) && !tiled {
            failures.push(format!(
                "{}: {lowered:?} reductions and absolutes, {:?} before",
                case.name,
                count(&graph)
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
