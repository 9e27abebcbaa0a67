//! The backend: parameters that come one by one, and programs that are compiled once.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qwix_array::{Array, Buffer, DType};
use qwix_eval::{Backend, Executable, Loader, Params, Value};
use qwix_graph::{DotDims, Graph, GraphBuilder, Path, Type};
use qwix_pjrt::{Cache, XlaBackend};
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model, quantize_params};

const K: usize = 64;
const N: usize = 48;

/// x · w₀ · w₁ in so many rows, and parameters for it.
fn model(rows: usize) -> (Graph, Params) {
    let mut b = GraphBuilder::new("model");
    let mut params = Params::new();
    let mut x = b.input("x", Type::array(DType::F32, [rows, K])).unwrap();
    for (name, shape) in [("a", [K, N]), ("b", [N, K])] {
        let w = b.variable(name, Type::array(DType::F32, shape)).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        x = b.dot(x, w, &dims, DType::F32).unwrap();
        let values = (0..K * N).map(|i| (i as f32 * 0.7).sin()).collect();
        params.insert(Path::new(name), Array::from_vec(&shape, values).unwrap().into());
    }
    (b.finish(x).unwrap(), params)
}

fn quantized(rows: usize, qtype: &str) -> (Graph, Params) {
    let (graph, params) = model(rows);
    let rules = vec![QuantizationRule::new(".*").weight_qtype(qtype)];
    let ptq = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    let params = quantize_params(&params, &ptq.abstract_params(), None).unwrap();
    (ptq.graph, params)
}

/// Bytes that are counted until their last owner drops them.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl Buffer for Counted {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

/// The value, its bytes counted.
fn counted(value: &Value, alive: &Arc<AtomicUsize>) -> Value {
    let count = |array: &Array| {
        let bytes = array.bytes().to_vec();
        alive.fetch_add(bytes.len(), Ordering::SeqCst);
        let range = 0..bytes.len();
        let buffer = Arc::new(Counted(bytes, Arc::clone(alive)));
        Array::from_buffer(array.dtype(), array.shape(), buffer, range).unwrap()
    };
    match value {
        Value::Array(array) => count(array).into(),
        Value::QArray(q) => {
            let zero_point = q.zero_point().map(&count);
            qwix_quant::QArray::new(count(q.qvalue()), count(q.scale()), zero_point, q.qtype())
                .unwrap()
                .into()
        }
        Value::Tuple(_) => panic!("no parameter is a tuple"),
    }
}

#[test]
fn parameters_are_uploaded_as_they_come_and_not_kept() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap();
    let inputs = [Array::from_vec(&[3, K], vec![0.5f32; 3 * K]).unwrap()];
    // int4 packed, and a scale a channel.
    let scales = 4 * (N + K);
    for (qtype, bytes) in [("int8", 2 * K * N + scales), ("int4", K * N + scales)] {
        let (graph, params) = quantized(3, qtype);
        let expected = xla.compile(&graph, params.clone()).unwrap().run(&inputs).unwrap();
        let (alive, mut loader) = (Arc::new(AtomicUsize::new(0)), xla.loader(&graph).unwrap());
        for (path, value) in params.iter().rev() {
            let value = counted(value, &alive);
            assert_eq!(alive.load(Ordering::SeqCst), value.byte_len());
            loader.put(path, value).unwrap();
            assert_eq!(alive.load(Ordering::SeqCst), 0, "{qtype}: `{path}` is kept on the host");
        }
        let executable = loader.done().unwrap();
        assert_eq!(executable.device_bytes(), Ok(bytes), "{qtype}");
        assert_eq!(executable.run(&inputs).unwrap(), expected, "{qtype}");
    }
}

#[test]
fn a_loader_says_what_is_wrong() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap();
    let (graph, params) = quantized(3, "int8");
    let mut loader: Box<dyn Loader> = xla.load(&graph).unwrap();
    let (a, b) = (&params[&Path::new("a")], &params[&Path::new("b")]);
    let float = Value::from(Array::zeros(DType::F32, &[K, N]).unwrap());
    // path, value; what the message says
    let rows = [
        ("c", a, "parameter `c` is not one of the model's"),
        ("a", b, "parameter `a`: expected "),
        ("a", &float, "found f32[64,48]"),
        ("a", a, ""),
        ("a", a, "parameter `a` was given twice"),
    ];
    for (path, value, expected) in rows {
        let said = loader.put(&Path::new(path), value.clone()).err().map(|e| e.to_string());
        assert!(said.clone().unwrap_or_default().contains(expected), "{path}: {said:?}");
        assert_eq!(said.is_none(), expected.is_empty(), "{path}: {said:?}");
    }
    let error = loader.finish().err().unwrap().to_string();
    assert!(error.contains("parameter `b` is missing"), "{error}");
    // One that is given up leaves nothing that goes on.
    drop(xla.load(&graph).unwrap());
}

#[test]
fn a_graph_is_compiled_once_for_each_shape() {
    let Some(client) = common::client() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (notes, entries) = (Arc::new(Mutex::new(Vec::new())), || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        let mut entries: Vec<_> =
            names.map(|path| (std::fs::metadata(&path).unwrap().modified().unwrap(), path)).collect();
        entries.sort();
        entries
    });
    let told = Arc::clone(&notes);
    let xla = XlaBackend::on(client, 0)
        .unwrap()
        .with_cache(Cache::new(dir.path()), move |note| told.lock().unwrap().push(note.to_owned()));
    let run = |rows: usize| {
        let (graph, params) = quantized(rows, "int8");
        let input = Array::from_vec(&[rows, K], vec![0.5f32; rows * K]).unwrap();
        xla.compile(&graph, params).unwrap().run(&[input]).unwrap()
    };
    let first = run(3);
    let kept = entries();
    assert_eq!(kept.len(), 1);
    assert_eq!(run(3), first);
    assert_eq!(entries(), kept, "the same graph was compiled again");
    run(4);
    assert_eq!(entries().len(), 2);
    assert_eq!(run(3), first);
    assert_eq!(entries().len(), 2);
    assert!(notes.lock().unwrap().is_empty(), "{notes:?}");
}
