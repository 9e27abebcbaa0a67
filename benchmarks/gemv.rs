//! One row by a square quantized weight, and a chain of three: on XLA in float, on XLA as plain quantized HLO, on XLA with
//! the native engine's kernels, and on the native engine.
//!
//!     cargo run --release -p qwix --example time_gemv [SIZE [ROUNDS]]
//!
//! All ways take turns in each round, so that what else the machine does meets them alike; times are medians.

use std::error::Error;
use std::time::{Duration, Instant};

use qwix::pjrt::{Client, OptionValue, Plugin, resolve};
use qwix::{
    Array, Backend, CpuBackend, DType, Executable, Graph, NativeKernels, Params, Path, PtqProvider,
    QuantizationRule, Type, Value, XlaBackend, quantize_model, quantize_params,
};
use qwix_graph::{DotDims, GraphBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise: usize| arguments.next().map_or(Ok(otherwise), |text| text.parse());
    let (size, rounds) = (number(4096)?, number(20)?);
    let plugin = Plugin::load(resolve("cpu")?)?;
    let client = Client::new(&plugin, &[("cpu_device_count", OptionValue::Int(1))])?;
    let xla = XlaBackend::on(&client, 0)?;
    let kernels = xla.clone().with_kernels(NativeKernels, |note| println!("{note}"));
    let rule = || QuantizationRule::new(".*");
    let rules = [
        ("int8 by int8", rule().weight_qtype("int8").act_qtype("int8")),
        ("int8 by int4", rule().weight_qtype("int4").act_qtype("int8")),
        ("f32 by int8", rule().weight_qtype("int8")),
        ("f32 by int4", rule().weight_qtype("int4")),
        ("f32 by int4, tiles of 32", rule().weight_qtype("int4").tile_size(32)),
    ];
    println!(
        "one row of {size}, medians of {rounds} runs in ms; in brackets how many times as fast as XLA in float\n"
    );
    println!(
        "{:<32} {:>9} {:>18} {:>18} {:>18}",
        "", "XLA float", "XLA quantized", "XLA with kernels", "native"
    );
    for depth in [1, 3] {
        let (float, params) = chain(size, depth)?;
        for (name, rule) in &rules {
            let model = quantize_model(&float, &PtqProvider::new(vec![rule.clone()])?)?;
            let quantized = quantize_params(&params, &model.abstract_params(), None)?;
            let executables = [
                xla.compile(&float, params.clone())?,
                xla.compile(&model.graph, quantized.clone())?,
                kernels.compile(&model.graph, quantized.clone())?,
                CpuBackend::default().compile(&model.graph, quantized)?,
            ];
            let input = [Array::from_vec(&[1, size], numbers(size, 1))?];
            let times = medians(&executables, &input, rounds)?;
            let of = |time: Duration| time.as_secs_f64() * 1e3;
            let name = format!("{depth} x {name}");
            print!("{name:<32} {:>9.2}", of(times[0]));
            for time in &times[1..] {
                print!(" {:>10.2} ({:>5.2})", of(*time), of(times[0]) / of(*time));
            }
            println!();
        }
    }
    Ok(())
}

/// `depth` products by weights of `size` squared, tanh between them.
fn chain(size: usize, depth: usize) -> Result<(Graph, Params), Box<dyn Error>> {
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let mut b = GraphBuilder::new("chain");
    let mut x = b.input("x", Type::array(DType::F32, [1, size]))?;
    let mut params = Params::new();
    for layer in 0..depth {
        let path = format!("layer_{layer}/kernel");
        let w = b.variable(&path, Type::array(DType::F32, [size, size]))?;
        x = b.dot(x, w, &dims, DType::F32)?;
        x = b.unary(qwix_graph::UnaryOp::Tanh, x)?;
        let values = numbers(size * size, layer as u32 + 2);
        params.insert(Path::new(&path), Value::Array(Array::from_vec(&[size, size], values)?));
    }
    Ok((b.finish(x)?, params))
}

/// The median time of each executable.
fn medians(
    executables: &[Box<dyn Executable>],
    input: &[Array],
    rounds: usize,
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut times = vec![Vec::with_capacity(rounds); executables.len()];
    for round in 0..rounds + 2 {
        for (executable, times) in executables.iter().zip(&mut times) {
            let start = Instant::now();
            executable.run(input)?;
            // The first runs warm up.
            if round >= 2 {
                times.push(start.elapsed());
            }
        }
    }
    Ok(times
        .into_iter()
        .map(|mut times| {
            times.sort();
            times.get(times.len() / 2).copied().unwrap_or_default()
        })
        .collect())
}

/// Numbers between -1 and 1, small enough that sums of them are.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0) / 64.0
    };
    std::iter::repeat_with(next).take(count).collect()
}
