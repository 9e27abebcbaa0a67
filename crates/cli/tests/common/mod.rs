//! Runs the command as a shell would.

#![allow(dead_code, reason = "each test file uses some of this")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file of the digits example.
pub fn digits(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    folder.join(name).to_str().expect("the checkout's path is text").to_owned()
}

/// What a run of the command left.
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Ran {
            // A signal has no code; no test expects one.
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a run that must succeed.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "stderr: {}", self.stderr);
        self.stdout
    }
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwix"));
    command.env_remove("RUST_BACKTRACE");
    command
}

pub fn qwix<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::of(&command().args(args).output().expect("the command starts"))
}

/// A folder for one test, with rules in it.
pub struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub fn new() -> Self {
        Folder { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().expect("a temporary path is text").to_owned()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.file(name), bytes).expect("a file of the test");
        self.path(name)
    }

    /// What is in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("the test's folder");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Quantizes the digits into `name`.
    pub fn quantize(&self, name: &str, rules: &str) -> String {
        let rules = self.write(&format!("{name}.rules.json"), rules);
        let (model, params, out) = (digits("model.hlo.pb"), digits("params.safetensors"), self.path(name));
        qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out]).ok();
        out
    }
}

pub const INT8: &str = r#"[{"module_path": ".*", "weight_qtype": "int8", "act_qtype": "int8"}]"#;
