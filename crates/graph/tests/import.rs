//! Models that JAX exported, imported.

use common::{modules, visit};
use qwix_graph::{Graph, Op};
use std::collections::BTreeSet;

mod common;

#[test]
fn every_module_is_read_whole() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, bytes) in modules() {
        let graph = match Graph::from_hlo_proto(&bytes) {
            Ok(graph) => graph,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut ids = BTreeSet::new();
        visit(&graph.entry, &mut |node| {
            seen.insert(node.op.name().to_owned());
            let known = match &node.op {
                // The one dtype there that we have not.
                Op::Unsupported(op) => op.reason.contains("u2["),
                op => !matches!(op, Op::Call { .. } | Op::CustomCall(_)),
            };
            if !known {
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
    // What the goldens have of the op list: a new op there is seen here, a lost one as well.
    assert!(seen.len() >= 71, "only {} ops: {seen:?}", seen.len());
}
