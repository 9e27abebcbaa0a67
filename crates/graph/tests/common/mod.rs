//! What the tests of import and export share.

use std::fs;
use std::path::PathBuf;

use qwix_graph::{Computation, Node};

/// Every model of the goldens: its name and its module.
pub fn models() -> Vec<(String, Vec<u8>)> {
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
pub fn visit<'g>(computation: &'g Computation, each: &mut impl FnMut(&'g Node)) {
    for node in &computation.nodes {
        each(node);
        for called in node.op.called() {
            visit(called, each);
        }
    }
}
