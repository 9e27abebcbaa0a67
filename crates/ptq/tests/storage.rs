//! Where quantized weights are kept: folded, stacked, or quantized on each run; on small graphs made for it.

use std::sync::Arc;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::{
    BinaryOp, Comparison, ComputationBuilder, ConvDims, DotDims, Graph, GraphBuilder, GraphError, NodeId, Op,
    Path, SliceDim, Type, WindowDim,
};
use qwix_ptq::{
    Outcome, PtqModel, PtqProvider, QuantizationRule, SideVerdict, explain, quantize_model, quantize_params,
};

fn f32s(shape: &[usize]) -> Type {
    Type::array(DType::F32, shape)
}

/// x[m,k] · w[k,n], over the given axis of each.
fn dims(lhs: usize, rhs: usize) -> DotDims {
    DotDims { lhs_contracting: vec![lhs], rhs_contracting: vec![rhs], ..DotDims::default() }
}

fn dot(b: &mut ComputationBuilder, x: NodeId, w: NodeId) -> Result<NodeId, GraphError> {
    let (m, n) = (b.shape(x)?[0], b.shape(w)?[1]);
    b.add_as(Op::Dot(dims(1, 0)), &[x, w], f32s(&[m, n]))
}

/// `w` is used as it is, transposed twice over, and in part.
fn shared() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("shared");
    let w = b.variable("m/w", f32s(&[8, 8]))?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let turned = b.transpose(w, &[1, 0])?;
    let again = b.transpose(w, &[1, 0])?;
    let a = dot(&mut b, x, w)?;
    let c = dot(&mut b, a, turned)?;
    let d = dot(&mut b, c, again)?;
    let e = dot(&mut b, d, w)?;
    b.finish(e)
}

/// `w` times itself turned, and `w` as it is.
fn squared() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("squared");
    let w = b.variable("m/w", f32s(&[8, 8]))?;
    let x = b.input("x", f32s(&[8, 8]))?;
    let turned = b.transpose(w, &[1, 0])?;
    let a = dot(&mut b, w, turned)?;
    let c = b.binary(BinaryOp::Add, a, w)?;
    let d = b.binary(BinaryOp::Add, c, x)?;
    b.finish(d)
}

/// The left half of `w`, then the right half.
fn halves() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("halves");
    let w = b.variable("w", f32s(&[8, 16]))?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let half =
        |start| [SliceDim { start: 0, limit: 8, stride: 1 }, SliceDim { start, limit: start + 8, stride: 1 }];
    let left = b.slice(w, &half(0))?;
    let right = b.slice(w, &half(8))?;
    let a = dot(&mut b, x, left)?;
    let c = dot(&mut b, a, right)?;
    b.finish(c)
}

/// The upper half of `w` is contracted, the lower half too: one scale a column cannot serve both.
fn contracted_halves() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("contracted_halves");
    let w = b.variable("w", f32s(&[16, 8]))?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let half =
        |start| [SliceDim { start, limit: start + 8, stride: 1 }, SliceDim { start: 0, limit: 8, stride: 1 }];
    let upper = b.slice(w, &half(0))?;
    let lower = b.slice(w, &half(8))?;
    let a = dot(&mut b, x, upper)?;
    let c = dot(&mut b, a, lower)?;
    b.finish(c)
}

fn reversed() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("reversed");
    let w = b.variable("w", f32s(&[8, 8]))?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let w = b.add(Op::Reverse { dimensions: vec![0] }, &[w])?;
    let a = dot(&mut b, x, w)?;
    b.finish(a)
}

/// Three steps of x ← x · stack[i]; `also` adds a use of the stack that only floats can have.
fn stacked(also: bool, convert: bool) -> Result<Graph, GraphError> {
    let held = if convert { DType::BF16 } else { DType::F32 };
    let stack = Type::array(held, [3, 8, 8]);
    let state = Type::Tuple(vec![Type::array(DType::S32, []), f32s(&[4, 8]), stack.clone()]);

    let mut b = ComputationBuilder::new("body");
    let s = b.parameter("s", state.clone())?;
    let (i, x, w) = (b.get_tuple_element(s, 0)?, b.get_tuple_element(s, 1)?, b.get_tuple_element(s, 2)?);
    let zero = b.scalar(0i32)?;
    let one = b.scalar(1i32)?;
    let next = b.binary(BinaryOp::Add, i, one)?;
    let slice = b.add(Op::DynamicSlice { sizes: vec![1, 8, 8] }, &[w, i, zero, zero])?;
    let slice = if convert { b.convert(slice, DType::F32)? } else { slice };
    let flat = b.reshape(slice, &[8, 8])?;
    let mut y = dot(&mut b, x, flat)?;
    if also {
        let part = b.slice(
            flat,
            &[SliceDim { start: 0, limit: 4, stride: 1 }, SliceDim { start: 0, limit: 8, stride: 1 }],
        )?;
        y = b.binary(BinaryOp::Add, y, part)?;
    }
    let root = b.tuple(&[next, y, w])?;
    let body = b.finish(root)?;

    let mut b = ComputationBuilder::new("condition");
    let s = b.parameter("s", state)?;
    let i = b.get_tuple_element(s, 0)?;
    let three = b.scalar(3i32)?;
    let root = b.compare(Comparison::Lt, i, three)?;
    let condition = b.finish(root)?;

    let mut b = GraphBuilder::new("stacked");
    let w = b.variable("layers/w", stack)?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let zero = b.scalar(0i32)?;
    let start = b.tuple(&[zero, x, w])?;
    let end = b.add(Op::While { condition: Arc::new(condition), body: Arc::new(body) }, &[start])?;
    let y = b.get_tuple_element(end, 1)?;
    b.finish(y)
}

/// A weight that only one branch uses.
fn branches() -> Result<Graph, GraphError> {
    let both = Type::Tuple(vec![f32s(&[4, 8]), f32s(&[8, 8])]);
    let branch = |with: bool| -> Result<_, GraphError> {
        let mut b = ComputationBuilder::new(if with { "with" } else { "without" });
        let s = b.parameter("s", both.clone())?;
        let (x, w) = (b.get_tuple_element(s, 0)?, b.get_tuple_element(s, 1)?);
        let root = if with { dot(&mut b, x, w)? } else { x };
        Ok(Arc::new(b.finish(root)?))
    };
    let mut b = GraphBuilder::new("branches");
    let w = b.variable("w", f32s(&[8, 8]))?;
    let x = b.input("x", f32s(&[4, 8]))?;
    let yes = b.constant(Array::from_vec::<i32>(&[], vec![0]).unwrap())?;
    let s = b.tuple(&[x, w])?;
    let y = b.add(Op::Conditional { branches: vec![branch(true)?, branch(false)?] }, &[yes, s, s])?;
    b.finish(y)
}

fn convolution() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("convolution");
    let w = b.variable("conv/kernel", f32s(&[3, 2, 5]))?;
    let x = b.input("x", f32s(&[4, 9, 2]))?;
    let dims = ConvDims {
        input_batch: 0,
        input_feature: 2,
        input_spatial: vec![1],
        kernel_input_feature: 1,
        kernel_output_feature: 2,
        kernel_spatial: vec![0],
        output_batch: 0,
        output_feature: 2,
        output_spatial: vec![1],
        window: vec![WindowDim::new(3)],
        feature_group_count: 1,
        batch_group_count: 1,
        operand_precision: Default::default(),
    };
    let y = b.add_as(Op::Convolution(dims), &[x, w], f32s(&[4, 7, 5]))?;
    b.finish(y)
}

fn values(ty: &Type, seed: u32) -> Array {
    let array = ty.as_array().unwrap();
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let values: Vec<f64> = (0..array.shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1u32 << 23) - 1.0
        })
        .collect();
    Array::from_f64(array.dtype, &array.shape, &values).unwrap()
}

fn run(graph: &Graph, params: Params) -> Vec<f64> {
    let inputs: Vec<Array> =
        graph.inputs().enumerate().map(|(i, (_, p))| values(&p.ty, 100 + i as u32)).collect();
    let outputs = ReferenceBackend::default().compile(graph, params).unwrap().run(&inputs).unwrap();
    outputs[0].to_f64_vec()
}

fn w8() -> QuantizationRule {
    QuantizationRule::new(".*").weight_qtype("int8")
}

fn quantized(graph: &Graph, rule: QuantizationRule) -> PtqModel {
    quantize_model(graph, &PtqProvider::new(vec![rule]).unwrap()).unwrap()
}

fn storages(model: &PtqModel) -> Vec<String> {
    model
        .verdicts
        .iter()
        .map(|v| match &v.outcome {
            Outcome::Quantized { lhs, rhs, .. } => {
                let weight: &SideVerdict = if rhs.role == "weight" { rhs } else { lhs };
                weight.storage.clone().unwrap_or_default()
            }
            Outcome::Left { reason } | Outcome::Failed { reason } => reason.clone(),
        })
        .collect()
}

type Row = (&'static str, Graph, &'static [&'static str], &'static [&'static str]);

/// Each graph, the paths of its quantized parameters, and the beginning of what is said of each site's weight.
fn rows() -> Vec<Row> {
    vec![
        (
            "shared",
            shared().unwrap(),
            &["m/w", "m/w@dot_general1"],
            &[
                "quantized parameter",
                "quantized parameter in",
                "quantized parameter in",
                "quantized parameter",
            ],
        ),
        (
            "squared",
            squared().unwrap(),
            &["m/w", "m/w@dot_general0", "m/w@dot_general0_lhs"],
            &["quantized parameter in the shape"],
        ),
        ("halves", halves().unwrap(), &["w"], &["quantized parameter, stacked"; 2]),
        (
            "contracted_halves",
            contracted_halves().unwrap(),
            &["w", "w@dot_general1"],
            &["quantized parameter in the shape"; 2],
        ),
        ("reversed", reversed().unwrap(), &["w"], &["float, quantized on each run: a reverse"]),
        ("stacked", stacked(false, false).unwrap(), &["layers/w"], &["quantized parameter, stacked"]),
        (
            "stacked, converted",
            stacked(false, true).unwrap(),
            &["layers/w"],
            &["quantized parameter, stacked"],
        ),
        (
            "stacked, used otherwise",
            stacked(true, false).unwrap(),
            &["layers/w"],
            &["float, quantized on each run: "],
        ),
        ("branches", branches().unwrap(), &["w"], &["quantized parameter, stacked"]),
        ("convolution", convolution().unwrap(), &["conv/kernel"], &["quantized parameter"]),
    ]
}

#[test]
fn weights_are_kept_where_they_can_be() {
    let mut failures = vec![];
    for (name, graph, paths, said) in rows() {
        let float: Params = graph
            .variables()
            .enumerate()
            .map(|(i, (_, p))| (p.path.clone(), Value::Array(values(&p.ty, i as u32))))
            .collect();
        let wanted = run(&graph, float.clone());
        let largest = wanted.iter().fold(0f64, |m, v| m.max(v.abs()));
        for rule in [w8(), w8().act_qtype("int8")] {
            let model = quantized(&graph, rule);
            let template = model.abstract_params();
            let found: Vec<&str> = template.parameters().keys().map(Path::as_str).collect();
            if found != paths {
                failures.push(format!("{name}: parameters {found:?}, not {paths:?}"));
            }
            let storage = storages(&model);
            if storage.len() != said.len() || !storage.iter().zip(said).all(|(s, said)| s.starts_with(said)) {
                failures.push(format!("{name}: {storage:?}, not {said:?}"));
            }
            let each_run = said.iter().filter(|s| s.starts_with("float")).count();
            if model.warnings.len() != each_run {
                failures.push(format!("{name}: {:?}", model.warnings));
            }
            let params = quantize_params(&float, &template, None).unwrap();
            let found = run(&model.graph, params);
            let worst = found.iter().zip(&wanted).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            // int8 and some steps of it; far less than a wrong weight would give.
            if worst.is_nan() || worst > 0.05 * largest || worst == 0.0 {
                failures.push(format!("{name}: differs by {worst:.2e} of {largest:.2e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A weight that one rule leaves alone and another quantizes stays a float for the one.
#[test]
fn a_weight_in_a_loop_that_another_rule_leaves() {
    let graph = halves().unwrap();
    let rules = vec![QuantizationRule::new(".*").op_names(["einsum"]).weight_qtype("int8")];
    let model = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    assert_eq!(model.graph, graph);
}

#[test]
fn attention_quantizes_a_value_once() {
    let mut b = GraphBuilder::new("qkv");
    let x = b.input("x", f32s(&[4, 8])).unwrap();
    let parts: Vec<NodeId> = ["q", "k", "v"]
        .into_iter()
        .map(|name| {
            let w = b.variable(&format!("{name}/kernel"), f32s(&[8, 8])).unwrap();
            dot(&mut b, x, w).unwrap()
        })
        .collect();
    let root = b.tuple(&parts).unwrap();
    let model = quantized(&b.finish(root).unwrap(), w8().act_qtype("int8"));
    let count = model.graph.entry.nodes.iter().filter(|n| matches!(n.op, Op::Quantize(_))).count();
    assert_eq!(count, 1);
}

#[test]
fn convolutions_have_rules_of_their_own() {
    let graph = convolution().unwrap();
    let rows: &[(QuantizationRule, bool, Option<&str>)] = &[
        (w8().act_qtype("int8"), true, None),
        (w8().act_qtype("int8"), false, None),
        (w8(), false, None),
        (w8(), true, Some("act_qtype")),
        (w8().act_qtype("int4"), false, Some("int8 and int4")),
        (w8().act_qtype("int4"), true, Some("int8 and int4")),
        (QuantizationRule::new(".*").weight_qtype("nf4").act_qtype("nf4"), false, None),
        (
            QuantizationRule::new(".*").weight_qtype("mxfp8").act_qtype("mxfp8"),
            false,
            Some("mxfp8 has tiles"),
        ),
        (w8().act_qtype("int8").weight_calibration_method("minmax"), false, Some("kernel")),
    ];
    let mut failures = vec![];
    for (rule, compat, words) in rows {
        let provider = PtqProvider::new(vec![rule.clone()]).unwrap().qwix_compat(*compat);
        match (quantize_model(&graph, &provider), words) {
            (Ok(_), None) => {}
            (Ok(_), Some(_)) => failures.push(format!("{rule:?} is taken")),
            (Err(e), None) => failures.push(e.to_string()),
            (Err(e), Some(words)) => {
                let message = e.to_string();
                if !message.contains(words)
                    || !message.contains("site `conv` conv_general_dilated0 (rules[0])")
                {
                    failures.push(message);
                }
            }
        }
        // The report goes on.
        let report = explain(&graph, &provider).unwrap();
        if (report.failed, report.quantized) != (usize::from(words.is_some()), usize::from(words.is_none())) {
            failures.push(format!("{rule:?}: {report:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));

    let tiled = quantized(&graph, w8().act_qtype("int8").tile_size(2));
    let about: Vec<&str> = tiled.warnings.iter().map(|w| w.about.as_str()).collect();
    assert_eq!(about, ["site `conv` conv_general_dilated0"]);
}
