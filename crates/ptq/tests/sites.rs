//! Module paths, op ids and weights of every model in the goldens, against what Qwix saw of them.

mod common;

use qwix_graph::Graph;
use qwix_ptq::{Site, find_sites};
use serde_json::Value;

fn row(graph: &Graph, site: &Site) -> String {
    let weight = |left: bool| {
        let operand = if left { &site.lhs } else { &site.rhs };
        operand.weight.as_ref().map_or("-".to_owned(), |w| graph.parameters[w.parameter].path.to_string())
    };
    // The author's first operand comes first.
    let (first, second) = (weight(!site.swapped), weight(site.swapped));
    format!("{} {} {first} {second}", site.module_path, site.op_id)
}

#[test]
fn sites_are_as_qwix_sees_them() {
    let mut failures = vec![];
    let mut count = 0;
    for (name, folder) in common::folders("models") {
        let meta = common::json(&folder.join("meta.json"));
        let graph = match common::model(&name) {
            Ok(graph) => graph,
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        let found: Vec<String> = find_sites(&graph).iter().map(|s| row(&graph, s)).collect();
        let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
        let wanted: Vec<String> = meta["sites"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| {
                format!(
                    "{} {} {} {}",
                    text(&s["module"]),
                    text(&s["op_id"]),
                    text(&s["lhs"]),
                    text(&s["rhs"])
                )
            })
            .collect();
        count += wanted.len();
        // Where Qwix gives up it has not found every weight.
        let gave_up = meta.get("qwix_refuses").is_some();
        let same = |(found, wanted): (&String, &String)| {
            found == wanted
                || (gave_up && wanted.strip_suffix('-').is_some_and(|start| found.starts_with(start)))
        };
        if found.len() != wanted.len() || !found.iter().zip(&wanted).all(same) {
            failures.push(format!("{name}:\n  found  {found:#?}\n  wanted {wanted:#?}"));
        }
    }
    assert!(count > 0, "no sites in the goldens");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
