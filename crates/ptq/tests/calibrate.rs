//! Static ranges end to end on small graphs: calibration, statistics, and what goes wrong.

mod common;

use std::convert::Infallible;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::{DotDims, Graph, GraphBuilder, Path, Type};
use qwix_ptq::{
    Calibrator, PtqModel, PtqProvider, QtProvider, QuantStats, QuantizationRule, calibrate, quantize_model,
    quantize_params,
};

fn dense() -> Graph {
    let mut b = GraphBuilder::new("dense");
    b.set_scope("jit(f)/Net/Dense_0");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let w = b.variable("Dense_0/kernel", Type::array(DType::F32, [3, 4])).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, &dims, DType::F32).unwrap();
    b.finish(y).unwrap()
}

fn floats(shape: &[usize], seed: u32) -> Array {
    let count = shape.iter().product::<usize>() as u32;
    let value = |i: u32| ((i + 31 * seed + 1).wrapping_mul(2654435761) >> 8) as f32 / 8388608.0 - 1.0;
    Array::from_vec(shape, (0..count).map(value).collect()).unwrap()
}

fn params() -> Params {
    Params::from([(Path::new("Dense_0/kernel"), Value::Array(floats(&[3, 4], 9)))])
}

fn rule() -> QuantizationRule {
    QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8").act_static_scale(true)
}

fn qt(rule: QuantizationRule) -> PtqModel {
    quantize_model(&dense(), &QtProvider::new(vec![rule]).unwrap()).unwrap()
}

fn batches(numbers: std::ops::Range<u32>) -> impl Iterator<Item = Result<Vec<Array>, Infallible>> {
    numbers.map(|n| Ok(vec![floats(&[2, 3], n)]))
}

#[test]
fn statistics_become_scales() {
    for (method, scale_only) in [("absmax", true), ("minmax", false), ("fixed,2", true), ("rms,2", true)] {
        let rule = rule().act_calibration_method(method);
        let backend = ReferenceBackend::default();
        let model = qt(rule.clone());
        let stats = calibrate(&model, &params(), batches(0..3), &backend).unwrap();
        assert_eq!(stats.len(), 1);
        let path = Path::new("Dense_0/dot_general0_lhs");
        assert_eq!(stats.get(&path).unwrap().count, 3, "{method}");

        let ptq = quantize_model(&dense(), &PtqProvider::new(vec![rule]).unwrap()).unwrap();
        let quantized = quantize_params(&params(), &ptq.abstract_params(), Some(&stats)).unwrap();
        let names: Vec<&str> = quantized.keys().map(Path::as_str).collect();
        let mut wanted = vec!["Dense_0/dot_general0_lhs_scale", "Dense_0/kernel"];
        if !scale_only {
            wanted.insert(1, "Dense_0/dot_general0_lhs_zero_point");
        }
        assert_eq!(names, wanted);
        let run = |graph: &Graph, params: Params| {
            backend.compile(graph, params).unwrap().run(&[floats(&[2, 3], 0)]).unwrap()
        };
        let ours = run(&ptq.graph, quantized);
        let evaluated = quantize_params(&params(), &model.abstract_params(), Some(&stats)).unwrap();
        // A scale of one element is divided truly where parameters are made, and is a product in the compiled graph.
        let theirs = run(&model.graph, evaluated);
        let pairs = ours[0].to_f64_vec().into_iter().zip(theirs[0].to_f64_vec());
        let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= 1e-6, "{method}: QT and PTQ are {apart:e} apart");
    }
}

#[test]
fn calibration_in_parts_is_calibration_of_the_whole() {
    let (model, backend) = (qt(rule()), ReferenceBackend::default());
    let whole = calibrate(&model, &params(), batches(0..4), &backend).unwrap();
    let first = calibrate(&model, &params(), batches(0..2), &backend).unwrap();
    let mut resumed = Calibrator::new(&model, &params(), &backend, Some(&first)).unwrap();
    for batch in batches(2..4) {
        resumed.step(&batch.unwrap()).unwrap();
    }
    assert_eq!(resumed.finish(), whole);
    assert_eq!(QuantStats::from_params(&whole.to_params()).unwrap(), whole);
}
