//! Reductions under windows of awkward sizes, on the native engine against the reference evaluator.

use std::fmt::Write;

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, ReferenceBackend};
use qwix_graph::{BinaryOp, Graph, GraphBuilder, Type, WindowDim};

const PLAIN: WindowDim = WindowDim {
    size: 1,
    stride: 1,
    padding_low: 0,
    padding_high: 0,
    base_dilation: 1,
    window_dilation: 1,
    reversal: false,
};

fn graph(dtype: DType, shape: &[usize], window: &[WindowDim], op: BinaryOp) -> Graph {
    let mut builder = GraphBuilder::new("window");
    let x = builder.input("x", Type::array(dtype, shape)).unwrap();
    let start = match op {
        BinaryOp::Maximum => f64::NEG_INFINITY,
        BinaryOp::Minimum => f64::INFINITY,
        BinaryOp::Multiply => 1.0,
        _ => 0.5,
    };
    let init = builder.constant(Array::from_f64(dtype, &[], &[start]).unwrap()).unwrap();
    let root = builder.reduce_window(op, x, init, window).unwrap();
    builder.finish(root).unwrap()
}

#[test]
fn awkward_windows_agree_with_the_reference() {
    let pooled = |size, stride| WindowDim { size, stride, ..PLAIN };
    let same = WindowDim { padding_low: 1, padding_high: 1, ..pooled(3, 1) };
    let holes = WindowDim { window_dilation: 3, ..pooled(3, 2) };
    let spread = WindowDim { base_dilation: 2, padding_low: 2, ..pooled(4, 3) };
    let cut = WindowDim { padding_low: -1, padding_high: -2, ..pooled(2, 1) };
    let sums = WindowDim { padding_low: 12, ..pooled(13, 1) };
    let rows: &[(&[usize], Vec<WindowDim>)] = &[
        (&[1, 7, 5, 3], vec![PLAIN, pooled(2, 2), pooled(3, 2), PLAIN]),
        (&[2, 3, 7, 5], vec![PLAIN, PLAIN, same, pooled(2, 2)]),
        (&[2, 9, 9, 17], vec![PLAIN, holes, same, PLAIN]),
        (&[3, 5, 1], vec![PLAIN, spread, PLAIN]),
        (&[11, 2], vec![cut, PLAIN]),
        (&[13], vec![sums]),
        (&[13, 3], vec![sums, PLAIN]),
        (&[0, 4, 2], vec![PLAIN, pooled(2, 2), PLAIN]),
        (&[2, 4, 0], vec![PLAIN, pooled(2, 2), PLAIN]),
        (&[3, 3], vec![PLAIN, PLAIN]),
        (&[2, 2, 2, 2, 2], vec![same, pooled(2, 1), PLAIN, same, PLAIN]),
        (&[5], vec![WindowDim { reversal: true, ..same }]),
    ];
    let mut wrong = String::new();
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::S32] {
        for op in [BinaryOp::Add, BinaryOp::Maximum, BinaryOp::Minimum, BinaryOp::Multiply] {
            if dtype == DType::S32 && op != BinaryOp::Add {
                continue;
            }
            for (shape, window) in rows {
                let graph = graph(dtype, shape, window, op);
                let count = shape.iter().product::<usize>();
                let values: Vec<f64> = (0..count).map(|i| ((i * 37 + 11) % 29) as f64 / 8.0 - 1.7).collect();
                let x = Array::from_f64(dtype, shape, &values).unwrap();
                let run = |backend: &dyn Backend| {
                    backend
                        .compile(&graph, Params::new())
                        .unwrap()
                        .run(std::slice::from_ref(&x))
                        .unwrap()
                        .remove(0)
                };
                let (found, expected) = (run(&CpuBackend::default()), run(&ReferenceBackend::default()));
                // 13 summands at most: a few roundings of the accumulator, then one of the result.
                let bound = match dtype {
                    DType::BF16 => 1.0 / 128.0,
                    DType::F16 => 1.0 / 1024.0,
                    DType::S32 => 0.0,
                    _ => 2e-6,
                };
                let largest = expected.to_f64_vec().iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                let far = found
                    .to_f64_vec()
                    .iter()
                    .zip(expected.to_f64_vec())
                    .any(|(a, b)| !(a - b).abs().le(&(bound * largest)) && *a != b);
                if far || found.shape() != expected.shape() || found.dtype() != expected.dtype() {
                    writeln!(wrong, "{op:?} {dtype} {shape:?} {window:?}: {found:?}, expected {expected:?}")
                        .unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
