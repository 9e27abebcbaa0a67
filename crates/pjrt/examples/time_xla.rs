//! Times a model on an XLA device, for `benchmarks/xla.py`.
//!
//!     cargo run --release -p qwix-pjrt --example time_xla -- DIR float|int8|int8-weight-only SECONDS [PLUGIN]
//!
//! DIR holds `model.hlo.pb`, `params.safetensors` and `inputs.safetensors`. Prints JSON: milliseconds to compile (with the
//! upload of the parameters) and of one call (inputs and outputs in this process's memory), MiB at the most, and the
//! first numbers of the output.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use qwix_array::{Array, DType};
use qwix_eval::{Executable, Params, Value};
use qwix_graph::{Graph, Type};
use qwix_pjrt::{Plugin, XlaBackend, resolve};
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model, quantize_params};
use safetensors::SafeTensors;

type Error = Box<dyn std::error::Error>;

fn tensor(file: &SafeTensors<'_>, key: &str, ty: &Type) -> Result<Array, Error> {
    let Type::Array(ty) = ty else { return Err(format!("{key} is no array").into()) };
    let view = file.tensor(key)?;
    let stored = match view.dtype() {
        safetensors::Dtype::BOOL => DType::Pred,
        safetensors::Dtype::I32 => DType::S32,
        _ => DType::F32,
    };
    Ok(Array::from_bytes(stored, view.shape(), view.data().to_vec())?.convert(ty.dtype))
}

/// A line of what the system says of this process, in MiB; 0 where it says nothing.
fn mebibytes(of: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(of)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, how, seconds, plugin @ ..] = &arguments[..] else {
        return Err("usage: time_xla DIR float|int8|int8-weight-only SECONDS [PLUGIN]".into());
    };
    let folder = Path::new(folder);
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let backend = XlaBackend::new(&Plugin::load(resolve(plugin.first().map_or("", String::as_str))?)?)?;
    let before = mebibytes("VmRSS:");

    let mut graph = Graph::from_hlo_proto(&std::fs::read(folder.join("model.hlo.pb"))?)?;
    let bytes = std::fs::read(folder.join("params.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let known: BTreeSet<_> = file.names().into_iter().map(qwix_graph::Path::new).collect();
    graph.resolve_roles(&known);
    let variables = graph.variables();
    let mut params: Params = variables
        .map(|(_, p)| Ok((p.path.clone(), Value::Array(tensor(&file, p.path.as_str(), &p.ty)?))))
        .collect::<Result<_, Error>>()?;
    drop(bytes);
    let bytes = std::fs::read(folder.join("inputs.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let inputs = graph
        .inputs()
        .enumerate()
        .map(|(i, (_, p))| tensor(&file, &i.to_string(), &p.ty))
        .collect::<Result<Vec<_>, _>>()?;
    let rule = QuantizationRule::new(".*").weight_qtype("int8");
    let rule = match how.as_str() {
        "float" => None,
        "int8" => Some(rule.act_qtype("int8")),
        "int8-weight-only" => Some(rule),
        other => return Err(format!("`{other}`, expected float, int8 or int8-weight-only").into()),
    };
    if let Some(rule) = rule {
        let model = quantize_model(&graph, &PtqProvider::new(vec![rule])?.qwix_compat(true))?;
        params = quantize_params(&params, &model.abstract_params(), None)?;
        graph = model.graph;
    }

    let start = Instant::now();
    let executable = backend.prepare(&graph, params)?;
    let compile = start.elapsed().as_secs_f64() * 1e3;
    let output = executable.run(&inputs)?.swap_remove(0).to_f64_vec();
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < limit || times.len() < 5 {
        let start = Instant::now();
        executable.run(&inputs)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let said = serde_json::json!({
        "compile": compile,
        "run": times[times.len() / 2],
        "best": times[0],
        "peak": mebibytes("VmHWM:"),
        "before": before,
        "output": &output[..output.len().min(64)],
    });
    println!("{said}");
    Ok(())
}
