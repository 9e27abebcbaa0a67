//! Float models on an XLA device against JAX, by the goldens of `goldens/models`.

mod common;
#[path = "../../eval/tests/common/mod.rs"]
mod goldens;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use goldens::{Tensors, difference};
use qwix_array::DType;
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{Graph, Role, Type};
use qwix_pjrt::XlaBackend;

/// How far an output may be away, relative to its largest value: the graph is not JAX's letter by letter (calls are
/// inlined, say), so XLA may fuse otherwise and round 16-bit floats elsewhere.
fn bound(dtype: DType) -> f64 {
    let on_cpu = match dtype {
        DType::BF16 => 4.0 / 256.0,
        DType::F16 => 4.0 / 2048.0,
        _ => 1e-5,
    };
    if common::is_cpu() { on_cpu } else { on_cpu.max(common::device_budget(dtype)) }
}

fn outputs(folder: &Path, xla: &XlaBackend) -> Result<usize, String> {
    let bytes = std::fs::read(folder.join("model.hlo.pb")).unwrap();
    let mut graph = Graph::from_hlo_proto(&bytes).map_err(|e| e.to_string())?;
    let tensors = Tensors::open(&folder.join("params.safetensors"));
    let known = tensors.keys();
    for parameter in graph.parameters.iter_mut().filter(|p| p.ambiguous) {
        let is_known = known.iter().any(|key| key == parameter.path.as_str());
        parameter.role = if is_known { Role::Variable } else { Role::Input };
    }
    let params: Params = graph
        .variables()
        .map(|(_, p)| (p.path.clone(), Value::Array(tensors.array(p.path.as_str(), &p.ty))))
        .collect();
    let inputs = Tensors::open(&folder.join("inputs.safetensors"));
    let inputs: Vec<_> =
        graph.inputs().enumerate().map(|(i, (_, p))| inputs.array(&i.to_string(), &p.ty)).collect();
    let found =
        xla.compile(&graph, params).and_then(|model| model.run(&inputs)).map_err(|e| e.to_string())?;
    let expected = Tensors::open(&folder.join("float.safetensors"));
    let mut complaints = Vec::new();
    for (i, found) in found.iter().enumerate() {
        let ty = Type::array(found.dtype(), found.shape());
        let d = difference(found, &expected.array(&i.to_string(), &ty));
        let exact = d.ulp == 0 && d.kind == 0;
        if !exact && (!found.dtype().is_float() || d.relative > bound(found.dtype())) {
            complaints.push(format!("output {i} {ty}: relative {:e}, {} ulp", d.relative, d.ulp));
        }
    }
    if complaints.is_empty() { Ok(found.len()) } else { Err(complaints.join("; ")) }
}

#[test]
fn models_agree_with_jax() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap();
    let mut folders: Vec<_> = std::fs::read_dir(goldens::goldens().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let (wrong, next, count) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(0));
    // Compiling keeps one core busy.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match outputs(folder, &xla) {
                        Ok(outputs) => drop(count.fetch_add(outputs, Ordering::Relaxed)),
                        Err(error) => {
                            let name = folder.file_name().unwrap().display();
                            wrong.lock().unwrap().push(format!("{name}: {error}"));
                        }
                    }
                }
            });
        }
    });
    let (mut wrong, count) = (wrong.into_inner().unwrap(), count.into_inner());
    wrong.sort();
    assert!(wrong.is_empty(), "besides {count} outputs:\n{}", wrong.join("\n"));
    assert!(count > 0, "no models");
}
