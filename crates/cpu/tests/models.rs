//! Float models on the native engine against JAX, by the goldens of `goldens/models`.

#[path = "../../eval/tests/common/mod.rs"]
mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::{Tensors, difference, goldens};
use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{Graph, Role};

/// How far an output may be away, relative to its largest value. XLA keeps f32 inside fusions where a graph of 16-bit
/// floats rounds each step: there it is a few units in the last place.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 4.0 / 256.0,
        DType::F16 => 4.0 / 2048.0,
        _ => 1e-5,
    }
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(goldens().join("models")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn load(folder: &Path) -> Result<(Graph, Params, Vec<Array>), String> {
    let bytes = std::fs::read(folder.join("model.hlo.pb")).map_err(|e| e.to_string())?;
    let mut graph = Graph::from_hlo_proto(&bytes).map_err(|e| format!("import: {e}"))?;
    let tensors = Tensors::open(&folder.join("params.safetensors"));
    let known = tensors.keys();
    for parameter in graph.parameters.iter_mut().filter(|p| p.ambiguous) {
        parameter.role =
            if known.iter().any(|k| k == parameter.path.as_str()) { Role::Variable } else { Role::Input };
    }
    let params = graph
        .variables()
        .map(|(_, p)| (p.path.clone(), Value::Array(tensors.array(p.path.as_str(), &p.ty))))
        .collect();
    let inputs = Tensors::open(&folder.join("inputs.safetensors"));
    let inputs = graph.inputs().enumerate().map(|(i, (_, p))| inputs.array(&i.to_string(), &p.ty)).collect();
    Ok((graph, params, inputs))
}

#[test]
fn models_agree_with_jax() {
    let mut wrong = String::new();
    let mut count = 0;
    for folder in folders() {
        match model(&folder) {
            Ok(outputs) => count += outputs,
            Err(error) => writeln!(wrong, "{}: {error}", folder.file_name().unwrap().display()).unwrap(),
        }
    }
    assert!(wrong.is_empty(), "besides {count} outputs:\n{wrong}");
    assert!(count > 0, "no models");
}

fn model(folder: &Path) -> Result<usize, String> {
    let (graph, params, inputs) = load(folder)?;
    let compiled = CpuBackend::default().compile(&graph, params).map_err(|e| format!("compile: {e}"))?;
    let found = compiled.run(&inputs).map_err(|e| format!("run: {e}"))?;
    let expected = Tensors::open(&folder.join("float.safetensors"));
    let mut complaints = String::new();
    for (i, found) in found.iter().enumerate() {
        let ty = qwix_graph::Type::array(found.dtype(), found.shape());
        let d = difference(found, &expected.array(&i.to_string(), &ty));
        let exact = d.ulp == 0 && d.kind == 0;
        if !exact && (!found.dtype().is_float() || d.relative > bound(found.dtype())) {
            write!(complaints, " output {i} {ty}: relative {:e}, {} ulp;", d.relative, d.ulp).unwrap();
        }
    }
    if complaints.is_empty() { Ok(found.len()) } else { Err(complaints) }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads_or_of_runs() {
    let mut wrong = String::new();
    for folder in folders() {
        let (graph, params, inputs) = load(&folder).unwrap();
        let one = CpuBackend::with_threads(1).compile(&graph, params.clone()).unwrap();
        let three = CpuBackend::with_threads(3).compile(&graph, params).unwrap();
        let expected = one.run(&inputs).unwrap();
        for found in [one.run(&inputs).unwrap(), three.run(&inputs).unwrap(), three.run(&inputs).unwrap()] {
            if found != expected {
                writeln!(wrong, "{}", folder.display()).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
