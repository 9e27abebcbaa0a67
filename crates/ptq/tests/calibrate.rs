//! Static ranges end to end on small graphs: calibration, statistics, and what goes wrong.

mod common;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::{Arc, Weak};

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::text::TextOptions;
use qwix_graph::{DotDims, Graph, GraphBuilder, Path, Type};
use qwix_ptq::{
    Calibrator, PtqModel, PtqProvider, QtProvider, QuantStats, QuantizationRule, Stats, Sums, calibrate,
    quantize_model, quantize_params,
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

/// Two dots, so that what is upstream matters; the second is an attention-like product of two activations.
fn two_sites() -> Graph {
    let mut b = GraphBuilder::new("two");
    b.set_scope("jit(f)/Net/Dense_0");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let mask = b.input("mask", Type::array(DType::F32, [2, 2])).unwrap();
    let w = b.variable("Dense_0/kernel", Type::array(DType::F32, [3, 4])).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, &dims, DType::F32).unwrap();
    b.set_scope("jit(f)/Net");
    let square = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![1], ..DotDims::default() };
    let z = b.dot(y, y, &square, DType::F32).unwrap();
    let z = b.binary(qwix_graph::BinaryOp::Add, z, mask).unwrap();
    b.finish(z).unwrap()
}

fn message<T>(result: Result<T, impl std::fmt::Display>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(e) => e.to_string(),
    }
}

/// Each bad batch is named with its number and what is wrong, and what came before it is kept.
#[test]
fn bad_batches_lose_nothing() {
    let backend = ReferenceBackend::default();
    let model = quantize_model(&two_sites(), &QtProvider::new(vec![rule()]).unwrap()).unwrap();
    let mask = |value: f32| Array::from_vec(&[2, 2], vec![value; 4]).unwrap();
    let x = |value: f32| {
        let mut values = vec![0.5f32; 6];
        values[4] = value;
        Array::from_vec(&[2, 3], values).unwrap()
    };
    let good = || vec![floats(&[2, 3], 1), mask(0.0)];
    let mut failures = vec![];
    type Row<'a> = (&'a str, Result<Vec<Array>, String>, &'a [&'a str]);
    let rows: [Row<'_>; 8] = [
        (
            "shape",
            Ok(vec![floats(&[3, 3], 1), mask(0.0)]),
            &["batch 2", "input 0 `x`", "f32[2,3]", "f32[3,3]"],
        ),
        (
            "dtype",
            Ok(vec![x(1.0).convert(DType::BF16), mask(0.0)]),
            &["batch 2", "`x`", "f32[2,3]", "bf16[2,3]"],
        ),
        ("few", Ok(vec![x(1.0)]), &["batch 2", "2 inputs", "found 1"]),
        ("many", Ok(vec![x(1.0), mask(0.0), mask(0.0)]), &["batch 2", "2 inputs", "found 3"]),
        (
            "NaN",
            Ok(vec![x(f32::NAN), mask(0.0)]),
            &["batch 2", "`Dense_0/dot_general0_lhs`", "`x`", "NaN", "[1, 1]"],
        ),
        (
            "inf",
            Ok(vec![x(f32::INFINITY), mask(0.0)]),
            &["batch 2", "`Dense_0/dot_general0_lhs`", "infinity", "[1, 1]"],
        ),
        ("overflow", Ok(vec![x(3e38), mask(0.0)]), &["batch 2", "`dot_general0_lhs`", "not finite"]),
        (
            "unreadable",
            Err("c.safetensors is cut short".to_owned()),
            &["batch 2", "c.safetensors is cut short"],
        ),
    ];
    for (name, bad, words) in rows {
        let wanted =
            calibrate(&model, &two_params(), [Ok::<_, String>(good()), Ok(good())], &backend).unwrap();
        let batches = [Ok(good()), Ok(good()), bad, Ok(good())];
        let error = calibrate(&model, &two_params(), batches, &backend).unwrap_err();
        let text = error.to_string();
        if let Some(word) = words.iter().find(|word| !text.contains(**word)) {
            failures.push(format!("{name}: `{word}` is not in: {text}"));
        }
        if error.stats != wanted {
            failures.push(format!("{name}: {:?} are kept, not {wanted:?}", error.stats));
        }
    }
    // An infinity that reaches no range is none of calibration's business.
    let masked = [Ok::<_, Infallible>(vec![x(1.0), mask(f32::NEG_INFINITY)])];
    let stats = calibrate(&model, &two_params(), masked, &backend);
    if let Err(e) = stats {
        failures.push(format!("a mask of infinities is refused: {e}"));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn two_params() -> Params {
    let kernel = floats(&[3, 4], 9);
    // Products of the largest numbers overflow.
    let values = kernel.values::<f32>().unwrap().iter().map(|v| v * 2.0 + v.signum()).collect();
    Params::from([(Path::new("Dense_0/kernel"), Value::Array(Array::from_vec(&[3, 4], values).unwrap()))])
}

/// Statistics that are missing, empty, of another model, shape or kind: each an error that names them.
#[test]
fn wrong_statistics_are_named() {
    let backend = ReferenceBackend::default();
    let ptq = |rule: QuantizationRule| {
        quantize_model(&dense(), &PtqProvider::new(vec![rule]).unwrap()).unwrap().abstract_params()
    };
    let path = Path::new("Dense_0/dot_general0_lhs");
    let one = |path: &str, count: i32, sums: Sums| {
        QuantStats::from_iter([(Path::new(path), Stats { count, sums })])
    };
    let absmax = |shape: &[usize]| Sums::AbsMax(floats(shape, 1));
    let minmax = |shape: &[usize]| Sums::MinMax { min: floats(shape, 1), max: floats(shape, 2) };
    let nan = Sums::AbsMax(Array::from_vec(&[1, 1], vec![f32::NAN]).unwrap());
    let (symmetric, asymmetric) = (ptq(rule()), ptq(rule().act_calibration_method("minmax")));
    let name = path.as_str();
    let rows: [(&str, _, Option<QuantStats>, &[&str]); 10] = [
        ("none", &symmetric, None, &[name, "missing", "none are given", "QtProvider"]),
        ("empty", &symmetric, Some(QuantStats::new()), &[name, "missing"]),
        ("count 0", &symmetric, Some(one(name, 0, absmax(&[1, 1]))), &[name, "count of 0"]),
        ("negative", &symmetric, Some(one(name, -1, absmax(&[1, 1]))), &[name, "count of -1"]),
        ("shape", &symmetric, Some(one(name, 1, absmax(&[1, 3]))), &[name, "f32[1,1]", "f32[1,3]"]),
        ("kind", &symmetric, Some(one(name, 1, minmax(&[1, 1]))), &[name, "absmax", "min and max"]),
        ("other kind", &asymmetric, Some(one(name, 1, absmax(&[1, 1]))), &[name, "min and max", "absmax"]),
        ("NaN", &symmetric, Some(one(name, 1, nan)), &[name, "NaN"]),
        (
            "unknown",
            &symmetric,
            Some(one("Dense_1/dot_general0_lhs", 1, absmax(&[1, 1]))),
            &["Dense_1/dot_general0_lhs", "did you mean `Dense_0/dot_general0_lhs`"],
        ),
        (
            "dynamic",
            &ptq(rule().act_static_scale(false)),
            Some(one(name, 1, absmax(&[1, 1]))),
            &[name, "act_static_scale"],
        ),
    ];
    let mut failures = vec![];
    for (case, template, stats, words) in rows {
        let text = message(quantize_params(&params(), template, stats.as_ref()));
        if let Some(word) = words.iter().find(|word| !text.contains(**word)) {
            failures.push(format!("{case}: `{word}` is not in: {text}"));
        }
    }
    let unsuitable = quantize_model(&dense(), &PtqProvider::new(vec![rule()]).unwrap()).unwrap();
    let dynamic = qt(rule().act_static_scale(false));
    for (case, model, word) in
        [("ptq", &unsuitable, "QtProvider"), ("nothing static", &dynamic, "act_static_scale")]
    {
        let text = message(calibrate(model, &params(), batches(0..1), &backend));
        if !text.contains(word) {
            failures.push(format!("{case}: `{word}` is not in: {text}"));
        }
    }
    let nothing = message(calibrate(&qt(rule()), &params(), batches(0..0), &backend));
    if !nothing.contains("no batches") {
        failures.push(nothing);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn merging_adds_sums_and_counts() {
    let (model, backend) = (qt(rule()), ReferenceBackend::default());
    let parts: Vec<QuantStats> = [0..2, 2..3]
        .into_iter()
        .map(|part| calibrate(&model, &params(), batches(part), &backend).unwrap())
        .collect();
    let mut merged = parts[0].clone();
    merged.merge(&parts[1]).unwrap();
    let path = Path::new("Dense_0/dot_general0_lhs");
    let (stats, first, second) =
        (merged.get(&path).unwrap(), parts[0].get(&path).unwrap(), parts[1].get(&path).unwrap());
    assert_eq!(stats.count, 3);
    let value = |stats: &Stats| stats.sums.parts()[0].1.to_f64_vec()[0];
    assert_eq!(value(stats), (value(first) as f32 + value(second) as f32) as f64);

    let mut failures = vec![];
    for (case, count, sums, words) in [
        ("shape", 1, Sums::AbsMax(floats(&[1, 2], 0)), ["[1, 1]", "[1, 2]"]),
        (
            "kind",
            1,
            Sums::MinMax { min: floats(&[1, 1], 0), max: floats(&[1, 1], 0) },
            ["absmax", "min and max"],
        ),
        ("count", i32::MAX, Sums::AbsMax(floats(&[1, 1], 0)), ["2147483647", "batches"]),
    ] {
        let before = merged.clone();
        let text = message(merged.merge(&QuantStats::from_iter([(path.clone(), Stats { count, sums })])));
        if !text.contains(path.as_str()) || words.iter().any(|word| !text.contains(word)) {
            failures.push(format!("{case}: {text}"));
        }
        if merged != before {
            failures.push(format!("{case}: something was added"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The bytes of one batch.
struct Store(Vec<u8>);

impl qwix_array::Buffer for Store {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Batches are taken when they are needed, and none is kept.
#[test]
fn batches_are_taken_one_by_one() {
    let (model, backend) = (qt(rule()), ReferenceBackend::default());
    // A failure in the tenth batch: nothing after it is asked for.
    let taken = Cell::new(0u32);
    let batches = (0..10_000u32).map(|number| {
        taken.set(taken.get() + 1);
        if number == 9 { Err("the data ends here") } else { Ok(vec![floats(&[2, 3], number)]) }
    });
    let error = calibrate(&model, &params(), batches, &backend).unwrap_err();
    let path = Path::new("Dense_0/dot_general0_lhs");
    assert_eq!((taken.get(), error.stats.get(&path).unwrap().count), (10, 9));
    // Each batch reads its bytes from a store of its own, which must be gone when the next is asked for.
    let stores: RefCell<Vec<Weak<Store>>> = RefCell::default();
    let batches = (0..10_000u32).map(|number| {
        assert!(stores.borrow().iter().all(|store| store.strong_count() == 0), "batch {number}");
        let store = Arc::new(Store(floats(&[2, 3], number % 7).bytes().to_vec()));
        *stores.borrow_mut() = vec![Arc::downgrade(&store)];
        let array = Array::from_buffer(DType::F32, &[2, 3], store, 0..24).unwrap();
        Ok::<_, Infallible>(vec![array])
    });
    let stats = calibrate(&model, &params(), batches, &backend).unwrap();
    assert_eq!(stats.get(&path).unwrap().count, 10_000);
}

/// Ops in loops would need a range for each iteration.
#[test]
fn loops_are_refused_by_name() {
    let graph = common::model("scan_layers").unwrap();
    for failed in [
        PtqProvider::new(vec![rule()]).and_then(|p| quantize_model(&graph, &p)).map(drop),
        QtProvider::new(vec![rule()]).and_then(|p| quantize_model(&graph, &p)).map(drop),
    ] {
        let text = message(failed);
        assert!(
            text.contains("site `layers") && text.contains("loop") && text.contains("act_static_scale"),
            "{text}"
        );
    }
}

#[test]
fn axes_are_checked_against_the_activation() {
    for (axes, words) in [
        (vec![2], ["axis 2", "f32[2,3]"]),
        (vec![0, -2], ["twice", "f32[2,3]"]),
        (vec![-3], ["axis -3", "2 axes"]),
    ] {
        let rule = rule().act_batch_axes(axes);
        let text = message(PtqProvider::new(vec![rule]).and_then(|p| quantize_model(&dense(), &p)));
        assert!(
            words.iter().all(|word| text.contains(word)) && text.contains("`Dense_0` dot_general0"),
            "{text}"
        );
    }
}

/// A graph with static ranges, and the graph that calibration runs, are whole and can be written down.
#[test]
fn static_graphs_have_a_text() {
    for method in ["absmax", "minmax"] {
        let rule = rule().act_calibration_method(method);
        let model = qt(rule.clone());
        let ptq = quantize_model(&dense(), &PtqProvider::new(vec![rule]).unwrap()).unwrap();
        for graph in [&model.graph, model.calibration.as_ref().unwrap(), &ptq.graph] {
            graph.verify().unwrap();
            let text = graph.to_text(TextOptions::default());
            assert_eq!(&Graph::from_text(&text).unwrap(), graph, "{text}");
        }
        let template = ptq.abstract_params().to_string();
        let part = if method == "absmax" { "scale int8 symmetric" } else { "zero_point int8" };
        assert!(
            template.contains(&format!("{part} from the statistics Dense_0/dot_general0_lhs")),
            "{template}"
        );
    }
}

/// What of Qwix's QtRule is for training alone is taken and said to have no effect; what cannot be done is refused.
#[test]
fn fields_of_training_are_not_silent() {
    let text = r#"[{"weight_qtype": "int8", "bwd_qtype": "int8", "bwd_stochastic_rounding": "uniform"}]"#;
    let provider = QtProvider::new(QuantizationRule::from_json(text).unwrap()).unwrap();
    let model = quantize_model(&dense(), &provider).unwrap();
    let about: Vec<&str> = model.warnings.iter().map(|w| w.about.as_str()).collect();
    assert!(
        about.contains(&"rules[0].bwd_qtype") && about.contains(&"rules[0].bwd_stochastic_rounding"),
        "{about:?}"
    );
    let refused = QuantizationRule::from_json(r#"[{"additional_qt_config": {"tile_size": 8}}]"#);
    assert!(message(refused).contains("rules[0].additional_qt_config"));
}

/// With statistics of no batch the range is that of the batch at hand, as Qwix has it: without axes to take a mean over,
/// what a dynamic range gives.
#[test]
fn statistics_of_no_batch_leave_the_range_of_the_batch() {
    let backend = ReferenceBackend::default();
    for method in ["absmax", "minmax"] {
        let run = |rule: QuantizationRule| {
            let model = qt(rule.act_calibration_method(method));
            let template = model.abstract_params();
            let zeros = QuantStats::zeros(&template);
            let params = quantize_params(&params(), &template, Some(&zeros)).unwrap();
            backend.compile(&model.graph, params).unwrap().run(&[floats(&[2, 3], 4)]).unwrap()
        };
        let none = run(rule().act_batch_axes([]));
        assert_eq!(none, run(rule().act_static_scale(false)), "{method}");
        assert_ne!(none, run(rule()), "{method}: rows that differ share the mean of their ranges");
    }
}
