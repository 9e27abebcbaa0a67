//! Post-training quantization step by step, on a model that is a few lines: the program of `docs/ptq.md`, which says more
//! about each step.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;

use qwix::nn::random::normal;
use qwix::nn::{self, Dense, Key, Module, Scope, Tensor, relu};
use qwix::{
    Array, ArrayType, Calibrator, Checkpoint, CpuBackend, DType, Loading, Model, Op, Package, PackageWriter,
    Params, PtqModel, PtqProvider, QtProvider, QuantStats, QuantizationRule, Value, calibrate,
    quantize_checkpoint, quantize_model, quantize_online, quantize_params, read_stats, sqnr, write_stats,
    write_tensors,
};

struct Mlp {
    hidden: usize,
    classes: usize,
}

impl Module for Mlp {
    fn call(&self, scope: &Scope, x: Tensor) -> nn::Result<Tensor> {
        let x = relu(&scope.call(Dense::new(self.hidden), x)?); // Dense_0/kernel, Dense_0/bias
        scope.call_as("head", Dense::new(self.classes), x) // head/kernel, head/bias
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    heading("A model, and float parameters");
    let mlp = Mlp { hidden: 64, classes: 10 };
    let inputs = [ArrayType::new(DType::F32, [8, 32])]; // 8 examples of 32 features
    let model = Model::from(nn::trace(&mlp, &inputs)?);
    let fp_params = nn::init(&mlp, Key::new(0), &inputs)?;
    for (path, value) in &fp_params {
        println!("{path}: {}", value.describe());
    }
    println!("{} in all", bytes(&fp_params));

    heading("Rules");
    let rules = vec![
        QuantizationRule::new("head").weight_qtype("int8"),
        QuantizationRule::new("Dense_.*").weight_qtype("int8").act_qtype("int8"),
    ];
    println!("{}", serde_json::to_string_pretty(&rules)?);

    heading("The quantized model, and its template");
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules.clone())?)?;
    let template = ptq_model.abstract_params();
    print!("{template}");
    for rule in ptq_model.get_unused_rules() {
        println!("no product is for the rule `{}`", rule.module_path);
    }

    heading("Quantized parameters");
    let params = quantize_params(&fp_params, &template, None)?;
    println!("all at once: {}", bytes(&params));

    let layer = |name: &str| -> Params {
        let of_layer = fp_params.iter().filter(|(path, _)| path.parent().as_str() == name);
        of_layer.map(|(path, value)| (path.clone(), value.clone())).collect()
    };
    let mut collected = quantize_params(&layer("head"), &template, None)?;
    if let Err(unfinished) = template.finish(collected.clone()) {
        println!("after one layer: {unfinished}");
    }
    collected.extend(quantize_params(&layer("Dense_0"), &template, None)?);
    let collected = template.finish(collected)?;
    assert_eq!(collected, params);
    println!("layer by layer: the same, byte for byte");

    heading("It runs");
    let x = normal(Key::new(1), &inputs[0])?;
    let backend = CpuBackend::default();
    let float = model.compile(&backend, fp_params.clone())?.run(std::slice::from_ref(&x))?;
    let quantized = ptq_model.compile(&backend, params.clone())?.run(std::slice::from_ref(&x))?;
    println!("float     {}", first(&float[0]));
    println!("quantized {}", first(&quantized[0]));
    println!("the signal is {} above the noise", decibels(&float[0], &quantized[0]));

    heading("A checkpoint, quantized while it is read");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("checkpoint.safetensors");
    save(&file, &fp_params)?;
    let checkpoint = Checkpoint::open(&file)?;
    let mut streamed = Params::new();
    let loading = Loading { float_bytes: 10_000, ..Loading::default() };
    let loaded = quantize_checkpoint(&checkpoint, &template, &loading, |path, value| {
        println!("{path}: {}", value.describe());
        streamed.insert(path, value);
        Ok(())
    })?;
    assert_eq!(streamed, params);
    println!(
        "{} tensors, {} bytes of floats; never more than {} of them in memory",
        loaded.tensors, loaded.bytes, loaded.peak_float_bytes
    );

    let provider = PtqProvider::new(rules.clone())?;
    let online = quantize_online(&model, &checkpoint, &provider, &backend, &Loading::default())?;
    assert_eq!(online.executable.run(std::slice::from_ref(&x))?, quantized);
    println!("from checkpoint and rules to outputs in one call: the same outputs");

    heading("Saved, and loaded without rules or floats");
    let package = folder.path().join("mlp.int8");
    let mut writer = PackageWriter::begin(&package, &Model::from(ptq_model.graph.clone()), false)?;
    for (path, value) in &params {
        writer.write(path, value)?;
    }
    writer.finish(&serde_json::to_string_pretty(&rules)?, false)?;

    let package = Package::open(&package)?;
    let executable = package.model()?.compile(&backend, package.read_all()?)?;
    assert_eq!(executable.run(std::slice::from_ref(&x))?, quantized);
    println!("the same outputs");

    heading("The alternative way: float variables in, quantized variables out");
    let (outputs, variables) = ptq_model.apply_mut(&backend, &fp_params, std::slice::from_ref(&x))?;
    assert_eq!((outputs, variables), (quantized, params));
    println!("the same outputs, and the same parameters");

    heading("Static range: calibrate");
    let rules =
        vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8").act_static_scale(true)];
    let qt_model = quantize_model(&model, &QtProvider::new(rules.clone())?)?;
    let batches = |seeds: std::ops::Range<u32>| {
        seeds.map(|seed| normal(Key::new(seed), &ArrayType::new(DType::F32, [8, 32])).map(|x| vec![x]))
    };
    let quant_stats = calibrate(&qt_model, &fp_params, batches(100..116), &backend)?;
    for (path, stats) in quant_stats.iter() {
        println!("{path}: {} batches", stats.count);
    }

    heading("Static range: statistics saved, merged, resumed");
    let file = folder.path().join("stats.safetensors");
    write_stats(&file, &quant_stats)?;
    let saved = read_stats(&file)?;
    assert_eq!(saved, quant_stats);

    let mut merged = calibrate(&qt_model, &fp_params, batches(100..108), &backend)?;
    merged.merge(&calibrate(&qt_model, &fp_params, batches(108..116), &backend)?)?;

    let half = calibrate(&qt_model, &fp_params, batches(100..108), &backend)?;
    let mut calibrator = Calibrator::new(&qt_model, &fp_params, &backend, Some(&half))?;
    for batch in batches(108..116) {
        calibrator.step(&batch?)?;
    }
    let resumed = calibrator.finish();
    assert_eq!(resumed, quant_stats);
    println!("eight batches and eight more: {} batches either way", count(&merged));

    heading("Static range: the quantized model");
    let static_model = quantize_model(&model, &PtqProvider::new(rules)?)?;
    let static_template = static_model.abstract_params();
    print!("{static_template}");
    let static_params = quantize_params(&fp_params, &static_template, Some(&quant_stats))?;
    let executable = static_model.compile(&backend, static_params)?;
    let with_static_ranges = executable.run(std::slice::from_ref(&x))?;
    println!("ranges of activations that are searched on each run: {}", searched(&static_model));
    println!("(of the model above with dynamic range: {})", searched(&ptq_model));
    println!("the signal is {} above the noise", decibels(&float[0], &with_static_ranges[0]));

    heading("A model trained with QT, evaluated and then quantized");
    let qt_params = quantize_params(&fp_params, &qt_model.abstract_params(), Some(&quant_stats))?;
    let evaluated = qt_model.compile(&backend, qt_params)?.run(std::slice::from_ref(&x))?;
    println!("float parameters, quantized numerics: {}", first(&evaluated[0]));
    println!("quantized parameters:                 {}", first(&with_static_ranges[0]));
    Ok(())
}

/// How many activations are quantized in a range that is found when the model runs: those without a scale given.
fn searched(model: &PtqModel) -> usize {
    let nodes = model.graph.entry.iter();
    nodes.filter(|(_, node)| matches!(node.op, Op::Quantize(_)) && node.operands.len() == 1).count()
}

fn save(file: &std::path::Path, params: &Params) -> Result<(), Box<dyn Error>> {
    let arrays = params.iter().filter_map(|(path, value)| match value {
        Value::Array(array) => Some((path.to_string(), array.clone())),
        Value::QArray(_) | Value::Tuple(_) => None,
    });
    let tensors: BTreeMap<String, Array> = arrays.collect();
    Ok(write_tensors(&mut File::create(file)?, &tensors)?)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn bytes(params: &Params) -> String {
    format!("{} bytes", params.values().map(Value::byte_len).sum::<usize>())
}

fn count(stats: &QuantStats) -> i32 {
    stats.iter().map(|(_, stats)| stats.count).max().unwrap_or(0)
}

fn decibels(float: &Array, quantized: &Array) -> String {
    sqnr(float, quantized).map_or("?".to_owned(), |db| format!("{db:.1} dB"))
}

/// The first numbers of an array.
fn first(array: &Array) -> String {
    let values: Vec<String> = array.to_f32_vec().iter().take(5).map(|x| format!("{x:+.4}")).collect();
    values.join(" ")
}
