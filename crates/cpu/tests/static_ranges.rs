//! Graphs with static ranges on the native engine, and calibration on it, against the reference evaluator.

#[path = "../../ptq/tests/common/mod.rs"]
mod common;

use std::fmt::Write;

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, ReferenceBackend};
use qwix_graph::Graph;
use qwix_ptq::{
    Calibrator, PtqProvider, QtProvider, QuantStats, QuantizationRule, quantize_model, quantize_params,
};

fn batches(path: &std::path::Path) -> Vec<Vec<Array>> {
    let tensors = common::tensors(path);
    let batch = |n: usize| -> Vec<Array> {
        (0..).map_while(|i: usize| tensors.get(&format!("{n}/{i}")).cloned()).collect()
    };
    (0..).map(batch).take_while(|batch| !batch.is_empty()).collect()
}

/// How far apart two outputs are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &Array, b: &Array) -> f64 {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let largest = b.iter().fold(0.0, |m: f64, v| v.abs().max(m));
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(&b).fold(0.0, far) / largest.max(1e-30)
}

fn budget(array: &Array) -> f64 {
    match array.dtype() {
        DType::BF16 => 2f64.powi(-7),
        _ => 1e-5,
    }
}

#[test]
fn static_graphs_and_calibration_are_the_references() {
    let mut wrong = String::new();
    let (native, reference) = (CpuBackend::default(), ReferenceBackend::default());
    for (model, folder) in common::folders("static") {
        let (graph, params) = (common::model(&model).unwrap(), common::params(&model));
        let batches = batches(&folder.join("batches.safetensors"));
        for (rules, folder) in common::folders(&format!("static/{model}")) {
            let name = format!("{model}/{rules}");
            let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
            let rules = QuantizationRule::from_json(&text).unwrap();
            let qt = quantize_model(&graph, &QtProvider::new(rules.clone()).unwrap()).unwrap();
            let calibrate = |backend: &dyn Backend| -> (Vec<Vec<Array>>, QuantStats) {
                let mut calibrator = Calibrator::new(&qt, &params, backend, None).unwrap();
                let outputs = batches.iter().map(|batch| calibrator.step(batch).unwrap()).collect();
                (outputs, calibrator.finish())
            };
            let (outputs, stats) = calibrate(&native);
            let (expected, expected_stats) = calibrate(&reference);
            let (found, wanted) = (stats.to_params(), expected_stats.to_params());
            for (path, value) in &wanted {
                let (Some(qwix_eval::Value::Array(a)), qwix_eval::Value::Array(b)) = (found.get(path), value)
                else {
                    panic!("{path} is no array")
                };
                let apart = apart(a, b);
                if apart.is_nan() || apart > 1e-6 {
                    writeln!(wrong, "{name}: statistics {path} differ by {apart:.2e}").unwrap();
                }
            }
            for (a, b) in outputs.iter().flatten().zip(expected.iter().flatten()) {
                let apart = apart(a, b);
                if apart.is_nan() || apart > budget(b) {
                    writeln!(wrong, "{name}: an output of calibration differs by {apart:.2e}").unwrap();
                }
            }

            let ptq = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
            let Ok(quantized) = quantize_params(&params, &ptq.abstract_params(), Some(&expected_stats))
            else {
                // Statistics that Qwix does not take either.
                assert!(!common::json(&folder.join("case.json"))["ptq_refuses"].is_null(), "{name}");
                continue;
            };
            let run = |backend: &dyn Backend, graph: &Graph| {
                backend.compile(graph, quantized.clone()).unwrap().run(&batches[0]).unwrap()
            };
            for (a, b) in run(&native, &ptq.graph).iter().zip(&run(&reference, &ptq.graph)) {
                let apart = apart(a, b);
                if apart.is_nan() || apart > budget(b) {
                    writeln!(wrong, "{name}: an output differs by {apart:.2e}").unwrap();
                }
            }
            let prepared = native.prepare(&ptq.graph, quantized.clone()).unwrap();
            let (_, times) = prepared.profile(&batches[0]).unwrap();
            let slow = times.iter().filter(|t| t.step == "reference");
            let quantized_ops = ["quantize", "dot", "convolution"];
            for time in slow.filter(|t| quantized_ops.iter().any(|op| t.node.starts_with(op))) {
                writeln!(wrong, "{name}: {} runs on the reference evaluator", time.node).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The three projections of attention read one activation, whose statistics are the same for each: it is quantized once.
#[test]
fn equal_ranges_of_one_activation_are_shared() {
    let graph = common::model("encoder_mha").unwrap();
    let params = common::params("encoder_mha");
    let rule = QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8").act_static_scale(true);
    let qt = quantize_model(&graph, &QtProvider::new(vec![rule.clone()]).unwrap()).unwrap();
    let backend = CpuBackend::default();
    let mut calibrator = Calibrator::new(&qt, &params, &backend, None).unwrap();
    let batches = batches(&common::goldens().join("static/encoder_mha/batches.safetensors"));
    calibrator.step(&batches[0]).unwrap();
    let ptq = quantize_model(&graph, &PtqProvider::new(vec![rule]).unwrap()).unwrap();
    let stats = calibrator.finish();
    let quantized = quantize_params(&params, &ptq.abstract_params(), Some(&stats)).unwrap();
    let steps = |quantized| {
        let model = backend.prepare(&ptq.graph, quantized).unwrap();
        let (outputs, times) = model.profile(&batches[0]).unwrap();
        (outputs, times.iter().filter(|t| t.step == "quantize-static").count())
    };
    let (outputs, shared) = steps(quantized.clone());
    // A range of its own for one of them, so little wider that no output is far off.
    let mut apart = quantized;
    let path = qwix_graph::Path::new("MultiHeadDotProductAttention_0/key/dot_general0_lhs_scale");
    let Some(qwix_eval::Value::Array(scale)) = apart.get(&path).cloned() else { panic!("no scale") };
    let wider = scale.values::<f32>().unwrap().iter().map(|s| s * 1.0001).collect();
    apart.insert(path, Array::from_vec(scale.shape(), wider).unwrap().into());
    let (others, own) = steps(apart);
    // 2 layers of 3 projections, 4 sides of products, 1 output and 2 dense layers; and the pooler.
    assert_eq!((shared, own), (2 * (1 + 4 + 1 + 2) + 1, 2 * (1 + 4 + 1 + 2) + 2));
    assert!(self::apart(&others[0], &outputs[0]) < 0.1);
}
