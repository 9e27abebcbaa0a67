//! What goes wrong is an error, and the process lives.

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params};
use qwix_graph::{BinaryOp, Graph, GraphBuilder, Op, SliceDim, Type};
use qwix_pjrt::{Client, Plugin, XlaBackend};

/// x spread over so many elements: the result is as large as that.
fn large_result(elements: usize) -> Graph {
    let mut b = GraphBuilder::new("large");
    let x = b.input("x", Type::array(DType::F32, [])).unwrap();
    let root =
        b.add_as(Op::Broadcast { dimensions: vec![] }, &[x], Type::array(DType::F32, [elements])).unwrap();
    b.finish(root).unwrap()
}

/// The last of so many: the result is small, and what is between is as large as that.
fn large_temporary(elements: usize) -> Graph {
    let mut b = GraphBuilder::new("large");
    let x = b.input("x", Type::array(DType::F32, [])).unwrap();
    let wide =
        b.add_as(Op::Broadcast { dimensions: vec![] }, &[x], Type::array(DType::F32, [elements])).unwrap();
    let iota = b.add_as(Op::Iota { dimension: 0 }, &[], Type::array(DType::F32, [elements])).unwrap();
    let sum = b.binary(BinaryOp::Add, wide, iota).unwrap();
    let sum = b.add(Op::OptimizationBarrier, &[sum]).unwrap();
    let last = SliceDim { start: elements - 1, limit: elements, stride: 1 };
    let root = b.add(Op::Slice(vec![last]), &[sum]).unwrap();
    b.finish(root).unwrap()
}

/// 2 · x.
fn small() -> Graph {
    let mut b = GraphBuilder::new("small");
    let x = b.input("x", Type::array(DType::F32, [3])).unwrap();
    let root = b.binary(BinaryOp::Add, x, x).unwrap();
    b.finish(root).unwrap()
}

fn small_input() -> Array {
    Array::from_vec(&[3], vec![1f32, 2.0, 3.0]).unwrap()
}

#[test]
fn a_device_without_room_is_an_error() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap();
    let model = xla.compile(&small(), Params::new()).unwrap();
    // More bytes than any address has bits for.
    let elements = 1 << 45;
    for (name, graph) in [("a result", large_result(elements)), ("between", large_temporary(elements))] {
        for _ in 0..3 {
            let run = xla.compile(&graph, Params::new()).and_then(|large| large.run(&[Array::scalar(1f32)]));
            let error = run.expect_err(name).to_string();
            assert!(error.starts_with("xla: PJRT_"), "{name}: {error}");
            // A compiler that knows how much the device has may say it first, in words of its own.
            assert!(error.contains("resource exhausted") || !common::is_cpu(), "{name}: {error}");
            // What was there before goes on.
            assert_eq!(model.run(&[small_input()]).unwrap()[0].to_f64_vec(), [2.0, 4.0, 6.0]);
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let Some(client) = common::client() else { return };
    let model = XlaBackend::on(client, 0).unwrap().compile(&small(), Params::new()).unwrap();
    let (right, rows) = (small_input(), Array::zeros(DType::F32, &[2, 3]).unwrap());
    // inputs; what the message says
    let wrong = [
        (vec![], "the model takes 1 inputs, found 0"),
        (vec![right.clone(), right.clone()], "the model takes 1 inputs, found 2"),
        (vec![rows], "input 0 `x`: expected f32[3], found f32[2,3]"),
        (vec![right.convert(DType::BF16)], "input 0 `x`: expected f32[3], found bf16[3]"),
        (vec![Array::zeros(DType::F32, &[4]).unwrap()], "input 0 `x`: expected f32[3], found f32[4]"),
    ];
    for (inputs, expected) in wrong {
        assert_eq!(model.run(&inputs).unwrap_err().to_string(), expected);
    }
    assert_eq!(model.run(&[right]).unwrap()[0].to_f64_vec(), [2.0, 4.0, 6.0]);
}

/// A library that gives a table of functions, of which `KIND` says what is wrong with it.
const FAKE: &str = r#"
use std::ffi::c_void;

#[repr(C)]
pub struct Table {
    size: usize,
    extensions: usize,
    version_size: usize,
    version_extensions: usize,
    major: i32,
    minor: i32,
    functions: [*const c_void; 160],
}
unsafe impl Sync for Table {}

const ALL: usize = 40 + 160 * 8;
const KIND: &str = env!("KIND");

#[repr(C)]
pub struct Message { head: [usize; 2], error: usize, text: *const u8, size: usize }
#[repr(C)]
pub struct Code { head: [usize; 2], error: usize, code: u32 }

extern "C" fn destroy(_: *mut usize) {}
extern "C" fn message(m: *mut Message) {
    let text = "no device of this kind";
    unsafe { (*m).text = text.as_ptr(); (*m).size = text.len(); }
}
extern "C" fn code(c: *mut Code) -> usize { unsafe { (*c).code = 5; } 0 }
extern "C" fn well(_: *mut usize) -> usize { 0 }
extern "C" fn badly(_: *mut usize) -> usize { 1 }

static TABLE: Table = {
    let mut functions = [std::ptr::null(); 160];
    functions[0] = destroy as *const c_void;
    functions[1] = message as *const c_void;
    functions[2] = code as *const c_void;
    functions[3] = if is("fails") { badly as *const c_void } else { well as *const c_void };
    if is("no_errors") { functions[1] = std::ptr::null(); }
    Table {
        size: if is("tiny") { 24 } else if is("short") { 40 + 4 * 8 } else { ALL },
        extensions: 0,
        version_size: 24,
        version_extensions: 0,
        major: if is("later") { 1 } else { 0 },
        minor: if is("old") { 40 } else { 90 },
        functions,
    }
};

const fn is(kind: &str) -> bool {
    let (a, b) = (KIND.as_bytes(), kind.as_bytes());
    if a.len() != b.len() { return false; }
    let mut i = 0;
    while i < a.len() { if a[i] != b[i] { return false; } i += 1; }
    true
}

#[unsafe(no_mangle)]
pub extern "C" fn GetPjrtApi() -> *const Table {
    if is("null") { std::ptr::null() } else { &TABLE }
}
"#;

#[test]
fn plugins_that_cannot_be_used_are_errors() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("fake.rs");
    std::fs::write(&source, FAKE).unwrap();
    // what is wrong; what is said
    let rows = [
        ("null", "gives no table of functions"),
        ("tiny", "its table has 24 bytes, expected at least 40"),
        ("old", "is too old: it has PJRT C API 0.40, needed is 0.63 or later"),
        ("later", "has PJRT C API 1.90, which is not known here"),
        ("no_errors", "lacks the functions that read errors"),
        ("fails", "PJRT_Plugin_Initialize: no device of this kind (not found)"),
        // It loads; a client needs more of it than it has.
        ("short", "(PJRT C API 0.90) does not have PJRT_Client_Create"),
        ("empty", "(PJRT C API 0.90) does not have PJRT_Client_Create"),
    ];
    for (kind, expected) in rows {
        let library = dir.path().join(format!("{kind}.so"));
        let mut command = std::process::Command::new(&rustc);
        command.args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort"]);
        let compiled = match command.env("KIND", kind).arg("-o").arg(&library).arg(&source).output() {
            Ok(compiled) => compiled,
            Err(error) => {
                // The tests may run where they were not compiled.
                eprintln!("skipped: no rustc to compile plugins with: {error}");
                return;
            }
        };
        assert!(compiled.status.success(), "{kind}: {}", String::from_utf8_lossy(&compiled.stderr));
        let found = Plugin::load(&library).and_then(|plugin| Client::new(&plugin, &[]));
        let error = found.expect_err(kind).to_string();
        assert!(error.contains(expected), "{kind}: {error}");
    }
}
