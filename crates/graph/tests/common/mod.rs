//! What the tests of import and export share.
#![allow(dead_code, reason = "each test uses some of it")]

use std::fs;
use std::path::PathBuf;

use qwix_graph::{Computation, Node};

/// Every module of the goldens, models and single ops: its name and its bytes.
pub fn modules() -> Vec<(String, Vec<u8>)> {
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens");
    let mut modules = Vec::new();
    for folder in ["models", "ops"] {
        for entry in fs::read_dir(goldens.join(folder)).unwrap().map(|entry| entry.unwrap()) {
            let file = if entry.path().is_dir() { entry.path().join("model.hlo.pb") } else { entry.path() };
            if file.extension().is_some_and(|extension| extension == "pb") {
                let name = entry.file_name().into_string().unwrap();
                modules.push((
                    format!("{folder}/{}", name.trim_end_matches(".hlo.pb")),
                    fs::read(file).unwrap(),
                ));
            }
        }
    }
    modules.sort();
    assert!(modules.len() >= 100, "found {} modules", modules.len());
    modules
}

/// Every model of the goldens.
pub fn models() -> Vec<(String, Vec<u8>)> {
    let models: Vec<_> = modules().into_iter().filter(|(name, _)| name.starts_with("models/")).collect();
    assert!(models.len() >= 25, "found {} models", models.len());
    models
}

/// All nodes, those of called computations included.
#[allow(dead_code)] // Not every test asks.
pub fn visit<'g>(computation: &'g Computation, each: &mut impl FnMut(&'g Node)) {
    for node in &computation.nodes {
        each(node);
        for called in node.op.called() {
            visit(called, each);
        }
    }
}
