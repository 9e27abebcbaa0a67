//! Memory stays where it is, however often a program calls kernels. A process of its own, for it is measured.
#![cfg(target_os = "linux")]

#[path = "../../pjrt/tests/common/mod.rs"]
mod common;

use qwix::pjrt::{Client, OptionValue};
use qwix::{
    Array, Backend, DType, NativeKernels, Params, Path, PtqProvider, QuantizationRule, Type, Value,
    XlaBackend, quantize_model, quantize_params,
};
use qwix_graph::{DotDims, GraphBuilder};

/// The bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

const SIZE: usize = 512;

/// A quarter of a megabyte of weights, half of activations: what is lost a time shows.
#[test]
fn a_thousand_runs_leave_nothing_behind() {
    if !common::only_on_cpu("kernels are called by programs on CPUs") {
        return;
    }
    let Some(plugin) = common::plugin() else { return };
    let client = Client::new(&plugin, &[("cpu_device_count", OptionValue::Int(1))]).unwrap();
    let xla = XlaBackend::on(&client, 0).unwrap().with_kernels(NativeKernels, |note| panic!("{note}"));
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let mut b = GraphBuilder::new("model");
    let x = b.input("x", Type::array(DType::F32, [256, SIZE])).unwrap();
    let w = b.variable("layer/kernel", Type::array(DType::F32, [SIZE, SIZE])).unwrap();
    let root = b.dot(x, w, &dims, DType::F32).unwrap();
    let graph = b.finish(root).unwrap();
    let float = Array::from_vec(&[SIZE, SIZE], vec![0.01f32; SIZE * SIZE]).unwrap();
    let float = Params::from([(Path::new("layer/kernel"), Value::Array(float))]);
    let input = [Array::from_vec(&[256, SIZE], vec![0.5f32; 256 * SIZE]).unwrap()];
    for rule in [
        QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8"),
        QuantizationRule::new(".*").weight_qtype("int4"),
    ] {
        let model = quantize_model(&graph, &PtqProvider::new(vec![rule]).unwrap()).unwrap();
        let params = quantize_params(&float, &model.abstract_params(), None).unwrap();
        let executable = xla.compile(&model.graph, params).unwrap();
        let runs = |count: usize| (0..count).for_each(|_| drop(executable.run(&input).unwrap()));
        runs(200);
        let before = resident();
        runs(1000);
        let grown = resident().saturating_sub(before);
        // The allocator keeps some of it.
        assert!(grown < 16 << 20, "1000 runs left {grown} bytes");
    }
}
