//! Memory stays where it is, however often something runs or is compiled.
#![cfg(target_os = "linux")]

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{DotDims, Graph, GraphBuilder, Path, Type};
use qwix_pjrt::{Client, CompileOptions, Program, XlaBackend};

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

/// How many bytes the process grows by in `count` rounds, after as many rounds for warming up as a tenth.
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

/// One test, for both measure the process.
#[test]
fn runs_and_compilations_leave_nothing_behind() {
    let Some(plugin) = common::plugin() else { return };
    let client = Client::new(&plugin, &common::options(1)).unwrap();
    let backend = XlaBackend::on(&client, 0).unwrap();
    let (graph, params, inputs) = model();
    let executable = backend.compile(&graph, params.clone()).unwrap();
    let runs = growth(1000, || {
        executable.run(&inputs).unwrap();
    });
    println!("1000 runs: {runs} bytes");
    let cycles = growth(200, || {
        backend.compile(&graph, params.clone()).unwrap().run(&inputs).unwrap();
    });
    println!("200 cycles: {cycles} bytes");
    let errors = growth(1000, || {
        assert!(client.upload(&inputs[0], &client.devices()[0]).is_ok());
        assert!(
            client
                .deserialize(b"no executable", &Program::new(&graph).unwrap(), &CompileOptions::default())
                .is_err()
        );
    });
    println!("1000 errors: {errors} bytes");
    // Each round moves half a megabyte or more; the allocator keeps some of it.
    let most = 16 << 20;
    assert!(runs < most, "1000 runs left {runs} bytes");
    assert!(errors < most, "1000 errors left {errors} bytes");
    assert!(cycles < most, "200 cycles left {cycles} bytes");
}
