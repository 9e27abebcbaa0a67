//! XLA devices from the command line, with the CPU plugin.

mod common;

use std::path::PathBuf;

use common::{Folder, INT8, Ran, command, digits, qwix};
use qwix::pjrt::{Kind, WHEELS, find, install};
use qwix::{Array, TensorFile, sqnr};

/// The CPU plugin, fetched when it is not there. Without one, and without the means to fetch it, a test that wants it is
/// skipped, aloud; with `CI` set that is a failure.
fn plugin() -> Option<PathBuf> {
    let found = find(Kind::Cpu).or_else(|_| {
        let wheel = WHEELS.iter().find(|wheel| wheel.name == "cpu").expect("a row of the table");
        install(wheel, "python3", false).map(|installed| installed.path)
    });
    match found {
        Ok(path) => Some(path),
        Err(error) if std::env::var_os("CI").is_some() => panic!("no CPU plugin: {error}"),
        Err(error) => {
            eprintln!("skipped: no CPU plugin: {error}");
            None
        }
    }
}

/// Runs the command with this plugin as that of CPUs.
fn with(plugin: &PathBuf, args: &[&str]) -> Ran {
    Ran::of(&command().env("QWIX_PJRT_PLUGIN_CPU", plugin).args(args).output().expect("the command starts"))
}

fn output(file: &str) -> Array {
    TensorFile::open(file).unwrap().read("0").unwrap()
}

const INT4: &str =
    r#"[{"module_path": ".*", "weight_qtype": "int4", "tile_size": 32, "op_names": ["dot_general"]}]"#;

#[test]
fn packages_and_models_run_on_xla() {
    let Some(plugin) = plugin() else { return };
    let folder = Folder::new();
    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let (int8, int4) = (folder.quantize("int8", INT8), folder.quantize("int4", INT4));
    let sources: [(&str, &[&str]); 3] =
        [("float", &[&model, "--params", &params]), ("int8", &[&int8]), ("int4", &[&int4])];
    for (name, source) in sources {
        let (xla, cpu) = (folder.path(&format!("{name}.xla")), folder.path(&format!("{name}.cpu")));
        let run = |out: &str, backend: &str| {
            let args = [&["run"], source, &["--inputs", &inputs, "-o", out, "--backend", backend]].concat();
            with(&plugin, &args).ok();
        };
        run(&xla, "xla:cpu");
        run(&cpu, "cpu");
        // A last bit decides on which side of a tie an activation falls.
        let decibels = sqnr(&output(&cpu), &output(&xla)).unwrap();
        assert!(decibels > 50.0, "{name}: {decibels} dB");
        let by_path = folder.path(&format!("{name}.path"));
        run(&by_path, &format!("xla:{}", plugin.display()));
        assert_eq!(output(&by_path), output(&xla), "{name}");
    }
    let args = ["compare", &model, "--params", &params, &int8, "--inputs", &inputs, "--backend", "xla"];
    let table = with(&plugin, &args).ok();
    assert!(table.contains("Dense_1"), "{table}");
}

#[test]
fn compiled_programs_are_kept_and_damaged_ones_mended() {
    let Some(plugin) = plugin() else { return };
    let folder = Folder::new();
    let int8 = folder.quantize("int8", INT8);
    let (inputs, cache) = (digits("images.safetensors"), folder.path("cache"));
    let run = |out: &str| {
        let out = folder.path(out);
        let args = ["run", &int8, "--inputs", &inputs, "-o", &out, "--backend", "xla", "--xla-cache", &cache];
        let ran = with(&plugin, &args);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        (output(&out), ran.stderr)
    };
    let (first, _) = run("first");
    let entries: Vec<PathBuf> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(entries.len(), 1);
    let (second, said) = run("second");
    assert_eq!(first, second);
    assert!(!said.contains("warning"), "{said}");
    let mut bytes = std::fs::read(&entries[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&entries[0], &bytes).unwrap();
    let (third, said) = run("third");
    assert_eq!(first, third);
    assert!(said.contains("warning") && said.contains("damaged"), "{said}");
    assert!(!run("fourth").1.contains("warning"));
}

#[test]
fn sharded_models_run_on_the_devices_that_they_name() {
    let Some(plugin) = plugin() else { return };
    let folder = Folder::new();
    let golden = |file: &str| {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/sharded/mlp");
        format!("{root}/{file}")
    };
    let (model, inputs) = (golden("tp8.hlo.pb"), golden("inputs.safetensors"));
    let package = folder.path("int8");
    let rules = folder.write("rules.json", INT8);
    let params = golden("params.safetensors");
    let args = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &package];
    qwix(args).ok();
    let run = |out: &str, backend: &str, more: &[&str]| {
        let args = ["run", &package, "--inputs", &inputs, "-o", out, "--backend", backend];
        with(&plugin, &[&args, more].concat())
    };
    let (eight, one, native) = (folder.path("eight"), folder.path("one"), folder.path("native"));
    run(&eight, "xla:cpu", &[]).ok();
    run(&one, "xla:cpu", &["--xla-devices", "1"]).ok();
    run(&native, "cpu", &[]).ok();
    assert_eq!(output(&eight), output(&one));
    let decibels = sqnr(&output(&native), &output(&eight)).unwrap();
    assert!(decibels > 50.0, "{decibels} dB");
    let rows = [
        ("xla:cpu", "3", 1, "found 3, expected 8, as the model's shardings say"),
        ("cpu", "8", 1, "--xla-devices is for --backend xla"),
        ("xla:cpu", "0", 2, "--xla-devices"),
    ];
    for (backend, devices, status, expected) in rows {
        let ran = run(&one, backend, &["--xla-devices", devices]);
        assert_eq!(ran.status, status, "{backend} {devices}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}

#[test]
fn plugins_are_listed_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("some.so");
    std::fs::write(&library, "").unwrap();
    let listed = with(&library, &["plugin", "list"]).ok();
    for kind in Kind::ALL {
        assert!(listed.contains(kind.name()), "{listed}");
    }
    assert!(listed.contains("some.so (QWIX_PJRT_PLUGIN_CPU)"), "{listed}");
    assert_eq!(with(&library, &["plugin", "path"]).ok().trim(), library.to_str().unwrap());
}

#[test]
fn what_is_no_plugin_is_an_error() {
    let folder = Folder::new();
    let int8 = folder.quantize("int8", INT8);
    let text = folder.write("text.so", "no library");
    let inputs = digits("images.safetensors");
    let none = folder.path("none.so");
    let rows = [
        (format!("xla:{none}"), "neither a library nor one of cpu, cuda"),
        (format!("xla:{text}"), "cannot be loaded"),
    ];
    for (backend, expected) in rows {
        let ran = qwix(["run", &int8, "--inputs", &inputs, "-o", &none, "--backend", &backend]);
        assert_eq!(ran.status, 1, "{backend}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
    let args = ["run", &int8, "--inputs", &inputs, "-o", &none, "--xla-cache", &text];
    let ran = qwix(args);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("--xla-cache is for --backend xla"), "{}", ran.stderr);
    for backend in ["cpu", "reference"] {
        let args = ["run", &int8, "--inputs", &inputs, "-o", &none, "--backend", backend, "--xla-kernels"];
        let ran = qwix(args);
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("--xla-kernels is for --backend xla"), "{}", ran.stderr);
    }
}

#[test]
fn kernels_are_called_and_what_has_none_is_said() {
    let Some(plugin) = plugin() else { return };
    let folder = Folder::new();
    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let (int8, cache) = (folder.quantize("int8", INT8), folder.path("cache"));
    let run = |out: &str, more: &[&str]| {
        let out = folder.path(out);
        let ran = with(&plugin, &[&["run", &int8, "--inputs", &inputs, "-o", &out], more].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        (output(&out), ran.stderr)
    };
    let on_xla = ["--backend", "xla:cpu", "--xla-cache", &cache];
    let (native, _) = run("native", &[]);
    let (plain, said) = run("plain", &on_xla);
    assert!(!said.contains("warning"), "{said}");
    // The second time the program comes from the cache; there it stands beside the plain one.
    for again in ["first", "second"] {
        let (kernels, said) = run(again, &[&on_xla[..], &["--xla-kernels"]].concat());
        assert!(said.contains("have no kernel"), "{said}");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);
        for other in [&native, &plain] {
            // A last bit decides on which side of a tie an activation falls.
            let decibels = sqnr(other, &kernels).unwrap();
            assert!(decibels > 50.0, "{decibels} dB");
        }
    }
    let args = ["compare", &model, "--params", &params, &int8, "--inputs", &inputs];
    let ran = with(&plugin, &[&args[..], &["--backend", "xla", "--xla-kernels"]].concat());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("Dense_1"), "{}", ran.stdout);
}
