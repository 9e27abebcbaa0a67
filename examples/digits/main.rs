//! Quantizes a small CNN for handwritten digits in six ways and shows what each costs and saves.
//!
//! The model, its parameters, the 450 held-out images and those to calibrate with come from `train.py` beside this file.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use qwix::{
    Array, CalibrationData, Checkpoint, CpuBackend, Executable, Model, Params, PtqProvider, QtProvider,
    QuantStats, QuantizationRule, TensorFile, Value, calibrate, quantize_model, quantize_params, sqnr,
};

/// One way to store and compute: a name, what it is, and its rules (none: the float model).
struct Row {
    name: &'static str,
    what: &'static str,
    rules: Vec<QuantizationRule>,
}

fn rows() -> Vec<Row> {
    let all = || QuantizationRule::new(".*");
    // A scale for every 32 weights makes up for few bits. Tiles are for matrix products; convolutions stay at 8 bits.
    let tiled = |qtype: &str| {
        vec![
            QuantizationRule::new("Dense_.*").weight_qtype(qtype).tile_size(32),
            QuantizationRule::new("Conv_.*").weight_qtype("int8").act_qtype("int8"),
        ]
    };
    vec![
        Row { name: "float", what: "The model as it was trained: 32 bits a weight.", rules: vec![] },
        Row {
            name: "int8 dynamic",
            what: "Weights and activations in 8-bit integers, the range of activations found batch by batch; products run in integers.",
            rules: vec![all().weight_qtype("int8").act_qtype("int8")],
        },
        Row {
            name: "int8 static",
            what: "The same with ranges that were found before, on 900 training images: no search for them when it runs.",
            rules: vec![all().weight_qtype("int8").act_qtype("int8").act_static_scale(true)],
        },
        Row {
            name: "int8 weight-only",
            what: "Weights stored in 8 bits, computed in float: almost nothing is lost.",
            rules: vec![all().weight_qtype("int8")],
        },
        Row {
            name: "int4 tiled",
            what: "The dense layers' weights in 4-bit integers with a scale for every 32: small, and the noise shows (convolutions are int8).",
            rules: tiled("int4"),
        },
        Row {
            name: "nf4",
            what: "The same with 4-bit codes for 16 values that are spaced as trained weights usually are.",
            rules: tiled("nf4"),
        },
        Row {
            name: "fp8",
            what: "Weights and activations in 8-bit floats (e4m3): less precise than int8, but it does not mind outliers.",
            rules: vec![all().weight_qtype("float8_e4m3fn").act_qtype("float8_e4m3fn")],
        },
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let model = Model::load(folder.join("model.hlo.pb"))?;
    let fp_params = model.read_params(&Checkpoint::open(folder.join("params.safetensors"))?, false)?;
    let inputs = model.read_inputs(&TensorFile::open(folder.join("images.safetensors"))?)?;
    let calibration = CalibrationData::open([folder.join("calibration.safetensors")], &model)?;
    let labels = TensorFile::open(folder.join("labels.safetensors"))?.read("labels")?;

    println!(
        "A CNN of two convolutions and two dense layers, {} held-out images of handwritten digits.\n",
        labels.len()
    );
    println!("  {:<17} {:>9} {:>10} {:>11} {:>9}", "parameters", "accuracy", "SQNR", "size", "time");
    let rows = rows();
    let mut reference: Option<Array> = None;
    for row in &rows {
        let (executable, size) = prepare(&model, &fp_params, &row.rules, &calibration)?;
        let (logits, milliseconds) = run(executable.as_ref(), &inputs)?;
        let noise = match &reference {
            None => "–".to_owned(),
            Some(reference) => {
                sqnr(reference, &logits).map_or("?".to_owned(), |decibels| format!("{decibels:.1} dB"))
            }
        };
        println!(
            "  {:<17} {:>7.2} % {:>10} {:>8.1} kB {:>6.2} ms",
            row.name,
            100.0 * accuracy(&logits, &labels),
            noise,
            size as f64 / 1000.0,
            milliseconds,
        );
        reference.get_or_insert(logits);
    }
    println!();
    for row in &rows {
        println!("  {:<17} {}", row.name, row.what);
    }
    println!(
        "\n  SQNR compares the logits with those of the float model: 20 dB is a noise of a tenth of the signal, 40 dB of a\n  \
         hundredth. Size counts weights, scales and biases. Time is one run on all images, the fastest of ten."
    );
    Ok(())
}

/// The model under these rules, ready to run, and the bytes of its parameters.
fn prepare(
    model: &Model,
    fp_params: &Params,
    rules: &[QuantizationRule],
    calibration: &CalibrationData,
) -> Result<(Box<dyn Executable>, usize), Box<dyn Error>> {
    let backend = CpuBackend::default();
    if rules.is_empty() {
        return Ok((model.compile(&backend, fp_params.clone())?, size(fp_params)));
    }
    let ptq_model = quantize_model(model, &PtqProvider::new(rules.to_vec())?)?;
    let is_static = rules.iter().any(|rule| rule.act_static_scale == Some(true));
    let quant_stats = if is_static { Some(ranges(model, fp_params, rules, calibration)?) } else { None };
    let params = quantize_params(fp_params, &ptq_model.abstract_params(), quant_stats.as_ref())?;
    let size = size(&params);
    Ok((ptq_model.compile(&backend, params)?, size))
}

/// What the activations are on the images to calibrate with.
fn ranges(
    model: &Model,
    fp_params: &Params,
    rules: &[QuantizationRule],
    calibration: &CalibrationData,
) -> Result<QuantStats, Box<dyn Error>> {
    let qt_model = quantize_model(model, &QtProvider::new(rules.to_vec())?)?;
    Ok(calibrate(&qt_model, fp_params, calibration.iter(), &CpuBackend::default())?)
}

fn size(params: &Params) -> usize {
    params.values().map(Value::byte_len).sum()
}

/// The logits, and the milliseconds of the fastest of ten runs.
fn run(executable: &dyn Executable, inputs: &[Array]) -> Result<(Array, f64), Box<dyn Error>> {
    let mut best = f64::INFINITY;
    let mut outputs = executable.run(inputs)?;
    for _ in 0..10 {
        let start = Instant::now();
        outputs = executable.run(inputs)?;
        best = best.min(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok((outputs.pop().ok_or("the model has no output")?, best))
}

/// The share of rows whose largest logit is the label's.
fn accuracy(logits: &Array, labels: &Array) -> f64 {
    let (logits, labels) = (logits.to_f64_vec(), labels.to_i64_vec());
    let classes = logits.len() / labels.len();
    let right = logits.chunks(classes).zip(&labels).filter(|(row, label)| {
        let best = (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best == usize::try_from(**label).ok()
    });
    right.count() as f64 / labels.len() as f64
}
