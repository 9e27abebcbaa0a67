//! Checkpoints in the formats that quantized weights are published in: what is read dequantizes to what the format's own
//! definition says, bit for bit.

use std::path::{Path as FilePath, PathBuf};

use qwix::{ActOrder, Array, ImportOptions, Layout, Prequantized, QType, TensorFile, Type, Value};
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
    assert_eq!(compared, 31);
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
    assert!(QType::by_name("int4").is_ok());
}
