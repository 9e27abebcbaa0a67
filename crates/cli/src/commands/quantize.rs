//! `qwix quantize`: a float model and its parameters in, a package out.

use std::path::Path;

use anyhow::{Result, bail};
use qwix::{Model, PackageWriter, Report, ReportBuilder, files};

use super::online::{Online, Parts};
use crate::args::Quantize;
use crate::output::{print, print_json};
use crate::table::{Align, Style, Table, bytes, counted};

/// Parameters that are listed, the worst ones.
const LISTED: usize = 10;

pub fn run(args: &Quantize) -> Result<()> {
    if let Some(page) = &args.report {
        check_place(page, &args.output)?;
    }
    let online = Online::new(&Parts {
        model: &args.model,
        params: &args.params,
        rules: &args.rules,
        quant_stats: args.quant_stats.as_deref(),
        qwix_compat: args.qwix_compat,
        allow_extra_params: args.allow_extra_params,
    })?;
    let quantized = Model::from(online.ptq_model.graph.clone());
    let mut writer = PackageWriter::begin(&args.output, &quantized, args.force)?;
    let template = online.ptq_model.abstract_params();
    let report = ReportBuilder::new(&template);
    let made = |float: &_, made: &_| report.see(float, made);
    online.load(args.float_memory, Some(&made), |path, value| writer.write(&path, &value))?;
    let report = report.finish()?;
    writer.finish(&online.rules, args.qwix_compat)?;
    if let Some(page) = &args.report {
        files::write_file(page, |out| out.write_all(report.to_html().as_bytes()))?;
    }

    if args.json {
        return print_json(&report);
    }
    let verdicts = &online.ptq_model.verdicts;
    let count = verdicts.iter().filter(|v| v.outcome.is_quantized()).count();
    let totals = report.totals();
    let done = format!(
        "{}: {count} of {} quantized; parameters {} → {}\n",
        args.output.display(),
        counted(verdicts.len(), "dot and convolution"),
        bytes(totals.bytes_before),
        bytes(totals.bytes_after)
    );
    print(&(done + &render(&report, Style::stdout())))
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
