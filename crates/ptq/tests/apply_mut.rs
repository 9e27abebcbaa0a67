//! Float variables fed to a quantized model.

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Params, ReferenceBackend, Value};
use qwix_graph::Path;
use qwix_ptq::{
    PtqModel, PtqProvider, QuantStats, QuantizationRule, Stats, Sums, quantize_model, quantize_params,
};

fn quantized(model: &str, rule: QuantizationRule) -> PtqModel {
    quantize_model(&common::model(model).unwrap(), &PtqProvider::new(vec![rule]).unwrap()).unwrap()
}

fn w8a8() -> QuantizationRule {
    QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")
}

fn inputs(model: &str) -> Vec<Array> {
    common::numbered(&common::goldens().join("models").join(model).join("inputs.safetensors"))
}

/// Floats, and what came back, and any mixture: the same outputs, the same variables.
#[test]
fn variables_come_back_quantized_and_pass_from_then_on() {
    let backend = ReferenceBackend::default();
    let mut wrong = vec![];
    for name in ["linen_mlp", "linen_mlp_bf16", "linen_cnn", "decoder_step", "weight_views", "einsums"] {
        let (model, floats, inputs) = (quantized(name, w8a8()), common::params(name), inputs(name));
        let params = quantize_params(&floats, &model.abstract_params(), None).unwrap();
        let expected = model.compile(&backend, params.clone()).unwrap().run(&inputs).unwrap();
        // The paths that both have are taken from one or the other, by turns.
        let half = |offset: usize| -> Params {
            let mut mixed = params.clone();
            for (number, (path, value)) in floats.iter().enumerate() {
                if number % 2 == offset {
                    mixed.insert(path.clone(), value.clone());
                }
            }
            mixed
        };
        for (what, variables) in [
            ("floats", floats.clone()),
            ("quantized", params.clone()),
            ("mixed", half(0)),
            ("mixed", half(1)),
        ] {
            match model.apply_mut(&backend, &variables, &inputs) {
                Ok((outputs, back)) if outputs == expected && back == params => {}
                Ok((outputs, back)) => wrong.push(format!(
                    "{name}, {what}: outputs {}, variables {}",
                    outputs == expected,
                    back == params
                )),
                Err(e) => wrong.push(format!("{name}, {what}: {e}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is quantized already is not made again, even when the float that it was made from is there.
#[test]
fn what_is_quantized_is_kept() {
    let (model, floats) = (quantized("decoder_step", w8a8()), common::params("decoder_step"));
    let (backend, inputs) = (ReferenceBackend::default(), inputs("decoder_step"));
    let (_, mut variables) = model.apply_mut(&backend, &floats, &inputs).unwrap();
    let embedding = Path::new("embedder/embedding");
    assert!(variables.contains_key(&Path::new("embedder/embedding@dot_general0")));
    let Value::Array(array) = &floats[&embedding] else { panic!("no array") };
    let other = Array::from_vec(array.shape(), vec![0.25f32; array.len()]).unwrap();
    variables.insert(embedding.clone(), Value::Array(other));
    let (_, back) = model.apply_mut(&backend, &variables, &inputs).unwrap();
    assert!(back == variables);
}

/// Statistics are variables too, as they are in Qwix.
#[test]
fn statistics_make_static_ranges() {
    let model = quantized("linen_mlp", w8a8().act_static_scale(true));
    let (floats, inputs) = (common::params("linen_mlp"), inputs("linen_mlp"));
    let template = model.abstract_params();
    let stats: QuantStats = template
        .statistics()
        .map(|path| {
            let scale = template.made_of_statistics(path).next().unwrap().ty.as_array().unwrap();
            let sums = Array::from_vec(&scale.shape, vec![6.0f32; scale.shape.iter().product()]).unwrap();
            (path.clone(), Stats { count: 3, sums: Sums::AbsMax(sums) })
        })
        .collect();
    let params = quantize_params(&floats, &template, Some(&stats)).unwrap();
    let backend = ReferenceBackend::default();
    let expected = model.compile(&backend, params.clone()).unwrap().run(&inputs).unwrap();
    let mut variables = floats.clone();
    variables.extend(stats.to_params());
    let (outputs, back) = model.apply_mut(&backend, &variables, &inputs).unwrap();
    assert!(outputs == expected && back == params);
    let (outputs, again) = model.apply_mut(&backend, &back, &inputs).unwrap();
    assert!(outputs == expected && again == params);
    let message = model.apply_mut(&backend, &floats, &inputs).unwrap_err().to_string();
    assert!(message.contains("missing") && message.contains("dot_general0_lhs_scale"), "{message}");
}

#[test]
fn errors_name_the_variable() {
    let (model, floats) = (quantized("linen_mlp", w8a8()), common::params("linen_mlp"));
    let (backend, inputs) = (ReferenceBackend::default(), inputs("linen_mlp"));
    let other = quantized("linen_mlp", QuantizationRule::new(".*").weight_qtype("int4"));
    let other = quantize_params(&floats, &other.abstract_params(), None).unwrap();
    let kernel = Path::new("Dense_0/kernel");
    let with = |path: &str, value: Option<Value>| {
        let mut variables = floats.clone();
        match value {
            Some(value) => drop(variables.insert(Path::new(path), value)),
            None => drop(variables.remove(&Path::new(path))),
        }
        variables
    };
    let half = Value::Array(Array::zeros(DType::F16, &[16, 32]).unwrap());
    let nan = Value::Array(Array::from_vec(&[16, 32], vec![f32::NAN; 512]).unwrap());
    let rows: Vec<(Params, &[&str])> = vec![
        (with("Dense_1/bias", None), &["1 of 6", "`Dense_1/bias`"]),
        (with("Dense_0/kernels", Some(half.clone())), &["`Dense_0/kernels`", "mean `Dense_0/kernel`"]),
        (with("Dense_0/kernel", Some(half)), &["`Dense_0/kernel`", "f32[16,32]", "f16[16,32]"]),
        (with("Dense_0/kernel", Some(nan)), &["`Dense_0/kernel`", "NaN"]),
        (with("Dense_0/kernel", Some(other[&kernel].clone())), &["`Dense_0/kernel`", "int8", "int4"]),
    ];
    let mut wrong = vec![];
    for (variables, expected) in rows {
        match model.apply_mut(&backend, &variables, &inputs) {
            Ok(_) => wrong.push(format!("{expected:?}: taken")),
            Err(e) if expected.iter().all(|part| e.to_string().contains(part)) => {}
            Err(e) => wrong.push(format!("{expected:?}: {e}")),
        }
    }
    assert!(model.apply_mut(&backend, &floats, &[]).is_err());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
