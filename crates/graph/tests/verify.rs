//! Graphs that are not whole, and what the verifier says of them.

use std::sync::Arc;

use qwix_array::DType;
use qwix_graph::*;

/// `-(x + w)`: nodes x, w, add, negate.
fn graph() -> Graph {
    let mut b = GraphBuilder::new("m");
    let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
    let w = b.variable("w", Type::array(DType::F32, [2])).unwrap();
    let sum = b.binary(BinaryOp::Add, x, w).unwrap();
    let y = b.unary(UnaryOp::Negate, sum).unwrap();
    b.finish(y).unwrap()
}

/// A computation that calls itself so many levels deep; twice at each, as a tree would.
fn nested(depth: usize) -> Graph {
    let ty = Type::array(DType::F32, []);
    let mut c = ComputationBuilder::new("leaf");
    let x = c.parameter("x", ty.clone()).unwrap();
    let mut inner = Arc::new(c.finish(x).unwrap());
    for level in 1..depth {
        let mut c = ComputationBuilder::new(&format!("level_{level}"));
        let x = c.parameter("x", ty.clone()).unwrap();
        let y = c.add(Op::Call { computation: Arc::clone(&inner), composite: None }, &[x]).unwrap();
        let z = c.add(Op::Call { computation: inner, composite: None }, &[y]).unwrap();
        inner = Arc::new(c.finish(z).unwrap());
    }
    let mut b = GraphBuilder::new("nested");
    let x = b.input("x", ty).unwrap();
    let y = b.add(Op::Call { computation: inner, composite: None }, &[x]).unwrap();
    let entry = Arc::new({
        let mut c = (*b).clone();
        c.add(Op::Tuple, &[]).unwrap();
        c.finish(y).unwrap()
    });
    Graph { name: "nested".into(), parameters: vec![graph().parameters[0].clone()], entry }
}

#[test]
fn graphs_that_are_not_whole() {
    type Damage = fn(&mut Graph);
    fn entry(graph: &mut Graph) -> &mut Computation {
        Arc::make_mut(&mut graph.entry)
    }
    let rows: [(&str, Damage); 14] = [
        ("`main`: the root is node 9 of 4", |g| entry(g).root = NodeId(9)),
        ("`add.2` (add) in `main`: operand 2 does not come before it", |g| {
            entry(g).nodes[2].operands[1] = NodeId(2);
        }),
        ("`add.2` (add) in `main`: operand 77 does not come before it", |g| {
            entry(g).nodes[2].operands[1] = NodeId(77);
        }),
        ("`x.0` (negate) in `main`: two instructions have this name", |g| {
            entry(g).nodes[3].name = "x.0".into()
        }),
        ("`main`: parameters are numbered [0, 5], expected 0, 1, …", |g| {
            entry(g).nodes[1].op = Op::Parameter(5);
        }),
        ("`main`: parameters are numbered [0, 0], expected 0, 1, …", |g| {
            entry(g).nodes[1].op = Op::Parameter(0);
        }),
        ("`negate.3` (negate) in `main`: is declared f32[3], should be f32[2]", |g| {
            entry(g).nodes[3].ty = Type::array(DType::F32, [3]);
        }),
        ("`add.2` (add) in `main`: takes 2 operands, found 1", |g| {
            entry(g).nodes[2].operands.pop();
        }),
        ("`m`: the entry has 2 parameters, the signature 1", |g| drop(g.parameters.pop())),
        ("`m`: parameter 1 `w` is f32[2], the signature says f16[2]", |g| {
            g.parameters[1].ty = Type::array(DType::F16, [2]);
        }),
        ("`m`: two parameters are named `x`", |g| {
            g.parameters[1].path = Path::new("x");
            g.parameters[1].role = Role::Input;
        }),
        ("`m`: parameter 1 `w`: has a slot, but its type is f32[2]", |g| {
            let how = qwix_quant::HowToQuantize {
                qtype: qwix_quant::QType::by_name("int8").unwrap(),
                granularity: vec![qwix_quant::Granularity::Shared],
                calibration: "absmax".parse().unwrap(),
            };
            g.parameters[1].slot = Some(Slot::Weight(WeightSlot {
                source: Path::new("w"),
                source_type: ArrayType::new(DType::F32, [2]),
                prep: vec![],
                how,
            }));
        }),
        ("`main`: the root is node 0 of 0", |g| {
            *entry(g) = Computation { name: "main".into(), ..Computation::default() };
        }),
        (": computations call one another more than 64 deep", |g| *g = nested(70)),
    ];
    let mut wrong = Vec::new();
    for (expected, damage) in rows {
        let mut graph = graph();
        damage(&mut graph);
        match graph.verify() {
            Ok(()) => wrong.push(format!("verifies; expected {expected}")),
            Err(error) => {
                let found = error.to_string();
                if !found.ends_with(expected) {
                    wrong.push(format!("{found}\n  expected {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Shared computations are verified once: two calls at each of sixty levels would else take for ever.
#[test]
fn shared_computations_are_looked_at_once() {
    let graph = nested(60);
    assert_eq!(graph.verify().map_err(|e| e.to_string()), wrong_type());
    fn wrong_type() -> Result<(), String> {
        Err("`nested`: parameter 0 `x` is f32[], the signature says f32[2]".into())
    }
}
