//! What `qwix export` writes: it is read back whole, and jaxlib's XLA runs it.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Folder, INT8, digits, qwix};
use qwix::{Array, Model, Package, Precision, TensorFile, pjrt, sqnr};

const INT4: &str =
    r#"[{"module_path": ".*", "weight_qtype": "int4", "tile_size": 32, "op_names": ["dot_general"]}]"#;

fn output(file: &str) -> Array {
    TensorFile::open(file).unwrap().read("0").unwrap()
}

#[test]
fn exported_packages_are_read_back_and_run() {
    let folder = Folder::new();
    let inputs = digits("images.safetensors");
    for (name, rules) in [("int8", INT8), ("int4", INT4)] {
        let package = folder.quantize(name, rules);
        let path = |what: &str| folder.path(&format!("{name}.{what}"));
        let (model, params) = (path("hlo.pb"), path("flat.safetensors"));
        qwix(["export", &package, "-o", &model]).ok();
        qwix(["dump", &package, "-o", &params]).ok();
        let inspected = qwix(["inspect", &model]).ok();
        assert!(inspected.contains(&format!("q[{name} f32[128,10]")), "{inspected}");
        // The native engine runs its quantized ops, with what was stored in either way.
        let (exported, native) = (path("exported"), path("native"));
        qwix(["run", &package, "--inputs", &inputs, "-o", &native]).ok();
        qwix(["run", &model, "--params", &params, "--inputs", &inputs, "-o", &exported]).ok();
        assert_eq!(output(&native), output(&exported), "{name}");
        let loaded = Model::load(&model).unwrap();
        assert_eq!(loaded.parameters, Package::open(&package).unwrap().parameters(), "{name}");
        // Parameters that are not quantized are no parameters of it.
        let float = digits("params.safetensors");
        let ran = qwix(["run", &model, "--params", &float, "--inputs", &inputs, "-o", &exported]);
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("kernel`, which is not quantized"), "{}", ran.stderr);
    }
}

/// A Python with the goldens' jaxlib: `QWIX_TEST_PYTHON`, or `python3` when it has it. Without one the test that wants
/// it is skipped, aloud; with `CI` set that is a failure.
fn python() -> Option<String> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/requirements.txt");
    let requirements = std::fs::read_to_string(requirements).unwrap();
    let pinned = requirements.lines().find_map(|line| line.strip_prefix("jaxlib==")).unwrap();
    let python = std::env::var("QWIX_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let check = format!("import jax, jaxlib; assert jaxlib.__version__ == '{pinned}', jaxlib.__version__");
    let problem = match Command::new(&python).args(["-c", &check]).output() {
        Ok(ran) if ran.status.success() => return Some(python),
        Ok(ran) => String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "no Python with jaxlib {pinned}: {python}: {problem}");
    eprintln!("skipped: no Python with jaxlib {pinned}: {python}: {problem}");
    None
}

#[test]
fn jaxlib_runs_exported_packages() {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    let inputs = digits("images.safetensors");
    for (name, rules) in [("int8", INT8), ("int4", INT4)] {
        let package = folder.quantize(name, rules);
        let path = |what: &str| folder.path(&format!("{name}.{what}"));
        let (model, inline, params) = (path("hlo.pb"), path("inline.hlo.pb"), path("flat.safetensors"));
        qwix(["export", &package, "-o", &model]).ok();
        qwix(["dump", &package, "-o", &params]).ok();
        let graph = Package::open(&package).unwrap().model().unwrap().graph().clone();
        let lowered = pjrt::Program::new(&pjrt::lower(&graph, "cpu", Precision::Default).unwrap()).unwrap();
        std::fs::write(&inline, lowered.bytes()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run_exported.py");
        let raw = path("raw");
        let ran = Command::new(&python)
            .arg(script)
            .args([&params, &inputs, &raw, &model, &inline])
            .env("JAX_PLATFORMS", "cpu")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
        let composites: usize = String::from_utf8_lossy(&ran.stdout).trim().parse().unwrap();
        let quantized = graph.entry.nodes.iter().filter(|n| n.op.name() == "dot").count();
        assert!(composites >= quantized, "{name}: {composites} composites");
        // What came back out of StableHLO is the same quantized model.
        let back = path("raw.hlo.pb");
        assert_eq!(Model::load(&back).unwrap().parameters, graph.parameters, "{name}");
        let (native, again) = (path("native"), path("again"));
        qwix(["run", &package, "--inputs", &inputs, "-o", &native]).ok();
        qwix(["run", &back, "--params", &params, "--inputs", &inputs, "-o", &again]).ok();
        let native = output(&native);
        assert_eq!(native, output(&again), "{name}");
        let found = Array::from_bytes(native.dtype(), native.shape(), std::fs::read(&raw).unwrap()).unwrap();
        // A last bit decides on which side of a tie an activation falls.
        let decibels = sqnr(&native, &found).unwrap();
        assert!(decibels > 50.0, "{name}: {decibels} dB");
    }
}
