//! Bad input: exit status 1, one line that says where and what, nothing left behind, never a panic.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Folder, INT8, Ran, command, digits, qwix};
use qwix::{Array, TensorFile, write_tensors};

/// What is wrong with how a run failed.
fn complaints(ran: &Ran, expected: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    if ran.status != 1 {
        complaints.push(format!("exit status {}", ran.status));
    }
    if ran.stderr.lines().count() != 1 || !ran.stderr.starts_with("error: ") {
        complaints.push("not one line that starts with `error: `".to_owned());
    }
    for part in expected {
        if !ran.stderr.contains(part) {
            complaints.push(format!("does not say `{part}`"));
        }
    }
    if !complaints.is_empty() {
        complaints.push(format!("said `{}`", ran.stderr));
    }
    complaints
}

fn assert_all(wrong: Vec<(String, Vec<String>)>) {
    let wrong: Vec<String> = wrong
        .into_iter()
        .filter(|(_, c)| !c.is_empty())
        .map(|(what, c)| format!("{what}: {}", c.join("; ")))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(digits(name)).unwrap()
}

fn params() -> BTreeMap<String, Array> {
    let file = TensorFile::open(digits("params.safetensors")).unwrap();
    file.iter().map(|(key, _)| (key.to_owned(), file.read(key).unwrap())).collect()
}

fn file_of(tensors: &BTreeMap<String, Array>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, tensors).unwrap();
    bytes
}

#[test]
fn models_that_are_none() {
    let folder = Folder::new();
    let good = read("model.hlo.pb");
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["bad.hlo.pb", "empty"]),
        ("text", b"HloModule m".to_vec(), &["bad.hlo.pb"]),
        ("truncated", good[..good.len() / 2].to_vec(), &["bad.hlo.pb"]),
        ("another proto", vec![0x0a, 0x03, b'a', b'b', b'c'], &["bad.hlo.pb"]),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in rows {
        let model = folder.write("bad.hlo.pb", bytes);
        wrong.push((what.to_owned(), complaints(&qwix(["inspect", &model]), expected)));
    }
    wrong.push((
        "absent".to_owned(),
        complaints(&qwix(["inspect", "absent.pb"]), &["cannot read `absent.pb`"]),
    ));
    let here = folder.path("");
    wrong.push(("a directory".to_owned(), complaints(&qwix(["inspect", &here]), &["cannot read"])));
    assert_all(wrong);
}

#[test]
fn rules_that_say_nonsense() {
    let folder = Folder::new();
    let rows: [(&str, &str, &[&str]); 11] = [
        ("not JSON", "[", &["r.json"]),
        (
            "unknown field",
            r#"[{"module_path": ".*", "weight_dtype": "int8"}]"#,
            &["r.json", "rules[0]", "weight_dtype", "weight_qtype"],
        ),
        ("wrong type", r#"[{"weight_qtype": 8}]"#, &["r.json", "rules[0]", "weight_qtype"]),
        (
            "bad regex",
            r#"[{"weight_qtype": "int8"}, {"module_path": "(", "weight_qtype": "int8"}]"#,
            &["r.json", "rules[1]", "module_path"],
        ),
        ("unknown qtype", r#"[{"weight_qtype": "int9"}]"#, &["rules[0]", "int9"]),
        ("unsigned qtype", r#"[{"weight_qtype": "uint8"}]"#, &["rules[0]", "uint8"]),
        ("scale type as qtype", r#"[{"weight_qtype": "float8_e8m0fnu"}]"#, &["rules[0]", "float8_e8m0fnu"]),
        (
            "bad calibration",
            r#"[{"weight_qtype": "int8", "weight_calibration_method": "median"}]"#,
            &["rules[0]", "median"],
        ),
        (
            "static without qtype",
            r#"[{"weight_qtype": "int8", "act_static_scale": true}]"#,
            &["rules[0]", "act_static_scale"],
        ),
        (
            "tile that does not divide",
            r#"[{"module_path": "Dense_0", "weight_qtype": "int4", "tile_size": 100}]"#,
            &["Dense_0", "dot_general0", "100", "512"],
        ),
        ("negative tile", r#"[{"weight_qtype": "int4", "tile_size": -4}]"#, &["rules[0]", "tile_size"]),
    ];
    let mut wrong = Vec::new();
    for (what, rules, expected) in rows {
        let (rules, out) = (folder.write("r.json", rules), folder.path("out"));
        let (model, params) = (digits("model.hlo.pb"), digits("params.safetensors"));
        let ran = qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out]);
        let mut found = complaints(&ran, expected);
        if folder.names() != ["r.json"] {
            found.push(format!("left behind {:?}", folder.names()));
        }
        wrong.push((what.to_owned(), found));
    }
    assert_all(wrong);
}

#[test]
fn parameters_that_are_not_the_models() {
    let folder = Folder::new();
    let good = read("params.safetensors");
    let change = |edit: fn(&mut BTreeMap<String, Array>)| {
        let mut tensors = params();
        edit(&mut tensors);
        file_of(&tensors)
    };
    let f32s =
        |shape: &[usize], value: f32| Array::from_vec(shape, vec![value; shape.iter().product()]).unwrap();
    let mut nan = params();
    nan.insert("Dense_1/kernel".to_owned(), f32s(&[128, 10], f32::NAN));
    let mut infinite = params();
    infinite.insert("Conv_0/kernel".to_owned(), f32s(&[3, 3, 1, 16], f32::INFINITY));
    let mut shape = params();
    shape.insert("Dense_0/bias".to_owned(), f32s(&[64], 0.0));
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "missing",
            change(|t| drop(t.remove("Dense_0/bias"))),
            &["p.safetensors", "Dense_0/bias", "missing", "f32[128]"],
        ),
        (
            "extra",
            change(|t| drop(t.insert("head/bias".into(), Array::scalar(0f32)))),
            &["p.safetensors", "head/bias"],
        ),
        (
            "wrong dtype",
            change(|t| drop(t.insert("Dense_0/bias".into(), Array::scalar(0i32)))),
            &["p.safetensors", "Dense_0/bias", "f32[128]", "s32[]"],
        ),
        ("wrong shape", file_of(&shape), &["p.safetensors", "Dense_0/bias", "f32[128]", "f32[64]"]),
        ("NaN", file_of(&nan), &["Dense_1/kernel", "NaN"]),
        ("infinity", file_of(&infinite), &["Conv_0/kernel", "infinity"]),
        ("truncated", good[..good.len() - 100].to_vec(), &["p.safetensors"]),
        ("no safetensors", b"PK\x03\x04 not at all what was expected".to_vec(), &["p.safetensors"]),
        ("empty", vec![], &["p.safetensors"]),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in rows {
        let (file, rules, out) =
            (folder.write("p.safetensors", bytes), folder.write("r.json", INT8), folder.path("out"));
        let ran =
            qwix(["quantize", &digits("model.hlo.pb"), "--params", &file, "--rules", &rules, "-o", &out]);
        let mut found = complaints(&ran, expected);
        if folder.names() != ["p.safetensors", "r.json"] {
            found.push(format!("left behind {:?}", folder.names()));
        }
        wrong.push((what.to_owned(), found));
    }
    assert_all(wrong);
}

#[test]
fn extra_parameters_may_be_allowed() {
    let folder = Folder::new();
    let mut tensors = params();
    tensors.insert("head/bias".to_owned(), Array::scalar(0f32));
    let (file, rules) = (folder.write("p.safetensors", file_of(&tensors)), folder.write("r.json", INT8));
    let (model, out) = (digits("model.hlo.pb"), folder.path("out"));
    let ran =
        qwix(["quantize", &model, "--params", &file, "--rules", &rules, "-o", &out, "--allow-extra-params"]);
    assert!(ran.stderr.starts_with("warning: 1 parameter of"), "{}", ran.stderr);
    ran.ok();
}

#[test]
fn inputs_that_are_not_the_models() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let images = TensorFile::open(digits("images.safetensors")).unwrap().read("images").unwrap();
    let of = |rows: &[(&str, &Array)]| {
        file_of(&rows.iter().map(|(key, array)| ((*key).to_owned(), (*array).clone())).collect())
    };
    let small = Array::from_vec(&[2, 8, 8, 1], vec![0f32; 128]).unwrap();
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("none", of(&[]), &["in.safetensors", "images", "f32[450,8,8,1]", "nothing"]),
        ("another name", of(&[("image", &images)]), &["in.safetensors", "`images`", "`image`"]),
        ("too many", of(&[("0", &images), ("1", &images)]), &["in.safetensors", "`1`"]),
        ("shape", of(&[("0", &small)]), &["in.safetensors", "images", "f32[450,8,8,1]", "f32[2,8,8,1]"]),
        ("dtype", of(&[("0", &images.convert(qwix::DType::F16))]), &["images", "f32[450,8,8,1]", "f16"]),
        ("junk", vec![7; 40], &["in.safetensors"]),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in rows {
        let (inputs, out) = (folder.write("in.safetensors", bytes), folder.path("out.safetensors"));
        let mut found = complaints(&qwix(["run", &package, "--inputs", &inputs, "-o", &out]), expected);
        if folder.file("out.safetensors").exists() {
            found.push("wrote an output".to_owned());
        }
        wrong.push((what.to_owned(), found));
    }
    assert_all(wrong);
}

#[test]
fn packages_that_are_damaged() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let path = |name: &str| Path::new(&package).join(name);
    const SHARD: &str = "params-00001-of-00001.safetensors";
    let names = ["manifest.json", "manifest.json.sha256", "model.hlo", SHARD, "rules.json"];
    let good: BTreeMap<&str, Vec<u8>> = names.iter().map(|&n| (n, std::fs::read(path(n)).unwrap())).collect();
    let manifest = String::from_utf8(good["manifest.json"].clone()).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(manifest.contains(from), "the test's `{from}` is not in the manifest");
        Some(manifest.replacen(from, to, 1).into_bytes())
    };
    let flipped = |name: &str| {
        let mut bytes = good[name].clone();
        let last = bytes.len() - 3;
        bytes[last] ^= 4;
        Some(bytes)
    };
    type Row<'a> = (&'a str, &'a str, Option<Vec<u8>>, &'a [&'a str]);
    let rows: Vec<Row> = vec![
        ("no manifest", "manifest.json", None, &["digits", "manifest.json"]),
        ("no parameters", SHARD, None, &[SHARD]),
        ("no model", "model.hlo", None, &["model.hlo"]),
        ("manifest is no JSON", "manifest.json", Some(b"{".to_vec()), &["manifest.json"]),
        ("unknown field", "manifest.json", replaced("\"tool\"", "\"toll\""), &["manifest.json", "toll"]),
        (
            "a later version",
            "manifest.json",
            replaced("\"version\": 2", "\"version\": 3"),
            &["version 3", "versions 1 and 2"],
        ),
        ("no hash of the manifest", "manifest.json.sha256", None, &["manifest.json.sha256"]),
        ("another format", "manifest.json", replaced("qwix-package", "zip"), &["`zip`", "`qwix-package`"]),
        (
            "another qtype",
            "manifest.json",
            replaced("\"qtype\": \"int8\"", "\"qtype\": \"int4\""),
            &["digits"],
        ),
        ("another shape", "manifest.json", replaced("512", "256"), &["digits"]),
        ("weights flipped", SHARD, flipped(SHARD), &[SHARD, "sha256"]),
        ("model flipped", "model.hlo", flipped("model.hlo"), &["model.hlo", "sha256"]),
        ("parameters truncated", SHARD, Some(good[SHARD][..1000].to_vec()), &[SHARD]),
    ];
    let mut wrong = Vec::new();
    for (what, name, bytes, expected) in rows {
        match bytes {
            Some(bytes) => std::fs::write(path(name), bytes).unwrap(),
            None => std::fs::remove_file(path(name)).unwrap(),
        }
        let out = folder.path("out.safetensors");
        let images = digits("images.safetensors");
        let run = qwix(["run", &package, "--verify", "--inputs", &images, "-o", &out]);
        let mut found = complaints(&run, expected);
        found.extend(complaints(&qwix(["dump", &package, "-o", &out]), expected));
        if folder.file("out.safetensors").exists() {
            found.push("wrote an output".to_owned());
        }
        wrong.push((what.to_owned(), found));
        std::fs::write(path(name), &good[name]).unwrap();
    }
    assert_all(wrong);
    qwix(["dump", &package, "-o", &folder.path("out.safetensors")]).ok();
}

#[test]
fn a_package_of_another_model_is_not_compared() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/models/linen_mlp");
    let of = |name: &str| goldens.join(name).to_str().unwrap().to_owned();
    let (model, params, inputs) = (of("model.hlo.pb"), of("params.safetensors"), of("inputs.safetensors"));
    let ran = qwix(["compare", &model, "--params", &params, &package, "--inputs", &inputs]);
    assert_all(vec![("another model".to_owned(), complaints(&ran, &["another model"]))]);
    let swapped = qwix(["run", &model, "--inputs", &inputs, "-o", &folder.path("out")]);
    let both = qwix(["run", &package, "--params", &params, "--inputs", &inputs, "-o", &folder.path("out")]);
    let rules = folder.path("digits.rules.json");
    let twice = qwix(["run", &package, "--rules", &rules, "--inputs", &inputs, "-o", &folder.path("out")]);
    assert_all(vec![
        ("a package with rules".to_owned(), complaints(&twice, &["--rules", "quantized already"])),
        ("a model without parameters".to_owned(), complaints(&swapped, &["--params"])),
        ("a package with parameters".to_owned(), complaints(&both, &["--params"])),
    ]);
}

#[test]
fn places_that_cannot_be_written() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let (inputs, nowhere) = (digits("images.safetensors"), folder.path("no/such/place"));
    let rules = folder.path("digits.rules.json");
    let (model, params) = (digits("model.hlo.pb"), digits("params.safetensors"));
    let before = folder.names();
    assert_all(vec![
        (
            "run".to_owned(),
            complaints(
                &qwix(["run", &package, "--inputs", &inputs, "-o", &nowhere]),
                &["cannot write", "no/such/place"],
            ),
        ),
        (
            "run onto a directory".to_owned(),
            complaints(&qwix(["run", &package, "--inputs", &inputs, "-o", &package]), &["directory"]),
        ),
        (
            "dump".to_owned(),
            complaints(&qwix(["dump", &package, "-o", &nowhere]), &["cannot write", "no/such/place"]),
        ),
        (
            "quantize".to_owned(),
            complaints(
                &qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &nowhere]),
                &["cannot write", "no/such/place"],
            ),
        ),
    ]);
    assert_eq!(folder.names(), before);
}

/// A device that is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_device() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let inputs = digits("images.safetensors");
    assert_all(vec![
        (
            "run".to_owned(),
            complaints(
                &qwix(["run", &package, "--inputs", &inputs, "-o", "/dev/full"]),
                &["/dev/full", "No space"],
            ),
        ),
        (
            "dump".to_owned(),
            complaints(&qwix(["dump", &package, "-o", "/dev/full"]), &["/dev/full", "No space"]),
        ),
    ]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let printed = command().args(["inspect", &digits("model.hlo.pb")]).stdout(full).output().unwrap();
    assert_all(vec![(
        "inspect".to_owned(),
        complaints(&Ran::of(&printed), &["standard output", "No space"]),
    )]);
}

/// A device that never ends.
#[cfg(target_os = "linux")]
#[test]
fn an_endless_device() {
    let model = digits("model.hlo.pb");
    assert_all(vec![
        (
            "rules".to_owned(),
            complaints(&qwix(["explain", &model, "--rules", "/dev/zero"]), &["/dev/zero", "more than"]),
        ),
        ("model".to_owned(), complaints(&qwix(["inspect", "/dev/zero"]), &["/dev/zero", "more than"])),
    ]);
}

/// A disk that is full after so many blocks, by a limit on the size of files.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let rules = folder.path("digits.rules.json");
    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let before = folder.names();
    let limited = |blocks: u32, args: &[&str]| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut shell = std::process::Command::new("sh");
        Ran::of(&shell.args(["-c", &script, env!("CARGO_BIN_EXE_qwix")]).args(args).output().unwrap())
    };
    let (out, flat) = (folder.path("out"), folder.path("flat.safetensors"));
    let mut wrong = Vec::new();
    for blocks in [0, 1, 16, 64] {
        let ran = limited(blocks, &["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out]);
        wrong.push((format!("quantize, {blocks} blocks"), complaints(&ran, &["cannot write", "out"])));
        let ran = limited(blocks, &["dump", &package, "-o", &flat]);
        wrong.push((
            format!("dump, {blocks} blocks"),
            complaints(&ran, &["cannot write", "flat.safetensors"]),
        ));
    }
    let ran = limited(16, &["run", &package, "--inputs", &inputs, "-o", &flat]);
    wrong.push(("run".to_owned(), complaints(&ran, &["cannot write", "flat.safetensors"])));
    assert_all(wrong);
    // What was done is kept; with room on the disk, the same command ends with the package and nothing else.
    qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out]).ok();
    let manifest = |dir: &str| std::fs::read(Path::new(dir).join("manifest.json")).unwrap();
    assert!(manifest(&out) == manifest(&package), "another package");
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(folder.names(), before, "something was left behind");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::Stdio;
    let mut child = command()
        .args(["inspect", &digits("model.hlo.pb")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}
