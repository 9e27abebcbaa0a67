//! The decoder, quantized and at work.

use std::error::Error;
use std::time::{Duration, Instant};

use qwix::{
    Array, CpuBackend, Executable, Model, Params, PtqProvider, QuantizationRule, Value, nn, quantize_model,
    quantize_params,
};

use crate::model::Decoder;
use crate::text::Sampler;

/// One way to store and compute: a name, what it is, and its rules (none: the float model).
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub rules: Vec<QuantizationRule>,
}

pub fn rows() -> Vec<Row> {
    let all = || QuantizationRule::new(".*");
    vec![
        Row { name: "float", what: "As it was trained: 32 bits a weight.", rules: vec![] },
        Row {
            name: "int8 weight-only",
            what: "Weights stored in 8 bits with a scale for each column, computed in float.",
            rules: vec![all().weight_qtype("int8")],
        },
        Row {
            name: "int8 dynamic",
            what: "Activations in 8 bits too, attention included; products run in integers.",
            rules: vec![all().weight_qtype("int8").act_qtype("int8")],
        },
        Row {
            name: "int4 tiled",
            what: "Weights stored in 4 bits with a scale for every 32, computed in float.",
            rules: vec![all().weight_qtype("int4").tile_size(32)],
        },
    ]
}

/// The model under some rules, ready to read one token, or many texts at once.
pub struct Prepared {
    pub size: usize,
    model: Decoder,
    rules: Vec<QuantizationRule>,
    params: Params,
    step: Box<dyn Executable>,
}

impl Prepared {
    pub fn new(
        model: &Decoder,
        fp_params: &Params,
        rules: &[QuantizationRule],
    ) -> Result<Self, Box<dyn Error>> {
        let graph = traced(model, 1, 1)?;
        let params = if rules.is_empty() {
            fp_params.clone()
        } else {
            let ptq_model = quantize_model(&graph, &PtqProvider::new(rules.to_vec())?)?;
            quantize_params(fp_params, &ptq_model.abstract_params(), None)?
        };
        let step = compiled(&graph, rules, &params)?;
        let size = params.values().map(Value::byte_len).sum();
        Ok(Prepared { size, model: *model, rules: rules.to_vec(), params, step })
    }

    /// The logits [texts · length, vocabulary] of texts of one length, each read from its beginning. How many tokens
    /// come at once is part of a graph, and not of its parameters: the same ones serve all.
    fn read(&self, texts: &[i32], batch: usize) -> Result<Vec<f32>, Box<dyn Error>> {
        let length = texts.len() / batch;
        let graph = traced(&self.model, batch, length)?;
        let executable = compiled(&graph, &self.rules, &self.params)?;
        let tokens = Array::from_vec(&[batch, length], texts.to_vec())?;
        let mut inputs = vec![tokens, Array::scalar(0i32)];
        inputs.extend(empty_caches(&self.model, batch)?);
        let outputs = executable.run(&inputs)?;
        Ok(outputs.first().ok_or("the model has no output")?.values::<f32>()?.into_owned())
    }

    /// The logits after each token of one text.
    pub fn logits(&self, tokens: &[i32]) -> Result<Vec<f32>, Box<dyn Error>> {
        self.read(tokens, 1)
    }

    /// The logits after each token but the last, in texts as long as the model reads.
    pub fn held_out(&self, tokens: &[i32]) -> Result<Vec<f32>, Box<dyn Error>> {
        let batch = (tokens.len() - 1) / self.model.context;
        self.read(&tokens[..batch * self.model.context], batch)
    }
}

fn traced(model: &Decoder, batch: usize, length: usize) -> Result<Model, Box<dyn Error>> {
    Ok(nn::trace(model, &model.inputs(batch, length))?.into())
}

fn compiled(
    graph: &Model,
    rules: &[QuantizationRule],
    params: &Params,
) -> Result<Box<dyn Executable>, Box<dyn Error>> {
    let backend = CpuBackend::default();
    if rules.is_empty() {
        return Ok(graph.compile(&backend, params.clone())?);
    }
    let ptq_model = quantize_model(graph, &PtqProvider::new(rules.to_vec())?)?;
    Ok(ptq_model.compile(&backend, params.clone())?)
}

fn empty_caches(model: &Decoder, batch: usize) -> Result<Vec<Array>, Box<dyn Error>> {
    let caches = model.inputs(batch, 1).into_iter().skip(2);
    caches.map(|ty| Ok(Array::zeros(ty.dtype, &ty.shape)?)).collect()
}

/// One text in the making: the model and what it has kept of the tokens so far.
pub struct Writer<'a> {
    prepared: &'a Prepared,
    caches: Option<Vec<Array>>,
    read: usize,
}

impl<'a> Writer<'a> {
    pub fn new(prepared: &'a Prepared) -> Self {
        Writer { prepared, caches: None, read: 0 }
    }

    /// Reads one token; gives the logits of the next.
    pub fn read(&mut self, token: i32) -> Result<Vec<f32>, Box<dyn Error>> {
        let caches = match self.caches.take() {
            Some(caches) => caches,
            None => empty_caches(&self.prepared.model, 1)?,
        };
        let mut inputs =
            vec![Array::from_vec(&[1, 1], vec![token])?, Array::scalar(i32::try_from(self.read)?)];
        inputs.extend(caches);
        let mut outputs = self.prepared.step.run(&inputs)?;
        let logits = outputs.remove(0).values::<f32>()?.into_owned();
        self.caches = Some(outputs);
        self.read += 1;
        Ok(logits)
    }

    fn has_room(&self) -> bool {
        self.read < self.prepared.model.context
    }
}

/// What was written after a prompt.
pub struct Written {
    pub tokens: Vec<i32>,
    pub tokens_per_second: f64,
}

/// Writes `count` tokens after the prompt, or as many as the model has room for.
pub fn continued(
    writer: &mut Writer<'_>,
    prompt: &[i32],
    count: usize,
    sampler: &mut Sampler,
) -> Result<Written, Box<dyn Error>> {
    let mut logits = vec![];
    for &token in prompt {
        logits = writer.read(token)?;
    }
    let (mut tokens, mut spent, mut read) = (vec![], Duration::ZERO, 0);
    while tokens.len() < count {
        let token = sampler.choose(&logits);
        tokens.push(token);
        if !writer.has_room() {
            break;
        }
        let start = Instant::now();
        logits = writer.read(token)?;
        spent += start.elapsed();
        read += 1;
    }
    let tokens_per_second = if read == 0 { 0.0 } else { f64::from(read) / spent.as_secs_f64() };
    Ok(Written { tokens, tokens_per_second })
}

/// The mean of −ln(probability) that the logits give to the targets.
pub fn cross_entropy(logits: &[f32], targets: &[i32]) -> f64 {
    let rows = logits.chunks(Decoder::TRAINED.vocabulary);
    let count = rows.len();
    let loss = rows.zip(targets).map(|(row, &target)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        sum.ln() + f64::from(largest - row[target as usize])
    });
    loss.sum::<f64>() / count as f64
}
