//! `qwix quantize`: float parameters in, a package out.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use qwix::{
    Checkpoint, Model, QuantizeJob, QuantizePlan, QuantizeProgress, Report, ReportBuilder, WeightLayout,
    WeightRule, files, read_weight_rules, weights_only,
};

use super::online::{Online, Parts};
use crate::args::{Layout, Quantize};
use crate::output::{print, print_json, warning};
use crate::progress::Bytes;
use crate::table::{Align, Style, Table, bytes, counted};

/// Parameters that are listed, the worst ones.
const LISTED: usize = 10;

pub fn run(args: &Quantize) -> Result<()> {
    if let Some(page) = &args.report {
        check_place(page, &args.output)?;
    }
    if !args.plan {
        QuantizeJob::check_target(&args.output, args.force)?;
    }
    match (&args.model, &args.rules) {
        (Some(model), Some(rules)) => with_model(args, model, rules),
        (Some(_), None) => {
            Err(anyhow!("a model needs --rules; --weights-only is for parameters without one"))
        }
        (None, rules) => without_model(args, rules.as_deref()),
    }
}

fn with_model(args: &Quantize, model: &Path, rules: &Path) -> Result<()> {
    let online = Online::new(&Parts {
        model,
        params: &args.params,
        rules,
        quant_stats: args.quant_stats.as_deref(),
        qwix_compat: args.qwix_compat,
        allow_extra_params: args.allow_extra_params,
    })?;
    let quantized = Model::from(online.ptq_model.graph.clone());
    let template = online.ptq_model.abstract_params();
    let mut inputs = vec![("model", model)];
    inputs.extend(args.quant_stats.as_deref().map(|file| ("statistics", file)));
    let job = QuantizeJob {
        model: Some(&quantized),
        quant_stats: Some(&online.quant_stats),
        inputs: &inputs,
        // What is too many was warned of.
        allow_extra_params: true,
        ..QuantizeJob::new(&online.checkpoint, &template, &online.rules)
    };
    let verdicts = &online.ptq_model.verdicts;
    let count = verdicts.iter().filter(|v| v.outcome.is_quantized()).count();
    carry_out(args, job, &format!("{count} of {} quantized", counted(verdicts.len(), "dot and convolution")))
}

fn without_model(args: &Quantize, rules: Option<&Path>) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.params)?;
    let of_file = |reason: String| match rules {
        Some(file) => anyhow!("`{}`: {reason}", file.display()),
        None => anyhow!("--weights-only: {reason}"),
    };
    let rules = match rules {
        Some(file) => read_weight_rules(file)?,
        None => vec![WeightRule {
            weight_qtype: args.weight_qtype.clone(),
            tile_size: args.tile_size,
            contracting_axes: (!args.contracting_axis.is_empty()).then(|| args.contracting_axis.clone()),
            weight_calibration_method: args.calibration.clone(),
            ..WeightRule::new(args.weights_only.as_deref().unwrap_or(".*"))
        }],
    };
    let layout = match args.layout {
        Layout::Flax => WeightLayout::Flax,
        Layout::Hf => WeightLayout::HuggingFace,
    };
    let (template, warnings) =
        weights_only(checkpoint.types(), &rules, layout).map_err(|e| of_file(e.to_string()))?;
    for said in &warnings {
        warning(&said.to_string());
    }
    let text = serde_json::to_string_pretty(&rules)? + "\n";
    let job = QuantizeJob::new(&checkpoint, &template, &text);
    let count = template.parameters().values().filter(|p| p.slot.is_some()).count();
    carry_out(
        args,
        job,
        &format!("{count} of {} quantized", counted(template.parameters().len(), "parameter")),
    )
}

fn carry_out(args: &Quantize, job: QuantizeJob<'_>, what: &str) -> Result<()> {
    let bar = Bytes::new();
    let progress = |p: &QuantizeProgress<'_>| bar.at(p.done, p.total, p.path.as_str());
    let job = QuantizeJob {
        qwix_compat: args.qwix_compat,
        max_memory: args.max_memory,
        shard_size: args.shard_size,
        threads: args.jobs.map_or(0, usize::from),
        progress: Some(&progress),
        ..job
    };
    let sizes = |plan: &QuantizePlan| format!("{} → {}", bytes(plan.bytes_before), bytes(plan.bytes_after));
    if args.plan {
        let plan = job.plan()?;
        drop(bar);
        return if args.json {
            print_json(&plan)
        } else {
            let what = format!("{}: {what}; parameters {}", args.output.display(), sizes(&plan));
            print(&planned(&plan, &what))
        };
    }
    let report = ReportBuilder::new(job.template);
    let done = QuantizeJob { report: Some(&report), ..job }.run(&args.output, args.force)?;
    let report = report.finish()?;
    drop(bar);
    if let Some(page) = &args.report {
        files::write_file(page, |out| out.write_all(report.to_html().as_bytes()))?;
    }
    if args.json {
        let mut json = serde_json::to_value(&report)?;
        if let Some(object) = json.as_object_mut() {
            object.insert("worked_on".to_owned(), done.worked_on.into());
            object.insert("resumed".to_owned(), done.resumed.into());
            object.insert("threads".to_owned(), done.threads.into());
            object.insert("peak_memory".to_owned(), qwix::peak_resident().into());
        }
        return print_json(&json);
    }
    let resumed = match done.resumed {
        0 => String::new(),
        count => format!("; {} had been done before", counted(count, "parameter")),
    };
    let said = format!("{}: {what}; parameters {}{resumed}\n", args.output.display(), sizes(&done.plan));
    print(&(said + &render(&report, Style::stdout())))
}

/// What would be done.
fn planned(plan: &QuantizePlan, what: &str) -> String {
    let mut shards = Table::new(&[("file", Align::Left), ("bytes", Align::Right)]);
    for (name, length) in &plan.shards {
        shards.row([name.clone(), bytes(*length)]);
    }
    let mut text = format!("{what}; at least {} of memory\n", bytes(plan.least_memory));
    text += &shards.render(Style::stdout());
    text
}

/// Says before the work what would be said after it: that the page cannot be written, or would be no part of the package.
fn check_place(page: &Path, package: &Path) -> Result<()> {
    let folder = page.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(folder).starts_with(real(package)) {
        bail!(
            "`{}` would lie in the package, which holds no other files; give --report another place",
            page.display()
        );
    }
    if page.is_dir() || !folder.is_dir() {
        let what = if page.is_dir() { "is a directory" } else { "lies in a directory that is not there" };
        bail!("`{}` {what}; give --report a file name", page.display());
    }
    Ok(())
}

fn render(report: &Report, style: Style) -> String {
    let bits = |bits: Option<f64>| bits.map_or(String::new(), |bits| format!("{bits:.2}"));
    let mut sums = Table::new(&[
        ("qtype", Align::Left),
        ("parameters", Align::Right),
        ("weights", Align::Right),
        ("before", Align::Right),
        ("after", Align::Right),
        ("bits per weight", Align::Right),
    ]);
    let mut row = |name: &str, parameters: String, totals: qwix::Totals| {
        sums.row([
            name.to_owned(),
            parameters,
            totals.weights.to_string(),
            bytes(totals.bytes_before),
            bytes(totals.bytes_after),
            bits(totals.bits_per_weight),
        ]);
    };
    for (name, totals) in report.by_qtype() {
        row(name.unwrap_or("float"), totals.tensors.to_string(), totals);
    }
    if report.static_bytes() > 0 {
        let totals = qwix::Totals { bytes_after: report.static_bytes(), ..Default::default() };
        row("static ranges", String::new(), totals);
    }
    row("all", report.totals().tensors.to_string(), report.totals());
    let mut text = format!("\n{}", sums.render(style));

    if report.unseen() > 0 {
        text.push_str(&format!("{} not looked at\n", counted(report.unseen(), "quantized parameter")));
    }
    let worst = report.worst_first();
    if worst.is_empty() {
        return text;
    }
    let title = match worst.len() {
        0..=LISTED => "Quantized parameters, worst first".to_owned(),
        count => format!("The {LISTED} worst of {count} quantized parameters"),
    };
    let mut listed = Table::new(&[
        ("SQNR", Align::Right),
        ("parameter", Align::Left),
        ("type", Align::Left),
        ("qtype", Align::Left),
        ("bits per weight", Align::Right),
        ("looked at", Align::Right),
    ]);
    for tensor in worst.into_iter().take(LISTED) {
        let db = tensor.sqnr_db.unwrap_or(f64::NAN);
        let seen = if tensor.sampled == tensor.weights { "all" } else { &tensor.sampled.to_string() };
        listed.row([
            if db == f64::INFINITY { "exact".to_owned() } else { format!("{db:.1} dB") },
            tensor.path.to_string(),
            tensor.source.to_string(),
            tensor.qtype.unwrap_or("float").to_owned(),
            bits(tensor.bits_per_weight),
            seen.to_owned(),
        ]);
    }
    text.push_str(&style.bold(&format!("\n{title}")));
    text.push('\n');
    text.push_str(&listed.render(style));
    text
}
