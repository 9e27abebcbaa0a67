//! Graphs written as HLO modules and read back.

use std::sync::Arc;

use common::modules;
use qwix_array::{Array, DType};
use qwix_graph::text::TextOptions;
use qwix_graph::{Computation, CustomCall, Graph, GraphBuilder, Op, Type};

mod common;

/// A graph without what a file may change: instructions' and computations' names, and ids.
fn nameless(graph: &Graph) -> Graph {
    fn of(computation: &Computation) -> Computation {
        let mut computation = computation.clone();
        computation.name.clear();
        for node in &mut computation.nodes {
            node.name.clear();
            node.metadata.id = 0;
            for called in node.op.called_mut() {
                *called = Arc::new(of(called));
            }
        }
        computation
    }
    Graph { entry: Arc::new(of(&graph.entry)), ..graph.clone() }
}

#[test]
fn every_module_comes_back_as_it_was() {
    let mut wrong = Vec::new();
    for (name, bytes) in modules() {
        let graph = Graph::from_hlo_proto(&bytes).unwrap();
        let written = match graph.to_hlo_proto() {
            Ok(written) => written,
            // The one dtype there that we have not.
            Err(error) if error.to_string().contains("u2[") => continue,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let back = Graph::from_hlo_proto(&written).unwrap();
        if nameless(&graph) != nameless(&back) {
            wrong.push(format!("{name}: another graph"));
        }
        if back.to_hlo_proto().unwrap() != written {
            wrong.push(format!("{name}: other bytes the second time"));
        }
        let order = |graph: &Graph| {
            let mut ids = Vec::new();
            common::visit(&graph.entry, &mut |node| ids.push(node.metadata.id));
            let mut order: Vec<usize> = (0..ids.len()).collect();
            order.sort_by_key(|&index| ids[index]);
            order
        };
        if order(&graph) != order(&back) {
            wrong.push(format!("{name}: another trace order"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn constants_of_every_dtype_come_back() {
    let mut wrong = Vec::new();
    for dtype in DType::all() {
        for shape in [&[][..], &[5], &[2, 3], &[0], &[3, 0, 2]] {
            let count = shape.iter().product::<usize>();
            let bytes: Vec<u8> = (0..dtype.byte_len(count).unwrap())
                .map(|i| if dtype == DType::Pred { (i % 3 == 1).into() } else { (i * 37 + 11) as u8 })
                .collect();
            // A packed array's last byte has bits that belong to no element.
            let array = Array::from_bytes(dtype, shape, bytes).unwrap();
            let array = match dtype.is_packed() {
                true => Array::pack(dtype, shape, &array.unpack_u8().unwrap()).unwrap(),
                false => array,
            };
            let mut builder = GraphBuilder::new("constants");
            let constant = builder.constant(array.clone()).unwrap();
            let graph = builder.finish(constant).unwrap();
            let back = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
            let node = back.entry.node(back.entry.root);
            if node.op != Op::Constant(array.clone()) || node.ty != Type::array(dtype, shape) {
                wrong.push(format!("{dtype}{shape:?}: found {} of {}", node.op.name(), node.ty));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_hlo_proto_is_a_module_in_an_envelope() {
    let (_, module) = modules().remove(0);
    let mut envelope = vec![0x0a];
    let mut length = module.len();
    while length >= 0x80 {
        envelope.push(length as u8 | 0x80);
        length >>= 7;
    }
    envelope.push(length as u8);
    envelope.extend_from_slice(&module);
    // An empty buffer assignment.
    envelope.extend_from_slice(&[0x1a, 0]);
    assert_eq!(Graph::from_hlo_proto(&envelope), Graph::from_hlo_proto(&module));
}

#[test]
fn signatures_come_back() {
    let mut builder = GraphBuilder::new("signature");
    let ty = Type::array(DType::F32, [2]);
    let parameters = ["x", "batch/image", "parameter.1"].map(|name| builder.input(name, ty.clone()).unwrap());
    let variables = ["Dense_0/kernel", "batch_stats/norm/x", "norm/x", "a/0/it's"]
        .map(|path| builder.variable(path, ty.clone()).unwrap());
    let all: Vec<_> = parameters.into_iter().chain(variables).collect();
    let root = builder.tuple(&all).unwrap();
    let graph = builder.finish(root).unwrap();
    let back = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
    let signature = |graph: &Graph| {
        let rows = graph.parameters.iter().map(|p| (p.path.clone(), p.role, p.ty.clone()));
        rows.collect::<Vec<_>>()
    };
    assert_eq!(signature(&back), signature(&graph));

    // What a checkpoint decided stays decided.
    let (_, bytes) = modules().into_iter().find(|(name, _)| name == "models/raw_params").unwrap();
    let mut graph = Graph::from_hlo_proto(&bytes).unwrap();
    for parameter in &mut graph.parameters {
        parameter.key_path.as_mut().unwrap().argument = "p".to_owned();
    }
    let back = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
    assert_eq!(signature(&back), signature(&graph));
}

#[test]
fn typed_calls_come_back_and_others_are_refused() {
    let call = |typed, called: &[&str]| {
        let mut builder = GraphBuilder::new("calls");
        let x = builder.input("x", Type::array(DType::F32, [2, 3])).unwrap();
        let y = builder.input("y", Type::array(DType::U8, [5])).unwrap();
        let call = CustomCall {
            target: "some.kernel".to_owned(),
            config: b"{rows = 2 : i64}".to_vec(),
            called: called.iter().map(|name| (*name).to_owned()).collect(),
            typed,
        };
        let root = builder.add_as(Op::CustomCall(call), &[x, y], Type::array(DType::F32, [3])).unwrap();
        builder.finish(root).unwrap()
    };
    let typed = call(true, &[]);
    let written = typed.to_hlo_proto().unwrap();
    let back = Graph::from_hlo_proto(&written).unwrap();
    let root = |graph: &Graph| graph.entry.node(graph.entry.root).op.clone();
    assert_eq!(root(&back), root(&typed));
    assert_eq!(back.to_hlo_proto().unwrap(), written);
    let text = Graph::from_text(&typed.to_text(TextOptions::default())).unwrap();
    assert_eq!(root(&text), root(&typed));
    for graph in [call(false, &[]), call(true, &["f"])] {
        let error = graph.to_hlo_proto().unwrap_err().to_string();
        assert!(error.contains("not all of it is kept"), "{error}");
    }
}
