//! Static ranges on an XLA device: calibration and quantized graphs against the native engine, by the goldens of
//! `goldens/static`.

mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use std::path::Path;

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Value};
use qwix_pjrt::XlaBackend;
use qwix_ptq::{
    Calibrator, PtqProvider, QtProvider, QuantStats, QuantizationRule, quantize_model, quantize_params,
};

fn batches(path: &Path) -> Vec<Vec<Array>> {
    let tensors = goldens::tensors(path);
    let batch = |n: usize| -> Vec<Array> {
        (0..).map_while(|i: usize| tensors.get(&format!("{n}/{i}")).cloned()).collect()
    };
    (0..).map(batch).take_while(|batch| !batch.is_empty()).collect()
}

/// How far apart two outputs are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &Array, b: &Array) -> f64 {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let largest = b.iter().fold(1e-30, |m: f64, v| v.abs().max(m));
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(&b).fold(0.0, far) / largest
}

/// As for float models: 16-bit floats are rounded elsewhere where XLA fuses.
fn budget(array: &Array) -> f64 {
    let on_cpu = match array.dtype() {
        DType::BF16 => 4.0 / 256.0,
        _ => 1e-5,
    };
    if common::is_cpu() { on_cpu } else { on_cpu.max(common::device_budget(array.dtype())) }
}

#[test]
fn static_graphs_are_the_native_engines() {
    let Some(client) = common::client() else { return };
    let (native, xla) = (CpuBackend::default(), XlaBackend::on(client, 0).unwrap());
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (model, folder) in goldens::folders("static") {
        let (graph, params) = (goldens::model(&model).unwrap(), goldens::params(&model));
        let batches = batches(&folder.join("batches.safetensors"));
        for (rules, folder) in goldens::folders(&format!("static/{model}")) {
            let name = format!("{model}/{rules}");
            let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
            let rules = QuantizationRule::from_json(&text).unwrap();
            let qt = quantize_model(&graph, &QtProvider::new(rules.clone()).unwrap()).unwrap();
            let stats = |backend: &dyn Backend| -> QuantStats {
                let mut calibrator = Calibrator::new(&qt, &params, backend, None).unwrap();
                calibrator.step(&batches[0]).unwrap();
                calibrator.finish()
            };
            let (expected, found) = (stats(&native), stats(&xla));
            let found = found.to_params();
            for (path, expected) in expected.to_params() {
                let (Some(Value::Array(found)), Value::Array(expected)) = (found.get(&path), expected) else {
                    wrong.push(format!("{name}: {path} is no array"));
                    continue;
                };
                let apart = apart(found, &expected);
                if apart.is_nan() || apart > budget(&expected) {
                    wrong.push(format!("{name}: statistics {path} differ by {apart:.2e}"));
                }
            }
            let ptq = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
            let Ok(quantized) = quantize_params(&params, &ptq.abstract_params(), Some(&expected)) else {
                // Statistics that Qwix does not take either.
                assert!(!goldens::json(&folder.join("case.json"))["ptq_refuses"].is_null(), "{name}");
                continue;
            };
            count += 1;
            let run = |backend: &dyn Backend| {
                backend.compile(&ptq.graph, quantized.clone()).and_then(|model| model.run(&batches[0]))
            };
            match (run(&xla), run(&native)) {
                (Ok(found), Ok(expected)) => {
                    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                        let apart = apart(a, b);
                        // On a device that is no CPU an activation that lies on a tie may be rounded to the other side.
                        let budget = if common::is_cpu() { budget(b) } else { 2f64.powi(-6) };
                        if apart.is_nan() || apart > budget {
                            wrong.push(format!("{name}: output {i} {b:?} differs by {apart:.2e}"));
                        }
                    }
                }
                (found, expected) => wrong.push(format!("{name}: {:?}, {:?}", found.err(), expected.err())),
            }
        }
    }
    assert!(wrong.is_empty(), "{} complaints in {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 0, "no cases");
}
