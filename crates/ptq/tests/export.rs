//! Every case of the goldens, quantized, written as plain HLO and read back: the same graph, whole.

mod common;

use std::sync::Arc;

use qwix_graph::{Computation, Graph};
use qwix_ptq::{PtqProvider, QtProvider, QuantizationRule, quantize_model};

/// Quantized graphs: each case, those with static ranges, and models that collect statistics.
fn graphs() -> Vec<(String, Graph)> {
    let mut graphs = Vec::new();
    let rules = |folder: &std::path::Path| {
        let text = std::fs::read_to_string(folder.join("rules.json")).unwrap();
        QuantizationRule::from_json(&text).unwrap()
    };
    for (name, folder) in common::folders("cases") {
        let info = common::json(&folder.join("case.json"));
        let graph = common::model(info["model"].as_str().unwrap()).unwrap();
        let compat = info["qwix_compat"].as_bool().unwrap_or(false);
        let provider = PtqProvider::new(rules(&folder)).unwrap().qwix_compat(compat);
        match quantize_model(&graph, &provider) {
            Ok(quantized) => graphs.push((name, quantized.graph)),
            // Qwix refuses these as well.
            Err(error) => assert!(!folder.join("expected.safetensors").exists(), "{name}: {error}"),
        }
    }
    for (model, _) in common::folders("static") {
        for (name, folder) in common::folders(&format!("static/{model}")) {
            let graph = common::model(&model).unwrap();
            let ptq = PtqProvider::new(rules(&folder)).unwrap();
            if let Ok(quantized) = quantize_model(&graph, &ptq) {
                graphs.push((format!("{model}/{name}"), quantized.graph));
            }
            let qt = QtProvider::new(rules(&folder)).unwrap();
            if let Ok(collecting) = quantize_model(&graph, &qt) {
                graphs.push((format!("{model}/{name}, collecting"), collecting.graph));
            }
        }
    }
    let rules = r#"[{"op_names": ["dot_general"], "weight_qtype": "int4", "tile_size": 4}, {"weight_qtype": "int8", "act_qtype": "int8"}]"#;
    let provider = PtqProvider::new(QuantizationRule::from_json(rules).unwrap()).unwrap();
    for (model, folder) in common::folders("sharded") {
        for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "pb") {
                let graph = Graph::from_hlo_proto(&std::fs::read(&file).unwrap()).unwrap();
                let quantized = quantize_model(&graph, &provider).unwrap().graph;
                graphs.push((format!("{model}/{}", file.display()), quantized));
            }
        }
    }
    graphs.push(("a constraint on a weight".to_owned(), constrained(&provider)));
    assert!(graphs.len() >= 100, "{} graphs", graphs.len());
    graphs
}

/// A weight that is spread otherwise before it is used.
fn constrained(provider: &PtqProvider) -> Graph {
    let text = "HloModule m

ENTRY main {
  x = f32[3,8] parameter(0), metadata={op_name=\"x\"}
  w = f32[8,12] parameter(1), sharding={devices=[4,1]<=[4]}, metadata={op_name=\"params['dense']['w']\"}
  c = f32[8,12] custom-call(w), custom_call_target=\"Sharding\", sharding={devices=[2,2]<=[4]}
  d = f32[8,12] custom-call(c), custom_call_target=\"Sharding\", sharding={devices=[2,2]<=[4]}
  ROOT y = f32[3,12] dot(x, d), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
";
    quantize_model(&Graph::from_text(text).unwrap(), provider).unwrap().graph
}

/// A graph without what a file may change: instructions' and computations' names, and ids.
fn nameless(graph: &Graph) -> Graph {
    fn of(computation: &Computation) -> Computation {
        let mut computation = computation.clone();
        computation.name.clear();
        for node in &mut computation.nodes {
            node.name.clear();
            node.metadata.id = 0;
            for called in node.op.called_mut() {
                *called = Arc::new(of(called));
            }
        }
        computation
    }
    Graph { entry: Arc::new(of(&graph.entry)), ..graph.clone() }
}

#[test]
fn quantized_graphs_come_back_as_they_were() {
    let mut wrong = Vec::new();
    for (name, graph) in graphs() {
        let written = match graph.to_hlo_proto() {
            Ok(written) => written,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let back = match Graph::from_hlo_proto(&written) {
            Ok(back) => back,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if back.parameters != graph.parameters {
            let differ = back.parameters.iter().zip(&graph.parameters).find(|(a, b)| a != b);
            wrong.push(format!("{name}: another signature: {differ:?}"));
        }
        let (a, b) = (nameless(&back), nameless(&graph));
        if a.entry != b.entry {
            let differ = a.entry.nodes.iter().zip(&b.entry.nodes).find(|(a, b)| a != b);
            wrong.push(format!("{name}: another graph: {differ:?}"));
        }
        if back.to_hlo_proto().unwrap() != written {
            wrong.push(format!("{name}: other bytes the second time"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Files that were written once, with composites of version 1. When they are no longer read because `lower_quant` writes
/// an op in another way, the version has to change, so that its files are refused for what they are.
#[test]
fn files_of_version_1_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exported");
    let (mut read, mut wrong) = (0, Vec::new());
    for (name, graph) in graphs() {
        let file = folder.join(format!("{}.hlo.pb", name.replace('/', "+")));
        let Ok(bytes) = std::fs::read(&file) else { continue };
        read += 1;
        match Graph::from_hlo_proto(&bytes) {
            Ok(back) if nameless(&back) == nameless(&graph) => {}
            Ok(_) => wrong.push(format!("{name}: another graph")),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(read, std::fs::read_dir(folder).unwrap().count());
}
