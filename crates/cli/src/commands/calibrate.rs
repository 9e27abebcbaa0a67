//! `qwix calibrate`: statistics of activations, for static ranges; `qwix merge` adds those of several runs.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use qwix::{
    CalibrationData, Calibrator, Checkpoint, Model, PtqError, QtProvider, QuantStats, Sums, quantize_model,
    read_rules, read_stats, write_stats,
};
use serde::Serialize;

use super::backend::backend;
use crate::args::{Calibrate, Merge};
use crate::output::{print, print_json, warning};
use crate::progress::Bar;
use crate::table::counted;

pub fn run(args: &Calibrate) -> Result<()> {
    let mut model = Model::load(&args.model)?;
    let rules = read_rules(&args.rules)?;
    let in_rules = |e: PtqError| anyhow!("`{}`: {e}", args.rules.display());
    let provider = QtProvider::new(rules).map_err(in_rules)?;
    let checkpoint = Checkpoint::open(&args.params)?;
    model.resolve_roles(&checkpoint);
    let extra = model.check_params(&checkpoint, args.allow_extra_params)?;
    if !extra.is_empty() {
        warning(&format!(
            "{} of `{}` left out: the model does not have them",
            counted(extra.len(), "parameter"),
            args.params.display()
        ));
    }
    // Everything that can be wrong is looked for before the first batch runs.
    let data = CalibrationData::open(&args.data, &model)?;
    if args.skip >= data.len() {
        bail!("--skip {} leaves nothing of the data's {} batches", args.skip, data.len());
    }
    let so_far = args.resume.as_ref().map(read_stats).transpose()?;
    let qt_model = quantize_model(&model, &provider)?;
    for said in &qt_model.warnings {
        warning(&said.to_string());
    }
    let backend = backend(&args.backend)?;
    let params = model.read_params(&checkpoint, args.allow_extra_params)?;
    let started = Calibrator::new(&qt_model, &params, backend.as_ref(), so_far.as_ref());
    let mut calibrator = started.map_err(|e| {
        let of_resumed = match &e {
            PtqError::Stats { .. } | PtqError::MissingStats { .. } | PtqError::UnknownStats { .. } => true,
            PtqError::Param { path, .. } => so_far.as_ref().is_some_and(|stats| stats.get(path).is_some()),
            _ => false,
        };
        match (&e, &args.resume) {
            (_, Some(file)) if of_resumed => anyhow!("`{}`: {e}", file.display()),
            (PtqError::Calibration { .. }, _) => anyhow!("`{}`: {e}", args.rules.display()),
            _ => e.into(),
        }
    })?;
    drop(params);

    let bar = Bar::batches(data.len() - args.skip);
    for number in args.skip..data.len() {
        let done = data.read(number).map_err(anyhow::Error::from).and_then(|batch| {
            calibrator.step(&batch).map_err(|error| match error {
                PtqError::Batch { reason, .. } => anyhow!(data.error(number, reason)),
                other => anyhow!(data.error(number, other.to_string())),
            })
        });
        if let Err(error) = done {
            drop(bar);
            return Err(keep(args, &calibrator, number, error));
        }
        bar.at(number + 1 - args.skip);
    }
    drop(bar);
    let stats = calibrator.finish();
    write_stats(&args.output, &stats)?;
    say(&args.output.display().to_string(), &stats, args.json)
}

/// What the batches before a bad one gave is kept beside the output, to go on from.
fn keep(args: &Calibrate, calibrator: &Calibrator, number: usize, error: anyhow::Error) -> anyhow::Error {
    if calibrator.batches() == 0 {
        return error;
    }
    let mut name = args.output.clone().into_os_string();
    name.push(".partial");
    let partial = PathBuf::from(name);
    match write_stats(&partial, &calibrator.stats()) {
        Ok(()) => anyhow!(
            "{error}; what was seen before it is in `{}`: put the batch right and go on with --resume and --skip {number}",
            partial.display()
        ),
        Err(other) => anyhow!("{error}; what was seen before it could not be kept: {other}"),
    }
}

pub fn merge(args: &Merge) -> Result<()> {
    let mut stats = QuantStats::new();
    for file in &args.stats {
        let other = read_stats(file)?;
        if !stats.is_empty() {
            same_activations(&stats, &other).map_err(|e| anyhow!("`{}`: {e}", file.display()))?;
        }
        stats.merge(&other).map_err(|e| anyhow!("`{}`: {e}", file.display()))?;
    }
    write_stats(&args.output, &stats)?;
    say(&args.output.display().to_string(), &stats, args.json)
}

/// Statistics of other activations are those of another model, or were made by other rules.
fn same_activations(stats: &QuantStats, other: &QuantStats) -> Result<()> {
    let only =
        |a: &QuantStats, b: &QuantStats| a.iter().find(|(p, _)| b.get(p).is_none()).map(|(p, _)| p.clone());
    if let Some(path) = only(stats, other) {
        bail!(
            "has no statistics `{path}`, which the files before it have; they are not of one model and its rules"
        );
    }
    if let Some(path) = only(other, stats) {
        bail!(
            "has statistics `{path}`, which the files before it have not; they are not of one model and its rules"
        );
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    /// Batches that each activation has seen; the least, should they differ.
    batches: i32,
    statistics: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    path: String,
    count: i32,
    /// `absmax`, or `min and max`.
    of: &'static str,
    shape: Vec<usize>,
}

fn say(file: &str, stats: &QuantStats, json: bool) -> Result<()> {
    let rows: Vec<Row> = stats
        .iter()
        .map(|(path, stats)| {
            let (of, array) = match &stats.sums {
                Sums::AbsMax(absmax) => ("absmax", absmax),
                Sums::MinMax { min, .. } => ("min and max", min),
            };
            Row { path: path.to_string(), count: stats.count, of, shape: array.shape().to_vec() }
        })
        .collect();
    let batches = rows.iter().map(|row| row.count).min().unwrap_or(0);
    if json {
        return print_json(&Report { batches, statistics: rows });
    }
    print(&format!(
        "{file}: statistics of {} over {} in all\n",
        counted(rows.len(), "activation"),
        match batches {
            1 => "1 batch".to_owned(),
            n => format!("{n} batches"),
        }
    ))
}
