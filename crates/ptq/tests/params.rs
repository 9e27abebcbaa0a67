//! Quantizing parameters: what passes, what is refused and with what words.

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::Path;
use qwix_ptq::{
    PtqModel, PtqProvider, QuantStats, QuantizationRule, QuantizeParams, Stats, Sums, quantize_model,
    quantize_param, quantize_params, quantize_params_with,
};

fn quantized(model: &str, rule: QuantizationRule) -> PtqModel {
    quantize_model(&common::model(model).unwrap(), &PtqProvider::new(vec![rule]).unwrap()).unwrap()
}

fn w8() -> QuantizationRule {
    QuantizationRule::new(".*").weight_qtype("int8")
}

fn with(path: &str, array: Array) -> Params {
    Params::from([(Path::new(path), Value::Array(array))])
}

fn floats(shape: &[usize], bad: Option<(usize, f32)>) -> Array {
    let mut values = vec![0.5f32; shape.iter().product()];
    if let Some((at, value)) = bad {
        values[at] = value;
    }
    Array::from_vec(shape, values).unwrap()
}

#[test]
fn errors_name_the_parameter() {
    let model = quantized("linen_mlp", w8());
    let template = model.abstract_params();
    let rows: Vec<(Params, &[&str])> = vec![
        (with("Dense_0/kernels", floats(&[16, 32], None)), &["`Dense_0/kernels`", "`Dense_0/kernel`"]),
        (with("zzz", floats(&[1], None)), &["`zzz`"]),
        (with("Dense_0/kernel", floats(&[32, 16], None)), &["`Dense_0/kernel`", "f32[16,32]", "f32[32,16]"]),
        (with("Dense_0/bias", floats(&[16], None)), &["`Dense_0/bias`", "f32[32]", "f32[16]"]),
        (
            with("Dense_0/kernel", floats(&[16, 32], None).convert(DType::BF16)),
            &["`Dense_0/kernel`", "f32[16,32]", "bf16[16,32]"],
        ),
        (
            with("Dense_0/kernel", floats(&[16, 32], Some((70, f32::NAN)))),
            &["`Dense_0/kernel`", "NaN", "[2, 6]"],
        ),
        (
            with("Dense_0/kernel", floats(&[16, 32], Some((33, f32::NEG_INFINITY)))),
            &["`Dense_0/kernel`", "infinity", "[1, 1]"],
        ),
        (Params::from([(Path::new("Dense_0/kernel"), Value::Tuple(vec![]))]), &["`Dense_0/kernel`", "tuple"]),
    ];
    let mut failures = vec![];
    for (params, words) in rows {
        match quantize_params(&params, &template, None) {
            Ok(_) => failures.push(format!("{params:?} was taken")),
            Err(e) => {
                let message = e.to_string();
                failures.extend(
                    words
                        .iter()
                        .filter(|w| !message.contains(*w))
                        .map(|w| format!("no {w:?} in {message:?}")),
                );
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));

    // Quantized once is not quantized twice.
    let once = quantize_params(&with("Dense_0/kernel", floats(&[16, 32], None)), &template, None).unwrap();
    let message = quantize_params(&once, &template, None).unwrap_err().to_string();
    assert!(message.contains("`Dense_0/kernel`") && message.contains("int8 already"), "{message}");
}

#[test]
fn the_index_of_a_nan_is_the_files() {
    let template = quantized("weight_views", w8()).abstract_params();
    let bad = with("turned", floats(&[20, 24], Some((25, f32::NAN))));
    let message = quantize_params(&bad, &template, None).unwrap_err().to_string();
    assert!(message.contains("[1, 1]"), "{message}");
}

#[test]
fn extra_parameters_are_skipped_on_request() {
    let template = quantized("linen_mlp", w8()).abstract_params();
    let mut params = common::params("linen_mlp");
    let wanted = quantize_params(&params, &template, None).unwrap();
    params.extend(with("head/kernel", floats(&[2], Some((0, f32::NAN)))));
    assert!(quantize_params(&params, &template, None).is_err());
    let options = QuantizeParams { allow_extra_params: true, ..QuantizeParams::default() };
    assert_eq!(quantize_params_with(&params, &template, options).unwrap(), wanted);
}

#[test]
fn statistics_without_static_scales_are_refused() {
    let template = quantized("linen_mlp", w8()).abstract_params();
    let stats = Stats { count: 1, sums: Sums::AbsMax(floats(&[1, 1], None)) };
    let stats = QuantStats::from_iter([(Path::new("Dense_0/dot_general0_lhs"), stats)]);
    let message = quantize_params(&Params::new(), &template, Some(&stats)).unwrap_err().to_string();
    assert!(message.contains("`Dense_0/dot_general0_lhs`"), "{message}");
    assert!(quantize_params(&Params::new(), &template, Some(&QuantStats::new())).unwrap().is_empty());
}

/// A float parameter that several ops use feeds all that is made of it.
#[test]
fn one_source_feeds_several_parameters() {
    let model = quantized("decoder_step", w8());
    let template = model.abstract_params();
    let path = Path::new("embedder/embedding");
    let Value::Array(embedding) = common::params("decoder_step")[&path].clone() else { panic!("no array") };
    let made = quantize_param(&template, &path, &embedding).unwrap();
    let paths: Vec<&str> = made.iter().map(|(p, _)| p.as_str()).collect();
    assert_eq!(paths, ["embedder/embedding", "embedder/embedding@dot_general0"]);
    assert_eq!(made[0].1, Value::Array(embedding));
    assert!(matches!(&made[1].1, Value::QArray(q) if q.shape() == [16, 24] && q.scale().shape() == [1, 24]));
    assert_eq!(template.sources().count() + 1, template.parameters().len());
}
