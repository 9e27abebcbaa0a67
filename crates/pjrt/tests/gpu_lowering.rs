//! What is written otherwise for GPUs computes the same, by the reference evaluator; no device is needed.

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend};
use qwix_graph::{ConvDims, DotDims, Graph, GraphBuilder, Op, Precision, Type, WindowDim};
use qwix_pjrt::lower;

/// Every value of the dtype, mixed.
fn numbers(dtype: DType, shape: &[usize], seed: u32) -> Array {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u8
    };
    let count: usize = shape.iter().product();
    let code = |code: u8| match dtype {
        DType::F8E4M3FN if code & 0x7f == 0x7f => 0,
        DType::F8E5M2 if code & 0x7c == 0x7c => 0x3c,
        DType::S2 => code & 3,
        DType::S4 | DType::U4 | DType::F4E2M1FN => code & 15,
        _ => code,
    };
    let codes: Vec<u8> = (0..count).map(|_| code(next())).collect();
    Array::pack(dtype, shape, &codes).unwrap()
}

fn run(graph: &Graph, inputs: &[Array]) -> Array {
    let outputs = ReferenceBackend::default().compile(graph, Params::new()).unwrap().run(inputs).unwrap();
    outputs.into_iter().next().unwrap()
}

/// The difference between a graph and what is made of it for GPUs, if there is one, and the latter.
fn complaint(name: &str, graph: &Graph) -> (Option<String>, Graph) {
    let lowered = lower(graph, "cuda", Precision::Default).unwrap();
    let inputs: Vec<Array> = graph
        .parameters
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let ty = p.ty.as_array().unwrap();
            numbers(ty.dtype, &ty.shape, i as u32 + 1)
        })
        .collect();
    let (expected, found) = (run(graph, &inputs), run(&lowered, &inputs));
    let same = expected.dtype() == found.dtype()
        && expected.shape() == found.shape()
        && expected.bytes() == found.bytes();
    ((!same).then(|| format!("{name}: expected {expected:?}, found {found:?}")), lowered)
}

fn dot_graph(lhs: (DType, &[usize]), rhs: (DType, &[usize]), dims: &DotDims, result: DType) -> Graph {
    let mut b = GraphBuilder::new("dot");
    let x = b.input("x", Type::array(lhs.0, lhs.1)).unwrap();
    let w = b.input("w", Type::array(rhs.0, rhs.1)).unwrap();
    let product = b.dot(x, w, dims, result).unwrap();
    b.finish(product).unwrap()
}

#[test]
fn dots_of_bytes_are_filled_up() {
    let mut wrong = Vec::new();
    let matrix = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    for k in [0, 1, 2, 3, 4, 5, 7, 8, 12, 13] {
        for dtypes in
            [(DType::S8, DType::S8), (DType::S8, DType::S4), (DType::U8, DType::S8), (DType::S2, DType::U4)]
        {
            let graph = dot_graph((dtypes.0, &[3, k]), (dtypes.1, &[k, 5]), &matrix, DType::S32);
            let (complaint, lowered) = complaint(&format!("{dtypes:?} over {k}"), &graph);
            wrong.extend(complaint);
            for node in &lowered.entry.nodes {
                let Op::Dot(dims) = &node.op else { continue };
                let lhs = lowered.entry.node(node.operands[0]).ty.as_array().unwrap();
                assert_eq!(lhs.shape[dims.lhs_contracting[0]] % 16, 0, "{k}");
                assert_eq!(lhs.dtype.bits(), 8, "{k}");
            }
        }
    }
    let batched = DotDims {
        lhs_contracting: vec![1, 3],
        rhs_contracting: vec![2, 0],
        lhs_batch: vec![0],
        rhs_batch: vec![1],
        ..DotDims::default()
    };
    for (j, k) in [(1, 1), (3, 5), (2, 2), (4, 3), (1, 7)] {
        let graph = dot_graph((DType::S8, &[2, j, 3, k]), (DType::S8, &[k, 2, j, 4]), &batched, DType::S32);
        wrong.extend(complaint(&format!("over {j} and {k} with a batch"), &graph).0);
    }
    let outer = dot_graph((DType::S8, &[3]), (DType::S8, &[2]), &DotDims::default(), DType::S32);
    wrong.extend(complaint("over nothing", &outer).0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn narrow_floats_are_widened() {
    let mut wrong = Vec::new();
    let matrix = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    for dtype in [DType::F4E2M1FN, DType::F8E4M3FN, DType::F8E5M2] {
        let graph = dot_graph((dtype, &[3, 7]), (dtype, &[7, 5]), &matrix, DType::F32);
        wrong.extend(complaint(&dtype.to_string(), &graph).0);
    }
    let mut b = GraphBuilder::new("convert");
    let x = b.input("x", Type::array(DType::S4, [3, 5])).unwrap();
    let y = b.convert(x, DType::F32).unwrap();
    let (complaint, lowered) = complaint("convert", &b.finish(y).unwrap());
    wrong.extend(complaint);
    assert!(lowered.entry.nodes.iter().any(|node| matches!(node.op, Op::OptimizationBarrier)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn convolutions_of_integers_are_dots() {
    let plain = |size| WindowDim::new(size);
    type Row = (&'static str, Vec<usize>, Vec<usize>, Vec<WindowDim>, usize);
    let rows: Vec<Row> = vec![
        ("plain", vec![2, 5, 6, 3], vec![3, 2, 3, 4], vec![plain(3), plain(2)], 1),
        ("one by one", vec![1, 4, 4, 8], vec![1, 1, 8, 5], vec![plain(1), plain(1)], 1),
        (
            "strides and padding",
            vec![2, 7, 5, 2],
            vec![3, 3, 2, 3],
            vec![
                WindowDim { stride: 2, padding_low: 1, padding_high: 2, ..plain(3) },
                WindowDim { stride: 3, padding_low: 2, ..plain(3) },
            ],
            1,
        ),
        (
            "dilated",
            vec![1, 6, 5, 2],
            vec![2, 3, 2, 3],
            vec![
                WindowDim { window_dilation: 2, base_dilation: 3, ..plain(2) },
                WindowDim { base_dilation: 2, padding_low: -1, padding_high: -2, ..plain(3) },
            ],
            1,
        ),
        (
            "reversed",
            vec![1, 6, 5, 2],
            vec![3, 2, 2, 3],
            vec![
                WindowDim { reversal: true, ..plain(3) },
                WindowDim { reversal: true, stride: 2, ..plain(2) },
            ],
            1,
        ),
        (
            "groups",
            vec![2, 5, 4, 6],
            vec![2, 2, 2, 9],
            vec![plain(2), WindowDim { padding_high: 1, ..plain(2) }],
            3,
        ),
        (
            "depthwise",
            vec![2, 5, 4, 3],
            vec![3, 3, 1, 6],
            vec![WindowDim { padding_low: 1, padding_high: 1, ..plain(3) }; 2],
            3,
        ),
        ("no position", vec![1, 2, 2, 3], vec![3, 3, 3, 2], vec![plain(3), plain(3)], 1),
        ("no axis", vec![3, 5], vec![5, 2], vec![], 1),
    ];
    let mut wrong = Vec::new();
    for (name, input, kernel, window, groups) in rows {
        for (dtypes, order) in
            [((DType::S8, DType::S8), 0), ((DType::S8, DType::S4), 1), ((DType::F8E4M3FN, DType::F8E5M2), 0)]
        {
            let n = window.len();
            // Features last, or first with the spatial axes exchanged.
            let (batch, feature, spatial): (usize, usize, Vec<usize>) = match order {
                0 => (0, n + 1, (1..=n).collect()),
                _ => (n + 1, 0, (1..=n).rev().collect()),
            };
            let dims = ConvDims {
                input_batch: batch,
                input_feature: feature,
                input_spatial: spatial.clone(),
                output_batch: feature,
                output_feature: batch,
                output_spatial: spatial.clone(),
                kernel_input_feature: n,
                kernel_output_feature: n + 1,
                kernel_spatial: (0..n).collect(),
                window: window.clone(),
                feature_group_count: groups,
                batch_group_count: 1,
                operand_precision: Default::default(),
            };
            let mut shape = vec![0; n + 2];
            (shape[batch], shape[feature]) = (input[0], input[n + 1]);
            for (i, &axis) in spatial.iter().enumerate() {
                shape[axis] = input[i + 1];
            }
            let mut b = GraphBuilder::new("convolution");
            let x = b.input("x", Type::array(dtypes.0, shape)).unwrap();
            let k = b.input("k", Type::array(dtypes.1, kernel.clone())).unwrap();
            let result = if dtypes.0.is_int() { DType::S32 } else { DType::F32 };
            let product = b.convolution(x, k, &dims, result).unwrap();
            let (complaint, lowered) =
                complaint(&format!("{name} of {dtypes:?}"), &b.finish(product).unwrap());
            wrong.extend(complaint);
            let left = lowered.entry.nodes.iter().any(|node| matches!(node.op, Op::Convolution(_)));
            assert_eq!(left, !dtypes.0.is_int() || name == "no position", "{name} of {dtypes:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_models_own_precision_is_a_floor() {
    for (own, least, expected) in [
        (Precision::Default, Precision::Default, Precision::Default),
        (Precision::Default, Precision::Highest, Precision::Highest),
        (Precision::Highest, Precision::High, Precision::Highest),
    ] {
        let dims = DotDims {
            lhs_contracting: vec![1],
            rhs_contracting: vec![0],
            operand_precision: [own; 2],
            ..DotDims::default()
        };
        let mut b = GraphBuilder::new("dot");
        let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
        let product = b.dot(x, x, &DotDims { rhs_contracting: vec![1], ..dims }, DType::F32).unwrap();
        let graph = b.finish(product).unwrap();
        let read =
            Graph::from_hlo_proto(&lower(&graph, "cuda", least).unwrap().to_hlo_proto().unwrap()).unwrap();
        let found = read.entry.nodes.iter().find_map(|node| match &node.op {
            Op::Dot(dims) => Some(dims.operand_precision),
            _ => None,
        });
        assert_eq!(found, Some([expected; 2]), "{own:?} and at least {least:?}");
        let text = Graph::from_text(&read.to_text(Default::default())).unwrap();
        assert_eq!(
            text.to_hlo_proto().unwrap(),
            read.to_hlo_proto().unwrap(),
            "{own:?} and at least {least:?}"
        );
    }
}
