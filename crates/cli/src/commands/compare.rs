//! `qwix compare`: the error of a quantized package against its float model.

use std::collections::HashMap;

use anyhow::{Result, bail};
use qwix::{Array, Checkpoint, Computation, Graph, Model, NodeId, Op, Package, TensorFile, Type, sqnr};
use serde::{Serialize, Serializer};

use crate::args::Compare;
use crate::output::{print, print_json};
use crate::table::{Align, Style, Table};

#[derive(Serialize)]
struct Report {
    outputs: Vec<Row>,
    sites: Vec<Row>,
    /// Quantized products that no number could be had for, with the reason.
    not_measured: Vec<NotMeasured>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(serialize_with = "decibels")]
    sqnr_db: f64,
}

#[derive(Serialize)]
struct NotMeasured {
    name: String,
    reason: String,
}

/// JSON has no infinity: equal values are `"exact"`, values that are no numbers `null`.
fn decibels<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if *value == f64::INFINITY { serializer.serialize_str("exact") } else { serializer.serialize_f64(*value) }
}

/// A quantized product that stands in both models.
struct Site {
    name: String,
    float: NodeId,
    quantized: NodeId,
}

pub fn run(args: &Compare) -> Result<()> {
    let backend = qwix::backend(&args.backend)?;
    let mut float = Model::load(&args.model)?;
    let checkpoint = Checkpoint::open(&args.params)?;
    float.resolve_roles(&checkpoint);
    let package = Package::open(&args.package)?;
    package.verify()?;
    let quantized = package.model();
    same_signature(&float, quantized)?;
    let (sites, not_measured) = sites(&float, quantized);
    let inputs = float.read_inputs(&TensorFile::open(&args.inputs)?)?;

    let probe = |model: &Model, of: fn(&Site) -> NodeId, params| -> Result<Vec<Array>> {
        let probed = model.with_probes(&sites.iter().map(of).collect::<Vec<_>>())?;
        Ok(probed.compile(backend.as_ref(), params)?.run(&inputs)?)
    };
    let params = float.read_params(&checkpoint, args.allow_extra_params)?;
    let expected = probe(&float, |site| site.float, params)?;
    let found = probe(quantized, |site| site.quantized, package.read_all()?)?;

    let output_count = float.outputs().len();
    let names = (0..output_count).map(|i| i.to_string()).chain(sites.iter().map(|s| s.name.clone()));
    let mut rows = Vec::new();
    for (name, (expected, found)) in names.zip(expected.iter().zip(&found)) {
        let Some(sqnr_db) = sqnr(expected, found) else {
            bail!(
                "`{name}` has shape {:?} in the float model and {:?} in the package",
                expected.shape(),
                found.shape()
            );
        };
        rows.push(Row { name, ty: format!("{expected:?}"), sqnr_db });
    }
    let mut sites = rows.split_off(output_count.min(rows.len()));
    worst_first(&mut rows);
    worst_first(&mut sites);
    let report = Report { outputs: rows, sites, not_measured };
    if args.json { print_json(&report) } else { print(&render(&report, Style::stdout())) }
}

/// Worst first; what is no number is worse than any.
fn worst_first(rows: &mut [Row]) {
    rows.sort_by(|a, b| b.sqnr_db.is_nan().cmp(&a.sqnr_db.is_nan()).then(a.sqnr_db.total_cmp(&b.sqnr_db)));
}

/// Both models must take the same inputs and yield the same outputs to be compared.
fn same_signature(float: &Model, quantized: &Model) -> Result<()> {
    let inputs =
        |m: &Model| m.inputs().map(|(_, p)| (p.path.to_string(), p.ty.to_string())).collect::<Vec<_>>();
    let (ours, theirs) = (inputs(float), inputs(quantized));
    if ours != theirs {
        bail!("the package is of another model: it takes inputs {theirs:?}, the float model {ours:?}");
    }
    let outputs = |m: &Model| m.outputs().iter().map(Type::to_string).collect::<Vec<_>>();
    let (ours, theirs) = (outputs(float), outputs(quantized));
    if ours != theirs {
        bail!("the package is of another model: it yields {theirs:?}, the float model {ours:?}");
    }
    Ok(())
}

/// The products of the entry computation that the package computes on quantized arrays, matched by name, and those
/// that cannot be matched.
fn sites(float: &Graph, quantized: &Graph) -> (Vec<Site>, Vec<NotMeasured>) {
    let by_name: HashMap<&str, NodeId> =
        float.entry.iter().map(|(id, node)| (node.name.as_str(), id)).collect();
    let mut sites = Vec::new();
    let mut not_measured = Vec::new();
    for (id, node) in quantized.entry.iter() {
        for called in node.op.called() {
            nested(called, &mut not_measured);
        }
        if !is_quantized_product(&quantized.entry, id) {
            continue;
        }
        let name = label(&node.metadata.op_name, &node.name);
        match by_name.get(node.name.as_str()) {
            Some(&float) => sites.push(Site { name, float, quantized: id }),
            None => {
                let reason = "the float model has no instruction of this name".to_owned();
                not_measured.push(NotMeasured { name, reason });
            }
        }
    }
    (sites, not_measured)
}

fn nested(computation: &Computation, not_measured: &mut Vec<NotMeasured>) {
    for (id, node) in computation.iter() {
        if is_quantized_product(computation, id) {
            not_measured.push(NotMeasured {
                name: label(&node.metadata.op_name, &node.name),
                reason: format!("it runs inside `{}`, any number of times", computation.name),
            });
        }
        for called in node.op.called() {
            nested(called, not_measured);
        }
    }
}

fn is_quantized_product(computation: &Computation, id: NodeId) -> bool {
    let node = computation.node(id);
    let quantized = |o: &NodeId| matches!(computation.node(*o).ty, Type::QArray(_));
    matches!(node.op, Op::Dot(_) | Op::Convolution(_)) && node.operands.iter().any(quantized)
}

/// The scope in which JAX traced the product, and the instruction's name, which is unique.
fn label(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope} ({name})") }
}

fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    let mut section = |title: &str, what: &'static str, rows: &[Row]| {
        text.push_str(&style.bold(title));
        text.push('\n');
        let mut table = Table::new(&[("SQNR", Align::Right), (what, Align::Left), ("type", Align::Left)]);
        for row in rows {
            let shown = match row.sqnr_db {
                db if db.is_nan() => "not a number".to_owned(),
                f64::INFINITY => "exact".to_owned(),
                db => format!("{db:.1} dB"),
            };
            table.row([shown, row.name.clone(), row.ty.clone()]);
        }
        text.push_str(&table.render(style));
    };
    section("Outputs, worst first", "output", &report.outputs);
    if report.sites.is_empty() {
        text.push_str("\nNo quantized product to look at.\n");
    } else {
        section("\nQuantized products, worst first", "product", &report.sites);
    }
    if !report.not_measured.is_empty() {
        let mut table = Table::new(&[("product", Align::Left), ("why", Align::Left)]);
        for site in &report.not_measured {
            table.row([site.name.clone(), site.reason.clone()]);
        }
        text.push_str(&style.bold("\nNot measured"));
        text.push('\n');
        text.push_str(&table.render(style));
    }
    text
}
