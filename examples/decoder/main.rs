//! A small causal decoder that was trained in Flax on Python's manual: written in Rust, quantized in three ways, and put to
//! writing manual.
//!
//!     cargo run --release --example decoder
//!     cargo run --release --example decoder -- --temperature 0.7 --seed 1 "The class"
//!
//! The parameters come from `train.py` beside this file.

mod generate;
mod model;
mod text;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use generate::{Prepared, Writer, continued, cross_entropy, rows};
use model::Decoder;
use qwix::{Checkpoint, TensorFile};
use text::{Sampler, Vocabulary};

const USAGE: &str = "\
usage: decoder [--temperature T] [--seed N] [--tokens N] [PROMPT]

  PROMPT           what the text begins with (\"The following statement\")
  --temperature T  0: always the likeliest token (the default); 1: as likely as the model says
  --seed N         which of the possible texts (0)
  --tokens N       how many tokens to write (64)";

struct Options {
    prompt: String,
    temperature: f64,
    seed: u64,
    tokens: usize,
}

impl Options {
    /// The command line; none when it asks for help.
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, Box<dyn Error>> {
        let mut options =
            Options { prompt: "The following statement".to_owned(), temperature: 0.0, seed: 0, tokens: 64 };
        let mut prompt: Vec<String> = vec![];
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value\n\n{USAGE}"));
            let wrong = |e: &dyn Error| format!("{argument}: {e}");
            match argument.as_str() {
                "--temperature" => options.temperature = value()?.parse().map_err(|e| wrong(&e))?,
                "--seed" => options.seed = value()?.parse().map_err(|e| wrong(&e))?,
                "--tokens" => options.tokens = value()?.parse().map_err(|e| wrong(&e))?,
                "-h" | "--help" => return Ok(None),
                _ if argument.starts_with("--") => {
                    return Err(format!("no option {argument}\n\n{USAGE}").into());
                }
                _ => prompt.push(argument),
            }
        }
        if !prompt.is_empty() {
            options.prompt = prompt.join(" ");
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::read(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/decoder");
    let vocabulary = Vocabulary::read(&folder.join("vocab.json"))?;
    let fp_params = Checkpoint::open(folder.join("params.safetensors"))?.read_all()?;
    let held_out = vocabulary.encode(&std::fs::read_to_string(folder.join("heldout.txt"))?)?;
    let reference = TensorFile::open(folder.join("reference.safetensors"))?;

    let model = Decoder::TRAINED;
    let prompt = vocabulary.encode(&options.prompt)?;
    if prompt.is_empty() || prompt.len() >= model.context {
        let (found, most) = (prompt.len(), model.context - 1);
        return Err(format!("the prompt has {found} tokens; the model takes 1 to {most}").into());
    }

    println!(
        "A decoder of {} layers, {} wide, that has read Python's manual. Its parameters were trained in Flax; the model\n\
         is written in Rust ({} tokens of text it has not seen measure how well it foretells).\n",
        model.layers,
        model.width,
        held_out.len() - 1
    );
    let mut texts = Vec::new();
    for (number, row) in rows().iter().enumerate() {
        let prepared = Prepared::new(&model, &fp_params, &row.rules)?;
        if number == 0 {
            let tokens = reference.read("prompt")?.values::<i32>()?.into_owned();
            let logits = prepared.logits(&tokens)?;
            let largest = logits.iter().fold(0f32, |most, x| most.max(x.abs()));
            let expected = reference.read("logits")?.to_f32_vec();
            let off = logits.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            println!(
                "  JAX's logits of the first {} tokens: the same to {:.0e} of the largest.\n",
                tokens.len(),
                off / largest
            );
            println!(
                "  {:<17} {:>9} {:>9} {:>11} {:>10}",
                "parameters", "size", "loss", "perplexity", "tokens/s"
            );
        }
        let loss = cross_entropy(&prepared.held_out(&held_out)?, &held_out[1..]);
        let mut sampler = Sampler::new(options.temperature, options.seed);
        let mut writer = Writer::new(&prepared);
        let written = continued(&mut writer, &prompt, options.tokens, &mut sampler)?;
        println!(
            "  {:<17} {:>6.0} kB {:>9.4} {:>11.3} {:>10.0}",
            row.name,
            prepared.size as f64 / 1000.0,
            loss,
            loss.exp(),
            written.tokens_per_second,
        );
        texts.push((row.name, vocabulary.decode(&written.tokens)));
    }

    println!();
    for row in rows() {
        println!("  {:<17} {}", row.name, row.what);
    }
    println!(
        "\n  Loss is the mean of -ln(probability) that the model gave to the token that came; perplexity is e to that: among so\n  \
         many tokens it wavers. Size counts all parameters; embeddings and norms stay in float. Tokens per second are those\n  \
         of writing one text, token by token."
    );
    for (name, text) in texts {
        println!("\n--- {name}\n{}{text}", options.prompt);
    }
    Ok(())
}
