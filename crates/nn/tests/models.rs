//! Models of the goldens written in Rust, against the same models exported from JAX.

mod common;

use common::models::{self, Row};
use common::{folder, imported, numbered, params, parts, relative};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, ReferenceBackend};
use qwix_graph::{Graph, Parameter, Role};
use qwix_nn::{Array, ArrayType, DType, Key};
use qwix_ptq::{PtqProvider, QuantizationRule, Site, Storage, find_sites, quantize_model, quantize_params};

fn rows() -> impl Iterator<Item = &'static Row> {
    models::ROWS.iter().chain(parts::ROWS)
}

/// The types of a golden's inputs.
fn inputs(golden: &str) -> Vec<ArrayType> {
    let arrays = numbered(&folder(golden).join("inputs.safetensors"));
    arrays.iter().map(|a| ArrayType::new(a.dtype(), a.shape())).collect()
}

fn described(parameters: &[Parameter]) -> Vec<String> {
    let line = |p: &Parameter| match p.role {
        Role::Variable => format!("{} {}", p.path, p.ty),
        Role::Input => format!("input {}", p.ty),
    };
    parameters.iter().map(line).collect()
}

#[test]
fn parameters_are_those_of_the_exported_model() {
    let mut wrong = vec![];
    for row in rows() {
        let wanted = described(&imported(row.golden).parameters);
        match (row.trace)(&inputs(row.golden)) {
            Ok(graph) if described(&graph.parameters) == wanted => {}
            Ok(graph) => {
                wrong.push(format!("{}: {:#?}, not {wanted:#?}", row.golden, described(&graph.parameters)))
            }
            Err(e) => wrong.push(format!("{}: {e}", row.golden)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All that rules and providers see of a site but where it is in the graph.
fn site(graph: &Graph, site: &Site) -> String {
    let operand = |left: bool| {
        let operand = if left { &site.lhs } else { &site.rhs };
        match &operand.weight {
            Some(w) => {
                let storage = match &w.storage {
                    // Which nodes is a matter of the graph.
                    Storage::InPlace { axes, chain } => format!("{axes:?} by {} steps", chain.len()),
                    Storage::Folded { .. } | Storage::EachRun { .. } => format!("{:?}", w.storage),
                };
                format!("{} {storage}", graph.parameters[w.parameter].path)
            }
            None => operand.ty.to_string(),
        }
    };
    format!(
        "{} {} {} {:?} {} {:?}\n    {}\n    {}",
        site.module_path,
        site.op_name,
        site.op_id,
        site.equation,
        site.swapped,
        site.product,
        operand(true),
        operand(false)
    )
}

#[test]
fn sites_are_those_of_the_exported_model() {
    let mut wrong = vec![];
    let mut count = 0;
    for row in rows() {
        let of =
            |graph: &Graph| -> Vec<String> { find_sites(graph).iter().map(|s| site(graph, s)).collect() };
        let wanted = of(&imported(row.golden));
        count += wanted.len();
        match (row.trace)(&inputs(row.golden)) {
            Ok(graph) if of(&graph) == wanted => {}
            Ok(graph) => wrong.push(format!("{}: {:#?}, not {wanted:#?}", row.golden, of(&graph))),
            Err(e) => wrong.push(format!("{}: {e}", row.golden)),
        }
    }
    assert!(count > 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How far an output may be from JAX's, relative to its largest value. In a narrow type two units in the last place: XLA
/// rounds other steps of a chain of products than HLO says. That ours are the exported model's bits is tested too.
fn budget(output: &Array) -> f64 {
    match output.dtype() {
        DType::BF16 => 2f64.powi(-6),
        DType::F16 => 2f64.powi(-9),
        _ => 1e-6,
    }
}

#[test]
fn outputs_are_jax() {
    let mut wrong = vec![];
    for row in rows() {
        let wanted = numbered(&folder(row.golden).join("float.safetensors"));
        let arrays = numbered(&folder(row.golden).join("inputs.safetensors"));
        for backend in [&ReferenceBackend::default() as &dyn Backend, &CpuBackend::default()] {
            let run = |graph: &Graph| -> Result<Vec<Array>, String> {
                let executable = backend.compile(graph, params(row.golden)).map_err(|e| e.to_string())?;
                executable.run(&arrays).map_err(|e| e.to_string())
            };
            let graph = (row.trace)(&inputs(row.golden)).map_err(|e| e.to_string());
            match graph.and_then(|graph| run(&graph)) {
                Err(e) => wrong.push(format!("{} on {}: {e}", row.golden, backend.name())),
                Ok(outputs) => {
                    if outputs.len() != wanted.len() {
                        wrong.push(format!("{}: {} outputs", row.golden, outputs.len()));
                    }
                    for (i, (found, wanted)) in outputs.iter().zip(&wanted).enumerate() {
                        let relative = relative(found, wanted);
                        if relative > budget(wanted) {
                            let name = backend.name();
                            wrong.push(format!(
                                "{} on {name}: output {i} differs by {relative:.2e}",
                                row.golden
                            ));
                        }
                    }
                    // The same ops in the same order give the same bits.
                    match run(&imported(row.golden)) {
                        Ok(exported) if exported == outputs => {}
                        Ok(exported) => {
                            let pairs = outputs.iter().zip(&exported).enumerate();
                            let unequal: Vec<usize> =
                                pairs.filter(|(_, (a, b))| a != b).map(|p| p.0).collect();
                            let name = backend.name();
                            wrong.push(format!(
                                "{} on {name}: outputs {unequal:?} are not the exported model's bits",
                                row.golden
                            ));
                        }
                        Err(e) => wrong.push(format!("{}: the exported model: {e}", row.golden)),
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One call quantizes both; so do the parameters come out, byte for byte.
#[test]
fn quantized_as_the_exported_model() {
    let int8 = || QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8");
    let sets = [
        ("int8", vec![int8()]),
        ("weights", vec![QuantizationRule::new(".*").weight_qtype("int8")]),
        ("nf4", vec![QuantizationRule::new(".*").weight_qtype("nf4")]),
    ];
    let mut wrong = vec![];
    let mut made_both = 0;
    for row in rows() {
        for (name, rules) in &sets {
            let made = |graph: &Graph| -> Result<_, String> {
                let provider = PtqProvider::new(rules.clone()).map_err(|e| e.to_string())?;
                let model = quantize_model(graph, &provider).map_err(|e| e.to_string())?;
                let params = quantize_params(&params(row.golden), &model.abstract_params(), None)
                    .map_err(|e| e.to_string())?;
                Ok((described(&model.graph.parameters), params))
            };
            let graph = (row.trace)(&inputs(row.golden)).map_err(|e| e.to_string());
            match (graph.and_then(|graph| made(&graph)), made(&imported(row.golden))) {
                (Ok(found), Ok(wanted)) if found == wanted => made_both += 1,
                (Err(found), Err(wanted)) if found == wanted => {}
                (Ok(found), Ok(wanted)) => {
                    let same = found.1 == wanted.1;
                    wrong.push(format!(
                        "{} {name}: {:#?}, not {:#?}; values equal: {same}",
                        row.golden, found.0, wanted.0
                    ));
                }
                (found, wanted) => {
                    wrong.push(format!("{} {name}: {:?}, {:?}", row.golden, found.err(), wanted.err()));
                }
            }
        }
    }
    assert!(made_both > 40, "only {made_both} cases could be quantized");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn abstract_shapes_are_those_that_init_makes() {
    for row in rows() {
        let shapes = (row.shapes)(&inputs(row.golden)).unwrap();
        let made = (row.init)(Key::new(0), &inputs(row.golden)).unwrap();
        let types: std::collections::BTreeMap<_, _> = made
            .iter()
            .map(|(path, value)| match value {
                qwix_eval::Value::Array(a) => (path.clone(), ArrayType::new(a.dtype(), a.shape())),
                other => panic!("{path}: {}", other.describe()),
            })
            .collect();
        assert_eq!(types, shapes, "{}", row.golden);
    }
}
