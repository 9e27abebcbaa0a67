//! The decoder of `examples/decoder`, written in Rust, says what JAX and Qwix say of the one in Flax.

#![allow(dead_code, reason = "the example's modules hold more than is tested")]

#[path = "../../../examples/decoder/generate.rs"]
mod generate;
#[path = "../../../examples/decoder/model.rs"]
mod model;
#[path = "../../../examples/decoder/text.rs"]
mod text;

use std::path::{Path, PathBuf};

use generate::{Prepared, Writer, continued, cross_entropy, rows};
use model::Decoder;
use qwix::{Checkpoint, Params, TensorFile, nn};
use text::{Sampler, Vocabulary};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/decoder")
}

fn fp_params() -> Params {
    Checkpoint::open(folder().join("params.safetensors")).unwrap().read_all().unwrap()
}

fn reference(key: &str) -> qwix::Array {
    TensorFile::open(folder().join("reference.safetensors")).unwrap().read(key).unwrap()
}

fn tokens(key: &str) -> Vec<i32> {
    reference(key).values::<i32>().unwrap().into_owned()
}

fn report() -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join("reference.json")).unwrap()).unwrap()
}

#[test]
fn text_has_the_tokens_of_the_script() {
    let vocabulary = Vocabulary::read(&folder().join("vocab.json")).unwrap();
    let text = std::fs::read_to_string(folder().join("heldout.txt")).unwrap();
    assert_eq!(vocabulary.encode(&text).unwrap(), tokens("heldout"));
    assert_eq!(vocabulary.decode(&tokens("heldout")), text);
    let prompt = report()["prompt"].as_str().unwrap().to_owned();
    assert_eq!(vocabulary.encode(&prompt).unwrap(), tokens("prompt"));
    assert!(vocabulary.encode("naïve").is_err());
}

#[test]
fn the_checkpoint_of_flax_is_that_of_the_model() {
    let model = Decoder::TRAINED;
    let types = nn::abstract_init(&model, &model.inputs(1, 1)).unwrap();
    let found: Vec<String> =
        fp_params().iter().map(|(path, value)| format!("{path}: {}", value.describe())).collect();
    let expected: Vec<String> = types.iter().map(|(path, ty)| format!("{path}: {ty}")).collect();
    assert_eq!(found, expected);
}

#[test]
fn logits_are_those_of_jax() {
    let prepared = Prepared::new(&Decoder::TRAINED, &fp_params(), &[]).unwrap();
    let expected = reference("logits").to_f32_vec();
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let close = |found: &[f32], what: &str| {
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= 1e-5 * largest, "{what}: {off} of {largest}");
    };
    close(&prepared.logits(&tokens("prompt")).unwrap(), "all at once");
    // The same from the cache.
    let mut writer = Writer::new(&prepared);
    let one_by_one: Vec<Vec<f32>> =
        tokens("prompt").iter().map(|&token| writer.read(token).unwrap()).collect();
    close(&one_by_one.concat(), "token by token");
}

#[test]
fn greedy_text_is_that_of_jax() {
    // No token won by so little that another order of summation could change it.
    assert!(report()["closest_race"].as_f64().unwrap() > 1e-3);
    let prepared = Prepared::new(&Decoder::TRAINED, &fp_params(), &[]).unwrap();
    let expected = tokens("continuation");
    let mut sampler = Sampler::new(0.0, 0);
    let written =
        continued(&mut Writer::new(&prepared), &tokens("prompt"), expected.len(), &mut sampler).unwrap();
    assert_eq!(written.tokens, expected);
}

#[test]
fn held_out_loss_is_that_of_qwix() {
    let held_out = tokens("heldout");
    let expected = report()["loss"].clone();
    let mut wrong = Vec::new();
    for row in rows() {
        let prepared = Prepared::new(&Decoder::TRAINED, &fp_params(), &row.rules).unwrap();
        let loss = cross_entropy(&prepared.held_out(&held_out).unwrap(), &held_out[1..]);
        let qwix = expected[row.name].as_f64().unwrap();
        // Quantized activations sit on rounding ties, where the last bit of a sum decides; over 4096 tokens the
        // differences average out to this much.
        let tolerance = if row.name == "int8 dynamic" { 2e-3 } else { 1e-5 };
        let close = (loss - qwix).abs() <= tolerance; // never so of a NaN
        if !close {
            wrong.push(format!("{}: {loss}, Qwix says {qwix}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
