//! The Rust of `docs/ptq.md` is `examples/mlp.rs`, and what stands in this file; both run.

#[path = "../../../examples/mlp.rs"]
mod mlp;

use std::error::Error;

use qwix::nn::{self, Dense, Module, Scope, Tensor, relu};
use qwix::{
    ArrayType, Checkpoint, CpuBackend, DType, Model, PtqProvider, QuantizationRule, TensorFile,
    quantize_model, sqnr,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const PAGE: &str = include_str!("../../../docs/ptq.md");

#[test]
fn the_example_runs() {
    mlp::main().unwrap();
}

fn exported() -> Result<(), Box<dyn Error>> {
    let model = Model::load("examples/digits/model.hlo.pb")?;
    let fp_params = model.read_params(&Checkpoint::open("examples/digits/params.safetensors")?, false)?;
    let images = model.read_inputs(&TensorFile::open("examples/digits/images.safetensors")?)?;

    let logits = model.compile(&CpuBackend::default(), fp_params)?.run(&images)?;
    let expected = TensorFile::open("examples/digits/logits.safetensors")?.read("0")?;
    assert!(sqnr(&expected, &logits[0]).unwrap() > 110.0);
    Ok(())
}

#[test]
fn an_exported_model_runs() {
    std::env::set_current_dir(ROOT).unwrap();
    exported().unwrap();
}

/// The lines of code, without indentation.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// The blocks of a page that are in a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("\n```{language}\n");
    let starts = page.match_indices(&fence).map(|(at, fence)| &page[at + fence.len()..]);
    starts.map(|rest| rest.split("\n```\n").next().unwrap_or(rest)).collect()
}

#[test]
fn every_block_is_in_what_runs() {
    let programs = [include_str!("../../../examples/mlp.rs"), include_str!("ptq_page.rs")].map(lines);
    let blocks = blocks(PAGE, "rust");
    assert!(blocks.len() > 10, "{} blocks of Rust", blocks.len());
    let missing: Vec<&str> = blocks
        .into_iter()
        .filter(|block| {
            let block = lines(block);
            !programs.iter().any(|program| program.windows(block.len()).any(|window| window == block))
        })
        .collect();
    assert!(missing.is_empty(), "the page shows what is not run:\n\n{}", missing.join("\n\n"));
}

/// The page's model.
struct Mlp;

impl Module for Mlp {
    fn call(&self, scope: &Scope, x: Tensor) -> nn::Result<Tensor> {
        let x = relu(&scope.call(Dense::new(64), x)?);
        scope.call_as("head", Dense::new(10), x)
    }
}

#[test]
fn the_trees_are_what_is_printed() {
    let int8 = |path: &str| QuantizationRule::new(path).weight_qtype("int8");
    let trees = [
        vec![int8("head"), int8("Dense_.*").act_qtype("int8")],
        vec![int8(".*").act_qtype("int8").act_static_scale(true)],
    ]
    .map(|rules| {
        let graph = nn::trace(&Mlp, &[ArrayType::new(DType::F32, [8, 32])]).unwrap();
        let model = quantize_model(&graph, &PtqProvider::new(rules).unwrap()).unwrap();
        model.abstract_params().to_string().trim_end().to_owned()
    });
    assert_eq!(blocks(PAGE, "text"), trees);
}
