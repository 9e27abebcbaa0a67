//! Times a model as `benchmarks/encoder.py` writes it, in float and quantized.
//!
//!     cargo run --release -p qwix-cpu --example time_model -- DIR [--seconds S] [--steps]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use qwix_array::{Array, DType};
use qwix_cpu::{CpuBackend, CpuModel};
use qwix_eval::{Executable, Params, Value};
use qwix_graph::{Graph, Role, Type};
use qwix_ptq::{PtqProvider, QtProvider, QuantizationRule, calibrate, quantize_model, quantize_params};
use safetensors::SafeTensors;

type Error = Box<dyn std::error::Error>;

fn tensor(file: &[u8], key: &str, ty: &Type) -> Result<Array, Error> {
    let Type::Array(ty) = ty else { return Err(format!("{key} is no array").into()) };
    let file = SafeTensors::deserialize(file)?;
    let view = file.tensor(key)?;
    let stored = match view.dtype() {
        safetensors::Dtype::BOOL => DType::Pred,
        safetensors::Dtype::I32 => DType::S32,
        safetensors::Dtype::BF16 => DType::BF16,
        _ => DType::F32,
    };
    Ok(Array::from_bytes(stored, view.shape(), view.data().to_vec())?.convert(ty.dtype))
}

fn rules() -> Vec<(&'static str, Option<QuantizationRule>)> {
    let all = || QuantizationRule::new(".*").weight_qtype("int8");
    vec![
        ("float", None),
        ("int8", Some(all().act_qtype("int8"))),
        ("int8-static", Some(all().act_qtype("int8").act_static_scale(true).act_batch_axes([0, 1]))),
        ("int8-weight-only", Some(all())),
        ("int4-weight-only", Some(QuantizationRule::new(".*").weight_qtype("int4").tile_size(32))),
    ]
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(arguments.first().ok_or("which folder?")?);
    let seconds =
        arguments.iter().position(|a| a == "--seconds").and_then(|i| arguments.get(i + 1)?.parse().ok());
    let limit = Duration::from_secs_f64(seconds.unwrap_or(5.0));
    let mut graph = Graph::from_hlo_proto(&std::fs::read(folder.join("model.hlo.pb"))?)?;
    let file = std::fs::read(folder.join("params.safetensors"))?;
    let known = SafeTensors::deserialize(&file)?;
    for parameter in graph.parameters.iter_mut().filter(|p| p.ambiguous) {
        parameter.role =
            if known.tensor(parameter.path.as_str()).is_ok() { Role::Variable } else { Role::Input };
    }
    let params: Params = graph
        .variables()
        .map(|(_, p)| Ok((p.path.clone(), Value::Array(tensor(&file, p.path.as_str(), &p.ty)?))))
        .collect::<Result<_, Error>>()?;
    let file = std::fs::read(folder.join("inputs.safetensors"))?;
    let inputs = graph
        .inputs()
        .enumerate()
        .map(|(i, (_, p))| tensor(&file, &i.to_string(), &p.ty))
        .collect::<Result<Vec<_>, _>>()?;
    let jax = std::fs::read(folder.join("jax.json")).ok();
    let jax: serde_json::Value =
        jax.map_or(Ok(serde_json::Value::Null), |bytes| serde_json::from_slice(&bytes))?;

    let mut float: Option<Vec<f64>> = None;
    for (name, rule) in rules() {
        let model = match rule {
            None => CpuBackend::default().prepare(&graph, params.clone())?,
            Some(rule) => {
                let fixed = rule.act_static_scale == Some(true);
                let quantized = quantize_model(&graph, &PtqProvider::new(vec![rule.clone()])?)?;
                let stats = if fixed {
                    let qt_model = quantize_model(&graph, &QtProvider::new(vec![rule])?)?;
                    let batches = [Ok::<_, std::convert::Infallible>(inputs.clone())];
                    Some(calibrate(&qt_model, &params, batches, &CpuBackend::default())?)
                } else {
                    None
                };
                let params = quantize_params(&params, &quantized.abstract_params(), stats.as_ref())?;
                CpuBackend::default().prepare(&quantized.graph, params)?
            }
        };
        let output = model.run(&inputs)?.swap_remove(0).to_f64_vec();
        let float = float.get_or_insert_with(|| output.clone());
        let (noise, signal) =
            output.iter().zip(&*float).fold((0.0, 0.0), |(n, s), (a, b)| (n + (a - b) * (a - b), s + b * b));
        let mut times = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < limit || times.len() < 3 {
            let start = Instant::now();
            model.run(&inputs)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        print!("{name}: median {median:.2} ms, best {best:.2} ms, {} calls", times.len());
        if let Some(theirs) = jax[name]["median"].as_f64() {
            let best_of_theirs = jax[name]["best"].as_f64().unwrap_or(theirs);
            print!(
                "; JAX {theirs:.2} and {best_of_theirs:.2} ms: ratio {:.2} and {:.2}",
                median / theirs,
                best / best_of_theirs
            );
        }
        println!("; SQNR against float {:.1} dB", 10.0 * (signal / noise).log10());
        if arguments.iter().any(|a| a == "--steps") {
            steps(&model, &inputs)?;
        }
    }
    Ok(())
}

fn steps(model: &CpuModel, inputs: &[Array]) -> Result<(), Error> {
    // The shortest of some runs: what a machine busy with other things takes otherwise does not count.
    let (_, mut times) = model.profile(inputs)?;
    for _ in 0..20 {
        let (_, again) = model.profile(inputs)?;
        for (time, again) in times.iter_mut().zip(again) {
            time.time = time.time.min(again.time);
        }
    }
    let mut kinds: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for time in &times {
        let kind = kinds.entry(time.step).or_default();
        *kind = (kind.0 + 1, kind.1 + time.time.as_secs_f64() * 1e3);
    }
    for (kind, (count, ms)) in kinds {
        println!("    {kind:20} {count:5} steps {ms:9.3} ms");
    }
    let mut slow: Vec<_> = times.iter().collect();
    slow.sort_by_key(|t| std::cmp::Reverse(t.time));
    for time in slow.iter().take(24) {
        println!("    {:9.3} ms  {} {}", time.time.as_secs_f64() * 1e3, time.step, time.node);
    }
    Ok(())
}
