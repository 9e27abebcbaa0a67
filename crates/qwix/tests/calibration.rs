//! Calibration from files: memory stays flat however many batches there are.

use std::collections::BTreeMap;

use qwix::{
    CalibrationData, Calibrator, CpuBackend, Model, Params, Path, QtProvider, QuantizationRule, TensorWriter,
    Type, Value, calibrate, quantize_model, read_stats, write_stats,
};
use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, GraphBuilder};
use qwix_quant::DotDims;

const WIDTH: usize = 1024;

fn model() -> (Model, Params) {
    let mut b = GraphBuilder::new("layer");
    let x = b.input("x", Type::array(DType::F32, [2, WIDTH])).unwrap();
    let w = b.variable("dense/kernel", Type::array(DType::F32, [WIDTH, 16])).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, &dims, DType::F32).unwrap();
    let weight = Array::from_vec(&[WIDTH, 16], (0..WIDTH * 16).map(|i| (i as f32).sin()).collect()).unwrap();
    let params = Params::from([(Path::new("dense/kernel"), Value::Array(weight))]);
    (Model::from(b.finish(y).unwrap()), params)
}

/// Writes batches whose largest value is their number.
fn write_data(file: &std::path::Path, count: usize) {
    let types = (0..count).map(|i| (format!("{i}/x"), ArrayType::new(DType::F32, [2, WIDTH])));
    let out = std::io::BufWriter::new(std::fs::File::create(file).unwrap());
    let mut writer = TensorWriter::new(out, types.collect::<BTreeMap<_, _>>()).unwrap();
    for i in 0..count {
        let mut values = vec![0.5f32; 2 * WIDTH];
        values[i % WIDTH] = i as f32;
        writer.write(&format!("{i}/x"), &Array::from_vec(&[2, WIDTH], values).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

/// Kilobytes in memory.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")).unwrap();
    line.trim().parse().unwrap()
}

#[cfg(not(target_os = "linux"))]
fn resident() -> u64 {
    0
}

/// Ten thousand batches of 8 kB; to keep one array of each would show ten times over.
#[test]
fn memory_is_flat() {
    const BATCHES: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.safetensors");
    write_data(&file, BATCHES);
    let (model, params) = model();
    let rule = QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8").act_static_scale(true);
    let provider = QtProvider::new(vec![rule]).unwrap();
    let qt_model = quantize_model(&model, &provider).unwrap();
    let data = CalibrationData::open([&file], &model).unwrap();
    assert_eq!(data.len(), BATCHES);
    let backend = CpuBackend::default();
    let mut calibrator = Calibrator::new(&qt_model, &params, &backend, None).unwrap();
    let mut early = 0;
    for (number, batch) in data.iter().enumerate() {
        calibrator.step(&batch.unwrap()).unwrap();
        if number == BATCHES / 10 {
            early = resident();
        }
    }
    let late = resident();
    assert!(late < early + 8_000, "{early} kB after a tenth of the batches, {late} kB after all");

    let stats = calibrator.finish();
    let (_, seen) = stats.iter().next().unwrap();
    assert_eq!(seen.count as usize, BATCHES);
    let saved = folder.path().join("stats.safetensors");
    write_stats(&saved, &stats).unwrap();
    assert_eq!(read_stats(&saved).unwrap(), stats);

    // The iterator is what `calibrate` takes, too.
    let first = folder.path().join("first.safetensors");
    write_data(&first, 3);
    let data = CalibrationData::open([&first], &model).unwrap();
    let stats = calibrate(&qt_model, &params, data.iter(), &backend).unwrap();
    assert_eq!(stats.iter().next().unwrap().1.count, 3);
}
