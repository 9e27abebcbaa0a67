//! XLA's programs on CPUs with kernels of the native engine in them.

#[path = "../../pjrt/tests/common/cases.rs"]
mod cases;
#[path = "../../pjrt/tests/common/mod.rs"]
mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use std::sync::{Arc, Mutex};

use qwix::pjrt::{Cache, Client};
use qwix::{
    Array, Backend, CpuBackend, DType, Graph, NativeKernels, Params, Path, PtqProvider, QuantizationRule,
    Type, Value, XlaBackend, quantize_model, quantize_params,
};
use qwix_graph::{DotDims, GraphBuilder};

/// Kernels run on CPUs.
fn client() -> Option<&'static Client> {
    if common::only_on_cpu("kernels are called by programs on CPUs") { common::client() } else { None }
}

#[test]
fn golden_cases_are_the_native_engines_and_qwixs() {
    let Some(client) = client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap().with_kernels(NativeKernels, |_| {});
    let (wrong, count) = cases::complaints_of_all(&xla, false);
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 0, "no case");
}

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn array(dtype: DType, shape: &[usize], seed: u32) -> Array {
    Array::from_vec(shape, numbers(shape.iter().product(), seed)).unwrap().convert(dtype)
}

/// A float model of one product, x · w, quantized by a rule; and an input. `shape` is batch, rows, depth, columns;
/// without a batch the sides have two axes.
fn product(rule: QuantizationRule, dtype: DType, shape: [usize; 4]) -> (Graph, Params, Array) {
    let [batch, rows, depth, columns] = shape;
    let batched = batch > 0;
    let of = |sizes: [usize; 2]| if batched { [&[batch][..], &sizes].concat() } else { sizes.to_vec() };
    let (left, right) = (of([rows, depth]), of([depth, columns]));
    let axis = usize::from(batched);
    let dims = DotDims {
        lhs_contracting: vec![axis + 1],
        rhs_contracting: vec![axis],
        lhs_batch: (0..axis).collect(),
        rhs_batch: (0..axis).collect(),
        ..DotDims::default()
    };
    let mut b = GraphBuilder::new("product");
    let x = b.input("x", Type::array(dtype, left.clone())).unwrap();
    let w = b.variable("layer/kernel", Type::array(dtype, right.clone())).unwrap();
    let root = b.dot(x, w, &dims, dtype).unwrap();
    let graph = b.finish(root).unwrap();
    let model = quantize_model(&graph, &PtqProvider::new(vec![rule]).unwrap()).unwrap();
    let float = Params::from([(Path::new("layer/kernel"), Value::Array(array(dtype, &right, 2)))]);
    let params = quantize_params(&float, &model.abstract_params(), None).unwrap();
    (model.graph, params, array(dtype, &left, 1))
}

fn rule() -> QuantizationRule {
    QuantizationRule::new(".*")
}

fn run(backend: &dyn Backend, graph: &Graph, params: &Params, x: &Array) -> Result<Array, String> {
    let model = backend.compile(graph, params.clone()).map_err(|e| e.to_string())?;
    model.run(std::slice::from_ref(x)).map_err(|e| e.to_string()).map(|mut outputs| outputs.remove(0))
}

/// The largest difference, relative to the second's largest value.
fn apart(a: &Array, b: &Array) -> f64 {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let far = a.iter().zip(&b).fold(0.0, |far: f64, (a, b)| far.max((a - b).abs()));
    if a.iter().chain(&b).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    far / b.iter().fold(1e-30, |most: f64, v| v.abs().max(most))
}

#[test]
fn products_of_every_kind_and_size_are_the_native_engines() {
    let Some(client) = client() else { return };
    let notes = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notes);
    let xla = XlaBackend::on(client, 0)
        .unwrap()
        .with_kernels(NativeKernels, move |note| heard.lock().unwrap().push(note.to_owned()));
    let rules = [
        ("int8 by int8", rule().weight_qtype("int8").act_qtype("int8")),
        ("int8 by int4", rule().weight_qtype("int4").act_qtype("int8")),
        (
            "asymmetric int8 by int8",
            rule().weight_qtype("int8").act_qtype("int8").act_calibration_method("minmax"),
        ),
        (
            "int8 by asymmetric int8",
            rule().weight_qtype("int8").act_qtype("int8").weight_calibration_method("minmax"),
        ),
        ("f32 by int8", rule().weight_qtype("int8")),
        ("f32 by int4", rule().weight_qtype("int4")),
        ("f32 by asymmetric int4", rule().weight_qtype("int4").weight_calibration_method("minmax")),
        ("f32 by nf4", rule().weight_qtype("nf4")),
        ("f32 by fp8", rule().weight_qtype("float8_e4m3fn")),
    ];
    let sizes =
        [[0, 1, 1, 1], [0, 3, 5, 7], [0, 1, 127, 33], [0, 1, 128, 32], [0, 5, 129, 31], [3, 2, 37, 65]];
    let mut rows = Vec::new();
    for (name, rule) in &rules {
        rows.extend(sizes.map(|sizes| (*name, rule.clone(), DType::F32, sizes)));
        rows.push((name, rule.clone(), DType::BF16, [0, 3, 64, 33]));
    }
    let tiled =
        [("int8", "int8"), ("int4", "int8")].map(|(w, a)| rule().weight_qtype(w).act_qtype(a).tile_size(128));
    rows.extend(tiled.map(|rule| ("tiles of 128", rule, DType::F32, [0, 3, 384, 35])));
    rows.push(("tiles of 16", rule().weight_qtype("int4").tile_size(16), DType::F32, [0, 2, 48, 35]));
    let (mut wrong, count) = (Vec::new(), rows.len());
    for (name, rule, dtype, sizes) in rows {
        let (graph, params, x) = product(rule, dtype, sizes);
        let native = run(&CpuBackend::default(), &graph, &params, &x).unwrap();
        // bf16 is rounded at other places by XLA, before the product.
        let most = if dtype == DType::F32 { 1e-6 } else { 2f64.powi(-7) };
        match run(&xla, &graph, &params, &x) {
            Ok(found) if found.shape() == native.shape() && apart(&found, &native) <= most => {}
            Ok(found) => wrong.push(format!("{name} {sizes:?} {dtype}: {:.1e} away", apart(&found, &native))),
            Err(error) => wrong.push(format!("{name} {sizes:?} {dtype}: {error}")),
        }
        for note in notes.lock().unwrap().drain(..) {
            wrong.push(format!("{name} {sizes:?} {dtype}: {note}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn products_without_a_kernel_are_lowered_and_said() {
    let Some(client) = client() else { return };
    let both = |qtype| rule().weight_qtype(qtype).act_qtype(qtype);
    let rows = [
        (both("float8_e4m3fn"), [0, 2, 8, 3], "1 of 1 quantized products have no kernel"),
        (both("float8_e4m3fn"), [0, 2, 8, 3], "f8e4m3fn by f8e4m3fn"),
        (rule().weight_qtype("int8"), [0, 0, 8, 3], "it has no elements"),
        (both("int8").tile_size(32), [0, 2, 64, 3], "both sides are dequantized first"),
    ];
    for (rule, sizes, expected) in rows {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&notes);
        let xla = XlaBackend::on(client, 0)
            .unwrap()
            .with_kernels(NativeKernels, move |note| heard.lock().unwrap().push(note.to_owned()));
        let (graph, params, x) = product(rule, DType::F32, sizes);
        let native = run(&CpuBackend::default(), &graph, &params, &x).unwrap();
        let found = run(&xla, &graph, &params, &x).unwrap();
        assert_eq!(found.shape(), native.shape());
        assert!(apart(&found, &native) <= 1e-5, "{expected}");
        let notes = notes.lock().unwrap();
        assert!(notes.len() == 1 && notes[0].contains(expected), "{notes:?}, expected {expected}");
    }
}

#[test]
fn a_weight_that_several_products_share_is_packed_once() {
    let Some(client) = client() else { return };
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let mut b = GraphBuilder::new("shared");
    let x = b.input("x", Type::array(DType::F32, [1, 64])).unwrap();
    let w = b.variable("layer/kernel", Type::array(DType::F32, [64, 64])).unwrap();
    let once = b.dot(x, w, &dims, DType::F32).unwrap();
    let twice = b.dot(once, w, &dims, DType::F32).unwrap();
    let graph = b.finish(twice).unwrap();
    let rules = vec![rule().weight_qtype("int8").act_qtype("int8")];
    let model = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    let float = Params::from([(Path::new("layer/kernel"), Value::Array(array(DType::F32, &[64, 64], 2)))]);
    let params = quantize_params(&float, &model.abstract_params(), None).unwrap();
    let x = array(DType::F32, &[1, 64], 1);
    let native = run(&CpuBackend::default(), &model.graph, &params, &x).unwrap();
    let xla = XlaBackend::on(client, 0).unwrap().with_kernels(NativeKernels, |note| panic!("{note}"));
    assert!(apart(&run(&xla, &model.graph, &params, &x).unwrap(), &native) <= 1e-6);
    let bytes = xla.prepare(&model.graph, params).unwrap().device_bytes().unwrap();
    // The weight's bytes, and four for the sum and the scale of each column.
    assert_eq!(bytes, 64 * 64 + 2 * 4 * 64);
}

#[test]
fn several_threads_run_one_program_at_once() {
    let Some(client) = client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap().with_kernels(NativeKernels, |note| panic!("{note}"));
    for rule in [rule().weight_qtype("int8").act_qtype("int8"), rule().weight_qtype("int4")] {
        let (graph, params, x) = product(rule, DType::F32, [0, 3, 517, 259]);
        let executable = xla.compile(&graph, params).unwrap();
        let inputs: Vec<Array> = (0..4).map(|seed| array(DType::F32, x.shape(), seed)).collect();
        let expected: Vec<Vec<Array>> =
            inputs.iter().map(|x| executable.run(std::slice::from_ref(x)).unwrap()).collect();
        std::thread::scope(|scope| {
            for (x, expected) in inputs.iter().zip(&expected).cycle().take(8) {
                let executable = &executable;
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert_eq!(&executable.run(std::slice::from_ref(x)).unwrap(), expected);
                    }
                });
            }
        });
    }
}

#[test]
fn a_cache_keeps_programs_with_kernels_and_plain_ones_apart() {
    let Some(client) = client() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (graph, params, x) =
        product(rule().weight_qtype("int8").act_qtype("int8"), DType::F32, [0, 2, 64, 33]);
    let native = run(&CpuBackend::default(), &graph, &params, &x).unwrap();
    let plain =
        XlaBackend::on(client, 0).unwrap().with_cache(Cache::new(dir.path()), |note| panic!("{note}"));
    let kernels = plain.clone().with_kernels(NativeKernels, |note| panic!("{note}"));
    for (backend, entries) in [(&plain, 1), (&kernels, 2), (&plain, 2), (&kernels, 2)] {
        assert!(apart(&run(backend, &graph, &params, &x).unwrap(), &native) <= 1e-6);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), entries);
    }
}
