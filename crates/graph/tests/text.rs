//! HLO text: what the printer writes reads back to the same graph, XLA's own text to the graph of the same module, and
//! nothing makes the parser panic.

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use common::{models, modules};
use qwix_array::{Array, DType};
use qwix_graph::text::TextOptions;
use qwix_graph::*;
use qwix_quant::{Granularity, HowToQuantize, QType, Tile};

#[test]
fn every_model_reads_back() {
    let mut failures = Vec::new();
    for (name, bytes) in modules() {
        let graph = Graph::from_hlo_proto(&bytes).unwrap();
        let text = graph.to_text(TextOptions::default());
        match Graph::from_text(&text) {
            Ok(read) if read == graph => {}
            Ok(read) => failures.push(format!("{name}: {}", first_difference(&graph, &read))),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn first_difference(a: &Graph, b: &Graph) -> String {
    if let Some((a, b)) = a.parameters.iter().zip(&b.parameters).find(|(a, b)| a != b) {
        return format!("{a:?}\n{b:?}");
    }
    match a.entry.nodes.iter().zip(&b.entry.nodes).find(|(a, b)| a != b) {
        Some((a, b)) => format!("{a:?}\n{b:?}"),
        None => "not the nodes".into(),
    }
}

/// A computation without names, metadata and order: nodes as they are met from the root on.
fn shape_of(computation: &Computation) -> Vec<String> {
    fn visit(
        c: &Computation,
        id: NodeId,
        places: &mut HashMap<NodeId, usize>,
        out: &mut Vec<String>,
    ) -> usize {
        if let Some(&place) = places.get(&id) {
            return place;
        }
        let node = c.node(id);
        let operands: Vec<usize> = node.operands.iter().map(|&o| visit(c, o, places, out)).collect();
        let called: Vec<_> = node.op.called().iter().map(|called| shape_of(called)).collect();
        let mut op = node.op.clone();
        for called in op.called_mut() {
            *called = Default::default();
        }
        let bytes = if let Op::Constant(array) = &op { array.bytes().to_vec() } else { Vec::new() };
        out.push(format!("{op:?} {bytes:?} {} {operands:?} {called:?}", node.ty));
        places.insert(id, out.len() - 1);
        out.len() - 1
    }
    let mut out = Vec::new();
    visit(computation, computation.root, &mut HashMap::new(), &mut out);
    out
}

/// The files are `HloModule.to_string()` of the golden models (`short` without types, metadata and `%`).
#[test]
fn text_of_xla_is_the_module() {
    let models: HashMap<String, Vec<u8>> =
        modules().into_iter().map(|(name, bytes)| (name.replace("models/", ""), bytes)).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/xla_text");
    let (mut failures, mut cases) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = models
            .get(file.replace("ops+", "ops/").split('.').next().unwrap())
            .unwrap_or_else(|| panic!("no model for {file}"));
        let expected = Graph::from_hlo_proto(model).unwrap();
        cases += 1;
        match Graph::from_text(&std::fs::read_to_string(&path).unwrap()) {
            Err(error) => failures.push(format!("{file}: {error}")),
            Ok(found) => {
                let (e, f) = (shape_of(&expected.entry), shape_of(&found.entry));
                if e != f {
                    let (e, f) = e.iter().zip(&f).find(|(e, f)| e != f).unwrap();
                    failures.push(format!("{file}:\n  proto {e}\n  text  {f}"));
                } else if !file.contains(".short.") && !file.contains(".comp.") {
                    let signature = |g: &Graph| {
                        g.parameters
                            .iter()
                            .map(|p| (p.path.clone(), p.role, p.ty.clone()))
                            .collect::<Vec<_>>()
                    };
                    if signature(&expected) != signature(&found) {
                        failures.push(format!("{file}: the signatures differ"));
                    }
                }
            }
        }
    }
    assert!(cases > 4);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn constant_graph(array: &Array) -> Graph {
    let mut b = GraphBuilder::new("constant");
    let c = b.constant(array.clone()).unwrap();
    b.finish(c).unwrap()
}

#[test]
fn constants_keep_their_bits() {
    let mut arrays: Vec<Array> = Vec::new();
    // Every number of the narrow types, and of the wide ones their edges and NaNs with any payload.
    for dtype in DType::all().filter(|d| d.bits() < 8) {
        let codes: Vec<u8> = (0..1u8 << dtype.bits()).collect();
        arrays.push(Array::pack(dtype, &[codes.len()], &codes).unwrap());
    }
    for dtype in [DType::S8, DType::U8, DType::F8E4M3FN, DType::F8E5M2] {
        arrays.push(Array::from_bytes(dtype, &[2, 128], (0..=255).collect()).unwrap());
    }
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [DType::S16, DType::U16, DType::F16, DType::BF16] {
        arrays.push(Array::from_bytes(dtype, &[256, 16, 16], all.clone()).unwrap());
    }
    let mut state = 1u64;
    let words: Vec<u64> = (0..2000u64)
        .map(|i| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match i {
                0 => 0,
                1 => u64::MAX,
                2 => 1 << 63,
                3 => 1 << 63 | 0x8000_0000,
                4 => 0x7ff0_0000_0000_0000,
                5 => 0xff80_0000_7f80_0000,
                6 => 0x7fc0_0000_ffc0_0000,
                7 => 0x0000_0001_0080_0000,
                _ => state,
            }
        })
        .collect();
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    for dtype in [DType::S64, DType::U64, DType::F64] {
        arrays.push(Array::from_bytes(dtype, &[50, 40], bytes.clone()).unwrap());
    }
    for dtype in [DType::S32, DType::U32, DType::F32] {
        arrays.push(Array::from_bytes(dtype, &[4000], bytes.clone()).unwrap());
    }
    arrays.push(Array::from_bytes(DType::Pred, &[2, 2], vec![0, 1, 1, 0]).unwrap());
    arrays.push(Array::from_bytes(DType::Pred, &[], vec![1]).unwrap());
    arrays.push(Array::scalar(-0.0f32));
    arrays.push(Array::zeros(DType::F32, &[2, 0, 3]).unwrap());
    arrays.push(Array::zeros(DType::F32, &[1, 1, 1]).unwrap());

    let mut failures = Vec::new();
    for array in arrays {
        let graph = constant_graph(&array);
        match Graph::from_text(&graph.to_text(TextOptions::default())) {
            Ok(read) if read == graph => {}
            Ok(_) => failures.push(format!("{array:?}: other bits")),
            Err(error) => failures.push(format!("{array:?}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One of everything that the goldens do not have.
const OTHERS: &str = r#"
HloModule others

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ge {
  a.1 = f32[] parameter(0)
  b.1 = f32[] parameter(1)
  ROOT ge.1 = pred[] compare(a.1, b.1), direction=GE, type=TOTALORDER
}

twice {
  x = f32[] parameter(0)
  ROOT y = f32[] add(x, x)
}

ENTRY %main (x: f32[4,6]) -> (f32[4,6]) {
  %x = f32[4,6]{1,0:T(8,128)} parameter(0), sharding={devices=[2,1]<=[2]} // a comment
  %s = f32[] constant(-inf)
  %map = f32[4,6]{1,0} map(f32[4,6]{1,0} %x), dimensions={0,1}, to_apply=%twice
  %w = f32[2,3]{1,0} reduce-window(%x, %s), window={size=2x2 stride=2x2}, to_apply=%add
  %sas = f32[4,6]{1,0} select-and-scatter(%x, %w, %s), window={size=2x2 stride=2x2}, select=%ge, scatter=%add
  %rp = f32[4,6]{1,0} reduce-precision(%sas), exponent_bits=8, mantissa_bits=7
  %state = u64[2]{0} constant({1, 18446744073709551615})
  %rng = (u64[2]{0}, /*index=1*/u32[4,6]{1,0}) rng-bit-generator(%state), algorithm=rng_three_fry
  %bits = u32[4,6]{1,0} get-tuple-element(%rng), index=1
  %cc = f32[4,6]{1,0} custom-call(%rp), custom_call_target="some \"thing\"", backend_config={"a": {"b": 1}}
  %tok = token[] after-all()
  %fft = c64[4,4]{1,0} fft(%x), fft_type=RFFT, fft_length={6}
  %idx = s32[2,1]{1,0} constant({ {0}, {3} })
  %up = f32[2,6]{1,0} constant({ { 1, 2, 3, 4, 5, 6 }, { 1e-10, nan, 3, 4, 5, 6 } })
  %sc = f32[4,6]{1,0} scatter(%x, %idx, %up), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, unique_indices=true, to_apply=%add
  %bar = f32[4,6]{1,0} opt-barrier(%sc)
  %cl = f32[4,6]{1,0} clamp(%s, %bar, %s)
  %e4 = f8e4m3fn[4,6]{1,0} convert(%cl)
  ROOT %t = (f32[4,6]{1,0}, u32[4,6], f8e4m3fn[4,6]{1,0}, f32[4,6]) tuple(%cc, %bits, %e4, %map), metadata={op_type="x" op_name="jit(f)/\'q\'" source_line=3}
}
"#;

#[test]
fn ops_that_the_models_lack() {
    let graph = Graph::from_text(OTHERS).unwrap();
    let node = |name: &str| graph.entry.nodes.iter().find(|n| n.name == name).unwrap();
    assert!(
        matches!(&node("fft").op, Op::Unsupported(u) if u.reason == "the type c64[4,4] is not supported")
    );
    assert!(matches!(&node("tok").op, Op::Unsupported(u) if u.opcode == "after-all"));
    assert!(matches!(&node("cc").op, Op::CustomCall(c)
        if c.target == "some \"thing\"" && c.config == br#"{"a": {"b": 1}}"#));
    assert_eq!(node("t").metadata.op_name, "jit(f)/'q'");
    assert_eq!(node("x").sharding.as_ref().map(ToString::to_string).as_deref(), Some("{devices=[2,1]<=[2]}"));
    let read = Graph::from_text(&graph.to_text(TextOptions::default())).unwrap();
    assert_eq!(first_difference(&graph, &read), "not the nodes");
    assert_eq!(graph, read);
}

/// Quantized types, slots, key paths, names of all kinds, and two computations of one name.
fn quantized() -> Graph {
    let how = HowToQuantize {
        qtype: QType::by_name("int4").unwrap(),
        granularity: vec![Granularity::Tiled(Tile::Fraction(0.25)), Granularity::Channelwise],
        calibration: "absmax,0.9".parse().unwrap(),
    };
    let mut b = GraphBuilder::new("a module's name");
    b.set_scope("jit(f)/Net \"é\"\n");
    let x = b.input("x", Type::array(DType::BF16, [3, 8])).unwrap();
    let slot = WeightSlot {
        source: Path::new("Dense_0/kernel"),
        source_type: ArrayType::new(DType::BF16, [6, 4, 2]),
        prep: vec![
            Prep::Slice(vec![
                SliceDim { start: 1, limit: 6, stride: 4 },
                SliceDim { start: 0, limit: 4, stride: 1 },
                SliceDim { start: 0, limit: 2, stride: 1 },
            ]),
            Prep::Transpose(vec![1, 0, 2]),
            Prep::Reshape(vec![8, 2]),
        ],
        how,
    };
    let w = b.quantized_variable("Dense_0/kernel", slot).unwrap();
    let how = HowToQuantize {
        qtype: QType::by_name("float8_e4m3fn").unwrap(),
        granularity: vec![Granularity::Shared, Granularity::Tiled(Tile::Size(8))],
        calibration: "rms,3".parse().unwrap(),
    };
    let q = b.quantize(x, &how).unwrap();
    let x = b.dequantize(q).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let y = b.dot(x, w, &dims, DType::BF16).unwrap();
    let zero = b.constant(Array::zeros(DType::BF16, &[]).unwrap()).unwrap();
    let sum = b.reduce(BinaryOp::Add, y, zero, &[0]).unwrap();
    let max = b.reduce(BinaryOp::Maximum, y, zero, &[0]).unwrap();
    let t = b.tuple(&[sum, max, q]).unwrap();
    let mut graph = b.finish(t).unwrap();
    graph.parameters[1].key_path = Some(KeyPath {
        argument: "variables".into(),
        keys: vec!["params".into(), "a/b\\".into(), String::new()],
    });
    graph.parameters[0].ambiguous = true;
    let entry = std::sync::Arc::make_mut(&mut graph.entry);
    entry.nodes[0].name = "a name, of (sorts) */".into();
    for node in &mut entry.nodes {
        for called in node.op.called_mut() {
            let called = std::sync::Arc::make_mut(called);
            called.name = "one name */".into();
        }
    }
    entry.nodes[2].metadata.id = 77;
    graph.verify().unwrap();
    graph
}

#[test]
fn a_quantized_graph_reads_back() {
    let graph = quantized();
    let text = graph.to_text(TextOptions::default());
    let read = Graph::from_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(first_difference(&graph, &read), "not the nodes", "{text}");
    assert_eq!(graph, read);
    assert!(text.contains("q[int4 bf16[8,2] {tile 0.25x,channelwise} absmax,0.9] parameter(1)"), "{text}");
}

#[test]
fn short_text_leaves_long_constants_out() {
    let graph = constant_graph(&Array::zeros(DType::F32, &[17]).unwrap());
    let text = graph.to_text(TextOptions::short());
    assert!(text.contains("f32[17]{0} constant({...})"), "{text}");
    let error = Graph::from_text(&text).unwrap_err().to_string();
    assert!(error.ends_with("the constant's elements were left out of the text"), "{error}");
}

#[test]
fn faults_are_found_and_located() {
    let entry = |line: &str| format!("HloModule m\n\nENTRY e {{\n  {line}\n}}\n");
    let rows = [
        ("what".to_owned(), "line 1, column 1: expected HLO text, which begins with `HloModule`"),
        ("HloModule m".to_owned(), "line 1, column 12: expected a computation marked ENTRY, found the end"),
        (entry("x = f32[2] parameter(0"), "line 5, column 1: expected `)`, found `}`"),
        (
            entry("x = f32[2] negate(y)"),
            "line 4, column 21: the instruction `y` does not stand above, in the same computation",
        ),
        (
            entry("x = f32[2] constant({1, 2, 3})"),
            "line 4, column 30: more than 2 numbers for a constant of f32[2]",
        ),
        (entry("x = s8[] constant(128)"), "line 4, column 21: `128` is no s8"),
        (entry("x = f32[] constant(infinity)"), "line 4, column 22: `infinity` is no f32"),
        (
            entry("x = f32[<=4] parameter(0)"),
            "line 4, column 13: sizes that are known only when the model runs are not supported",
        ),
        (entry("x = f32[2] iota()"), "line 4, column 3: the attribute `iota_dimension` is missing"),
        (entry("x = f32[2] iota(), iota_dimension=7"), "`x` (iota) in `e`: counts along axis 7 of f32[2]"),
        (
            entry("x = f32[2] call(), to_apply=%f"),
            "line 4, column 31: the computation `f` does not stand above",
        ),
        (
            entry("x = f32[99999999999,99999999999] iota(), iota_dimension=0"),
            "`x` (iota) in `e`: f32[99999999999,99999999999] is too large for this machine",
        ),
        (
            entry("x = f32[99999999999,99999999999] parameter(0)"),
            "`x` (parameter) in `e`: f32[99999999999,99999999999] is too large for this machine",
        ),
        (
            entry(&format!("x = f32[1{}] parameter(0)", ",1".repeat(64))),
            "`x` (parameter) in `e`: an array of 65 axes, expected at most 64",
        ),
        (entry("x = q[int9 f32[2] {_} absmax] parameter(0)"), "line 4, column 9: `int9` is not a qtype"),
        (
            entry("x = q[int8 f32[2,1] {_} absmax] parameter(0)\n  y = q[int8 f32[2] {_} absmax] reshape(x)"),
            "`x` (parameter) in `e`: q[int8 f32[2,1] {_} absmax]: an array of shape [2, 1] has 2 axes, its granularity 1",
        ),
        (
            entry("x = q[mxfp8 f32[64] {tile 16} absmax] parameter(0)"),
            "`x` (parameter) in `e`: q[mxfp8 f32[64] {tile 16} absmax]: mxfp8 needs tiles of 32",
        ),
        (entry("x = f32[2] add(), slice={[0:1"), "line 5, column 1: `[` is closed by `}`"),
        ("HloModule m, a={".to_owned(), "line 1, column 16: `{` is not closed"),
        (
            entry("x = f32[] parameter(0)\n  x = f32[] parameter(1)"),
            "line 5, column 3: a second instruction is called `x`",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in rows {
        match Graph::from_text(&text) {
            Ok(_) => wrong.push(format!("{text:?} was read")),
            Err(error) if error.to_string().starts_with(expected) => {}
            Err(error) => wrong.push(format!("{text:?}:\n  {error}\n  expected {expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damaged_text_never_panics() {
    let mut texts = vec![OTHERS.to_owned(), quantized().to_text(TextOptions::default())];
    for (name, bytes) in models() {
        if ["moe", "scan_layers", "linen_cnn", "control_flow"].iter().any(|n| name.ends_with(n)) {
            texts.push(Graph::from_hlo_proto(&bytes).unwrap().to_text(TextOptions::short()));
        }
    }
    let mut state = 42u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let pieces = [
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        "\"",
        "%",
        "=",
        "0",
        "-1",
        "99999999999999999999",
        "/*",
        "ROOT ",
        "é",
        "x",
    ];
    let mut read = 0;
    for text in &texts {
        for _ in 0..1500 {
            let mut chars: Vec<char> = text.chars().collect();
            for _ in 0..1 + random(3) {
                let at = random(chars.len());
                match random(4) {
                    0 => chars.truncate(at),
                    1 => drop(chars.remove(at.min(chars.len() - 1))),
                    2 => {
                        let piece = pieces[random(pieces.len())];
                        chars.splice(at..at, piece.chars());
                    }
                    _ => {
                        let from = random(chars.len());
                        let end = (from + random(40)).min(chars.len());
                        let moved: Vec<char> = chars[from..end].to_vec();
                        chars.splice(at..at, moved);
                    }
                }
                if chars.is_empty() {
                    chars.push('H');
                }
            }
            let damaged: String = chars.into_iter().collect();
            if let Ok(graph) = Graph::from_text(&damaged) {
                read += 1;
                // What can be read can be printed, and read again.
                let text = graph.to_text(TextOptions::default());
                assert!(Graph::from_text(&text).is_ok_and(|again| again == graph), "{text}");
            }
        }
    }
    assert!(read > 0);
    // Depth must not reach the end of the stack.
    for open in ["(", "((f32[],", "/*", "\"", "{"] {
        let _ = Graph::from_text(&format!("HloModule m\nENTRY e {{\n x = {} ", open.repeat(100_000)));
    }
    let mut chain = String::from("HloModule m\nc0 {\n  x = f32[] parameter(0)\n}\n");
    for i in 1..5000 {
        chain +=
            &format!("c{i} {{\n  x = f32[] parameter(0)\n  y = f32[] call(x), to_apply=c{}\n}}\n", i - 1);
    }
    let error = Graph::from_text(&chain).unwrap_err().to_string();
    assert!(error.contains("more than 100 deep"), "{error}");
}
