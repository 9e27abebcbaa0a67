//! Checkpoints in the formats that quantized weights are published in: what is read dequantizes to what the format's own
//! definition says, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use qwix::nn::{Dense, Module, Scope, Tensor, relu, trace};
use qwix::{
    ActOrder, Array, ArrayType, CpuBackend, DType, ImportOptions, Layout, Model, NameMap, Params,
    Prequantized, ProcessPrequantized, PtqProvider, QType, QuantizationRule, RestoreRules, RestoredActs,
    TensorFile, TileSize, Type, Value, quantize_model, write_tensors,
};
use qwix_graph::Path;
use qwix_quant::dequantize;
use serde_json::Value as Json;

fn goldens() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/prequantized")
}

fn options(case: &Json) -> ImportOptions {
    ImportOptions {
        act_order: match case["act_order"].as_str() {
            Some("permute") => ActOrder::Permute,
            Some("expand") => ActOrder::Expand,
            _ => ActOrder::Refuse,
        },
        weights_only: case["weights_only"] == true,
        ..ImportOptions::default()
    }
}

fn cases() -> Vec<(String, PathBuf, ImportOptions)> {
    let text = std::fs::read_to_string(goldens().join("index.json")).unwrap();
    let index: Vec<Json> = serde_json::from_str(&text).unwrap();
    let case = |case: &Json| {
        let name = case["name"].as_str().unwrap().to_owned();
        (name.clone(), goldens().join(name), options(case))
    };
    index.iter().map(case).collect()
}

/// Rows (or columns) of a matrix in another order.
fn ordered(array: &Array, axis: usize, order: &[i64]) -> Array {
    let pick = |&i: &i64| {
        let (mut start, mut limit) = (vec![0; array.rank()], array.shape().to_vec());
        (start[axis], limit[axis]) = (i as usize, i as usize + 1);
        array.slice(&start, &limit, &vec![1; array.rank()]).unwrap()
    };
    Array::concatenate(&order.iter().map(pick).collect::<Vec<_>>(), axis).unwrap()
}

fn numbers(value: &Value) -> Array {
    match value {
        Value::QArray(q) => dequantize(q).unwrap(),
        Value::Array(_) | Value::Tuple(_) => panic!("is not quantized"),
    }
}

#[test]
fn what_is_read_is_what_the_definition_says() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, folder, options) in cases() {
        let checkpoint = match Prequantized::open(&folder, &options) {
            Ok(checkpoint) => checkpoint,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        let turned = ImportOptions { layout: Layout::InOut, ..options.clone() };
        let turned = Prequantized::open(&folder, &turned).unwrap();
        let expected = TensorFile::open(folder.with_extension("safetensors")).unwrap();
        for (key, _) in expected.iter() {
            let path = Path::new(&key.replace('.', "/"));
            let mut want = expected.read(key).unwrap();
            let value = match checkpoint.read(&path) {
                Ok(value) => value,
                Err(e) => {
                    wrong.push(format!("{name}, {key}: {e}"));
                    continue;
                }
            };
            if let Ok(Value::Array(order)) = checkpoint.read(&path.parent().join("input_permutation")) {
                let axis = usize::from(name.starts_with("ct_"));
                want = ordered(&want, axis, &order.to_i64_vec());
            }
            let found = numbers(&value);
            if found != want {
                let at = found.to_f64_vec().iter().zip(want.to_f64_vec()).position(|(a, b)| *a != b);
                wrong.push(format!("{name}, {key}: {found:?}, not {want:?}, from {at:?} on"));
            }
            // The other way round: the same numbers, transposed where the format has [out, in].
            let found = numbers(&turned.read(&path).unwrap());
            let stored_in_out = ["gptq", "awq"].iter().any(|format| name.starts_with(format));
            let mut axes: Vec<usize> = (0..want.rank()).collect();
            if !stored_in_out {
                axes.swap(want.rank() - 2, want.rank() - 1);
            }
            if found != want.transpose(&axes).unwrap() {
                wrong.push(format!("{name}, {key}: turned, it has other numbers"));
            }
            compared += 1;
        }
        // Everything is read, and is of the type that was announced.
        for item in checkpoint.values() {
            match item {
                Ok((path, value)) if value.is_of(checkpoint.type_of(&path).unwrap()) => {}
                Ok((path, _)) => wrong.push(format!("{name}, {path}: of another type than announced")),
                Err(e) => wrong.push(format!("{name}: {e}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, 35);
}

/// The types, which say what is exact, and in what.
#[test]
fn types_are_those_that_the_formats_have() {
    let mut wrong = Vec::new();
    for (case, path, want) in [
        ("gptq_sym", "model/fc1/weight", "q[int4 f16[32,8] {tile 8,channelwise} absmax]"),
        ("gptq_asym", "model/fc1/weight", "q[int4 f16[32,8] {tile 16,channelwise} minmax]"),
        ("gptq_8bit", "model/fc1/weight", "q[int8 f16[16,12] {tile 8,channelwise} minmax]"),
        // Groups of 16 in 40 rows: tiles of 8, which divide both.
        ("gptq_ragged", "model/fc1/weight", "q[int4 f16[40,8] {tile 8,channelwise} minmax]"),
        ("gptq_act_order", "model/fc1/weight", "q[int4 f16[32,8] {tile 8,channelwise} minmax]"),
        ("gptq_act_order", "model/fc1/input_permutation", "s32[32]"),
        ("gptq_act_order_expanded", "model/fc1/weight", "q[int4 f16[32,8] {channelwise,channelwise} minmax]"),
        ("gptq_sym", "model/norm/weight", "bf16[5]"),
        ("awq", "a/b/weight", "q[int4 f16[32,24] {tile 8,channelwise} minmax]"),
        ("ct_pack4_group", "m/fc/weight", "q[int4 bf16[6,32] {channelwise,tile 8} absmax]"),
        ("ct_pack4_channel", "m/fc/weight", "q[int4 f16[5,13] {channelwise,_} absmax]"),
        ("ct_pack8_asym", "m/fc/weight", "q[int8 bf16[7,10] {channelwise,_} minmax]"),
        ("ct_int8_static", "m/fc/weight", "q[int8 bf16[6,7] {_,_} minmax]"),
        ("ct_int8_static", "m/fc/input_scale", "bf16[1]"),
        ("ct_float8_block", "m/fc/weight", "q[float8_e4m3fn bf16[12,20] {tile 4,tile 4} absmax]"),
        ("ct_nvfp4", "m/fc/weight", "q[float4_e2m1fn f32[3,32] {channelwise,tile 16} absmax]"),
        ("ct_mxfp4", "m/fc/weight", "q[mxfp4 bf16[3,64] {channelwise,tile 32} absmax]"),
        ("fp8_block", "whole/weight", "q[float8_e4m3fn f32[130,4] {tile 2,_} absmax]"),
        ("fp8_block", "narrow/weight", "q[float8_e4m3fn bf16[3,258] {_,tile 2} absmax]"),
        ("modelopt_nvfp4", "fc/weight", "q[float4_e2m1fn f32[2,48] {channelwise,tile 16} absmax]"),
        ("gpt_oss", "mlp/experts/up_proj", "q[mxfp4 bf16[2,3,64] {channelwise,channelwise,tile 32} absmax]"),
    ] {
        let (_, folder, options) = cases().into_iter().find(|(name, ..)| name == case).unwrap();
        let checkpoint = Prequantized::open(folder, &options).unwrap();
        let found = checkpoint.type_of(&Path::new(path)).map(Type::to_string);
        if found.as_deref() != Some(want) {
            wrong.push(format!("{case}, {path}: {found:?}, not {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A multi-layer perceptron whose weights come from a GPTQ file: the native engine gives what multiplying by the weights
/// that the format's definition says gives.
#[test]
fn a_model_runs_with_weights_of_a_gptq_file() {
    for (case, act_order) in [("gptq_mlp", ActOrder::Refuse), ("gptq_mlp_act_order", ActOrder::Expand)] {
        let folder = goldens().join(case);
        let options = ImportOptions { act_order, ..ImportOptions::default() };
        let checkpoint = Prequantized::open(&folder, &options).unwrap();
        let names = NameMap::default()
            .take("Dense_0/kernel", "fc1/weight", false)
            .take("Dense_0/bias", "fc1/bias", false)
            .take("head/kernel", "fc2/weight", false);
        // The checkpoint is in f16, which f32 holds exactly.
        let inputs = [ArrayType::new(DType::F32, [3, 32])];
        let model = Model::from(trace(&Mlp, &inputs).unwrap());
        let acts = RestoreRules { act_qtype: RestoredActs::Float, ..RestoreRules::default() };
        let rules = checkpoint.restore_rules(&names, &acts).unwrap();
        let ptq_model = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap();
        let mut params = Params::new();
        let template = ptq_model.abstract_params();
        checkpoint
            .process(&template, &names, ProcessPrequantized::default(), |path, value| {
                params.insert(path, value);
                Ok(())
            })
            .unwrap();
        let quantized = params.values().filter(|value| matches!(value, Value::QArray(_))).count();
        assert_eq!(quantized, 2, "{case}");

        let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
        let x = Array::from_vec(&[3, 32], x).unwrap();
        let found =
            ptq_model.compile(&CpuBackend::default(), params).unwrap().run(std::slice::from_ref(&x)).unwrap();

        // The same by hand, in f64, from the weights as the definition has them.
        let weights = TensorFile::open(folder.with_extension("safetensors")).unwrap();
        let bias = TensorFile::open(folder.join("model.safetensors")).unwrap().read("fc1.bias").unwrap();
        let weight = |key: &str| weights.read(key).unwrap();
        let mut hidden = product(&x.to_f64_vec(), &weight("fc1.weight"), 3);
        let bias = bias.to_f64_vec();
        hidden.iter_mut().enumerate().for_each(|(i, h)| *h = (*h + bias[i % bias.len()]).max(0.0));
        let want = product(&hidden, &weight("fc2.weight"), 3);
        let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
        let off = found[0].to_f64_vec().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
        assert!(largest > 0.1 && off < 1e-6 * largest, "{case}: off by {off} of {largest}");
    }
}

/// `Mlp` in f32, with parameters that fit a checkpoint of another library by name alone.
struct Mlp;

impl Module for Mlp {
    fn call(&self, scope: &Scope, x: Tensor) -> qwix::nn::Result<Tensor> {
        let x = relu(&scope.call(Dense::new(16), x)?);
        scope.call_as("head", Dense::new(8).use_bias(false), x)
    }
}

fn product(x: &[f64], weight: &Array, rows: usize) -> Vec<f64> {
    let (inner, columns) = (weight.shape()[0], weight.shape()[1]);
    let w = weight.to_f64_vec();
    let cell = |i: usize| -> f64 {
        let (row, column) = (i / columns, i % columns);
        (0..inner).map(|k| x[row * inner + k] * w[k * columns + column]).sum()
    };
    (0..rows * columns).map(cell).collect()
}

/// What a checkpoint says that is wrong, or has no counterpart here: an error that names the tensor or the field.
#[test]
fn what_cannot_be_imported_is_refused_by_name() {
    type Change = fn(&mut BTreeMap<String, Array>, &mut Json);
    let rows: Vec<(&str, &str, Change, &[&str])> = vec![
        (
            "no qzeros",
            "gptq_asym",
            |t, _| drop(t.remove("model.fc1.qzeros")),
            &["model/fc1/qzeros", "missing"],
        ),
        (
            "no scales",
            "gptq_asym",
            |t, _| drop(t.remove("model.fc1.scales")),
            &["model/fc1/scales", "missing"],
        ),
        (
            "no qweight",
            "gptq_asym",
            |t, _| drop(t.remove("model.fc1.qweight")),
            &["model/fc1/g_idx", "part of"],
        ),
        (
            "short scales",
            "gptq_asym",
            |t, _| reshape(t, "model.fc1.scales", &[1, 16]),
            &["model/fc1/scales", "[2, 8]"],
        ),
        (
            "flat qweight",
            "gptq_asym",
            |t, _| reshape(t, "model.fc1.qweight", &[32]),
            &["model/fc1/qweight", "2 axes"],
        ),
        (
            "group out of range",
            "gptq_act_order",
            |t, _| set(t, "model.fc1.g_idx", 3, 4),
            &["model/fc1/g_idx", "group 4"],
        ),
        (
            "group below 0",
            "gptq_act_order",
            |t, _| set(t, "model.fc1.g_idx", 3, -1),
            &["model/fc1/g_idx", "group -1"],
        ),
        ("scattered", "gptq_act_order", |_, _| (), &["model/fc1/g_idx", "act-order"]),
        (
            "scattered unsaid",
            "gptq_act_order",
            |_, c| c["desc_act"] = false.into(),
            &["model/fc1/g_idx", "desc_act"],
        ),
        (
            "a zero of 16",
            "gptq_asym",
            |t, _| set(t, "model.fc1.qzeros", 1, 0x0000_f000),
            &["model/fc1/qzeros", "group 1, column 3", "gptq_v2"],
        ),
        (
            "a zero under sym",
            "gptq_sym",
            |t, _| set(t, "model.fc2.qzeros", 0, 0x7777_7767),
            &["model/fc2/qzeros", "column 1", "sym"],
        ),
        (
            "NaN",
            "gptq_asym",
            |t, _| set_f16(t, "model.fc1.scales", 5, f32::NAN),
            &["model/fc1/scales", "NaN", "[0, 5]"],
        ),
        ("3 bits", "gptq_asym", |_, c| c["bits"] = 3.into(), &["quantization_config.bits", "3"]),
        (
            "marlin",
            "gptq_asym",
            |_, c| c["checkpoint_format"] = "marlin".into(),
            &["checkpoint_format", "marlin"],
        ),
        ("group 0", "gptq_asym", |_, c| c["group_size"] = 0.into(), &["group_size", "0"]),
        ("group of text", "gptq_asym", |_, c| c["group_size"] = "8".into(), &["group_size", "integer"]),
        ("no sym", "gptq_asym", |_, c| drop(c.as_object_mut().unwrap().remove("sym")), &["sym", "missing"]),
        (
            "an unknown field",
            "gptq_asym",
            |_, c| c["rotation"] = "hadamard".into(),
            &["quantization_config.rotation", "hadamard", "--ignore-config rotation"],
        ),
        (
            "settings of a module",
            "gptq_asym",
            |_, c| c["dynamic"] = serde_json::json!({"+:.*fc1": {"bits": 8}}),
            &["dynamic", "+:.*fc1"],
        ),
        (
            "an unknown method",
            "gptq_asym",
            |_, c| c["quant_method"] = "bitsandbytes".into(),
            &["quant_method", "bitsandbytes", "compressed-tensors"],
        ),
        ("gemv", "awq", |_, c| c["version"] = "gemv".into(), &["version", "gemv", "gemm"]),
        ("awq without zeros", "awq", |_, c| c["zero_point"] = false.into(), &["zero_point"]),
        ("awq, ragged", "awq", |_, c| c["group_size"] = 24.into(), &["a/b/qweight", "24"]),
        (
            "an unsaid shape",
            "ct_pack4_channel",
            |t, _| drop(t.remove("m.fc.weight_shape")),
            &["m/fc/weight_shape", "missing"],
        ),
        (
            "another shape",
            "ct_pack4_channel",
            |t, _| set_i64(t, "m.fc.weight_shape", 1, 17),
            &["m/fc/weight_shape", "[5, 17]"],
        ),
        (
            "a shape below 0",
            "ct_pack4_channel",
            |t, _| set_i64(t, "m.fc.weight_shape", 0, -5),
            &["m/fc/weight_shape", "-5"],
        ),
        (
            "a huge shape",
            "ct_pack4_channel",
            |t, _| set_i64(t, "m.fc.weight_shape", 0, i64::MAX),
            &["m/fc/weight_shape"],
        ),
        ("scattered columns", "ct_pack4_act_order", |_, _| (), &["m/fc/weight_g_idx", "act-order"]),
        (
            "no zero points",
            "ct_pack4_asym",
            |t, _| drop(t.remove("m.fc.weight_zero_point")),
            &["m/fc/weight_zero_point", "missing"],
        ),
        (
            "no scale",
            "ct_int8",
            |t, _| drop(t.remove("m.fc.weight_scale")),
            &["m/fc/weight_scale", "missing"],
        ),
        (
            "8 bits said to be 4",
            "ct_int8",
            |_, c| c["config_groups"]["group_0"]["weights"]["num_bits"] = 4.into(),
            &["m/fc/weight", "int4"],
        ),
        ("a marlin form", "ct_int8", |_, c| c["format"] = "marlin-24".into(), &["marlin-24"]),
        (
            "a rotation",
            "ct_int8",
            |_, c| c["transform_config"] = serde_json::json!({"config_groups": {}}),
            &["transform_config", "rotates"],
        ),
        (
            "a quantized cache",
            "ct_int8",
            |_, c| c["kv_cache_scheme"] = serde_json::json!({"num_bits": 8}),
            &["kv_cache_scheme", "--weights-only"],
        ),
        (
            "sparse",
            "ct_int8",
            |_, c| c["sparsity_config"] = serde_json::json!({"format": "sparse-24-bitmask"}),
            &["sparsity_config.format"],
        ),
        ("NVFP4 activations", "ct_nvfp4", |_, _| (), &["m/fc/input_global_scale", "--weights-only"]),
        ("a divisor of 0", "ct_nvfp4", |t, _| zero_global(t), &["m/fc/weight_global_scale"]),
        (
            "no block size",
            "fp8_block",
            |_, c| drop(c.as_object_mut().unwrap().remove("weight_block_size")),
            &["weight_block_size", "missing"],
        ),
        (
            "a block of 0",
            "fp8_block",
            |_, c| c["weight_block_size"] = serde_json::json!([0, 128]),
            &["weight_block_size"],
        ),
        ("fp8 NaN", "fp8_block", |t, _| set_byte(t, "whole.weight", 7, 0x7f), &["whole/weight", "element 7"]),
        (
            "fp8 without scales",
            "fp8_block",
            |t, _| drop(t.remove("whole.weight_scale_inv")),
            &["whole/weight", "weight_scale_inv"],
        ),
        (
            "another algorithm",
            "modelopt_fp8",
            |_, c| c["quant_algo"] = "W4A8_AWQ".into(),
            &["quant_algo", "W4A8_AWQ"],
        ),
        (
            "an exponent of NaN",
            "gpt_oss",
            |t, _| set_byte(t, "mlp.experts.up_proj_scales", 2, 255),
            &["mlp/experts/up_proj_scales", "element 2"],
        ),
        (
            "blocks alone",
            "gpt_oss",
            |t, _| drop(t.remove("mlp.experts.up_proj_scales")),
            &["mlp/experts/up_proj_scales", "missing"],
        ),
        (
            "scales alone",
            "gpt_oss",
            |t, _| drop(t.remove("mlp.experts.up_proj_blocks")),
            &["mlp/experts/up_proj_blocks", "missing"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, case, change, expected) in rows {
        let weights_only = case == "ct_nvfp4" && what == "a divisor of 0";
        let folder = tempfile::tempdir().unwrap();
        let file = TensorFile::open(goldens().join(case).join("model.safetensors")).unwrap();
        let mut tensors: BTreeMap<String, Array> =
            file.iter().map(|(key, _)| (key.to_owned(), file.read(key).unwrap())).collect();
        let (config, field) = match case.starts_with("modelopt") {
            true => ("hf_quant_config.json", "quantization"),
            false => ("config.json", "quantization_config"),
        };
        let mut json: Json =
            serde_json::from_slice(&std::fs::read(goldens().join(case).join(config)).unwrap()).unwrap();
        change(&mut tensors, &mut json[field]);
        std::fs::write(folder.path().join(config), json.to_string()).unwrap();
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let options = ImportOptions { weights_only, ..ImportOptions::default() };
        let read = Prequantized::open(folder.path(), &options)
            .and_then(|checkpoint| checkpoint.values().collect::<Result<Vec<_>, _>>());
        match read {
            Ok(_) => wrong.push(format!("{what}: imported")),
            Err(e) => {
                let said = e.to_string();
                wrong.extend(
                    expected
                        .iter()
                        .filter(|part| !said.contains(**part))
                        .map(|part| format!("{what}: `{said}` does not say `{part}`")),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn reshape(tensors: &mut BTreeMap<String, Array>, key: &str, shape: &[usize]) {
    let array = tensors[key].reshape(&[tensors[key].len()]).unwrap();
    let count = shape.iter().product();
    let array = array.slice(&[0], &[count], &[1]).unwrap().reshape(shape).unwrap();
    tensors.insert(key.to_owned(), array);
}

fn bytes_of(tensors: &mut BTreeMap<String, Array>, key: &str, change: impl Fn(&mut [u8])) {
    let array = &tensors[key];
    let mut bytes = array.bytes().to_vec();
    change(&mut bytes);
    let array = Array::from_bytes(array.dtype(), array.shape(), bytes).unwrap();
    tensors.insert(key.to_owned(), array);
}

fn set(tensors: &mut BTreeMap<String, Array>, key: &str, at: usize, value: i64) {
    bytes_of(tensors, key, |bytes| bytes[4 * at..4 * at + 4].copy_from_slice(&(value as i32).to_le_bytes()));
}

fn set_i64(tensors: &mut BTreeMap<String, Array>, key: &str, at: usize, value: i64) {
    bytes_of(tensors, key, |bytes| bytes[8 * at..8 * at + 8].copy_from_slice(&value.to_le_bytes()));
}

fn set_byte(tensors: &mut BTreeMap<String, Array>, key: &str, at: usize, value: u8) {
    bytes_of(tensors, key, |bytes| bytes[at] = value);
}

fn set_f16(tensors: &mut BTreeMap<String, Array>, key: &str, at: usize, value: f32) {
    let value = Array::from_vec(&[1], vec![value]).unwrap().convert(DType::F16);
    bytes_of(tensors, key, |bytes| bytes[2 * at..2 * at + 2].copy_from_slice(value.bytes()));
}

fn zero_global(tensors: &mut BTreeMap<String, Array>) {
    bytes_of(tensors, "m.fc.weight_global_scale", |bytes| bytes.fill(0));
}

/// A config may be ignored by the field; what is said of activations left out on request.
#[test]
fn what_is_not_wanted_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let from = goldens().join("ct_int8_static");
    std::fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let text = text.replace("\"ignore\"", "\"note\": \"of ours\", \"ignore\"");
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    let options = |weights_only, ignored: &[&str]| ImportOptions {
        weights_only,
        ignore_config: ignored.iter().map(|&field| field.to_owned()).collect(),
        ..ImportOptions::default()
    };
    let error = Prequantized::open(folder.path(), &options(false, &[])).unwrap_err().to_string();
    assert!(error.contains("note"), "{error}");
    let paths = |options: &ImportOptions| -> Vec<String> {
        let checkpoint = Prequantized::open(folder.path(), options).unwrap();
        checkpoint.types().map(|(path, _)| path.to_string()).collect()
    };
    assert_eq!(paths(&options(false, &["note"])), ["m/fc/input_scale", "m/fc/weight"]);
    assert_eq!(paths(&options(true, &["note"])), ["m/fc/weight"]);
}

/// What is written flat is read again, by the type that it says, or the one that is given.
#[test]
fn flat_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (case, qtype) in [
        ("gptq_asym", Some("int4")),
        ("gptq_8bit", None),
        ("ct_int8", None),
        ("fp8_block", Some("float8_e4m3fn")),
        ("gpt_oss", Some("mxfp4")),
    ] {
        let original = Prequantized::open(goldens().join(case), &ImportOptions::default()).unwrap();
        let file = folder.path().join(format!("{case}.safetensors"));
        original.write_flat(&file).unwrap();
        let options = ImportOptions {
            qtype: qtype.map(|name| QType::by_name(name).unwrap()),
            ..ImportOptions::default()
        };
        let again = Prequantized::open(&file, &options).unwrap();
        let read =
            |checkpoint: &Prequantized| -> Params { checkpoint.values().map(Result::unwrap).collect() };
        let types = |checkpoint: &Prequantized| -> Vec<String> {
            checkpoint.types().map(|(path, ty)| format!("{path} {ty}")).collect()
        };
        if again.format() != "qwix" || read(&original) != read(&again) || types(&original) != types(&again) {
            wrong.push(format!("{case}: {:?}, not {:?}", types(&again), types(&original)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let file = folder.path().join("fp8_block.safetensors");
    let error = Prequantized::open(&file, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("qvalue") && error.contains("f32"), "{error}");
}

/// A weight whose inputs are in another order, without that order: refused, whatever else is allowed.
#[test]
fn a_permuted_weight_needs_its_permutation() {
    let options = ImportOptions { act_order: ActOrder::Permute, ..ImportOptions::default() };
    let checkpoint = Prequantized::open(goldens().join("gptq_mlp_act_order"), &options).unwrap();
    let names = NameMap::default()
        .take("Dense_0/kernel", "fc1/weight", false)
        .take("Dense_0/bias", "fc1/bias", false)
        .take("head/kernel", "fc2/weight", false);
    let model = Model::from(trace(&Mlp, &[ArrayType::new(DType::F32, [3, 32])]).unwrap());
    let rules = vec![
        QuantizationRule::new(".*").weight_qtype("int4").tile_size(8).weight_calibration_method("minmax"),
    ];
    let template = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap().abstract_params();
    let allowed = ProcessPrequantized { allow_extra_params: true, ..ProcessPrequantized::default() };
    let error = checkpoint.process(&template, &names, allowed, |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("fc1/input_permutation"), "{error}");
}

/// The static scale of an input is the model's, and a weight of [out, in] is transposed on the way: int8 by int8, with
/// no range computed when it runs.
#[test]
fn a_static_input_scale_becomes_the_models() {
    let checkpoint = Prequantized::open(goldens().join("ct_int8_static"), &ImportOptions::default()).unwrap();
    let names = NameMap::default().take("Dense_0/kernel", "m/fc/weight", true).take(
        "Dense_0/dot_general0_lhs_scale",
        "m/fc/input_scale",
        false,
    );
    let model = trace(&One, &[ArrayType::new(DType::F32, [4, 7])]).unwrap();
    let acts = RestoreRules { act_qtype: RestoredActs::AsWeights, ..RestoreRules::default() };
    let rules = checkpoint.restore_rules(&names, &acts).unwrap();
    let rules = rules.into_iter().map(|rule| rule.act_static_scale(true)).collect();
    let ptq_model = quantize_model(&Model::from(model), &PtqProvider::new(rules).unwrap()).unwrap();
    let mut params = Params::new();
    checkpoint
        .process(&ptq_model.abstract_params(), &names, ProcessPrequantized::default(), |path, value| {
            params.insert(path, value);
            Ok(())
        })
        .unwrap();
    let x: Vec<f32> = (0..28).map(|i| (i * 11 % 29) as f32 * 0.3 - 4.1).collect();
    let given = Array::from_vec(&[4, 7], x.clone()).unwrap();
    let found = ptq_model.compile(&CpuBackend::default(), params).unwrap().run(&[given]).unwrap();
    // (q − zero) · scale as the definition has it, before its bf16 rounds it.
    let file = TensorFile::open(goldens().join("ct_int8_static/model.safetensors")).unwrap();
    let part = |key: &str| file.read(&format!("m.fc.{key}")).unwrap().to_f64_vec();
    let (zero, weight_scale) = (part("weight_zero_point")[0], part("weight_scale")[0]);
    let numbers = part("weight").iter().map(|q| (q - zero) * weight_scale).collect::<Vec<_>>();
    let weight = Array::from_vec(&[6, 7], numbers).unwrap();
    let scale = 0.03125;
    let rounded: Vec<f64> =
        x.iter().map(|&x| (f64::from(x) / scale).round_ties_even().clamp(-128.0, 127.0) * scale).collect();
    let want = product(&rounded, &weight.transpose(&[1, 0]).unwrap(), 4);
    let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
    let off = found[0].to_f64_vec().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
    assert!(off < 1e-6 * largest, "off by {off} of {largest}");
}

struct One;

impl Module for One {
    fn call(&self, scope: &Scope, x: Tensor) -> qwix::nn::Result<Tensor> {
        scope.call(Dense::new(6).use_bias(false), x)
    }
}

/// Blocks of 128 × 128 and a model's tiles of 128: the scales of rows are repeated, and the rule takes the tile of the
/// contracted axis, not that of the rows.
#[test]
fn rules_have_the_tile_of_the_contracted_axis() {
    let mut wrong = Vec::new();
    for (case, path, want) in [
        ("fp8_block", "narrow", Some(2)),
        ("fp8_block", "whole", None),
        ("ct_float8_block", "m/fc", Some(4)),
        ("gptq_asym", "model/fc1", Some(16)),
        ("gptq_act_order_expanded", "model/fc1", Some(1)),
        ("gpt_oss", "mlp/experts", Some(32)),
        ("ct_int8", "m/fc", None),
    ] {
        for layout in [Layout::AsStored, Layout::InOut] {
            let (_, folder, options) = cases().into_iter().find(|(name, ..)| name == case).unwrap();
            let checkpoint = Prequantized::open(folder, &ImportOptions { layout, ..options }).unwrap();
            let rules = checkpoint.restore_rules(&NameMap::default(), &RestoreRules::default()).unwrap();
            let tile = rules.iter().find(|rule| rule.module_path == path).map(|rule| rule.tile_size);
            let want = want.map(TileSize::Elements);
            if tile != Some(want) {
                wrong.push(format!("{case}, {path}, {layout:?}: {tile:?}, not {want:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
