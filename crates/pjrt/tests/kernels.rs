//! Kernels as a plugin calls them: what they see, and what becomes of their errors and panics.

mod common;

use std::sync::{Arc, Mutex};

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{ArrayType, DotDims, Graph, GraphBuilder, Path, Type};
use qwix_pjrt::kernels::{
    Attribute, Attributes, BufferView, BufferViewMut, Call, Handler, Kernel, Kernels, Product,
};
use qwix_pjrt::{Client, XlaBackend};
use qwix_ptq::{PtqProvider, QuantizationRule, quantize_model, quantize_params};
use qwix_quant::QArray;

const TEXT: &str = "a \"quoted\" \\ text, äöü\n";

/// Fails or not, as attribute `how` says; else it fills the result with attribute `number` and the weight's first code.
struct Fake;

impl Kernel for Fake {
    const TARGET: &'static str = "test.fake";

    fn run(
        operands: &[BufferView<'_>],
        results: &mut [BufferViewMut<'_>],
        attributes: &Attributes<'_>,
    ) -> Result<(), String> {
        assert_eq!(attributes.text("text"), Ok(TEXT));
        assert!(attributes.int("text").is_err() && attributes.text("number").is_err());
        assert!(attributes.int("none").unwrap_err().contains("`none` is missing"));
        match attributes.text("how")? {
            "fail" => return Err("it is of a mind to".to_owned()),
            "panic" => panic!("it fell over {}", 7),
            _ => {}
        }
        let types: Vec<String> = operands.iter().map(|o| format!("{}{:?}", o.dtype(), o.shape())).collect();
        assert_eq!(types, ["s8[1, 2, 8]", "f32[1, 2]", "s8[8, 3]"]);
        assert!(operands[0].values::<f32>().unwrap_err().contains("a buffer of s8, expected f32"));
        let first = operands[2].values::<i8>()?[0];
        let number = attributes.int("number")? as f32;
        results[0].values_mut::<f32>()?.fill(number + f32::from(first));
        Ok(())
    }
}

/// Has the target of another.
struct Twin;

impl Kernel for Twin {
    const TARGET: &'static str = Fake::TARGET;

    fn run(_: &[BufferView<'_>], _: &mut [BufferViewMut<'_>], _: &Attributes<'_>) -> Result<(), String> {
        Ok(())
    }
}

struct Fakes(&'static str);

impl Kernels for Fakes {
    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::of::<Fake>()]
    }

    fn plan(&self, product: &Product) -> Result<Call, String> {
        if self.0 == "none" {
            return Err("nobody wrote it".to_owned());
        }
        let attributes = vec![
            ("how", Attribute::Text(self.0.to_owned())),
            ("number", Attribute::Int(-5_000_000)),
            ("text", Attribute::Text(TEXT.to_owned())),
        ];
        let packed = vec![ArrayType::new(DType::S8, product.weight.shape.clone())];
        Ok(Call { target: Fake::TARGET, attributes, packed })
    }

    fn pack(&self, _: &Product, weight: &QArray) -> Result<Vec<Array>, String> {
        match self.0 {
            "unpackable" => Err("it does not fold".to_owned()),
            "other types" => Ok(vec![weight.scale().clone()]),
            _ => Ok(vec![weight.qvalue().clone()]),
        }
    }
}

struct Twins;

impl Kernels for Twins {
    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::of::<Twin>()]
    }

    fn plan(&self, _: &Product) -> Result<Call, String> {
        Err("is never asked".to_owned())
    }

    fn pack(&self, _: &Product, _: &QArray) -> Result<Vec<Array>, String> {
        Err("is never asked".to_owned())
    }
}

fn model() -> (Graph, Params, Vec<Array>) {
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let mut b = GraphBuilder::new("model");
    let x = b.input("x", Type::array(DType::F32, [2, 8])).unwrap();
    let w = b.variable("layer/kernel", Type::array(DType::F32, [8, 3])).unwrap();
    let root = b.dot(x, w, &dims, DType::F32).unwrap();
    let graph = b.finish(root).unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
    let model = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
    let float = Value::Array(Array::from_vec(&[8, 3], vec![0.5f32; 24]).unwrap());
    let float = Params::from([(Path::new("layer/kernel"), float)]);
    let params = quantize_params(&float, &model.abstract_params(), None).unwrap();
    (model.graph, params, vec![Array::from_vec(&[2, 8], vec![1.0f32; 16]).unwrap()])
}

/// Kernels run on CPUs.
fn client() -> Option<&'static Client> {
    if common::only_on_cpu("kernels are called by programs on CPUs") { common::client() } else { None }
}

fn first(backend: &XlaBackend) -> Result<f32, String> {
    let (graph, params, inputs) = model();
    let executable = backend.compile(&graph, params).map_err(|e| e.to_string())?;
    let outputs = executable.run(&inputs).map_err(|e| e.to_string())?;
    Ok(outputs[0].values::<f32>().unwrap()[0])
}

#[test]
fn errors_and_panics_of_kernels_are_errors_of_runs() {
    let Some(client) = client() else { return };
    let plain = XlaBackend::on(client, 0).unwrap();
    let rows = [
        ("run", Ok(-5_000_000.0 + 127.0)),
        ("fail", Err("kernel `test.fake`: it is of a mind to")),
        ("panic", Err("kernel `test.fake`: it panicked: it fell over 7")),
        ("unpackable", Err("it does not fold")),
        ("other types", Err("expected s8[8,3]")),
        ("none", Ok(4.0)),
    ];
    // Each twice: what failed once leaves the process as it was.
    for (how, expected) in rows.iter().chain(&rows) {
        let found = first(&plain.clone().with_kernels(Fakes(how), |_| {}));
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert!((found - expected).abs() <= 0.05, "{how}: {found}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{how}: {found}"),
            _ => panic!("{how}: {found:?}, expected {expected:?}"),
        }
    }
    assert!((first(&plain).unwrap() - 4.0).abs() < 0.05);
}

#[test]
fn a_target_has_one_kernel() {
    let Some(client) = client() else { return };
    let plugin = client.plugin();
    plugin.register(&Handler::of::<Fake>()).unwrap();
    plugin.register(&Handler::of::<Fake>()).unwrap();
    let error = plugin.register(&Handler::of::<Twin>()).unwrap_err().to_string();
    assert!(error.contains("has another kernel for `test.fake` already"), "{error}");
    // The backend says so, and does without.
    let notes = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notes);
    let note = move |note: &str| heard.lock().unwrap().push(note.to_owned());
    let backend = XlaBackend::on(client, 0).unwrap().with_kernels(Twins, note);
    assert!((first(&backend).unwrap() - 4.0).abs() < 0.05);
    let notes = notes.lock().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("all is lowered to plain HLO"), "{notes:?}");
}
