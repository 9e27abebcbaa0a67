//! Times how long the engine takes to prepare a model's weights, on one thread and on more.
//!
//!     cargo run --release -p qwix-cpu --example time_compile -- [LAYERS [WIDTH]]
//!
//! A chain of LAYERS products in int8 with weights of WIDTH × WIDTH (32 of 2048 unless given), which are packed for the
//! kernels when the model is compiled.

use std::time::{Duration, Instant};

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Params, Value};
use qwix_graph::{Graph, Type};
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model};
use qwix_quant::QArray;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let layers = arguments.next().transpose()?.unwrap_or(32);
    let width = arguments.next().transpose()?.unwrap_or(2048);
    let mut text = format!(
        "HloModule chain\n\nENTRY main {{\n  x0 = f32[1,{width}] parameter(0), metadata={{op_name=\"x\"}}\n"
    );
    for i in 0..layers {
        let path = format!("variables['params']['layer_{i}']['kernel']");
        let (root, next) = (if i + 1 == layers { "ROOT " } else { "" }, i + 1);
        text += &format!(
            "  w{i} = f32[{width},{width}] parameter({next}), metadata={{op_name=\"{path}\"}}\n  \
             {root}x{next} = f32[1,{width}] dot(x{i}, w{i}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n"
        );
    }
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
    let graph = quantize_model(&Graph::from_text(&(text + "}\n"))?, &PtqProvider::new(rules)?)?.graph;
    let mut params = Params::new();
    for (number, (_, parameter)) in graph.variables().enumerate() {
        let Type::QArray(q) = &parameter.ty else { return Err("a weight was not quantized".into()) };
        let codes = (0..width * width).map(|i| ((i * 31 + number) % 255) as u8 as i8).collect();
        let qvalue = Array::from_vec(&q.array.shape, codes)?;
        let scale = Array::zeros(DType::F32, &q.scale_shape()?)?;
        params.insert(parameter.path.clone(), Value::QArray(QArray::new(qvalue, scale, None, q.how.qtype)?));
    }
    let most = std::thread::available_parallelism()?.get();
    let bytes = (layers * width * width) as f64;
    let mut first = None;
    for threads in [1, 2, 4, 8, 16, 32].into_iter().filter(|&t| t == 1 || t <= most) {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let start = Instant::now();
            std::hint::black_box(CpuBackend::with_threads(threads).prepare(&graph, params.clone())?);
            best = best.min(start.elapsed());
        }
        let seconds = best.as_secs_f64();
        let times = *first.get_or_insert(seconds) / seconds;
        println!(
            "{threads:2} threads  {seconds:7.3} s  {:6.2} GB/s  {times:.2} times",
            bytes / seconds / 1e9
        );
    }
    Ok(())
}
