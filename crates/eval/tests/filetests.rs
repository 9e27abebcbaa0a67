//! Modules of a few lines with the answer beside the question: the result is a tuple of what was computed and what was
//! expected, by turns. A bug becomes a file in `filetests/`.

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{Difference, difference};
use qwix_eval::{Backend, Limits, Params, ReferenceBackend};
use qwix_graph::Graph;

#[test]
fn files_answer_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut wrong = String::new();
    for file in &files {
        if let Err(error) = check(file) {
            writeln!(wrong, "{}: {error}", file.file_name().unwrap().display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(!files.is_empty());
}

fn check(file: &Path) -> Result<(), String> {
    let graph = Graph::from_text(&std::fs::read_to_string(file).unwrap()).map_err(|e| e.to_string())?;
    let backend = ReferenceBackend { limits: Limits { max_iterations: Some(1000), max_elements: None } };
    let found =
        backend.compile(&graph, Params::new()).and_then(|model| model.run(&[])).map_err(|e| e.to_string())?;
    if found.is_empty() || found.len() % 2 != 0 {
        return Err(format!("{} results are no pairs", found.len()));
    }
    for (number, pair) in found.chunks_exact(2).enumerate() {
        if (pair[0].dtype(), pair[0].shape()) != (pair[1].dtype(), pair[1].shape()) {
            return Err(format!("pair {number}: {:?} and {:?}", pair[0], pair[1]));
        }
        if difference(&pair[0], &pair[1]) != Difference::default() {
            return Err(format!(
                "pair {number}: found {:?}, expected {:?}",
                pair[0].to_f64_vec(),
                pair[1].to_f64_vec()
            ));
        }
    }
    Ok(())
}
