//! `qwix explain`: what rules do to every dot and convolution of a model.

use std::fmt::Write;

use anyhow::{Result, bail};
use qwix::{Model, Outcome, PtqProvider, PtqReport, SideVerdict, Verdict, explain, read_rules};

use crate::args::Explain;
use crate::output::{print, print_json};
use crate::table::{Align, Style, Table, bytes, counted};

pub fn run(args: &Explain) -> Result<()> {
    let model = Model::load(&args.model)?;
    let provider = PtqProvider::new(read_rules(&args.rules)?)
        .map_err(|e| anyhow::anyhow!("`{}`: {e}", args.rules.display()))?
        .qwix_compat(args.qwix_compat);
    let report = explain(&model, &provider)?;
    if args.json {
        print_json(&report)?
    } else {
        print(&render(&report, Style::stdout()))?
    }
    if args.strict { strict(&report) } else { Ok(()) }
}

/// What `--strict` does not let pass: a product that no rule speaks of, a product that its rule cannot quantize, and
/// a rule that is for nothing.
fn strict(report: &PtqReport) -> Result<()> {
    let unmatched = report.sites.iter().filter(|s| s.rule.is_none()).count();
    let complaints: Vec<String> = [
        (unmatched, "product", "that no rule matches"),
        (report.failed, "product", "that the rules cannot quantize"),
        (report.unused_rules.len(), "rule", "not used"),
    ]
    .into_iter()
    .filter(|c| c.0 > 0)
    .map(|(count, thing, what)| format!("{} {what}", counted(count, thing)))
    .collect();
    if complaints.is_empty() {
        return Ok(());
    }
    bail!(
        "--strict: {}; add or mend rules (one without weight_qtype says that a module stays in float)",
        complaints.join(", ")
    )
}

fn render(report: &PtqReport, style: Style) -> String {
    let mut text = style.bold(&format!(
        "{} of {} quantized; parameters {} → {}",
        report.quantized,
        counted(report.sites.len(), "dot and convolution"),
        bytes(report.bytes_before),
        bytes(report.bytes_after)
    ));
    text.push('\n');
    let site = |v: &Verdict| {
        let module = if v.module_path.is_empty() { "(root)" } else { v.module_path.as_str() };
        format!("{module} {}", v.op_id)
    };
    let rule = |v: &Verdict| v.rule.map_or("–".to_owned(), |r| r.to_string());
    let mut quantized = Table::new(&[
        ("site", Align::Left),
        ("rule", Align::Right),
        ("left", Align::Left),
        ("right", Align::Left),
        ("computed", Align::Left),
    ]);
    let reasons = || Table::new(&[("site", Align::Left), ("rule", Align::Right), ("why", Align::Left)]);
    let (mut left, mut failed) = (reasons(), reasons());
    for v in &report.sites {
        match &v.outcome {
            Outcome::Quantized { lhs, rhs, strategy } => {
                quantized.row([site(v), rule(v), side(lhs), side(rhs), (*strategy).to_owned()]);
            }
            Outcome::Left { reason } => left.row([site(v), rule(v), reason.clone()]),
            Outcome::Failed { reason } => failed.row([site(v), rule(v), reason.clone()]),
        }
    }
    if !quantized.is_empty() {
        text.push_str(&quantized.render(style));
        text.push_str(&style.dim("  {…}: an entry an axis; c a scale for every index, _ one scale, a number a scale for every so many"));
        if quantized_statically(report) {
            text.push_str(&style.dim("\n  static: the range comes from calibration (`qwix calibrate`)"));
        }
        text.push('\n');
    }
    for (title, table) in [("Left in float", left), ("Cannot be quantized as the rule says", failed)] {
        if !table.is_empty() {
            let _ = write!(text, "\n{}\n{}", style.bold(title), table.render(style));
        }
    }
    if !report.unused_rules.is_empty() {
        let mut table =
            Table::new(&[("rule", Align::Right), ("module_path", Align::Left), ("why", Align::Left)]);
        for unused in &report.unused_rules {
            let why = if unused.shadowed_by.is_empty() {
                "matches no dot or convolution".to_owned()
            } else {
                let by: Vec<String> = unused.shadowed_by.iter().map(usize::to_string).collect();
                format!("shadowed by rule {}", by.join(", "))
            };
            table.row([unused.rule.to_string(), unused.module_path.clone(), why]);
        }
        let _ = write!(text, "\n{}\n{}", style.bold("Unused rules"), table.render(style));
    }
    if !report.warnings.is_empty() {
        let _ = writeln!(text, "\n{}", style.bold("Warnings"));
        for warning in &report.warnings {
            let _ = writeln!(text, "  {}", crate::table::printable(&warning.to_string()));
        }
    }
    text
}

fn quantized_statically(report: &PtqReport) -> bool {
    report.sites.iter().any(|v| match &v.outcome {
        Outcome::Quantized { lhs, rhs, .. } => lhs.statistics.is_some() || rhs.statistics.is_some(),
        Outcome::Left { .. } | Outcome::Failed { .. } => false,
    })
}

/// One side: `weight int8 {_,c} Dense_0/kernel`, `activation f32`.
fn side(side: &SideVerdict) -> String {
    let mut text = side.role.to_owned();
    match side.qtype {
        None => text.push_str(" float"),
        Some(qtype) => {
            let axes: Vec<&str> = side.axes.iter().map(|axis| short(axis)).collect();
            let _ = write!(text, " {qtype} {{{}}}", axes.join(","));
            if side.statistics.is_some() {
                text.push_str(" static");
            }
        }
    }
    if let Some(path) = &side.path {
        let _ = write!(text, " {path}");
    }
    text
}

fn short(axis: &str) -> &str {
    match axis {
        "shared" => "_",
        "channelwise" => "c",
        other => other.strip_prefix("tile ").unwrap_or(other),
    }
}
