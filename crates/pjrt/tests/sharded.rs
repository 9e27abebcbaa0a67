//! Models that JAX spread over several devices, on virtual ones of XLA's CPU: against one device, and the native engine.

mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use std::path::PathBuf;

use qwix_array::Array;
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Executable, Params, Value};
use qwix_graph::{Graph, Path};
use qwix_pjrt::XlaBackend;
use qwix_ptq::{Calibrator, PtqProvider, QtProvider, QuantizationRule, quantize_model, quantize_params};

/// A model, float or quantized, and what it runs on.
struct Case {
    name: String,
    devices: usize,
    graph: Graph,
    params: Params,
    inputs: Vec<Array>,
}

/// Names and rules of quantized versions; no rules, the float model.
const RULES: [(&str, &str); 6] = [
    ("float", ""),
    ("int8", r#"[{"weight_qtype": "int8", "act_qtype": "int8"}]"#),
    ("int8 weights", r#"[{"weight_qtype": "int8"}]"#),
    ("int4 in tiles", r#"[{"weight_qtype": "int4", "tile_size": 8}]"#),
    (
        "int8 asymmetric",
        r#"[{"weight_qtype": "int8", "act_qtype": "int8", "act_calibration_method": "minmax"}]"#,
    ),
    ("int8 static", r#"[{"weight_qtype": "int8", "act_qtype": "int8", "act_static_scale": true}]"#),
];

fn folder(model: &str) -> PathBuf {
    goldens::goldens().join("sharded").join(model)
}

fn float(model: &str, spread: &str) -> (Graph, Params, Vec<Array>) {
    let bytes = std::fs::read(folder(model).join(format!("{spread}.hlo.pb"))).unwrap();
    let params = goldens::tensors(&folder(model).join("params.safetensors"));
    let params = params.into_iter().map(|(path, array)| (Path::new(&path), Value::Array(array)));
    let inputs = goldens::numbered(&folder(model).join("inputs.safetensors"));
    (Graph::from_hlo_proto(&bytes).unwrap(), params.collect(), inputs)
}

fn case(model: &str, spread: &str, (name, rules): (&str, &str)) -> Case {
    let (graph, params, inputs) = float(model, spread);
    let devices = graph.device_count().unwrap().unwrap();
    let name = format!("{model} {spread} {name}");
    if rules.is_empty() {
        return Case { name, devices, graph, params, inputs };
    }
    let rules = QuantizationRule::from_json(rules).unwrap();
    let mut stats = None;
    if rules[0].act_static_scale == Some(true) {
        let qt = quantize_model(&graph, &QtProvider::new(rules.clone()).unwrap()).unwrap();
        let mut calibrator = Calibrator::new(&qt, &params, &CpuBackend::default(), None).unwrap();
        calibrator.step(&inputs).unwrap();
        stats = Some(calibrator.finish());
    }
    let quantized = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    let params = quantize_params(&params, &quantized.abstract_params(), stats.as_ref()).unwrap();
    Case { name, devices, graph: quantized.graph, params, inputs }
}

fn cases() -> impl Iterator<Item = Case> {
    let spreads = ["tp4", "tp8", "dp4", "dp8", "both8"];
    let models = ["mlp", "decoder"].into_iter().flat_map(move |m| spreads.map(|s| (m, s)));
    models.flat_map(|(model, spread)| RULES.map(|rules| case(model, spread, rules)))
}

/// How far apart two arrays are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &Array, b: &Array) -> f64 {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let largest = b.iter().fold(1e-30, |m: f64, v| v.abs().max(m));
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(&b).fold(0.0, far) / largest
}

#[test]
fn several_devices_are_as_one() {
    let Some(client) = common::client() else { return };
    let many = XlaBackend::on(client, 0).unwrap();
    let one = many.clone().with_devices(1);
    let mut wrong = Vec::new();
    for case in cases() {
        let run = |backend: &dyn Backend| {
            backend.compile(&case.graph, case.params.clone()).and_then(|model| model.run(&case.inputs))
        };
        let (found, expected, native) = match (run(&many), run(&one), run(&CpuBackend::default())) {
            (Ok(found), Ok(expected), Ok(native)) => (found, expected, native),
            (found, expected, native) => {
                wrong.push(format!(
                    "{}: {:?}, one {:?}, native {:?}",
                    case.name,
                    found.err(),
                    expected.err(),
                    native.err()
                ));
                continue;
            }
        };
        let (to_one, to_native) = (apart(&found[0], &expected[0]), apart(&found[0], &native[0]));
        println!("{}: {to_one:.1e} from one device, {to_native:.1e} from native", case.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
