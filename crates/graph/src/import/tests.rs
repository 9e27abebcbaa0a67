//! Modules made by hand: each op of the list, and everything that can be wrong with a file.

use prost::Message as _;
use qwix_array::DType;

use super::*;
use crate::proto::*;

pub(super) fn shape(dtype: DType, dimensions: &[i64]) -> Option<ShapeProto> {
    Some(ShapeProto {
        element_type: primitive_of(dtype),
        dimensions: dimensions.to_vec(),
        ..ShapeProto::default()
    })
}

fn f32s(dimensions: &[i64]) -> Option<ShapeProto> {
    shape(DType::F32, dimensions)
}

fn tuple(elements: &[Option<ShapeProto>]) -> Option<ShapeProto> {
    let tuple_shapes = elements.iter().flatten().cloned().collect();
    Some(ShapeProto { element_type: TUPLE, tuple_shapes, ..ShapeProto::default() })
}

fn instruction(id: i64, opcode: &str, shape: Option<ShapeProto>, operand_ids: &[i64]) -> HloInstructionProto {
    HloInstructionProto {
        name: format!("{opcode}.{id}"),
        opcode: opcode.to_owned(),
        shape,
        id,
        operand_ids: operand_ids.to_vec(),
        ..HloInstructionProto::default()
    }
}

fn parameter(id: i64, number: i64, shape: Option<ShapeProto>) -> HloInstructionProto {
    HloInstructionProto { parameter_number: number, ..instruction(id, "parameter", shape, &[]) }
}

fn calling(mut instruction: HloInstructionProto, ids: &[i64]) -> HloInstructionProto {
    instruction.called_computation_ids = ids.to_vec();
    instruction
}

fn named(mut instruction: HloInstructionProto, op_name: &str) -> HloInstructionProto {
    instruction.metadata = Some(OpMetadata { op_name: op_name.to_owned() });
    instruction
}

/// A computation whose last instruction is its root.
fn computation(id: i64, instructions: Vec<HloInstructionProto>) -> HloComputationProto {
    HloComputationProto {
        name: format!("computation.{id}"),
        root_id: instructions.last().map_or(0, |root| root.id),
        instructions,
        id,
        ..HloComputationProto::default()
    }
}

/// A module whose last computation is the entry.
fn module(computations: Vec<HloComputationProto>) -> HloModuleProto {
    HloModuleProto {
        name: "module".to_owned(),
        entry_computation_id: computations.last().map_or(0, |entry| entry.id),
        computations,
        ..HloModuleProto::default()
    }
}

fn import(module: &HloModuleProto) -> Result<Graph, ImportError> {
    Graph::from_hlo_proto(&module.encode_to_vec())
}

fn names(computation: &Computation) -> Vec<&str> {
    computation.nodes.iter().map(|node| node.name.as_str()).collect()
}

#[test]
fn instructions_are_sorted_by_need_and_then_by_id() {
    let graph = import(&module(vec![computation(
        1,
        vec![
            instruction(9, "add", f32s(&[]), &[5, 7]),
            instruction(5, "negate", f32s(&[]), &[8]),
            instruction(7, "abs", f32s(&[]), &[2]),
            parameter(8, 1, f32s(&[])),
            parameter(2, 0, f32s(&[])),
            instruction(11, "tuple", tuple(&[f32s(&[])]), &[9]),
        ],
    )]))
    .unwrap();
    assert_eq!(names(&graph.entry), ["parameter.2", "abs.7", "parameter.8", "negate.5", "add.9", "tuple.11"]);
    // Trace order is that of the ids.
    let ids: Vec<u64> = graph.entry.nodes.iter().map(|node| node.metadata.id).collect();
    assert_eq!(ids, [1, 3, 4, 2, 5, 6]);
}

#[test]
fn calls_are_inlined_under_their_scope() {
    let inner = computation(
        1,
        vec![
            parameter(1, 0, f32s(&[2])),
            parameter(2, 1, f32s(&[2])),
            named(instruction(3, "add", f32s(&[2]), &[1, 2]), "sum/add;other/x"),
            instruction(4, "negate", f32s(&[2]), &[3]),
            named(
                instruction(5, "tuple", tuple(&[f32s(&[2]), f32s(&[2])]), &[4, 1]),
                "jit(f)/N/jit(g)/tuple",
            ),
        ],
    );
    let pair = tuple(&[f32s(&[2]), f32s(&[2])]);
    let middle = computation(
        2,
        vec![
            parameter(1, 0, f32s(&[2])),
            calling(named(instruction(2, "call", pair.clone(), &[1, 1]), "jit(h)"), &[1]),
            HloInstructionProto { tuple_index: 0, ..instruction(3, "get-tuple-element", f32s(&[2]), &[2]) },
        ],
    );
    let entry = computation(
        3,
        vec![
            parameter(1, 0, f32s(&[2])),
            calling(named(instruction(2, "call", pair.clone(), &[1, 1]), "jit(f)/N/jit(g)"), &[1]),
            calling(named(instruction(3, "call", f32s(&[2]), &[1]), "jit(f)/M"), &[2]),
            // No name: nothing is added to the scope.
            calling(instruction(4, "call", f32s(&[2]), &[3]), &[2]),
            HloInstructionProto { tuple_index: 1, ..instruction(5, "get-tuple-element", f32s(&[2]), &[2]) },
            instruction(6, "tuple", tuple(&[pair.clone(), f32s(&[2]), f32s(&[2])]), &[2, 4, 5]),
        ],
    );
    let graph = import(&module(vec![inner, middle, entry])).unwrap();
    let rows: Vec<(&str, &str, u64, Vec<u32>)> = graph
        .entry
        .nodes
        .iter()
        .map(|node| {
            let operands = node.operands.iter().map(|id| id.0).collect();
            (node.name.as_str(), node.metadata.op_name.as_str(), node.metadata.id, operands)
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("parameter.1", "", 1, vec![]),
            ("add.3", "jit(f)/N/jit(g)/sum/add;jit(f)/N/jit(g)/other/x", 4, vec![0, 0]),
            ("negate.4", "", 5, vec![1]),
            // Somebody uses the whole tuple, so that it stays. Its name has the scope already, as in older files.
            ("tuple.5", "jit(f)/N/jit(g)/tuple", 6, vec![2, 0]),
            ("add.1", "jit(f)/M/jit(h)/sum/add;jit(f)/M/jit(h)/other/x", 11, vec![0, 0]),
            ("negate.1", "", 12, vec![4]),
            ("add.2", "jit(h)/sum/add;jit(h)/other/x", 20, vec![5, 5]),
            ("negate.2", "", 21, vec![6]),
            ("tuple.6", "", 27, vec![3, 7, 0]),
        ]
    );
}

#[test]
fn a_loop_inside_a_call_gets_the_scope_too() {
    let state = f32s(&[]);
    let body = computation(
        1,
        vec![
            parameter(1, 0, state.clone()),
            named(instruction(2, "abs", state.clone(), &[1]), "while/body/abs"),
        ],
    );
    let mut less = named(instruction(2, "compare", shape(DType::Pred, &[]), &[1, 1]), "while/cond/lt");
    less.comparison_direction = "LT".to_owned();
    let condition = computation(2, vec![parameter(1, 0, state.clone()), less]);
    let function = computation(
        3,
        vec![
            parameter(1, 0, state.clone()),
            calling(named(instruction(2, "while", state.clone(), &[1]), "while"), &[1, 2]),
        ],
    );
    let entry = computation(
        4,
        vec![
            parameter(1, 0, state.clone()),
            calling(named(instruction(2, "call", state.clone(), &[1]), "jit(f)/M"), &[3]),
            calling(named(instruction(3, "call", state.clone(), &[2]), "jit(f)/N"), &[3]),
        ],
    );
    let graph = import(&module(vec![body, condition, function, entry])).unwrap();
    let mut found = Vec::new();
    for node in &graph.entry.nodes {
        for called in node.op.called() {
            found.extend(called.nodes.iter().map(|node| (node.metadata.op_name.as_str(), node.metadata.id)));
        }
        found.push((&node.metadata.op_name, node.metadata.id));
    }
    assert_eq!(
        found,
        [
            ("", 1),
            // The condition comes before the body.
            ("", 3),
            ("jit(f)/M/while/cond/lt", 4),
            ("", 5),
            ("jit(f)/M/while/body/abs", 6),
            ("jit(f)/M/while", 7),
            ("", 10),
            ("jit(f)/N/while/cond/lt", 11),
            ("", 12),
            ("jit(f)/N/while/body/abs", 13),
            ("jit(f)/N/while", 14),
        ]
    );
    let Op::While { condition, body } = &graph.entry.node(NodeId(1)).op else { panic!("expected a while") };
    assert_eq!((condition.name.as_str(), body.name.as_str()), ("computation.2", "computation.1"));
}

#[test]
fn what_is_not_known_is_kept_to_be_looked_at() {
    let c64 = Some(ShapeProto { element_type: 15, dimensions: vec![2], ..ShapeProto::default() });
    let mut call = instruction(4, "custom-call", f32s(&[2]), &[1]);
    call.custom_call_target = "lapack_spotrf".to_owned();
    call.backend_config = b"{uplo}".to_vec();
    let mut annotation = instruction(5, "custom-call", f32s(&[2]), &[4]);
    annotation.custom_call_target = "Sharding".to_owned();
    let graph = import(&module(vec![computation(
        1,
        vec![
            parameter(1, 0, f32s(&[2])),
            instruction(2, "frobnicate", f32s(&[2]), &[1]),
            instruction(3, "convert", c64.clone(), &[1]),
            call,
            annotation,
            instruction(6, "real", f32s(&[2]), &[3]),
            calling(instruction(7, "all-reduce", f32s(&[2]), &[1]), &[77]),
            instruction(8, "tuple", tuple(&[c64, f32s(&[2])]), &[3, 2]),
        ],
    )]))
    .unwrap();
    let ops: Vec<String> = graph
        .entry
        .nodes
        .iter()
        .map(|node| match &node.op {
            Op::Unsupported(op) => format!("{}: {}", op.opcode, op.reason),
            Op::CustomCall(call) => format!("calls {}", call.target),
            op => op.name().to_owned(),
        })
        .collect();
    assert_eq!(
        ops,
        [
            "parameter",
            "frobnicate: the op is not known",
            "convert: the type c64[2] is not supported",
            "calls lapack_spotrf",
            "custom-call",
            "real: the type c64[2] is not supported",
            "all-reduce: the op is not known",
            "tuple",
        ]
    );
}

#[test]
fn ops_that_jax_seldom_writes() {
    let add = computation(
        1,
        vec![
            parameter(31, 0, f32s(&[])),
            parameter(32, 1, f32s(&[])),
            instruction(33, "add", f32s(&[]), &[31, 32]),
        ],
    );
    let on_true =
        computation(2, vec![parameter(11, 0, f32s(&[2])), instruction(12, "copy", f32s(&[2]), &[11])]);
    let on_false =
        computation(3, vec![parameter(21, 0, f32s(&[2])), instruction(22, "logistic", f32s(&[2]), &[21])]);
    let map = HloInstructionProto {
        dimensions: vec![0],
        ..calling(instruction(3, "map", f32s(&[2]), &[2, 2]), &[1])
    };
    let entry = computation(
        4,
        vec![
            parameter(1, 0, shape(DType::Pred, &[])),
            parameter(2, 1, f32s(&[2])),
            map,
            calling(instruction(4, "conditional", f32s(&[2]), &[1, 3, 2]), &[2, 3]),
        ],
    );
    let graph = import(&module(vec![add, on_true, on_false, entry])).unwrap();
    let [_, _, map, conditional] = &graph.entry.nodes[..] else { panic!("{:?}", graph.entry) };
    assert!(matches!(&map.op, Op::Map { computation } if computation.nodes.len() == 3));
    let Op::Conditional { branches } = &conditional.op else { panic!("{:?}", conditional.op) };
    // On true the first one runs, which copies.
    let roots: Vec<&str> = branches.iter().map(|branch| branch.node(branch.root).op.name()).collect();
    assert_eq!(roots, ["copy", "logistic"]);
    let again = Graph::from_hlo_proto(&graph.to_hlo_proto().unwrap()).unwrap();
    assert_eq!(again.entry.nodes[2..], graph.entry.nodes[2..]);
}

/// Modules that are wrong, and a part of what the message must say.
fn wrong_modules() -> Vec<(&'static str, HloModuleProto, &'static str)> {
    let scalar = || f32s(&[]);
    let p = || parameter(1, 0, scalar());
    let one = |instructions| module(vec![computation(1, instructions)]);
    let with_f = |f: Vec<HloInstructionProto>, entry| module(vec![computation(1, f), computation(2, entry)]);
    let identity = || vec![p()];
    let constant = |values: usize| {
        let mut constant = instruction(1, "constant", f32s(&[3]), &[]);
        let literal = LiteralProto { shape: f32s(&[3]), f32s: vec![0.0; values], ..LiteralProto::default() };
        constant.literal = Some(Box::new(literal));
        constant
    };
    let call = |ids: &[i64]| calling(instruction(2, "call", scalar(), &[1]), ids);
    let mut no_root = one(vec![p()]);
    no_root.computations[0].root_id = 5;
    let mut no_entry = one(vec![p()]);
    no_entry.entry_computation_id = 3;
    let mut by_name = one(vec![p()]);
    by_name.entry_computation_id = 0;
    by_name.entry_computation_name = "nobody".to_owned();
    let mut dynamic = p();
    dynamic.shape = Some(ShapeProto { is_dynamic_dimension: vec![true], ..f32s(&[3]).unwrap() });
    let mut direction = instruction(2, "compare", shape(DType::Pred, &[]), &[1, 1]);
    direction.comparison_direction = "LQ".to_owned();
    let mut stride = instruction(2, "slice", f32s(&[1]), &[1]);
    stride.slice_dimensions = vec![SliceDimensions { start: 0, limit: 1, stride: 0 }];
    let mut long = instruction(2, "transpose", scalar(), &[1]);
    long.dimensions = vec![0; 1000];
    let gte = HloInstructionProto { tuple_index: 3, ..instruction(2, "get-tuple-element", scalar(), &[1]) };
    vec![
        ("nothing", HloModuleProto { id: 1, ..HloModuleProto::default() }, "it has no computations"),
        ("no entry", no_entry, "its entry computation `` (id 3) is not among its 1 computations"),
        ("no entry of the name", by_name, "its entry computation `nobody`"),
        ("no root", no_root, "`computation.1`: its root is instruction 5, which it does not have"),
        ("empty computation", one(vec![]), "its root is instruction 0"),
        (
            "two computations of one id",
            module(vec![computation(1, identity()), computation(1, identity())]),
            "computations `computation.1` and `computation.1` have the same id 1",
        ),
        (
            "two instructions of one id",
            one(vec![p(), instruction(1, "abs", scalar(), &[])]),
            "`abs.1` (abs) of computation `computation.1`: its id 1 is also that of `parameter.1`",
        ),
        (
            "missing operand",
            one(vec![p(), instruction(2, "abs", scalar(), &[7])]),
            "its operand 7 is not an instruction of this computation",
        ),
        (
            "cycle",
            one(vec![
                p(),
                instruction(2, "add", scalar(), &[1, 4]),
                instruction(3, "abs", scalar(), &[2]),
                instruction(4, "abs", scalar(), &[3]),
            ]),
            "need each other in a circle: `add.2` ← `abs.4` ← `abs.3` ← `add.2`",
        ),
        ("its own operand", one(vec![instruction(2, "abs", scalar(), &[2])]), "circle: `abs.2` ← `abs.2`"),
        ("parameter gap", one(vec![p(), parameter(2, 2, scalar())]), "none with the number 1"),
        ("parameter twice", one(vec![p(), parameter(2, 0, scalar())]), "two parameters with the number 0"),
        ("negative parameter", one(vec![parameter(1, -1, scalar())]), "parameter number: found -1"),
        ("huge parameter", one(vec![parameter(1, i64::MAX, scalar())]), "none with the number 0"),
        ("no opcode", one(vec![instruction(1, "", scalar(), &[])]), "no opcode"),
        ("no shape", one(vec![instruction(1, "parameter", None, &[])]), "no shape"),
        (
            "no element type",
            one(vec![instruction(1, "parameter", Some(ShapeProto::default()), &[])]),
            "no element type",
        ),
        ("dynamic", one(vec![dynamic]), "`parameter.1` (parameter) of computation `computation.1`: dynamic"),
        ("too many elements", one(vec![parameter(1, 0, f32s(&[1 << 40, 1 << 40]))]), "too large"),
        ("too many iota", one(vec![instruction(1, "iota", f32s(&[1 << 45]), &[])]), "too large"),
        ("no literal", one(vec![instruction(1, "constant", f32s(&[3]), &[])]), "no literal"),
        ("short literal", one(vec![constant(2)]), "needs 3 elements, found 2"),
        ("long literal", one(vec![constant(4)]), "needs 3 elements, found 4"),
        ("call of nothing", one(vec![p(), call(&[])]), "it calls 0 computations, expected 1"),
        ("call of the unknown", one(vec![p(), call(&[9])]), "it calls computation 9, which the module"),
        ("call of oneself", one(vec![p(), call(&[1])]), "computation `computation.1`: it calls itself"),
        ("call of two", with_f(identity(), vec![p(), call(&[1, 1])]), "calls 2 computations, expected 1"),
        (
            "call with too many",
            with_f(identity(), vec![p(), calling(instruction(2, "call", scalar(), &[1, 1]), &[1])]),
            "found 2 operands, expected 1",
        ),
        (
            "call of another type",
            with_f(vec![parameter(1, 0, f32s(&[2]))], vec![p(), call(&[1])]),
            "operand 0 is f32[], expected f32[2]",
        ),
        (
            "call with another result",
            with_f(identity(), vec![p(), calling(instruction(2, "call", f32s(&[2]), &[1]), &[1])]),
            "its type is f32[2], expected f32[]",
        ),
        (
            "while with one computation",
            with_f(identity(), vec![p(), calling(instruction(2, "while", scalar(), &[1]), &[1])]),
            "calls 1 computations, expected 2",
        ),
        (
            "conditional without branches",
            one(vec![p(), instruction(2, "conditional", scalar(), &[1])]),
            "calls 0 computations, expected 1 or more",
        ),
        ("no such comparison", one(vec![p(), direction]), "direction: found \"LQ\""),
        ("stride of nothing", one(vec![parameter(1, 0, f32s(&[1])), stride]), "slice stride: found 0"),
        ("far too many axes", one(vec![p(), long]), "found 1000 values, expected at most 64"),
        (
            "no dimension numbers",
            one(vec![p(), instruction(2, "dot", scalar(), &[1, 1])]),
            "no dimension numbers",
        ),
        ("too few operands", one(vec![p(), instruction(2, "add", scalar(), &[1])]), "`add.2`"),
        ("no tuple", one(vec![p(), gte]), "`get-tuple-element.2`"),
        ("another type", one(vec![p(), instruction(2, "add", f32s(&[2]), &[1, 1])]), "`add.2`"),
    ]
}

#[test]
fn wrong_modules_are_refused_by_name() {
    let mut wrong = Vec::new();
    for (name, module, wanted) in wrong_modules() {
        match import(&module) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) => {
                let text = error.to_string();
                if !text.contains(wanted) || text.contains('\n') {
                    wrong.push(format!("{name}: {text}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bytes_that_are_no_module() {
    let good = module(vec![computation(1, vec![parameter(1, 0, f32s(&[]))])]).encode_to_vec();
    assert!(Graph::from_hlo_proto(&good).is_ok());
    let mut bad_instruction = module(vec![computation(1, vec![])]);
    bad_instruction.computations[0].name = "c".to_owned();
    let mut bytes = Vec::new();
    // A computation whose instruction claims a name of 100 bytes.
    bytes.extend_from_slice(&[0x12, 1, b'c', 0x1a, 9, 0x0a, 1, b'c', 0x12, 4, 0x0a, 100, b'x', b'y']);
    for (bytes, wanted) in [
        (&b""[..], "it is empty"),
        (b"HloModule jit_f, entry_computation_layout={}", "not an HLO module"),
        (&[0x1a, 0], "it has no module"),
        (&[0x0a, 0], "not an HLO module: it has no module"),
        (&good[..good.len() - 1], "ends inside a field"),
        (&bytes, "computation `c`: instruction 0 of 1 cannot be decoded"),
    ] {
        let error = Graph::from_hlo_proto(bytes).unwrap_err().to_string();
        let fits =
            error.contains(wanted) || wanted.ends_with("no module") && error.contains("no computations");
        assert!(fits && !error.contains('\n'), "wanted {wanted:?}, found {error:?}");
    }
}

/// A chain of computations: each calls the next one `calls` times.
fn chain(length: i64, calls: i64) -> HloModuleProto {
    let mut computations = vec![computation(1, vec![parameter(1, 0, f32s(&[]))])];
    for id in 2..=length {
        let mut instructions = vec![parameter(1, 0, f32s(&[]))];
        for call in 0..calls {
            let operands = [call + 1];
            instructions.push(calling(instruction(call + 2, "call", f32s(&[]), &operands), &[id - 1]));
        }
        computations.push(computation(id, instructions));
    }
    module(computations)
}

#[test]
fn calls_do_not_nest_or_multiply_without_end() {
    assert!(import(&chain(60, 1)).is_ok());
    for (what, module, wanted) in [
        ("a deep chain", chain(100_000, 1), "nested more than"),
        ("a chain of pairs", chain(64, 2), "with calls inlined it would have"),
        ("a few calls of much", chain(7, 20), "with calls inlined it would have"),
    ] {
        let error = import(&module).unwrap_err().to_string();
        assert!(error.contains(wanted), "{what}: {error}");
    }
}

#[test]
fn bytes_that_would_grow_when_decoded_are_refused() {
    let wide = tuple(&vec![Some(ShapeProto::default()); 1_000_000]);
    let many = HloComputationProto {
        instructions: vec![HloInstructionProto::default(); 1_100_000],
        ..computation(1, vec![])
    };
    for (what, module, wanted) in [
        (
            "one wide type",
            module(vec![computation(1, vec![parameter(1, 0, wide)])]),
            "bytes without its data",
        ),
        ("many instructions", module(vec![many]), "found 1100000 instructions, expected at most"),
    ] {
        let error = import(&module).unwrap_err().to_string();
        assert!(error.contains(wanted), "{what}: {error}");
    }
    let mut constant = instruction(1, "constant", f32s(&[1 << 20]), &[]);
    let literal =
        LiteralProto { shape: f32s(&[1 << 20]), f32s: vec![1.0; 1 << 20], ..LiteralProto::default() };
    constant.literal = Some(Box::new(literal));
    assert!(import(&module(vec![computation(1, vec![constant])])).is_ok());
}

#[test]
fn computations_that_call_each_other() {
    let calls = |id: i64, other: i64| {
        computation(
            id,
            vec![parameter(1, 0, f32s(&[])), calling(instruction(2, "call", f32s(&[]), &[1]), &[other])],
        )
    };
    let error = import(&module(vec![calls(1, 2), calls(2, 3), calls(3, 1)])).unwrap_err().to_string();
    assert!(error.contains("it calls itself"), "{error}");
}

#[test]
fn names_are_made_fit_for_text() {
    let mut odd = module(vec![computation(
        1,
        vec![
            HloInstructionProto { name: "a b\n%c".to_owned(), ..parameter(1, 0, f32s(&[])) },
            HloInstructionProto { name: "a b\n%c".to_owned(), ..instruction(2, "abs", f32s(&[]), &[1]) },
            HloInstructionProto { name: String::new(), ..instruction(3, "abs", f32s(&[]), &[2]) },
        ],
    )]);
    odd.name = "m{}".to_owned();
    odd.computations[0].name = "main\r".to_owned();
    let graph = import(&odd).unwrap();
    assert_eq!(graph.name, "m__");
    assert_eq!(graph.entry.name, "main_");
    assert_eq!(names(&graph.entry), ["a_b__c", "a_b__c.1", "unnamed"]);
}
