//! What scripts may rely on.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Folder, INT8, digits, qwix};
use qwix::{Array, DType, TensorFile, sqnr};
use serde_json::Value;

const MIXED: &str = r#"[
    {"module_path": "Dense_0", "weight_qtype": "int4", "tile_size": 32},
    {"module_path": "Dense_1", "weight_qtype": "nf4"},
    {"module_path": "Conv_0"},
    {"module_path": "Conv_1", "weight_qtype": "float8_e4m3fn", "act_qtype": "float8_e4m3fn"}
]"#;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON on standard output")
}

fn tensors(file: &str) -> BTreeMap<String, Array> {
    let file = TensorFile::open(file).unwrap();
    file.iter().map(|(key, _)| (key.to_owned(), file.read(key).unwrap())).collect()
}

#[test]
fn inspect_lists_parameters_inputs_modules_and_ops() {
    let text = qwix(["inspect", &digits("model.hlo.pb")]).ok();
    for expected in
        ["8 parameters", "Conv_1/kernel", "f32[3,3,16,32]", "images", "f32[450,8,8,1]", "convolution"]
    {
        assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "colours where no terminal is");

    let report = json(&qwix(["inspect", &digits("model.hlo.pb"), "--json"]).ok());
    let paths: Vec<&str> =
        report["parameters"].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 8);
    assert!(paths.contains(&"Dense_0/kernel"));
    assert_eq!(report["inputs"][0]["name"], "images");
    assert_eq!(report["inputs"][0]["shape"], json("[450, 8, 8, 1]"));
    assert_eq!(report["ops"]["dot"], 2);
    assert_eq!(report["ops"]["convolution"], 2);
    assert_eq!(report["unsupported"], json("[]"));
    assert_eq!(report["modules"][2]["path"], "Dense_0");
    assert_eq!(report["modules"][2]["products"], json(r#"["dot_general0"]"#));
}

#[test]
fn explain_has_a_verdict_for_every_product() {
    let folder = Folder::new();
    let rules = folder.write("r.json", MIXED);
    let report = json(&qwix(["explain", &digits("model.hlo.pb"), "--rules", &rules, "--json"]).ok());
    let verdicts: Vec<(String, String, Value)> = report["sites"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["module_path"].to_string(), s["verdict"].to_string(), s["rule"].clone()))
        .collect();
    let expected = [
        ("Conv_0", "left", 2),
        ("Conv_1", "quantized", 3),
        ("Dense_0", "quantized", 0),
        ("Dense_1", "quantized", 1),
    ];
    let expected: Vec<(String, String, Value)> =
        expected.iter().map(|&(m, v, r)| (format!("\"{m}\""), format!("\"{v}\""), Value::from(r))).collect();
    assert_eq!(verdicts, expected);
    let text = qwix(["explain", &digits("model.hlo.pb"), "--rules", &rules]).ok();
    for expected in
        ["3 of 4 dots and convolutions quantized", "Dense_0 dot_general0", "Left in float", "int4 {32,c}"]
    {
        assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
    }
}

#[test]
fn strict_wants_every_product_and_every_rule_accounted_for() {
    let folder = Folder::new();
    let rows = [
        ("all", INT8, 0, ""),
        ("a rule that leaves a module", MIXED, 0, ""),
        (
            "no rule for the dense layers",
            r#"[{"module_path": "Conv_.*", "weight_qtype": "int8"}]"#,
            1,
            "2 products that no rule matches",
        ),
        (
            "a rule for nothing",
            r#"[{"module_path": ".*", "weight_qtype": "int8"}, {"module_path": "head", "weight_qtype": "int4"}]"#,
            1,
            "1 rule not used",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, rules, status, said) in rows {
        let rules = folder.write("r.json", rules);
        let ran = qwix(["explain", &digits("model.hlo.pb"), "--rules", &rules, "--strict"]);
        if ran.status != status || !ran.stderr.contains(said) || (status == 0) != ran.stderr.is_empty() {
            wrong.push(format!("{what}: status {}, `{}`", ran.status, ran.stderr));
        }
        if qwix(["explain", &digits("model.hlo.pb"), "--rules", &rules]).status != 0 {
            wrong.push(format!("{what}: fails without --strict"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rules_may_be_toml() {
    let folder = Folder::new();
    let toml = "[[rules]]\nmodule_path = \".*\"\nweight_qtype = \"int8\"\nact_qtype = \"int8\"\n";
    let (toml, json) = (folder.write("r.toml", toml), folder.write("r.json", INT8));
    let explain = |rules: &str| qwix(["explain", &digits("model.hlo.pb"), "--rules", rules, "--json"]).ok();
    assert_eq!(explain(&toml), explain(&json));
}

#[test]
fn a_package_runs_and_is_close_to_its_float_model() {
    let folder = Folder::new();
    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let package = folder.quantize("digits", INT8);
    let mut names: Vec<String> = std::fs::read_dir(&package)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let expected =
        ["manifest.json", "manifest.json.sha256", "model.hlo", "params-00001-of-00001.safetensors"];
    assert_eq!(names[..4], expected);
    assert_eq!(names[4..], ["params.safetensors.index.json", "rules.json"]);
    assert!(qwix(["verify", &package]).ok().contains("every byte is as it was written"));

    let (float, cpu, reference) = (folder.path("float"), folder.path("cpu"), folder.path("reference"));
    qwix(["run", &model, "--params", &params, "--inputs", &inputs, "-o", &float]).ok();
    qwix(["run", &package, "--inputs", &inputs, "-o", &cpu]).ok();
    qwix(["run", &package, "--inputs", &inputs, "-o", &reference, "--backend", "reference"]).ok();
    let logits = |file: &str| tensors(file).remove("0").expect("the first output");
    let jax = logits(&digits("logits.safetensors"));
    assert!(sqnr(&jax, &logits(&float)).unwrap() > 110.0, "float differs from JAX");
    assert!(sqnr(&logits(&reference), &logits(&cpu)).unwrap() > 50.0, "the backends differ");
    let decibels = sqnr(&logits(&float), &logits(&cpu)).unwrap();
    assert!((25.0..60.0).contains(&decibels), "int8 is {decibels} dB from float");

    let report =
        json(&qwix(["compare", &model, "--params", &params, &package, "--inputs", &inputs, "--json"]).ok());
    let said = report["outputs"][0]["sqnr_db"].as_f64().unwrap();
    assert!((said - decibels).abs() < 0.5, "compare says {said}, the outputs {decibels}");
    let sites: Vec<f64> =
        report["sites"].as_array().unwrap().iter().map(|s| s["sqnr_db"].as_f64().unwrap()).collect();
    assert_eq!(sites.len(), 4);
    assert!(sites.is_sorted(), "worst first: {sites:?}");
    assert_eq!(report["not_measured"], json("[]"));
    let text = qwix(["compare", &model, "--params", &params, &package, "--inputs", &inputs]).ok();
    assert!(text.contains("worst first") && text.contains("Dense_0"), "{text}");
}

/// Quantized while it is loaded, within any bound, it is the model that the package holds.
#[test]
fn a_float_model_runs_quantized_by_rules() {
    let folder = Folder::new();
    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let package = folder.quantize("digits", INT8);
    let rules = folder.path("digits.rules.json");
    let (offline, online) = (folder.path("offline"), folder.path("online"));
    qwix(["run", &package, "--inputs", &inputs, "-o", &offline]).ok();
    let run = ["run", &model, "--params", &params, "--rules", &rules, "--inputs", &inputs, "-o", &online];
    for bound in [&[][..], &["--float-memory", "1"], &["--float-memory", "0.3MB"]] {
        let ran = qwix(run.iter().chain(bound));
        assert_eq!(ran.stderr, "", "bars where no terminal is");
        ran.ok();
        assert_eq!(tensors(&online), tensors(&offline), "{bound:?}");
    }
    let out = folder.path("again");
    let quantize = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out];
    qwix(quantize.iter().chain(&["--max-memory", "100MB", "--jobs", "3"])).ok();
    for name in ["manifest.json", "params-00001-of-00001.safetensors"] {
        let read = |dir: &str| std::fs::read(Path::new(dir).join(name)).unwrap();
        assert!(read(&out) == read(&package), "{name} depends on the memory");
    }
}

#[test]
fn inputs_have_numbers_or_names() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let images = tensors(&digits("images.safetensors")).remove("images").unwrap();
    let mut outputs = Vec::new();
    for key in ["0", "images"] {
        let mut bytes = Vec::new();
        qwix::write_tensors(&mut bytes, &BTreeMap::from([(key.to_owned(), images.clone())])).unwrap();
        let inputs = folder.write("in.safetensors", bytes);
        qwix(["run", &package, "--inputs", &inputs, "-o", &folder.path(key)]).ok();
        outputs.push(tensors(&folder.path(key)));
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0].keys().collect::<Vec<_>>(), ["0"]);
}

#[test]
fn dump_has_every_parameter_in_plain_dtypes() {
    let folder = Folder::new();
    let package = folder.quantize("digits", MIXED);
    let flat = folder.path("flat.safetensors");
    qwix(["dump", &package, "-o", &flat]).ok();
    let flat = tensors(&flat);
    let expected = [
        ("Conv_0/bias", DType::F32, vec![16]),
        ("Conv_0/kernel", DType::F32, vec![3, 3, 1, 16]),
        ("Conv_1/bias", DType::F32, vec![32]),
        ("Conv_1/kernel/qvalue", DType::F32, vec![3, 3, 16, 32]),
        ("Conv_1/kernel/scale", DType::F32, vec![1, 1, 1, 32]),
        ("Dense_0/bias", DType::F32, vec![128]),
        ("Dense_0/kernel/qvalue", DType::S8, vec![512, 128]),
        ("Dense_0/kernel/scale", DType::F32, vec![16, 128]),
        ("Dense_1/bias", DType::F32, vec![10]),
        ("Dense_1/kernel/qvalue", DType::S8, vec![128, 10]),
        ("Dense_1/kernel/scale", DType::F32, vec![1, 10]),
    ];
    let found: Vec<(&str, DType, Vec<usize>)> =
        flat.iter().map(|(key, array)| (key.as_str(), array.dtype(), array.shape().to_vec())).collect();
    assert_eq!(found, expected);
    let range = |key: &str| {
        let values = flat[key].to_i64_vec();
        (*values.iter().min().unwrap(), *values.iter().max().unwrap())
    };
    assert_eq!(range("Dense_0/kernel/qvalue"), (-8, 7));
    assert_eq!(range("Dense_1/kernel/qvalue"), (0, 15));
    assert_eq!(flat["Conv_0/kernel"], tensors(&digits("params.safetensors"))["Conv_0/kernel"]);
}

#[test]
fn zero_points_are_dumped() {
    let folder = Folder::new();
    let rules =
        r#"[{"module_path": "Dense_.*", "weight_qtype": "int8", "weight_calibration_method": "minmax"}]"#;
    let package = folder.quantize("digits", rules);
    let flat = folder.path("flat.safetensors");
    qwix(["dump", &package, "-o", &flat]).ok();
    let flat = tensors(&flat);
    assert_eq!(flat["Dense_0/kernel/zero_point"].dtype(), DType::S8);
    assert_eq!(flat["Dense_0/kernel/zero_point"].shape(), [1, 128]);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let folder = Folder::new();
    let (a, b) = (folder.quantize("a", MIXED), folder.quantize("b", MIXED));
    for name in ["manifest.json", "model.hlo", "params-00001-of-00001.safetensors", "rules.json"] {
        let read = |dir: &str| std::fs::read(Path::new(dir).join(name)).unwrap();
        assert!(read(&a) == read(&b), "{name} differs");
    }
}

#[test]
fn a_package_is_replaced_only_on_request() {
    let folder = Folder::new();
    let package = folder.quantize("digits", INT8);
    let rules = folder.write("r.json", MIXED);
    let (model, params) = (digits("model.hlo.pb"), digits("params.safetensors"));
    let again = |extra: &[&str]| {
        qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &package].iter().chain(extra))
    };
    let before = std::fs::read(Path::new(&package).join("manifest.json")).unwrap();
    let refused = again(&[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("exists"), "{}", refused.stderr);
    assert_eq!(std::fs::read(Path::new(&package).join("manifest.json")).unwrap(), before);
    again(&["--force"]).ok();
    assert_ne!(std::fs::read(Path::new(&package).join("manifest.json")).unwrap(), before);

    // What is no package is never replaced.
    std::fs::create_dir(folder.file("mine")).unwrap();
    folder.write("mine/letter.txt", "dear");
    let mine = folder.path("mine");
    let ran = qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &mine, "--force"]);
    assert_eq!(ran.status, 1);
    assert!(folder.file("mine/letter.txt").exists());
    // Nor a package that something was put into.
    std::fs::write(Path::new(&package).join("notes.txt"), "dear").unwrap();
    let ran = again(&["--force"]);
    assert!(ran.status == 1 && ran.stderr.contains("`notes.txt`"), "{}", ran.stderr);
    assert!(Path::new(&package).join("notes.txt").exists());
    // An empty directory is as good as none.
    std::fs::create_dir(folder.file("empty")).unwrap();
    qwix(["quantize", &model, "--params", &params, "--rules", &rules, "-o", &folder.path("empty")]).ok();
    assert_eq!(folder.names(), ["digits", "digits.rules.json", "empty", "mine", "r.json"]);
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in
        ["inspect", "explain", "calibrate", "merge", "quantize", "run", "compare", "dump", "export", "plugin"]
    {
        let help = qwix([command, "--help"]).ok();
        assert!(help.contains(&format!("  qwix {command} ")), "{command}: no example in\n{help}");
    }
    assert!(qwix(["--version"]).ok().starts_with("qwix "));
}

#[test]
fn a_wrong_command_line_is_status_2() {
    let model = digits("model.hlo.pb");
    let rows: [&[&str]; 21] = [
        &[],
        &["transmogrify"],
        &["inspect"],
        &["inspect", &model, "--jason"],
        &["explain", &model],
        &["run", &model, "--inputs", "x", "-o", "y", "--backend", "abacus"],
        &["run", &model, "--inputs", "x", "-o", "y", "--backend", "cpu:0"],
        &["plugin"],
        &["plugin", "install", "abacus"],
        &["plugin", "path", "abacus"],
        &["quantize", &model, "--params", "p", "--rules", "r"],
        &["quantize", &model, "--params", "p", "--rules", "r", "-o", "o", "--max-memory", "much"],
        &["run", &model, "--params", "p", "--inputs", "x", "-o", "y", "--qwix-compat"],
        &["run", &model, "--params", "p", "--inputs", "x", "-o", "y", "--quant-stats", "s"],
        &["calibrate", &model, "--params", "p", "--rules", "r", "-o", "o"],
        &["merge", "-o", "o"],
        &["quantize", "--params", "p", "-o", "o"],
        &["quantize", "--params", "p", "-o", "o", "--weights-only", ".*"],
        &["quantize", &model, "--params", "p", "-o", "o", "--weights-only", ".*", "--weight-qtype", "int8"],
        &["verify"],
        &["run", &model, "--params", "p", "--inputs", "x", "-o", "y", "--float-memory", "1GB"],
    ];
    for args in rows {
        let ran = qwix(args);
        assert_eq!(ran.status, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn quantize_ends_with_a_table() {
    let folder = Folder::new();
    let rules = folder.write("r.json", MIXED);
    let (model, params) = (digits("model.hlo.pb"), digits("params.safetensors"));
    let (out, page) = (folder.path("digits"), folder.path("report.html"));
    let quantize = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out, "--force"];
    let text = qwix(quantize.iter().chain(&["--report", &page])).ok();
    let expected = format!(
        "\
{out}: 3 of 4 dots and convolutions quantized; parameters 287.0 kB → 47.7 kB

  qtype          parameters  weights    before    after  bits per weight
  int4                    1    65536  262.1 kB  41.0 kB             5.00
  float8_e4m3fn           1     4608   18.4 kB   4.7 kB             8.22
  nf4                     1     1280    5.1 kB    680 B             4.25
  float                   5      330    1.3 kB   1.3 kB            32.00
  all                     8    71754  287.0 kB  47.7 kB             5.32

Quantized parameters, worst first
     SQNR  parameter       type            qtype          bits per weight  looked at
  20.3 dB  Dense_1/kernel  f32[128,10]     nf4                       4.25        all
  20.4 dB  Dense_0/kernel  f32[512,128]    int4                      5.00        all
  31.8 dB  Conv_1/kernel   f32[3,3,16,32]  float8_e4m3fn             8.22        all
"
    );
    assert_eq!(text, expected);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<td>Dense_0/kernel</td>"));
    assert!(!page.contains("http") && !page.contains(&out), "the page names something outside of it");

    let report = json(&qwix(quantize.iter().chain(&["--json", "--jobs", "1"])).ok());
    assert_eq!(report["totals"]["tensors"], 8);
    let kernel = &report["tensors"].as_array().unwrap()[5];
    assert_eq!((&kernel["path"], &kernel["qtype"]), (&Value::from("Dense_0/kernel"), &Value::from("int4")));
    assert_eq!(kernel["histogram"].as_array().unwrap().len(), 65);
    assert_eq!(report["tensors"][0]["sqnr_db"], Value::Null);
}

#[test]
fn reports_go_where_they_may() {
    let folder = Folder::new();
    let rules = folder.write("r.json", INT8);
    let (model, params, out) = (digits("model.hlo.pb"), digits("params.safetensors"), folder.path("digits"));
    let quantize = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out, "--force"];
    let within = |name: &str| Path::new(&out).join(name).to_str().unwrap().to_owned();
    let nowhere = folder.path("nowhere/report.html");
    let attempt = |page: &str, expected: &str| {
        let ran = qwix(quantize.iter().chain(&["--report", page]));
        assert!(ran.status == 1 && ran.stderr.contains(expected), "{page}: {}", ran.stderr);
    };
    attempt(&nowhere, "directory that is not there");
    attempt(&within("report.html"), "would lie in the package");
    assert!(!Path::new(&out).exists(), "something was written all the same");
    qwix(quantize).ok();
    attempt(&within("report.html"), "would lie in the package");
    attempt(&out, "is a directory");
}
