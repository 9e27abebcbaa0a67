//! Models that JAX exported, imported.

use common::{models, visit};
use qwix_graph::{Graph, Op};
use std::collections::BTreeSet;

mod common;

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
