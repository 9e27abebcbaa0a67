//! The shell of `docs/ptq.md` runs, with the files of the digits.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Folder, Ran, digits};

const PAGE: &str = include_str!("../../../docs/ptq.md");

/// The blocks of the page that are in a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("\n```{language}\n");
    let starts = PAGE.match_indices(&fence).map(|(at, fence)| &PAGE[at + fence.len()..]);
    starts.map(|rest| rest.split("\n```\n").next().unwrap_or(rest)).collect()
}

#[test]
fn every_command_of_the_page_runs() {
    let folder = Folder::new();
    for name in ["model.hlo.pb", "params.safetensors", "images.safetensors", "calibration.safetensors"] {
        std::fs::copy(digits(name), folder.file(name)).unwrap();
    }
    let rules = blocks("json");
    assert_eq!(rules.len(), 2, "rules.json and static.json");
    folder.write("rules.json", rules[0]);
    folder.write("static.json", rules[1]);

    let binary = Path::new(env!("CARGO_BIN_EXE_qwix")).parent().unwrap();
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([binary.to_owned()].into_iter().chain(std::env::split_paths(&rest)));
    let path = path.unwrap();
    let blocks = blocks("sh");
    assert!(blocks.len() >= 5, "{} blocks of shell", blocks.len());
    for block in blocks {
        let script = Command::new("sh")
            .args(["-ec", block])
            .current_dir(folder.file("."))
            .env("PATH", &path)
            .output()
            .expect("a shell");
        let ran = Ran::of(&script);
        assert_eq!(ran.status, 0, "{block}\n{}", ran.stderr);
    }
    for made in [
        "digits.int8",
        "digits.static",
        "online.safetensors",
        "logits.safetensors",
        "flat.safetensors",
        "stats.safetensors",
    ] {
        assert!(folder.file(made).exists(), "{made} was not made");
    }
}
