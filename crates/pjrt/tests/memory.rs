//! Memory stays where it is, however often something runs or is compiled.
#![cfg(target_os = "linux")]

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{BinaryOp, DotDims, Graph, GraphBuilder, Op, Path, Type};
use qwix_pjrt::{Argument, Client, CompileOptions, Program, XlaBackend};

/// The bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

const SIZE: usize = 256;

/// tanh(x · w), with w of f32[256,256]: a quarter of a megabyte, so that a copy that is lost shows.
fn model() -> (Graph, Params, Vec<Array>) {
    let mut b = GraphBuilder::new("model");
    let x = b.input("x", Type::array(DType::F32, [SIZE, SIZE])).unwrap();
    let w = b.variable("w", Type::array(DType::F32, [SIZE, SIZE])).unwrap();
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let product = b.dot(x, w, &dims, DType::F32).unwrap();
    let result = b.unary(qwix_graph::UnaryOp::Tanh, product).unwrap();
    let graph = b.finish(result).unwrap();
    let array = Array::from_vec(&[SIZE, SIZE], vec![0.01f32; SIZE * SIZE]).unwrap();
    let params = Params::from([(Path::new("w"), Value::Array(array.clone()))]);
    (graph, params, vec![array])
}

/// How many bytes the process grows by in `count` rounds, after a fifth as many for warming up.
fn growth(count: usize, mut round: impl FnMut()) -> usize {
    for _ in 0..count.div_ceil(5) {
        round();
    }
    let before = resident();
    for _ in 0..count {
        round();
    }
    resident().saturating_sub(before)
}

/// (x + x, x), where the first result may take the memory of x.
fn donating() -> Program {
    let mut b = GraphBuilder::new("donating");
    let x = b.input("x", Type::array(DType::F32, [SIZE, SIZE])).unwrap();
    let y = b.binary(BinaryOp::Add, x, x).unwrap();
    let root = b.tuple(&[y]).unwrap();
    let mut bytes = Program::new(&b.finish(root).unwrap()).unwrap().bytes().to_vec();
    // HloModuleProto.input_output_alias (8): an entry (1) with output_shape_index (1) [0] and kind (4) may-alias (1).
    bytes.extend([0x42, 0x07, 0x0a, 0x05, 0x0a, 0x01, 0x00, 0x20, 0x01]);
    Program::from_hlo_proto(bytes).unwrap()
}

/// A graph whose result has more bytes than any address has bits for.
fn too_large() -> Graph {
    let mut b = GraphBuilder::new("large");
    let x = b.input("x", Type::array(DType::F32, [SIZE, SIZE])).unwrap();
    let dimensions = vec![0, 1];
    let large = Type::array(DType::F32, [SIZE, SIZE, 1 << 29]);
    let root = b.add_as(Op::Broadcast { dimensions }, &[x], large).unwrap();
    b.finish(root).unwrap()
}

/// What is done again and again.
type Round<'a> = Box<dyn FnMut() + 'a>;

/// One test, for all measure the process.
#[test]
fn runs_and_compilations_leave_nothing_behind() {
    let Some(plugin) = common::plugin() else { return };
    let client = Client::new(&plugin, &common::options(1)).unwrap();
    let device = &client.devices()[0];
    let backend = XlaBackend::on(&client, 0).unwrap();
    let (graph, params, inputs) = model();
    let options = CompileOptions::default();
    let executable = backend.compile(&graph, params.clone()).unwrap();
    let program = Program::new(&graph).unwrap();
    let donating = client.compile(&donating(), &options).unwrap();
    let large = backend.compile(&too_large(), Params::new()).unwrap();
    let wrong = Value::from(Array::scalar(1f32));

    // name, how often, what
    let mut rows: Vec<(&str, usize, Round<'_>)> = vec![
        ("runs", 1000, Box::new(|| drop(executable.run(&inputs).unwrap()))),
        // What the plugin itself keeps of a compilation: nothing but its own functions is called.
        (
            "compilations without parameters",
            200,
            Box::new(|| drop(client.compile(&program, &options).unwrap())),
        ),
        (
            "cycles of load, compile, run and drop",
            200,
            Box::new(|| drop(backend.compile(&graph, params.clone()).unwrap().run(&inputs).unwrap())),
        ),
        (
            "uploads and copies",
            1000,
            Box::new(|| {
                let buffer = client.upload(&inputs[0], device).unwrap();
                assert_eq!(buffer.copy_to(device).unwrap().to_array().unwrap(), inputs[0]);
            }),
        ),
        (
            "donations",
            1000,
            Box::new(|| {
                let buffer = client.upload(&inputs[0], device).unwrap();
                donating.execute(vec![vec![Argument::Donate(buffer)]]).unwrap().wait().unwrap();
            }),
        ),
        // Nobody waits for these, nor reads them.
        (
            "runs that are given up",
            1000,
            Box::new(|| {
                let buffer = client.upload(&inputs[0], device).unwrap();
                drop(donating.execute(vec![vec![Argument::Donate(buffer)]]).unwrap());
            }),
        ),
        (
            "executables read back",
            100,
            Box::new(|| {
                let bytes = donating.serialize().unwrap();
                drop(client.deserialize(&bytes, donating.program(), &options).unwrap());
            }),
        ),
        (
            "executables that are none",
            1000,
            Box::new(|| {
                assert!(client.deserialize(b"no executable", &program, &options).is_err());
            }),
        ),
        ("runs without room", 1000, Box::new(|| assert!(large.run(&inputs).is_err()))),
        (
            "loads that are given up",
            100,
            Box::new(|| {
                let mut loader = backend.load(&graph).unwrap();
                loader.put(&Path::new("w"), params[&Path::new("w")].clone()).unwrap();
                assert!(loader.put(&Path::new("w"), wrong.clone()).is_err());
            }),
        ),
    ];
    // A client counts the arrays on its device where it can.
    let in_use = || device.memory_stats().unwrap().map_or(0, |stats| stats.in_use);
    let (before, mut left) = (in_use(), Vec::new());
    for (name, count, round) in &mut rows {
        let bytes = growth(*count, round);
        println!("{count} {name}: {bytes} bytes");
        // Each round moves a quarter of a megabyte or more, or compiles; the allocator and the plugin keep some of it.
        if bytes > 4 << 20 {
            left.push(format!("{count} {name} left {bytes} bytes"));
        }
    }
    if in_use() > before {
        left.push(format!("{} bytes are in use on the device, before it were {before}", in_use()));
    }
    assert!(left.is_empty(), "{}", left.join("\n"));
}
