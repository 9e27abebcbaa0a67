//! Models that JAX exported, imported.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use qwix_graph::{Computation, Graph, Op};

/// Every model of the goldens: its name and its module.
fn models() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/models");
    let mut models: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path().join("model.hlo.pb")).unwrap())
        })
        .collect();
    models.sort();
    assert!(models.len() >= 25, "found {} models", models.len());
    models
}

/// All nodes, those of called computations included.
fn visit<'g>(computation: &'g Computation, each: &mut impl FnMut(&'g qwix_graph::Node)) {
    for node in &computation.nodes {
        each(node);
        for called in node.op.called() {
            visit(called, each);
        }
    }
}

#[test]
fn every_model_is_read_whole() {
    let mut wrong = Vec::new();
    for (name, bytes) in models() {
        let graph = match Graph::from_hlo_proto(&bytes) {
            Ok(graph) => graph,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut ids = BTreeSet::new();
        visit(&graph.entry, &mut |node| {
            if matches!(node.op, Op::Call { .. } | Op::Unsupported(_) | Op::CustomCall(_)) {
                wrong.push(format!("{name}: {} is {:?}", node.name, node.op));
            }
            if node.metadata.id == 0 || !ids.insert(node.metadata.id) {
                wrong.push(format!("{name}: {} has the id {}", node.name, node.metadata.id));
            }
        });
        if let Err(error) = graph.verify() {
            wrong.push(format!("{name}: {error}"));
        }
        if !graph.entry.nodes.is_sorted_by_key(|node| node.metadata.id) {
            wrong.push(format!("{name}: nodes do not stand in trace order"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
