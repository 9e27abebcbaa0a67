//! Every quantized case of the goldens on an XLA device, as it is held against the native engine and Qwix. Beside it stand
//! the modules `common` and `goldens`.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{Graph, Role};
use qwix_pjrt::{Client, CompileOptions, Program, XlaBackend, portable};
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model, quantize_params};

use crate::{common, goldens};

struct Case {
    name: String,
    folder: PathBuf,
    model: String,
    info: serde_json::Value,
    graph: Graph,
    params: Params,
}

fn case(name: String, folder: PathBuf) -> Option<Case> {
    let info = goldens::json(&folder.join("case.json"));
    if !folder.join("expected.safetensors").exists() {
        return None;
    }
    let model = info["model"].as_str().unwrap().to_owned();
    let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
    let provider = PtqProvider::new(QuantizationRule::from_json(&text).unwrap())
        .unwrap()
        .qwix_compat(info["qwix_compat"].as_bool().unwrap_or(false));
    let quantized = quantize_model(&goldens::model(&model).unwrap(), &provider).unwrap();
    let params = quantize_params(&goldens::params(&model), &quantized.abstract_params(), None).unwrap();
    Some(Case { name, folder, model, info, graph: quantized.graph, params })
}

/// How far apart two outputs are, relative to the second's largest value; NaN where one holds a NaN.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let far = |m: f64, (a, b): (&f64, &f64)| {
        if (a - b).is_nan() || m.is_nan() { f64::NAN } else { m.max((a - b).abs()) }
    };
    a.iter().zip(b).fold(0.0, far) / b.iter().fold(1e-30, |m: f64, v| v.abs().max(m))
}

/// How far an output may be from another engine's, relative to its largest value, where the arithmetic is the same: a
/// unit in the last place of what is largest, where numbers pass through a narrow type. XLA keeps some steps of narrow
/// types in f32.
fn budget(case: &Case, found: &Array) -> f64 {
    let notes = case.info["notes"].as_array().into_iter().flatten().filter_map(|n| n.as_str());
    // In a mixed model Qwix goes on in f32 where the float model, and we, round each step to bf16.
    let mixed = notes.into_iter().any(|n| n.contains("Qwix returns float32, the float model says"));
    let steps = if mixed { 3.0 } else { 1.0 };
    let params = goldens::params(&case.model);
    let narrow = |dtype: DType| {
        let of = |value: &Value| matches!(value, Value::Array(a) if a.dtype() == dtype);
        found.dtype() == dtype || params.values().any(of)
    };
    let (narrowest, on_cpu) = if narrow(DType::BF16) {
        (DType::BF16, steps * 2f64.powi(-7))
    } else if narrow(DType::F16) {
        (DType::F16, steps * 2f64.powi(-10))
    } else {
        (DType::F32, 1e-5)
    };
    if common::is_cpu() { on_cpu } else { on_cpu.max(common::device_budget(narrowest)) }
}

/// Whether two outputs are of one mind about the float model's: the cosine of their errors, and the errors' norms. No more
/// is asked than that Qwix is like itself, when what it reads moves by an ulp.
fn alike(case: &Case, a: &[f64], b: &[f64], float: &[f64]) -> Result<(), String> {
    let (ours, theirs): (Vec<f64>, Vec<f64>) =
        a.iter().zip(b).zip(float).map(|((a, b), f)| (a - f, b - f)).unzip();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (n, m) = (dot(&ours, &ours).sqrt(), dot(&theirs, &theirs).sqrt());
    let cosine = dot(&ours, &theirs) / (n * m).max(1e-30);
    let noise = |key: &str, otherwise: f64| case.info[key].as_f64().unwrap_or(otherwise);
    let (least, most) = (noise("noise_cosine", 0.9).min(0.9), noise("noise_norms", 1.25).max(1.25));
    // Written so that NaN fails.
    if cosine >= least && (n / m).max(m / n) <= most {
        Ok(())
    } else {
        Err(format!("cosine {cosine:.3} (at least {least}), norms {n:.3e} and {m:.3e}"))
    }
}

/// The parameters left in float, some of them one unit in the last place up: what another order of summation does.
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

/// The outputs of a case's graph as it is written for any XLA, each quantized op a composite.
fn exported(case: &Case, client: &Client, inputs: &[Array]) -> qwix_pjrt::Result<Vec<Array>> {
    let written = Program::new(&portable(&case.graph)?)?;
    // What a file has in it is read before it is compiled.
    let program = Program::from_hlo_proto(written.bytes().to_vec())?;
    let mut inputs = inputs.iter();
    let mut arguments = Vec::new();
    for parameter in &case.graph.parameters {
        match (parameter.role, case.params.get(&parameter.path)) {
            (Role::Input, _) => arguments.extend(inputs.next().cloned()),
            (Role::Variable, Some(Value::QArray(q))) => {
                arguments.extend([q.qvalue(), q.scale()].into_iter().chain(q.zero_point()).cloned());
            }
            (Role::Variable, Some(Value::Array(array))) => arguments.push(array.clone()),
            (Role::Variable, other) => panic!("{}: {other:?}", parameter.path),
        }
    }
    let device = client.device(0)?;
    let buffers =
        arguments.iter().map(|array| client.upload(array, device)).collect::<Result<Vec<_>, _>>()?;
    let executable = client.compile(&program, &CompileOptions::default())?;
    executable.run(&buffers.iter().collect::<Vec<_>>())?.iter().map(|buffer| buffer.to_array()).collect()
}

/// What is wrong with the outputs of a case, if anything. With `as_exported` they are those of the exported model, too, bit
/// for bit.
fn complaints(case: &Case, xla: &XlaBackend, as_exported: bool) -> Result<(), String> {
    let folder = goldens::goldens().join("models").join(&case.model);
    let inputs = goldens::numbered(&folder.join("inputs.safetensors"));
    let float = goldens::numbered(&folder.join("float.safetensors"));
    let qwix = goldens::tensors(&case.folder.join("expected.safetensors"));
    let on = |backend: &dyn Backend, params: &Params| {
        backend.compile(&case.graph, params.clone()).and_then(|model| model.run(&inputs))
    };
    let found = on(xla, &case.params).map_err(|e| e.to_string())?;
    let native = on(&CpuBackend::default(), &case.params).map_err(|e| format!("native: {e}"))?;
    if found.len() != native.len() {
        return Err(format!("{} outputs, expected {}", found.len(), native.len()));
    }
    let mut wrong = String::new();
    if as_exported {
        match exported(case, xla.client(), &inputs) {
            Ok(outputs) if outputs == found => {}
            Ok(_) => wrong.push_str(" exported, its outputs are others;"),
            Err(error) => write!(wrong, " exported: {error};").unwrap(),
        }
    }
    for (i, output) in found.iter().enumerate() {
        let (values, float) = (output.to_f64_vec(), float[i].to_f64_vec());
        let others = [("native", &native[i]), ("qwix", &qwix[&format!("out/{i}")])];
        if (output.dtype(), output.shape()) != (native[i].dtype(), native[i].shape()) {
            write!(wrong, " output {i} is {output:?}, expected {:?};", native[i]).unwrap();
            continue;
        }
        for (name, other) in others {
            // Where Qwix promotes a mixed model to f32, the float model's dtype is compared.
            let other = other.convert(output.dtype()).to_f64_vec();
            let relative = apart(&values, &other);
            // Written so that NaN fails.
            if relative <= budget(case, output) {
                continue;
            }
            if !common::is_cpu() {
                println!("{}: output {i} is {relative:.2e} from {name}", case.name);
            } else if case.info["comparison"] == "exact" {
                write!(wrong, " output {i} is {relative:.2e} from {name};").unwrap();
                continue;
            }
            // The largest activation of every row lies on a rounding tie, and a last bit decides (on a device that is no CPU
            // in every case, for its functions are good to some units in the last place): where the native engine does not
            // agree with itself a last bit later, nothing can be asked of another.
            let Err(complaint) = alike(case, &values, &other, &float) else { continue };
            let steady = (1..6).all(|which| {
                let again = on(&CpuBackend::default(), &nudged(&case.params, which)).unwrap();
                alike(case, &again[i].to_f64_vec(), &native[i].to_f64_vec(), &float).is_ok()
            });
            if steady {
                write!(wrong, " output {i} from {name}: {complaint};").unwrap();
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// What is wrong with any of the cases, and how many there are; with `QWIX_TEST_CASE` only those whose name holds it.
/// `as_exported`: whether the exported models are held to the same bits.
pub fn complaints_of_all(xla: &XlaBackend, as_exported: bool) -> (Vec<String>, usize) {
    let wrong = Mutex::new(Vec::new());
    let (next, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let folders = goldens::folders("cases");
    let only = std::env::var("QWIX_TEST_CASE").ok();
    // Compiling keeps one core busy.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((name, folder)) = folders.get(next.fetch_add(1, Ordering::Relaxed)).cloned() {
                    if only.as_ref().is_some_and(|only| !name.contains(only)) {
                        continue;
                    }
                    let Some(case) = case(name, folder) else { continue };
                    count.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = complaints(&case, xla, as_exported) {
                        wrong.lock().unwrap().push(format!("{}: {error}", case.name));
                    }
                }
            });
        }
    });
    let (mut wrong, count) = (wrong.into_inner().unwrap(), count.into_inner());
    wrong.sort();
    (wrong, count)
}
