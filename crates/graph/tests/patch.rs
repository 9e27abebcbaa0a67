//! Patches: edits of entry and nested computations, and what becomes of the signature.

use std::sync::Arc;

use qwix_array::DType::{F32, Pred, S32};
use qwix_graph::*;
use qwix_quant::{Calibration, DotDims, Granularity, HowToQuantize, QType};

fn int8(granularity: &[Granularity]) -> HowToQuantize {
    HowToQuantize {
        qtype: QType::by_name("int8").unwrap(),
        granularity: granularity.to_vec(),
        calibration: Calibration::AbsMax { scale: None },
    }
}

fn contract(lhs: usize, rhs: usize) -> DotDims {
    DotDims { lhs_contracting: vec![lhs], rhs_contracting: vec![rhs], ..DotDims::default() }
}

/// x · w, twice when `twice`, and w once more in float when `shared`.
fn dense(twice: bool, shared: bool) -> (Graph, NodeId, Vec<NodeId>) {
    let mut b = GraphBuilder::new("dense");
    let x = b.input("x", Type::array(F32, [2, 8])).unwrap();
    b.input("unused", Type::array(F32, [1])).unwrap();
    let w = b.variable("Dense_0/kernel", Type::array(F32, [8, 8])).unwrap();
    let mut sites = vec![b.dot(x, w, &contract(1, 0), F32).unwrap()];
    if twice {
        sites.push(b.dot(sites[0], w, &contract(1, 0), F32).unwrap());
    }
    let mut root = *sites.last().unwrap();
    if shared {
        let row = b.slice(
            w,
            &[SliceDim { start: 0, limit: 2, stride: 1 }, SliceDim { start: 0, limit: 8, stride: 1 }],
        );
        root = b.binary(BinaryOp::Add, root, row.unwrap()).unwrap();
    }
    (b.finish(root).unwrap(), w, sites)
}

fn weight_patch(graph: &Graph, site: NodeId, how: &HowToQuantize, otherwise: &str) -> Patch {
    let source_type = ArrayType::new(F32, [8, 8]);
    let slot = WeightSlot {
        source: Path::new("Dense_0/kernel"),
        source_type: source_type.clone(),
        prep: vec![],
        how: how.clone(),
    };
    let mut patch = Patch::new(graph, &[]).unwrap();
    let parameter = Parameter {
        path: Path::new("Dense_0/kernel"),
        key_path: None,
        role: Role::Variable,
        ambiguous: false,
        ty: QArrayType { array: source_type, how: how.clone() }.into(),
        slot: Some(qwix_graph::Slot::Weight(slot)),
    };
    let q = patch.add_parameter(parameter, Path::new(otherwise)).unwrap();
    let node = graph.entry.node(site).clone();
    patch.replace(site, node.op, &[node.operands[0], q]).unwrap();
    patch
}

fn paths(graph: &Graph) -> Vec<&str> {
    graph.parameters.iter().map(|p| p.path.as_str()).collect()
}

#[test]
fn a_quantized_weight_takes_the_place_and_the_path_of_the_float_one() {
    let (graph, _, sites) = dense(false, false);
    let how = int8(&[Granularity::Shared, Granularity::Channelwise]);
    let patched = graph.apply(&[weight_patch(&graph, sites[0], &how, "x")]).unwrap();
    assert_eq!(paths(&patched), ["x", "unused", "Dense_0/kernel"]);
    assert!(matches!(patched.parameters[2].ty, Type::QArray(_)));
    let dot = patched.entry.node(patched.entry.root);
    assert_eq!(dot.ty, Type::array(F32, [2, 8]));
    assert_eq!(dot.name, graph.entry.node(sites[0]).name);
}

#[test]
fn a_float_weight_still_in_use_keeps_its_path() {
    let (graph, _, sites) = dense(false, true);
    let how = int8(&[Granularity::Shared, Granularity::Channelwise]);
    let patched =
        graph.apply(&[weight_patch(&graph, sites[0], &how, "Dense_0/kernel@dot_general0")]).unwrap();
    let mut found = paths(&patched);
    found.sort_unstable();
    assert_eq!(found, ["Dense_0/kernel", "Dense_0/kernel@dot_general0", "unused", "x"]);
}

#[test]
fn equal_parameters_become_one_and_different_ones_two() {
    let (graph, _, sites) = dense(true, false);
    let a = int8(&[Granularity::Shared, Granularity::Channelwise]);
    let b = int8(&[Granularity::Shared, Granularity::Shared]);
    let both =
        |second| [weight_patch(&graph, sites[0], &a, "one"), weight_patch(&graph, sites[1], second, "two")];
    assert_eq!(paths(&graph.apply(&both(&a)).unwrap()), ["x", "unused", "Dense_0/kernel"]);
    let mut found = graph.apply(&both(&b)).unwrap();
    found.parameters.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(paths(&found), ["Dense_0/kernel", "two", "unused", "x"]);
}

#[test]
fn edits_that_clash_or_do_not_fit_are_refused() {
    let (graph, w, sites) = dense(false, false);
    let how = int8(&[Granularity::Shared, Granularity::Channelwise]);
    let other = int8(&[Granularity::Shared, Granularity::Shared]);
    let clash = graph
        .apply(&[weight_patch(&graph, sites[0], &how, "a"), weight_patch(&graph, sites[0], &other, "b")]);
    assert_eq!(clash.unwrap_err().to_string(), "patch: two patches replace `dot.3`");

    let mut patch = Patch::new(&graph, &[]).unwrap();
    let error = patch.insert(sites[0], Op::Binary(BinaryOp::Add), &[w, NodeId(0)]).unwrap_err().to_string();
    assert!(error.contains("(add) in `main`: both operands should have one type"), "{error}");
    let error = patch.replace(sites[0], Op::Unary(UnaryOp::Negate), &[w]).unwrap_err().to_string();
    assert_eq!(error, "patch: `dot.3` is f32[2,8], its replacement f32[8,8]");
    let error = patch.insert(NodeId(99), Op::Tuple, &[]).unwrap_err().to_string();
    assert_eq!(error, "patch: `main` has no node 99");

    let (later, _, _) = dense(true, false);
    let mut stale = Patch::new(&graph, &[]).unwrap();
    stale.insert(w, Op::Tuple, &[]).unwrap();
    assert_eq!(
        later.apply(&[stale]).unwrap_err().to_string(),
        "patch: `main` has changed since the patch was made"
    );

    let mut late = Patch::new(&graph, &[]).unwrap();
    let negated = late.insert(sites[0], Op::Unary(UnaryOp::Negate), &[w]).unwrap();
    let before = late.insert(w, Op::Unary(UnaryOp::Negate), &[negated]).unwrap();
    late.replace(sites[0], graph.entry.node(sites[0]).op.clone(), &[NodeId(0), before]).unwrap();
    let error = graph.apply(&[late]).unwrap_err().to_string();
    assert!(error.ends_with("comes after it"), "{error}");
}

/// `nn.scan`: x · w[i] for each of four layers, the weights stacked.
fn scan() -> Graph {
    let mut b = GraphBuilder::new("scan");
    let x = b.input("x", Type::array(F32, [2, 8])).unwrap();
    let w = b.variable("layers/kernel", Type::array(F32, [4, 8, 8])).unwrap();
    let i = b.scalar(0i32).unwrap();
    let state = b.tuple(&[i, x, w]).unwrap();
    let ty = b.ty(state).unwrap().clone();

    let mut c = ComputationBuilder::new("condition");
    let s = c.parameter("s", ty.clone()).unwrap();
    let i = c.get_tuple_element(s, 0).unwrap();
    let n = c.scalar(4i32).unwrap();
    let less = c.compare(Comparison::Lt, i, n).unwrap();
    assert_eq!(*c.ty(less).unwrap(), Type::array(Pred, []));
    let condition = Arc::new(c.finish(less).unwrap());

    let mut c = ComputationBuilder::new("body");
    let s = c.parameter("s", ty).unwrap();
    let i = c.get_tuple_element(s, 0).unwrap();
    let x = c.get_tuple_element(s, 1).unwrap();
    let w = c.get_tuple_element(s, 2).unwrap();
    let zero = c.scalar(0i32).unwrap();
    let layer = c.add(Op::DynamicSlice { sizes: vec![1, 8, 8] }, &[w, i, zero, zero]).unwrap();
    let layer = c.reshape(layer, &[8, 8]).unwrap();
    let y = c.dot(x, layer, &contract(1, 0), F32).unwrap();
    let one = c.scalar(1i32).unwrap();
    let next = c.binary(BinaryOp::Add, i, one).unwrap();
    assert_eq!(*c.ty(next).unwrap(), Type::array(S32, []));
    let root = c.tuple(&[next, y, w]).unwrap();
    let body = Arc::new(c.finish(root).unwrap());

    let result = b.add(Op::While { condition, body }, &[state]).unwrap();
    let y = b.get_tuple_element(result, 1).unwrap();
    b.finish(y).unwrap()
}

#[test]
fn a_stacked_weight_is_quantized_in_place_and_its_activation_in_the_body() {
    let graph = scan();
    let (call, _) = graph.entry.iter().find(|(_, n)| matches!(n.op, Op::While { .. })).unwrap();
    let at = [Callee { node: call, index: 1 }];
    let body = graph.computation(&at).unwrap();
    let (site, dot) = body.iter().find(|(_, n)| matches!(n.op, Op::Dot(_))).unwrap();

    let mut patch = Patch::new(&graph, &at).unwrap();
    let how = int8(&[Granularity::Channelwise, Granularity::Shared, Granularity::Channelwise]);
    let slot = WeightSlot {
        source: Path::new("layers/kernel"),
        source_type: ArrayType::new(F32, [4, 8, 8]),
        prep: vec![],
        how,
    };
    patch.quantize_parameter(&graph, 1, slot).unwrap();
    let how = int8(&[Granularity::Channelwise, Granularity::Shared]);
    let x = patch.insert(site, Op::Quantize(how), &[dot.operands[0]]).unwrap();
    patch.replace(site, dot.op.clone(), &[x, dot.operands[1]]).unwrap();
    let patched = graph.apply(&[patch]).unwrap();

    assert_eq!(paths(&patched), ["x", "layers/kernel"]);
    let (call, _) = patched.entry.iter().find(|(_, n)| matches!(n.op, Op::While { .. })).unwrap();
    let body = patched.computation(&[Callee { node: call, index: 1 }]).unwrap();
    let dot = body.nodes.iter().find(|n| matches!(n.op, Op::Dot(_))).unwrap();
    let found: Vec<String> = dot.operands.iter().map(|&o| body.node(o).ty.to_string()).collect();
    assert_eq!(found, ["q[int8 f32[2,8] {channelwise,_} absmax]", "q[int8 f32[8,8] {_,channelwise} absmax]"]);
}

#[test]
fn a_use_that_takes_no_quantized_array_is_named() {
    let (graph, _, _) = dense(false, true);
    let how = int8(&[Granularity::Shared, Granularity::Channelwise]);
    let slot = WeightSlot {
        source: Path::new("Dense_0/kernel"),
        source_type: ArrayType::new(F32, [8, 8]),
        prep: vec![],
        how,
    };
    let mut patch = Patch::new(&graph, &[]).unwrap();
    patch.quantize_parameter(&graph, 2, slot).unwrap();
    let error = graph.apply(&[patch]).unwrap_err().to_string();
    assert!(
        error.starts_with("`add.5` (add) in `main`: operand 1 should be an array, found q[int8"),
        "{error}"
    );
}
