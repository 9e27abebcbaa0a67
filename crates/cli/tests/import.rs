//! `qwix import`: checkpoints that were quantized elsewhere.

mod common;

use common::{Folder, qwix};
use qwix::nn::{Dense, Module, Result, Scope, Tensor, relu, trace};
use qwix::{Array, ArrayType, DType, Model, TensorFile, write_tensors};
use serde_json::Value;

fn golden(case: &str) -> String {
    format!("{}/../../goldens/prequantized/{case}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_checkpoint_is_listed() {
    let text = qwix(["import", &golden("gptq_asym")]).ok();
    for part in [
        "gptq, 1 of 3 parameters quantized",
        "model/fc1/weight",
        "int4[32,8]",
        "f16 {tile 16,channelwise} minmax",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    let report: Value = serde_json::from_str(&qwix(["import", &golden("awq"), "--json"]).ok()).unwrap();
    assert_eq!(report["format"], "awq");
    assert_eq!(report["parameters"][1]["path"], "a/b/weight");
    assert_eq!(report["parameters"][1]["qtype"], "int4");
    assert_eq!(report["parameters"][0]["qtype"], Value::Null);
}

#[test]
fn a_flat_file_and_rules_are_written() {
    let folder = Folder::new();
    let (flat, rules) = (folder.path("flat.safetensors"), folder.path("rules.json"));
    let said =
        qwix(["import", &golden("ct_int8"), "-o", &flat, "--rules-out", &rules, "--act-qtype", "int8"]).ok();
    assert!(said.contains("compressed-tensors, 1 of 1 parameter quantized"), "{said}");
    let keys: Vec<String> =
        TensorFile::open(&flat).unwrap().iter().map(|(key, ty)| format!("{key} {ty}")).collect();
    assert_eq!(keys, ["m/fc/weight/qvalue s8[6,7]", "m/fc/weight/scale bf16[6,1]"]);
    let rules: Value = serde_json::from_slice(&std::fs::read(&rules).unwrap()).unwrap();
    assert_eq!(rules[0]["module_path"], "m/fc");
    assert_eq!(rules[0]["weight_qtype"], "int8");
    assert_eq!(rules[0]["act_qtype"], "int8");
    assert_eq!(rules[0]["tile_size"], Value::Null);
    // The other way round, for Flax.
    qwix(["import", &golden("ct_int8"), "-o", &flat, "--in-out"]).ok();
    assert_eq!(TensorFile::open(&flat).unwrap().get("m/fc/weight/scale").unwrap().to_string(), "bf16[1,6]");
}

struct Mlp;

impl Module for Mlp {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let x = relu(&scope.call(Dense::new(16), x)?);
        scope.call_as("head", Dense::new(8).use_bias(false), x)
    }
}

/// A float model of our own, the names of its parameters in a GPTQ file, and nothing else: a package that runs.
#[test]
fn a_model_becomes_a_package_with_imported_weights() {
    let folder = Folder::new();
    let traced = trace(&Mlp, &[ArrayType::new(DType::F32, [3, 32])]).unwrap();
    let model = folder.write("mlp.hlo.pb", Model::from(traced).to_hlo_proto().unwrap());
    let names = folder.write(
        "names.json",
        r#"{"Dense_0/kernel": "fc1/weight", "Dense_0/bias": "fc1/bias", "head/kernel": {"from": "fc2/weight"}}"#,
    );
    let package = folder.path("mlp.int4");
    let import = ["import", &golden("gptq_mlp"), "--model", &model, "--names", &names, "-o", &package];
    qwix(import).ok();

    let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
    let x = Array::from_vec(&[3, 32], x).unwrap();
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &[("0".to_owned(), x.clone())].into()).unwrap();
    let (inputs, outputs) = (folder.write("x.safetensors", bytes), folder.path("y.safetensors"));
    qwix(["run", &package, "--inputs", &inputs, "-o", &outputs]).ok();
    let found = TensorFile::open(&outputs).unwrap().read("0").unwrap().to_f64_vec();

    let weights = TensorFile::open(golden("gptq_mlp.safetensors")).unwrap();
    let bias =
        TensorFile::open(format!("{}/model.safetensors", golden("gptq_mlp"))).unwrap().read("fc1.bias");
    let bias = bias.unwrap().to_f64_vec();
    let product = |x: &[f64], key: &str| -> Vec<f64> {
        let weight = weights.read(key).unwrap();
        let (inner, columns, w) = (weight.shape()[0], weight.shape()[1], weight.to_f64_vec());
        let cell =
            |i: usize| (0..inner).map(|k| x[i / columns * inner + k] * w[k * columns + i % columns]).sum();
        (0..3 * columns).map(cell).collect()
    };
    let mut hidden = product(&x.to_f64_vec(), "fc1.weight");
    hidden.iter_mut().enumerate().for_each(|(i, h)| *h = (*h + bias[i % 16]).max(0.0));
    let want = product(&hidden, "fc2.weight");
    let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
    let off = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
    assert!(off < 1e-6 * largest, "off by {off} of {largest}");

    // A name that is not there, and one that is left over.
    for (names, part) in [
        (r#"{"Dense_0/kernel": "fc1/wieght"}"#, "fc1/wieght"),
        (r#"{"Dense_0/kernel": "fc1/weight", "Dense_0/bias": "fc1/bias"}"#, "fc2/weight"),
    ] {
        let names = folder.write("wrong.json", names);
        let ran = qwix([
            "import",
            &golden("gptq_mlp"),
            "--model",
            &model,
            "--names",
            &names,
            "-o",
            &folder.path("no"),
        ]);
        assert_eq!((ran.status, ran.stderr.contains(part)), (1, true), "{}", ran.stderr);
    }
    assert!(!folder.names().contains(&"no".to_owned()));
}
