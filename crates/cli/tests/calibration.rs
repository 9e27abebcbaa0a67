//! Calibration from the command line: statistics, what is made of them, and bad input.

mod common;

use std::collections::BTreeMap;

use common::{Folder, Ran, digits, qwix};
use qwix::{Array, DType, TensorFile, read_stats, sqnr, write_tensors};
use serde_json::Value;

/// Static ranges for the dense layers; the convolutions have them for each batch.
const STATIC: &str = r#"[
    {"module_path": "Dense_.*", "weight_qtype": "int8", "act_qtype": "int8", "act_static_scale": true},
    {"module_path": ".*", "weight_qtype": "int8", "act_qtype": "int8"}
]"#;

fn images() -> Array {
    TensorFile::open(digits("images.safetensors")).unwrap().read("images").unwrap()
}

fn scaled(array: &Array, factor: f32) -> Array {
    let values = array.values::<f32>().unwrap().iter().map(|x| x * factor).collect();
    Array::from_vec(array.shape(), values).unwrap()
}

fn file_of(rows: &[(&str, Array)]) -> Vec<u8> {
    let tensors: BTreeMap<String, Array> = rows.iter().map(|(k, a)| ((*k).to_owned(), a.clone())).collect();
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &tensors).unwrap();
    bytes
}

fn tensors(file: &str) -> BTreeMap<String, Array> {
    let file = TensorFile::open(file).unwrap();
    file.iter().map(|(key, _)| (key.to_owned(), file.read(key).unwrap())).collect()
}

/// `qwix calibrate` on the digits; `more` is the data and other arguments.
fn calibrate(folder: &Folder, rules: &str, more: &[&str], out: &str) -> Ran {
    let (model, params) = (digits("model.hlo.pb"), digits("params.safetensors"));
    let (rules, out) = (folder.write("static.json", rules), folder.path(out));
    let args = ["calibrate", &model, "--params", &params, "--rules", &rules, "-o", &out];
    qwix(args.iter().chain(more))
}

#[test]
fn from_data_to_a_model_with_static_ranges() {
    let folder = Folder::new();
    let images = images();
    let data = folder.write(
        "data.safetensors",
        file_of(&[
            ("0/images", images.clone()),
            ("1/images", scaled(&images, 0.9)),
            ("2/images", images.clone()),
        ]),
    );
    let said = calibrate(&folder, STATIC, &["--data", &data], "stats.safetensors").ok();
    assert!(said.contains("statistics of 2 activations over 3 batches"), "{said}");
    let stats = tensors(&folder.path("stats.safetensors"));
    let expected = [
        ("Dense_0/dot_general0_lhs/count", DType::S32, vec![]),
        ("Dense_0/dot_general0_lhs/sum_of_absmax", DType::F32, vec![1, 1]),
        ("Dense_1/dot_general0_lhs/count", DType::S32, vec![]),
        ("Dense_1/dot_general0_lhs/sum_of_absmax", DType::F32, vec![1, 1]),
    ];
    let found: Vec<(&str, DType, Vec<usize>)> =
        stats.iter().map(|(key, array)| (key.as_str(), array.dtype(), array.shape().to_vec())).collect();
    assert_eq!(found, expected);
    assert_eq!(stats["Dense_0/dot_general0_lhs/count"], Array::scalar(3i32));

    let (model, params, inputs) =
        (digits("model.hlo.pb"), digits("params.safetensors"), digits("images.safetensors"));
    let (rules, stats, package) =
        (folder.path("static.json"), folder.path("stats.safetensors"), folder.path("package"));
    let quantize = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &package];
    qwix(quantize.iter().chain(&["--quant-stats", &stats])).ok();
    let (offline, online, float) = (folder.path("offline"), folder.path("online"), folder.path("float"));
    qwix(["run", &package, "--inputs", &inputs, "-o", &offline]).ok();
    let run = ["run", &model, "--params", &params, "--inputs", &inputs, "-o"];
    qwix(run.iter().copied().chain([online.as_str(), "--rules", &rules, "--quant-stats", &stats])).ok();
    qwix(run.iter().copied().chain([float.as_str()])).ok();
    assert_eq!(tensors(&offline), tensors(&online));
    let decibels = sqnr(&tensors(&float)["0"], &tensors(&offline)["0"]).unwrap();
    assert!((20.0..60.0).contains(&decibels), "{decibels} dB");
    // The package has scales in place of what computes them.
    let text = std::fs::read_to_string(folder.file("package/model.hlo")).unwrap();
    assert!(text.contains("Dense_0/dot_general0_lhs_scale"), "{text}");
    let flat = folder.path("flat");
    qwix(["dump", &package, "-o", &flat]).ok();
    assert_eq!(tensors(&flat)["Dense_0/dot_general0_lhs_scale"].shape(), [1, 1]);

    let explained = qwix(["explain", &model, "--rules", &rules]).ok();
    let is_static = |site: &str| explained.lines().find(|l| l.contains(site)).unwrap().contains("} static");
    assert!(is_static("Dense_0 dot_general0") && !is_static("Conv_1 conv_general"), "{explained}");
    assert!(explained.contains("static: the range comes from calibration"), "{explained}");
    let json: Value =
        serde_json::from_str(&qwix(["explain", &model, "--rules", &rules, "--json"]).ok()).unwrap();
    let sites = json["sites"].as_array().unwrap();
    let from: Vec<&Value> = sites.iter().map(|s| &s["lhs"]["statistics"]).collect();
    assert_eq!(
        from,
        [&Value::Null, &Value::Null, &"Dense_0/dot_general0_lhs".into(), &"Dense_1/dot_general0_lhs".into()]
    );
}

/// Batches go by number, whatever their names, in one file or several, in one run or several.
#[test]
fn parts_of_the_data_add_up() {
    let folder = Folder::new();
    let images = images();
    let batch = |number: usize| scaled(&images, 0.5 + number as f32 / 7.0);
    let of = |keys: &[(&str, usize)]| {
        file_of(&keys.iter().map(|&(key, number)| (key, batch(number))).collect::<Vec<_>>())
    };
    let whole = folder.write("whole", of(&[("2/0", 0), ("9/0", 1), ("10/0", 2), ("011/images", 3)]));
    let first = folder.write("first", of(&[("0/images", 0), ("1/images", 1)]));
    let second = folder.write("second", of(&[("0/0", 2), ("1/0", 3)]));
    let stats = |name: &str, more: &[&str]| {
        calibrate(&folder, STATIC, more, name).ok();
        tensors(&folder.path(name))
    };
    let expected = stats("at-once", &["--data", &whole]);
    assert_eq!(expected["Dense_0/dot_general0_lhs/count"], Array::scalar(4i32));
    assert_eq!(stats("files", &["--data", &first, &second]), expected);
    stats("a", &["--data", &first]);
    assert_eq!(stats("resumed", &["--data", &second, "--resume", &folder.path("a")]), expected);
    // In place as well.
    assert_eq!(stats("a", &["--data", &second, "--resume", &folder.path("a")]), expected);

    let first_stats = stats("b", &["--data", &first]);
    let second_stats = stats("c", &["--data", &second]);
    let (b, c, all) = (folder.path("b"), folder.path("c"), folder.path("all"));
    let said: Value = serde_json::from_str(&qwix(["merge", &b, &c, "-o", &all, "--json"]).ok()).unwrap();
    assert_eq!(said["batches"], 4);
    assert_eq!(said["statistics"][1]["path"], "Dense_1/dot_general0_lhs");
    assert_eq!(said["statistics"][1]["of"], "absmax");
    let merged = tensors(&all);
    assert!(merged.keys().eq(first_stats.keys()));
    for (key, array) in &merged {
        let number = |stats: &BTreeMap<String, Array>| stats[key].to_f64_vec()[0];
        let sum = (number(&first_stats) + number(&second_stats)) as f32 as f64;
        assert_eq!(array.to_f64_vec(), [sum], "{key}");
        // What comes before the first static range does not depend on it; sums of sums are rounded elsewhere.
        if key.starts_with("Dense_0") {
            assert!((sum - number(&expected)).abs() <= 1e-6 * sum, "{key}: {sum}, {}", number(&expected));
        }
    }
    qwix(["merge", &b, "-o", &all]).ok();
    assert_eq!(tensors(&all), first_stats);
}

fn complaints(ran: &Ran, expected: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    if ran.status != 1 || ran.stderr.lines().count() != 1 || !ran.stderr.starts_with("error: ") {
        complaints.push(format!("status {}", ran.status));
    }
    complaints.extend(expected.iter().filter(|e| !ran.stderr.contains(**e)).map(|e| format!("no `{e}`")));
    if !complaints.is_empty() {
        complaints.push(format!("said `{}`", ran.stderr.trim_end()));
    }
    complaints
}

#[test]
fn data_that_is_not_the_models() {
    let folder = Folder::new();
    let good = images();
    let small = Array::from_vec(&[2, 8, 8, 1], vec![0f32; 128]).unwrap();
    let mut values = good.values::<f32>().unwrap().into_owned();
    values[130] = f32::NAN;
    let nan = Array::from_vec(good.shape(), values).unwrap();
    let with = |key: &'static str, array: &Array| file_of(&[("0/0", good.clone()), (key, array.clone())]);
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("shape", with("7/0", &small), &["data", "batch 7", "`images`", "f32[450,8,8,1]", "f32[2,8,8,1]"]),
        ("dtype", with("7/0", &good.convert(DType::F16)), &["data", "batch 7", "f32[450,8,8,1]", "f16"]),
        ("another name", with("7/image", &good), &["data", "batch 7", "`images`", "missing"]),
        (
            "two inputs",
            file_of(&[("3/images", good.clone()), ("3/mask", small.clone())]),
            &["data", "`3/mask`", "no input", "`images`"],
        ),
        ("no batch number", with("images", &good), &["data", "`images`", "<batch>/<input>"]),
        ("a batch without a number", with("first/0", &good), &["data", "`first/0`", "<batch>/<input>"]),
        ("the same twice", with("00/0", &good), &["data", "`00/0`", "`0/0`"]),
        ("NaN", with("0/0", &nan), &["data", "batch 0", "`images`", "NaN", "[2, 0, 2, 0]"]),
        ("nothing", file_of(&[]), &["data", "no batch"]),
        ("junk", vec![9; 50], &["data"]),
    ];
    let kept = folder.write("stats.safetensors", "what was there");
    let mut wrong = Vec::new();
    for (what, bytes, expected) in rows {
        let data = folder.write("data", bytes);
        let found =
            complaints(&calibrate(&folder, STATIC, &["--data", &data], "stats.safetensors"), expected);
        wrong.extend(found.into_iter().map(|c| format!("{what}: {c}")));
        if std::fs::read(&kept).unwrap() != b"what was there" {
            wrong.push(format!("{what}: the file that was there is another"));
        }
    }
    let absent = calibrate(&folder, STATIC, &["--data", &folder.path("absent")], "stats.safetensors");
    wrong.extend(complaints(&absent, &["cannot read", "absent"]));
    let data = folder.write("data", file_of(&[("0/0", good.clone())]));
    let plain = r#"[{"weight_qtype": "int8", "act_qtype": "int8"}]"#;
    wrong.extend(complaints(
        &calibrate(&folder, plain, &["--data", &data], "out"),
        &["static.json", "act_static_scale"],
    ));
    assert_eq!(folder.names(), ["data", "static.json", "stats.safetensors"], "something was left behind");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_was_seen_before_a_bad_batch_is_kept() {
    let folder = Folder::new();
    let good = images();
    let mut values = good.values::<f32>().unwrap().into_owned();
    let whole = folder.write("whole", file_of(&[0, 1, 2].map(|i| (["0/0", "1/0", "2/0"][i], good.clone()))));
    values[130] = f32::NAN;
    let nan = Array::from_vec(good.shape(), values).unwrap();
    let bad = file_of(&[("0/0", good.clone()), ("1/0", nan), ("2/0", good.clone())]);
    let data = folder.write("data", bad);
    let failed = calibrate(&folder, STATIC, &["--data", &data], "out");
    let expected = ["batch 1", "NaN", "out.partial", "--resume", "--skip 1"];
    assert_eq!(complaints(&failed, &expected), [""; 0]);
    assert_eq!(folder.names(), ["data", "out.partial", "static.json", "whole"]);
    let partial = folder.path("out.partial");
    calibrate(&folder, STATIC, &["--data", &whole, "--resume", &partial, "--skip", "1"], "out").ok();
    calibrate(&folder, STATIC, &["--data", &whole], "at_once").ok();
    assert_eq!(tensors(&folder.path("out")), tensors(&folder.path("at_once")));
    let nothing = calibrate(&folder, STATIC, &["--data", &whole, "--skip", "3"], "out");
    assert_eq!(complaints(&nothing, &["--skip 3", "3 batches"]), [""; 0]);
}

#[test]
fn statistics_that_are_not_the_models() {
    let folder = Folder::new();
    let data = folder.write("data", file_of(&[("0/0", images())]));
    calibrate(&folder, STATIC, &["--data", &data], "good").ok();
    let good = tensors(&folder.path("good"));
    let change = |edit: &dyn Fn(&mut BTreeMap<String, Array>)| {
        let mut tensors = good.clone();
        edit(&mut tensors);
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors).unwrap();
        bytes
    };
    let (count, sum) = ("Dense_1/dot_general0_lhs/count", "Dense_1/dot_general0_lhs/sum_of_absmax");
    let set = |key: &'static str, array: Array| {
        change(&move |t: &mut BTreeMap<String, Array>| drop(t.insert(key.to_owned(), array.clone())))
    };
    let without = change(&|t| t.retain(|key, _| !key.starts_with("Dense_1")));
    let rows: Vec<(&str, Vec<u8>, &[&str], bool)> = vec![
        (
            "an activation is missing",
            without.clone(),
            &["s.safetensors", "`Dense_1/dot_general0_lhs`", "missing"],
            true,
        ),
        ("none", change(&|t| t.clear()), &["s.safetensors", "missing"], false),
        (
            "of no batch",
            set(count, Array::scalar(0i32)),
            &["s.safetensors", "`Dense_1/dot_general0_lhs`", "count of 0", "calibrate"],
            false,
        ),
        (
            "no count",
            change(&|t| drop(t.remove(count))),
            &["s.safetensors", "`Dense_1/dot_general0_lhs`", "count"],
            true,
        ),
        (
            "of another shape",
            set(sum, Array::zeros(DType::F32, &[1, 7]).unwrap()),
            &["`Dense_1/dot_general0_lhs`", "f32[1,1]", "f32[1,7]"],
            true,
        ),
        (
            "not finite",
            set(sum, Array::from_vec(&[1, 1], vec![f32::NAN]).unwrap()),
            &["`Dense_1/dot_general0_lhs`", "NaN"],
            true,
        ),
        (
            "of another model",
            change(&|t| {
                for key in [count, sum] {
                    let array = t.remove(key).unwrap();
                    t.insert(key.replace("Dense_1", "Dense_7"), array);
                }
            }),
            &["s.safetensors", "`Dense_7/dot_general0_lhs`", "`Dense_"],
            true,
        ),
        ("parameters", std::fs::read(digits("params.safetensors")).unwrap(), &["s.safetensors"], true),
        ("junk", vec![1; 30], &["s.safetensors"], true),
    ];
    let (model, params, rules) =
        (digits("model.hlo.pb"), digits("params.safetensors"), folder.path("static.json"));
    let out = folder.path("out");
    let quantize = ["quantize", &model, "--params", &params, "--rules", &rules, "-o", &out];
    let mut wrong = Vec::new();
    for (what, bytes, expected, resume_too) in rows {
        let stats = folder.write("s.safetensors", bytes);
        let ran = qwix(quantize.iter().chain(&["--quant-stats", &stats]));
        wrong.extend(complaints(&ran, expected).into_iter().map(|c| format!("{what}: {c}")));
        if resume_too {
            let ran = calibrate(&folder, STATIC, &["--data", &data, "--resume", &stats], "out");
            wrong.extend(
                complaints(&ran, &["s.safetensors"]).into_iter().map(|c| format!("{what}, resumed: {c}")),
            );
        }
    }
    let none = qwix(quantize);
    wrong.extend(complaints(&none, &["`Dense_0/dot_general0_lhs`", "qwix calibrate", "--quant-stats"]));
    let plain = folder.write("plain.json", r#"[{"weight_qtype": "int8", "act_qtype": "int8"}]"#);
    let stats = folder.path("good");
    let useless =
        ["quantize", &model, "--params", &params, "--rules", &plain, "-o", &out, "--quant-stats", &stats];
    wrong.extend(complaints(&qwix(useless), &["good", "`Dense_0/dot_general0_lhs`", "act_static_scale"]));
    let partial = folder.write("s.safetensors", without);
    wrong.extend(complaints(
        &qwix(["merge", &stats, &partial, "-o", &out]),
        &["s.safetensors", "`Dense_1/dot_general0_lhs`"],
    ));
    let before = ["data", "good", "plain.json", "s.safetensors", "static.json"];
    assert_eq!(folder.names(), before, "something was left behind");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(read_stats(&stats).unwrap().len(), 2);
}
