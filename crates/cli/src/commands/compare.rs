//! `qwix compare`: the error of a quantized package against its float model.

use std::collections::HashMap;

use anyhow::{Result, bail};
use qwix::{
    Array, Checkpoint, Computation, Graph, Model, NodeId, Op, Package, TensorFile, Type, find_sites, sqnr,
};
use serde::{Serialize, Serializer};

use super::backend::backend;
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
    let backend = backend(&args.backend)?;
    let mut float = Model::load(&args.model)?;
    let checkpoint = Checkpoint::open(&args.params)?;
    float.resolve_roles(&checkpoint);
    let package = Package::open(&args.package)?;
    package.verify()?;
    let quantized = package.model()?;
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

/// The products that the package computes on quantized arrays: those of the entry computation, matched by the
/// instruction's name, and those that cannot be looked at.
fn sites(float: &Graph, quantized: &Graph) -> (Vec<Site>, Vec<NotMeasured>) {
    let products = |computation: &Computation| -> HashMap<String, NodeId> {
        let ids = computation.iter().map(|(id, _)| id).filter(|&id| is_quantized_product(computation, id));
        ids.map(|id| (computation.node(id).name.clone(), id)).collect()
    };
    let mut in_entry = products(&quantized.entry);
    let mut nested: HashMap<String, String> = HashMap::new();
    each_called(&quantized.entry, &mut |computation| {
        nested.extend(products(computation).into_keys().map(|name| (name, computation.name.clone())));
    });
    let mut sites = Vec::new();
    let mut not_measured = Vec::new();
    for site in find_sites(float) {
        let computation = float.computation(&site.at).ok();
        let Some(node) = computation.and_then(|c| c.nodes.get(site.node.index())) else { continue };
        let name = match site.module_path.as_str() {
            "" => format!("(root) {}", site.op_id),
            path => format!("{path} {}", site.op_id),
        };
        if !site.at.is_empty() {
            if let Some(body) = nested.get(&node.name) {
                let reason = format!("it runs inside `{body}`, any number of times");
                not_measured.push(NotMeasured { name, reason });
            }
        } else if let Some(quantized) = in_entry.remove(&node.name) {
            sites.push(Site { name, float: site.node, quantized });
        }
    }
    for name in in_entry.into_keys() {
        let reason = "the float model has no instruction of this name".to_owned();
        not_measured.push(NotMeasured { name, reason });
    }
    not_measured.sort_by(|a, b| a.name.cmp(&b.name));
    (sites, not_measured)
}

/// Visits the computations that a computation calls, and those that they call.
fn each_called(computation: &Computation, visit: &mut impl FnMut(&Computation)) {
    for called in computation.nodes.iter().flat_map(|node| node.op.called()) {
        visit(called);
        each_called(called, visit);
    }
}

fn is_quantized_product(computation: &Computation, id: NodeId) -> bool {
    let node = computation.node(id);
    let quantized = |o: &NodeId| matches!(computation.node(*o).ty, Type::QArray(_));
    matches!(node.op, Op::Dot(_) | Op::Convolution(_)) && node.operands.iter().any(quantized)
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
