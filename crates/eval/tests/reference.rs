//! The reference evaluator as a backend: signatures, control flow, limits, and graphs that make no sense.

use std::sync::Arc;

use qwix_array::{Array, DType, Pred};
use qwix_eval::{Backend, EvalError, Limits, Params, ReferenceBackend, Value};
use qwix_graph::{
    ArrayType, BinaryOp, Comparison, Computation, ComputationBuilder, DotDims, Graph, GraphBuilder, Op, Path,
    Type, UnaryOp, Unsupported, WeightSlot, reducer,
};
use qwix_quant::{Granularity, HowToQuantize, QType, Tile};

fn f32s(shape: &[usize], values: &[f32]) -> Array {
    Array::from_vec(shape, values.to_vec()).unwrap()
}

fn dense() -> Graph {
    let mut b = GraphBuilder::new("dense");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let w = b.variable("Dense_0/kernel", Type::array(DType::F32, [3, 2])).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, &dims, DType::F32).unwrap();
    b.finish(y).unwrap()
}

fn params(rows: &[(&str, Array)]) -> Params {
    rows.iter().map(|(path, array)| (Path::new(path), Value::Array(array.clone()))).collect()
}

fn run(graph: &Graph, inputs: &[Array]) -> Result<Vec<Array>, EvalError> {
    let limits = Limits { max_iterations: Some(1000), max_elements: None };
    ReferenceBackend { limits }.compile(graph, Params::new())?.run(inputs)
}

#[test]
fn a_dense_layer() {
    let kernel = f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
    let model = ReferenceBackend::default().compile(&dense(), params(&[("Dense_0/kernel", kernel)])).unwrap();
    let out = model.run(&[f32s(&[2, 3], &[1., 0., -1., 0.5, 0.5, 0.5])]).unwrap();
    assert_eq!(out, [f32s(&[2, 2], &[-4., -4., 4.5, 6.])]);
}

#[test]
fn signatures_are_held() {
    let kernel = f32s(&[3, 2], &[0.; 6]);
    let x = f32s(&[2, 3], &[0.; 6]);
    // given parameters, inputs; what the message says
    let rows: &[(Params, Vec<Array>, &str)] = &[
        (params(&[]), vec![x.clone()], "parameter `Dense_0/kernel` is missing: expected f32[3,2]"),
        (
            params(&[("Dense_0/kernel", kernel.clone()), ("Dense_0/kernels", kernel.clone())]),
            vec![x.clone()],
            "parameter `Dense_0/kernels` is not one of the model's (did you mean `Dense_0/kernel`?)",
        ),
        (
            params(&[("Dense_0/kernel", kernel.clone()), ("zzz", kernel.clone())]),
            vec![x.clone()],
            "parameter `zzz` is not one of the model's",
        ),
        (
            params(&[("Dense_0/kernel", x.clone())]),
            vec![x.clone()],
            "parameter `Dense_0/kernel`: expected f32[3,2], found f32[2,3]",
        ),
        (params(&[("Dense_0/kernel", kernel.clone())]), vec![], "the model takes 1 inputs, found 0"),
        (
            params(&[("Dense_0/kernel", kernel.clone())]),
            vec![Array::zeros(DType::BF16, &[2, 3]).unwrap()],
            "input 0 `x`: expected f32[2,3], found bf16[2,3]",
        ),
    ];
    let mut wrong = Vec::new();
    for (params, inputs, want) in rows {
        let found = ReferenceBackend::default().compile(&dense(), params.clone()).and_then(|m| m.run(inputs));
        let found = found.map_or_else(|e| e.to_string(), |out| format!("{out:?}"));
        if found != *want {
            wrong.push((found, *want));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// x · a + b, and two variables for it.
fn affine() -> (Graph, Value, Value) {
    let mut b = GraphBuilder::new("affine");
    let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
    let scale = b.variable("scale", Type::array(DType::F32, [2])).unwrap();
    let bias = b.variable("bias", Type::array(DType::F32, [2])).unwrap();
    let product = b.binary(BinaryOp::Multiply, x, scale).unwrap();
    let root = b.binary(BinaryOp::Add, product, bias).unwrap();
    (b.finish(root).unwrap(), f32s(&[2], &[2., 3.]).into(), f32s(&[2], &[10., 20.]).into())
}

#[test]
fn variables_come_one_by_one_in_any_order() {
    let (graph, scale, bias) = affine();
    let x = [f32s(&[2], &[1., 2.])];
    for order in [["scale", "bias"], ["bias", "scale"]] {
        let mut loader = ReferenceBackend::default().load(&graph).unwrap();
        // Another thread may fill it.
        let (scale, bias) = (scale.clone(), bias.clone());
        let filled = std::thread::spawn(move || {
            for name in order {
                let value = if name == "scale" { scale.clone() } else { bias.clone() };
                loader.put(&Path::new(name), value).unwrap();
            }
            loader
        });
        let executable = filled.join().unwrap().finish().unwrap();
        assert_eq!(executable.run(&x).unwrap(), [f32s(&[2], &[12., 26.])], "{order:?}");
    }
}

#[test]
fn a_variable_that_is_refused_is_not_taken() {
    let (graph, scale, bias) = affine();
    let mut loader = ReferenceBackend::default().load(&graph).unwrap();
    let mut put =
        |name: &str, value: &Value| loader.put(&Path::new(name), value.clone()).map_err(|e| e.to_string());
    let wrong: Value = f32s(&[3], &[0.; 3]).into();
    // name, value; what the message says
    let rows = [
        ("scal", &scale, "parameter `scal` is not one of the model's (did you mean `scale`?)"),
        ("x", &scale, "parameter `x` is not one of the model's"),
        ("scale", &wrong, "parameter `scale`: expected f32[2], found f32[3]"),
        ("scale", &scale, ""),
        ("scale", &scale, "parameter `scale` was given twice"),
    ];
    for (name, value, expected) in rows {
        assert_eq!(put(name, value).err().unwrap_or_default(), expected);
    }
    let error = loader.finish().err().unwrap().to_string();
    assert_eq!(error, "parameter `bias` is missing: expected f32[2]");

    let mut loader = ReferenceBackend::default().load(&graph).unwrap();
    loader.put(&Path::new("bias"), wrong).unwrap_err();
    loader.put(&Path::new("bias"), bias).unwrap();
    loader.put(&Path::new("scale"), scale).unwrap();
    assert!(loader.finish().is_ok());
}

/// s32[] → pred: less than `limit`.
fn below(limit: i32) -> Arc<Computation> {
    let mut b = ComputationBuilder::new("below");
    let x = b.parameter("x", Type::array(DType::S32, [])).unwrap();
    let limit = b.scalar(limit).unwrap();
    let root = b.compare(Comparison::Lt, x, limit).unwrap();
    Arc::new(b.finish(root).unwrap())
}

/// s32[] → s32[]: plus `step`.
fn plus(step: i32) -> Arc<Computation> {
    let mut b = ComputationBuilder::new("plus");
    let x = b.parameter("x", Type::array(DType::S32, [])).unwrap();
    let step = b.scalar(step).unwrap();
    let root = b.binary(BinaryOp::Add, x, step).unwrap();
    Arc::new(b.finish(root).unwrap())
}

fn looping(step: i32) -> Graph {
    let mut b = GraphBuilder::new("loop");
    let x = b.input("x", Type::array(DType::S32, [])).unwrap();
    let root = b.add(Op::While { condition: below(10), body: plus(step) }, &[x]).unwrap();
    b.finish(root).unwrap()
}

#[test]
fn loops_end_or_are_ended() {
    assert_eq!(run(&looping(3), &[Array::scalar(2i32)]).unwrap(), [Array::scalar(11i32)]);
    assert_eq!(run(&looping(3), &[Array::scalar(20i32)]).unwrap(), [Array::scalar(20i32)]);
    let error = run(&looping(0), &[Array::scalar(2i32)]).unwrap_err().to_string();
    assert!(error.contains("did not end within 1000 iterations") && error.contains("while"), "{error}");
}

#[test]
fn branches() {
    let graph = |index: Type| {
        let mut b = GraphBuilder::new("branches");
        let index = b.input("index", index).unwrap();
        let x = b.input("x", Type::array(DType::S32, [])).unwrap();
        let branches = vec![plus(1), plus(10)];
        let root = b.add(Op::Conditional { branches }, &[index, x, x]).unwrap();
        b.finish(root).unwrap()
    };
    let x = Array::scalar(5i32);
    let by_number = graph(Type::array(DType::S32, []));
    for (index, want) in [(0, 6), (1, 15), (2, 15), (-1, 15), (i32::MAX, 15)] {
        let found = run(&by_number, &[Array::scalar(index), x.clone()]).unwrap();
        assert_eq!(found, [Array::scalar::<i32>(want)], "branch {index}");
    }
    let by_pred = graph(Type::array(DType::Pred, []));
    for (index, want) in [(true, 6), (false, 15)] {
        let found = run(&by_pred, &[Array::scalar(Pred::from(index)), x.clone()]).unwrap();
        assert_eq!(found, [Array::scalar::<i32>(want)], "branch {index}");
    }
}

#[test]
fn sums_are_wide_and_orders_may_be_nonsense() {
    let sum = |dtype: DType, n: usize| {
        let mut b = GraphBuilder::new("sum");
        let x = b.input("x", Type::array(dtype, [n])).unwrap();
        let zero = b.constant(Array::zeros(dtype, &[]).unwrap()).unwrap();
        let computation = reducer(BinaryOp::Add, dtype).unwrap();
        let root = b.add(Op::Reduce { dimensions: vec![0], computation }, &[x, zero]).unwrap();
        b.finish(root).unwrap()
    };
    // One at a time in bf16 this would stay at 256.
    let ones = Array::from_f64(DType::BF16, &[1024], &[1.0; 1024]).unwrap();
    assert_eq!(run(&sum(DType::BF16, 1024), &[ones]).unwrap()[0].to_f64_vec(), [1024.0]);
    let wraps = Array::from_i64(DType::S8, &[3], &[100, 100, 100]).unwrap();
    assert_eq!(run(&sum(DType::S8, 3), &[wraps]).unwrap()[0].to_i64_vec(), [44]);

    // A comparator that always says "less" is no order; the elements stay some permutation.
    let mut c = ComputationBuilder::new("less");
    c.parameter("a", Type::array(DType::F32, [])).unwrap();
    c.parameter("b", Type::array(DType::F32, [])).unwrap();
    let yes = c.scalar(Pred::from(true)).unwrap();
    let comparator = Arc::new(c.finish(yes).unwrap());
    let mut b = GraphBuilder::new("sort");
    let x = b.input("x", Type::array(DType::F32, [100])).unwrap();
    let root = b.add(Op::Sort { dimension: 0, stable: true, comparator }, &[x]).unwrap();
    let graph = b.finish(root).unwrap();
    let values: Vec<f32> = (0..100).map(|i| (i * 37 % 100) as f32).collect();
    let mut found = run(&graph, &[f32s(&[100], &values)]).unwrap()[0].to_f64_vec();
    found.sort_by(f64::total_cmp);
    assert!(found.iter().copied().eq((0..100).map(f64::from)));
}

/// A stack of quantized weights, one of them taken by a loop's counter, as `nn.scan` does.
#[test]
fn a_slice_of_quantized_weights_is_quantized() {
    let how = |granularity| {
        HowToQuantize::new(QType::by_name("int8").unwrap(), granularity, "absmax".parse().unwrap()).unwrap()
    };
    let values: Vec<f32> = (0..24).map(|i| ((i * 37) % 23) as f32 - 11.3).collect();
    let stack = f32s(&[2, 4, 3], &values);
    // granularity of the stack's axes
    let rows = [
        vec![Granularity::Channelwise, Granularity::Shared, Granularity::Channelwise],
        vec![Granularity::Channelwise, Granularity::Tiled(Tile::Size(2)), Granularity::Channelwise],
        vec![Granularity::Shared, Granularity::Shared, Granularity::Shared],
    ];
    for granularity in rows {
        let how = how(granularity.clone());
        let slot = WeightSlot {
            source: Path::new("stack"),
            source_type: ArrayType::new(DType::F32, [2, 4, 3]),
            prep: vec![],
            how: how.clone(),
        };
        let mut b = GraphBuilder::new("scanned");
        let x = b.input("x", Type::array(DType::F32, [5, 4])).unwrap();
        let i = b.input("i", Type::array(DType::S32, [])).unwrap();
        let w = b.quantized_variable("stack", slot).unwrap();
        let zero = b.scalar(0i32).unwrap();
        let w = b.add(Op::DynamicSlice { sizes: vec![1, 4, 3] }, &[w, i, zero, zero]).unwrap();
        let w = b.reshape(w, &[4, 3]).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let y = b.dot(x, w, &dims, DType::F32).unwrap();
        let graph = b.finish(y).unwrap();

        let q = qwix_quant::quantize(&stack, &how).unwrap();
        let floats = qwix_quant::dequantize(&q).unwrap();
        let params: Params = [(Path::new("stack"), Value::QArray(q))].into();
        let model = ReferenceBackend::default().compile(&graph, params).unwrap();
        let x = f32s(&[5, 4], &(0..20).map(|i| i as f32 * 0.25 - 2.0).collect::<Vec<_>>());
        // An index past the end is the last one's.
        for (index, layer) in [(0, 0), (1, 1), (7, 1), (-1, 0)] {
            let found = model.run(&[x.clone(), Array::scalar::<i32>(index)]).unwrap();
            let weights = floats.slice(&[layer, 0, 0], &[layer + 1, 4, 3], &[1, 1, 1]).unwrap();
            let weights = weights.reshape(&[4, 3]).unwrap();
            let want = qwix_quant::reference::dot(&x, &weights, &dims, DType::F32).unwrap();
            assert_eq!(found, [want], "{granularity:?} at {index}");
        }
    }
}

#[test]
fn ops_without_a_meaning_are_named() {
    let graph = |used: bool| {
        let mut b = GraphBuilder::new("fft");
        b.set_scope("jit(apply)/Net/encoder/spectral");
        let x = b.input("x", Type::array(DType::F32, [4])).unwrap();
        let fft = Op::Unsupported(Unsupported { opcode: "fft".into(), reason: "no transforms yet".into() });
        let y = b.add_as(fft, &[x], Type::array(DType::F32, [4])).unwrap();
        let root = b.unary(UnaryOp::Negate, if used { y } else { x }).unwrap();
        b.finish(root).unwrap()
    };
    let error = ReferenceBackend::default().compile(&graph(true), Params::new()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "op `fft` (instruction `fft.1`, module `encoder/spectral`) is not supported: no transforms yet"
    );
    // What the result does not depend on need not have a meaning.
    assert!(ReferenceBackend::default().compile(&graph(false), Params::new()).is_ok());
}

#[test]
fn results_that_memory_cannot_hold_are_refused() {
    let mut b = GraphBuilder::new("huge");
    let x = b.input("x", Type::array(DType::S8, [])).unwrap();
    let root = b.broadcast(x, &[1 << 20, 1 << 20, 1 << 10], &[]).unwrap();
    let graph = b.finish(root).unwrap();
    let error = run(&graph, &[Array::scalar(1i8)]).unwrap_err().to_string();
    assert!(error.contains("memory") && error.contains("broadcast"), "{error}");
}

#[test]
fn shardings_mean_nothing_on_one_device() {
    let text = "HloModule m

ENTRY main {
  x = f32[4] parameter(0), sharding={devices=[2]<=[2]}
  y = f32[4] custom-call(x), custom_call_target=\"Sharding\", sharding={devices=[4]<=[4]}
  ROOT z = f32[4] negate(y), sharding={maximal device=7}
}
";
    let graph = qwix_graph::Graph::from_text(text).unwrap();
    let model = ReferenceBackend::default().compile(&graph, params(&[])).unwrap();
    assert_eq!(model.run(&[f32s(&[4], &[1., 2., 3., 4.])]).unwrap(), [f32s(&[4], &[-1., -2., -3., -4.])]);
}
