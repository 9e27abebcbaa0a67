//! `docs/format.md` says what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};

use qwix_array::{Array, DType};
use qwix_graph::{Graph, Path};
use qwix_quant::QType;
use serde_json::Value;

use super::manifest::{FORMAT, Manifest, OLD_VERSION, VERSION};
use super::shards::in_file;
use super::{INDEX, MANIFEST, MANIFEST_HASH, MODEL, Package, RULES, hash_line};
use crate::{Checkpoint, Model, PtqProvider, QuantizationRule, QuantizeJob, TensorFile, quantize_model};

/// The one shard of the example.
const PARAMS: &str = "params-00001-of-00001.safetensors";

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn doc() -> String {
    std::fs::read_to_string(FilePath::new(ROOT).join("docs/format.md")).unwrap()
}

/// The rows of the table below a heading of the page, the cells without their backquotes.
fn table(doc: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, below) = doc.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no `{heading}`"));
    let rows = below.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|c| c.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// What stands between backquotes in the first cell of each row.
fn names(doc: &str, heading: &str) -> BTreeSet<String> {
    let rows = table(doc, heading);
    rows.iter().map(|row| row[0].split('`').nth(1).unwrap_or(&row[0]).to_owned()).collect()
}

/// Writes the page's example.
fn write_example(target: &FilePath) {
    let folder = FilePath::new(ROOT).join("goldens/models/linen_mlp");
    let model = Model::load(folder.join("model.hlo.pb")).unwrap();
    let checkpoint = Checkpoint::open(folder.join("params.safetensors")).unwrap();
    let rules = vec![QuantizationRule::new("Dense_0").weight_qtype("int4").tile_size(8)];
    let text = serde_json::to_string(&rules).unwrap();
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap();
    let quantized = Model::from(ptq_model.graph.clone());
    let template = ptq_model.abstract_params();
    let inputs = [("model", &*folder.join("model.hlo.pb"))];
    let job = QuantizeJob {
        model: Some(&quantized),
        inputs: &inputs,
        ..QuantizeJob::new(&checkpoint, &template, &text)
    };
    job.run(target, false).unwrap();
}

fn example() -> (tempfile::TempDir, PathBuf, Value) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("package");
    write_example(&target);
    let manifest = std::fs::read_to_string(target.join(MANIFEST)).unwrap();
    (folder, target, serde_json::from_str(&manifest).unwrap())
}

/// Empties lengths of files and hashes.
fn leave_out(value: &mut Value) {
    match value {
        Value::Object(object) => object.iter_mut().for_each(|(key, value)| match (key.as_str(), &value) {
            ("bytes", _) => *value = 0.into(),
            (_, Value::String(text)) if text.len() == 64 => *value = "".into(),
            _ => leave_out(value),
        }),
        Value::Array(items) => items.iter_mut().for_each(leave_out),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The example is the manifest of the package that it is said to be, with the numbers left out that any change of the
/// graph's text changes.
#[test]
fn the_example_is_real() {
    let (_folder, _, mut manifest) = example();
    leave_out(&mut manifest);
    let doc = doc();
    let (_, json) = doc.split_once("```json\n").unwrap();
    let (json, _) = json.split_once("\n```").unwrap();
    let pretty = serde_json::to_string_pretty(&manifest).unwrap();
    let shown: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}; expected\n{pretty}"));
    manifest["tool"] = shown["tool"].clone();
    assert_eq!(shown, manifest, "expected\n{pretty}");
    let parsed: Manifest = serde_json::from_str(json).unwrap();
    assert!(parsed.parameters.iter().all(|p| p.parameter().is_ok()));
    assert_eq!((parsed.format.as_str(), parsed.version), (FORMAT, VERSION));
}

/// A manifest with every field that there is.
fn everything() -> Value {
    serde_json::json!({
        "format": FORMAT, "version": VERSION, "tool": "qwix", "qwix_compat": false,
        "files": {"model.hlo": {"bytes": 1, "sha256": "00"}},
        "shards": {"params-00001-of-00001.safetensors": {"bytes": 2, "header_sha256": "11"}},
        "tensors": {"a/kernel/qvalue": "22"},
        "inputs": {"model": "33"},
        "sources": {"a/kernel": {"dtype": "f32", "shape": [4, 2, 4], "sha256": "44"}},
        "parameters": [
            {
                "path": "a/kernel", "role": "variable", "dtype": "f32", "shape": [8, 4],
                "key_path": {"argument": "variables", "keys": ["params", "a", "kernel"]},
                "quantized": {
                    "qtype": "int8",
                    "granularity": [{"tile": 4}, "channelwise"],
                    "calibration": {"absmax": {"scale": null}},
                },
                "made_from": {
                    "path": "a/kernel", "dtype": "f32", "shape": [4, 2, 4],
                    "steps": [{"reshape": [8, 4]}, {"transpose": [1, 0]}, {"slice": [[0, 4, 1], [0, 8, 1]]}],
                },
            },
            {
                "path": "a/dot_general0_lhs_scale", "role": "variable", "dtype": "f32", "shape": [1, 8],
                "statistic": {"path": "a/dot_general0_lhs", "part": "scale int8 symmetric"},
            },
        ],
    })
}

/// Heading, and where in [`everything`] an object of that kind stands.
const OBJECTS: [(&str, &str); 9] = [
    ("### The manifest", ""),
    ("### An entry of `files`", "/files/model.hlo"),
    ("### An entry of `shards`", "/shards/params-00001-of-00001.safetensors"),
    ("### An entry of `sources`", "/sources/a~1kernel"),
    ("### An entry of `parameters`", "/parameters/0"),
    ("### An entry of `key_path`", "/parameters/0/key_path"),
    ("### An entry of `quantized`", "/parameters/0/quantized"),
    ("### An entry of `made_from`", "/parameters/0/made_from"),
    ("### An entry of `statistic`", "/parameters/1/statistic"),
];

#[test]
fn the_fields_are_those_listed() {
    let doc = doc();
    let parsed: Manifest = serde_json::from_value(everything()).unwrap();
    let written = serde_json::to_value(&parsed).unwrap();
    // Read and written it is the same, so no field of these objects is optional and unknown to this test.
    assert_eq!(written, everything());
    let mut wrong = vec![];
    for (heading, pointer) in OBJECTS {
        let mut keys: BTreeSet<String> =
            written.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect();
        if pointer == "/parameters/0" {
            keys.insert("statistic".to_owned());
        }
        if names(&doc, heading) != keys {
            wrong.push(format!("{heading}: {:?}, the code has {keys:?}", names(&doc, heading)));
        }
    }
    // Every form of the fields that have several.
    let forms = [
        (
            "/parameters/0/quantized/granularity/0",
            r#"["shared", "channelwise", {"tile": 4}, {"tilefraction": 0.5}]"#,
        ),
        (
            "/parameters/0/quantized/calibration",
            r#"[{"absmax": {"scale": 0.9}}, {"minmax": {"scale": null}}, {"rms": {"scale": 2.0}},
                {"fixed": {"min": -1.0, "max": 2.0}}]"#,
        ),
    ];
    for (pointer, values) in forms {
        for value in serde_json::from_str::<Vec<Value>>(values).unwrap() {
            let mut manifest = everything();
            *manifest.pointer_mut(pointer).unwrap() = value.clone();
            let kept = serde_json::from_value::<Manifest>(manifest).map(|m| serde_json::to_value(m).unwrap());
            if kept.as_ref().ok().and_then(|m| m.pointer(pointer)) != Some(&value) {
                wrong.push(format!("{pointer}: {value} becomes {kept:?}"));
            }
            let name = value.as_object().and_then(|o| o.keys().next().cloned());
            let name = name.unwrap_or_else(|| value.as_str().unwrap().to_owned());
            if !doc.contains(&format!("\"{name}\"")) {
                wrong.push(format!("`{name}` is not on the page"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_tables_are_the_codes() {
    let doc = doc();
    let (mut wrong, mut dtypes, mut qtypes) = (vec![], BTreeMap::new(), BTreeMap::new());
    for row in table(&doc, "### Dtypes") {
        dtypes.insert(row[0].trim_matches('`').to_owned(), row[1].trim_matches('`').to_owned());
    }
    for row in table(&doc, "### Storage of qtypes") {
        qtypes.insert(row[0].trim_matches('`').to_owned(), row[1].trim_matches('`').to_owned());
    }
    for dtype in DType::all() {
        let stored = in_file(&qwix_graph::ArrayType::new(dtype, [3])).unwrap();
        let mut bytes = vec![];
        let array = Array::zeros(stored.dtype, &stored.shape).unwrap();
        crate::write_tensors(&mut bytes, &BTreeMap::from([("x".to_owned(), array)])).unwrap();
        let header: Value =
            serde_json::from_slice(&bytes[8..bytes.len() - stored.byte_len().unwrap()]).unwrap();
        let in_file = header["x"]["dtype"].as_str().unwrap();
        if dtypes.remove(&dtype.to_string()).as_deref() != Some(in_file) {
            wrong.push(format!("{dtype} is {in_file} in the file"));
        }
    }
    for qtype in QType::all() {
        if qtypes.remove(qtype.name).as_deref() != Some(qtype.storage.name()) {
            wrong.push(format!("{qtype} is stored as {}", qtype.storage));
        }
    }
    wrong.extend(dtypes.keys().chain(qtypes.keys()).map(|name| format!("there is no {name}")));
    let shards = "params-00001-of-0000N.safetensors";
    let files: BTreeSet<String> =
        [MANIFEST, MANIFEST_HASH, MODEL, INDEX, shards, RULES].map(str::to_owned).into();
    if names(&doc, "## Files") != files {
        wrong.push(format!("the files are {files:?}"));
    }
    if !doc.contains(&format!("version {VERSION};")) || !doc.contains(&format!("version {OLD_VERSION} ")) {
        wrong.push(format!("the versions are {VERSION} and {OLD_VERSION}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Element 0 is in the lowest bits of byte 0.
#[test]
fn packed_is_as_the_page_says() {
    let (_folder, target, _) = example();
    let package = Package::open(&target).unwrap();
    let file = TensorFile::open(target.join(PARAMS)).unwrap();
    let packed = file.read("Dense_0/kernel/qvalue").unwrap();
    assert_eq!((packed.dtype(), packed.shape()), (DType::U8, &[16 * 32 / 2][..]));
    let codes: Vec<i8> =
        packed.bytes().iter().flat_map(|b| [b & 15, b >> 4]).map(|c| (c ^ 8) as i8 - 8).collect();
    let (_, parameter) =
        package.model().unwrap().variables().find(|(_, p)| p.path == Path::new("Dense_0/kernel")).unwrap();
    let qwix_eval::Value::QArray(q) = package.read(parameter).unwrap() else { panic!("not quantized") };
    assert_eq!(q.qvalue().unpack_i8().unwrap(), codes);
    assert_eq!(q.scale().shape(), [2, 32]);
    let text = std::fs::read_to_string(target.join(MODEL)).unwrap();
    assert_eq!(Graph::from_text(&text).unwrap().parameters, package.parameters());
}

/// Writes a manifest with the hash that it has.
fn write_manifest(name: &FilePath, manifest: &Value) {
    let text = manifest.to_string();
    std::fs::write(name, &text).unwrap();
    std::fs::write(name.with_file_name(MANIFEST_HASH), hash_line(&text)).unwrap();
}

/// What is not known is refused by name, wherever it stands.
#[test]
fn what_is_not_known_is_refused() {
    let (_folder, target, manifest) = example();
    let name = target.join(MANIFEST);
    let refusal = |manifest: &Value| {
        write_manifest(&name, manifest);
        Package::open(&target).map_or_else(|e| e.to_string(), |_| "no error".to_owned())
    };
    let quantized = manifest["parameters"].as_array().unwrap().iter().position(|p| !p["quantized"].is_null());
    let quantized = format!("/parameters/{}", quantized.unwrap());
    let mut wrong = vec![];
    let objects = [
        String::new(),
        "/files/model.hlo".into(),
        "/shards/params-00001-of-00001.safetensors".into(),
        "/sources/Dense_0~1kernel".into(),
        "/parameters/0".into(),
        format!("{quantized}/key_path"),
        format!("{quantized}/quantized"),
        format!("{quantized}/quantized/calibration/absmax"),
        format!("{quantized}/made_from"),
    ];
    for pointer in objects {
        let mut changed = manifest.clone();
        let object = changed.pointer_mut(&pointer).and_then(Value::as_object_mut);
        object.unwrap_or_else(|| panic!("no {pointer}")).insert("surprise".to_owned(), 1.into());
        let said = refusal(&changed);
        if !said.contains("surprise") || !said.contains(MANIFEST) {
            wrong.push(format!("a field in `{pointer}`: {said}"));
        }
    }
    for (pointer, value, expected) in [
        ("/version", Value::from(3), "version 3"),
        ("/version", Value::from(0), "version 0"),
        ("/format", "zip".into(), "`zip`"),
        ("/files/surprise", serde_json::json!({"bytes": 0, "sha256": ""}), "`surprise`"),
        ("/shards/surprise", serde_json::json!({"bytes": 0, "header_sha256": ""}), "`surprise`"),
        (
            "/shards/params-..\\x.safetensors",
            serde_json::json!({"bytes": 0, "header_sha256": ""}),
            "no name of a shard",
        ),
        ("/parameters/0/role", "decoration".into(), "decoration"),
    ] {
        let mut changed = manifest.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[key] = value;
        let said = refusal(&changed);
        if !said.contains(expected) {
            wrong.push(format!("{pointer}: {said}"));
        }
    }
    write_manifest(&name, &manifest);
    Package::open(&target).unwrap();
    std::fs::write(target.join("notes.txt"), "n").unwrap();
    let said = Package::open(&target).map_or_else(|e| e.to_string(), |_| "no error".to_owned());
    if !said.contains("`notes.txt`") {
        wrong.push(format!("a file: {said}"));
    }
    std::fs::rename(target.join("notes.txt"), target.join(".notes.txt")).unwrap();
    Package::open(&target).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
