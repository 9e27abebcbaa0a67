//! `qwix inspect`: what a model is made of.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use anyhow::Result;
use qwix::{Computation, Model, Op, Parameter, Type, find_sites};
use serde::Serialize;

use crate::args::Inspect;
use crate::output::{print, print_json};
use crate::table::{Align, Style, Table, bytes, counted};

/// What is printed, as JSON or as tables.
#[derive(Serialize)]
struct Report {
    model: String,
    parameters: Vec<ParameterReport>,
    inputs: Vec<InputReport>,
    outputs: Vec<String>,
    modules: Vec<ModuleReport>,
    ops: BTreeMap<String, usize>,
    unsupported: Vec<UnsupportedReport>,
}

#[derive(Serialize)]
struct ParameterReport {
    path: String,
    #[serde(rename = "type")]
    ty: String,
    dtype: Option<String>,
    shape: Option<Vec<usize>>,
    bytes: Option<u64>,
    /// Whether it is taken for a parameter until a checkpoint says otherwise.
    ambiguous: bool,
}

#[derive(Serialize)]
struct InputReport {
    index: usize,
    name: String,
    #[serde(rename = "type")]
    ty: String,
    dtype: Option<String>,
    shape: Option<Vec<usize>>,
    ambiguous: bool,
}

#[derive(Serialize)]
struct ModuleReport {
    path: String,
    parameters: usize,
    bytes: u64,
    /// Its dots and convolutions, by the ids that rules and `explain` know them by.
    products: Vec<String>,
}

#[derive(Serialize)]
struct UnsupportedReport {
    opcode: String,
    instruction: String,
    scope: String,
    reason: String,
}

pub fn run(args: &Inspect) -> Result<()> {
    let report = report(&Model::load(&args.model)?);
    if args.json { print_json(&report) } else { print(&render(&report, Style::stdout())) }
}

fn report(model: &Model) -> Report {
    let parameters: Vec<ParameterReport> = model.variables().map(|(_, p)| parameter(p)).collect();
    let mut modules: BTreeMap<String, ModuleReport> = BTreeMap::new();
    for (_, p) in model.variables() {
        let module = module_of(&mut modules, p.path.parent().to_string());
        module.parameters += 1;
        module.bytes += byte_len(&p.ty).unwrap_or(0);
    }
    for site in find_sites(model) {
        module_of(&mut modules, site.module_path.to_string()).products.push(site.op_id);
    }
    let inputs = model.inputs().enumerate().map(|(index, (_, p))| InputReport {
        index,
        name: p.path.to_string(),
        ty: p.ty.to_string(),
        dtype: p.ty.as_array().map(|a| a.dtype.to_string()),
        shape: p.ty.as_array().map(|a| a.shape.clone()),
        ambiguous: p.ambiguous,
    });
    let mut found = Found::default();
    found.computation(&model.entry);
    Report {
        model: model.name.clone(),
        parameters,
        inputs: inputs.collect(),
        outputs: model.outputs().iter().map(Type::to_string).collect(),
        modules: modules.into_values().collect(),
        ops: found.ops,
        unsupported: found.unsupported,
    }
}

fn module_of(modules: &mut BTreeMap<String, ModuleReport>, path: String) -> &mut ModuleReport {
    let new = ModuleReport { path: path.clone(), parameters: 0, bytes: 0, products: vec![] };
    modules.entry(path).or_insert(new)
}

fn parameter(p: &Parameter) -> ParameterReport {
    ParameterReport {
        path: p.path.to_string(),
        ty: p.ty.to_string(),
        dtype: p.ty.as_array().map(|a| a.dtype.to_string()),
        shape: p.ty.as_array().map(|a| a.shape.clone()),
        bytes: byte_len(&p.ty),
        ambiguous: p.ambiguous,
    }
}

fn byte_len(ty: &Type) -> Option<u64> {
    Some(ty.as_array()?.byte_len()? as u64)
}

/// The ops of a computation and of those it calls, each computation once.
#[derive(Default)]
struct Found {
    ops: BTreeMap<String, usize>,
    unsupported: Vec<UnsupportedReport>,
    seen: HashSet<*const Computation>,
}

impl Found {
    fn computation(&mut self, computation: &Computation) {
        if !self.seen.insert(std::ptr::from_ref(computation)) {
            return;
        }
        for node in &computation.nodes {
            if matches!(node.op, Op::Parameter(_)) {
                continue;
            }
            let opcode = match &node.op {
                Op::Unsupported(op) => op.opcode.clone(),
                Op::CustomCall(call) => format!("custom-call {}", call.target),
                other => other.name().to_owned(),
            };
            if let Op::Unsupported(op) = &node.op {
                self.unsupported.push(UnsupportedReport {
                    opcode: op.opcode.clone(),
                    instruction: node.name.clone(),
                    scope: node.metadata.op_name.clone(),
                    reason: op.reason.clone(),
                });
            }
            *self.ops.entry(opcode).or_default() += 1;
            for called in node.op.called() {
                self.computation(called);
            }
        }
    }
}

fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    let heading = |text: &mut String, title: String| {
        let _ = writeln!(text, "{}", style.bold(&title));
    };
    let total: u64 = report.parameters.iter().filter_map(|p| p.bytes).sum();
    heading(
        &mut text,
        format!("{}: {}, {}", report.model, counted(report.parameters.len(), "parameter"), bytes(total)),
    );
    if !report.parameters.is_empty() {
        let mut table = Table::new(&[
            ("parameter", Align::Left),
            ("type", Align::Left),
            ("size", Align::Right),
            ("", Align::Left),
        ]);
        for p in &report.parameters {
            table.row([
                p.path.clone(),
                p.ty.clone(),
                p.bytes.map_or("–".to_owned(), bytes),
                guess(p.ambiguous),
            ]);
        }
        text.push_str(&table.render(style));
    }
    heading(&mut text, format!("\n{}", counted(report.inputs.len(), "input")));
    if !report.inputs.is_empty() {
        let mut table = Table::new(&[
            ("#", Align::Right),
            ("input", Align::Left),
            ("type", Align::Left),
            ("", Align::Left),
        ]);
        for i in &report.inputs {
            table.row([i.index.to_string(), i.name.clone(), i.ty.clone(), guess(i.ambiguous)]);
        }
        text.push_str(&table.render(style));
    }
    heading(&mut text, format!("\n{}", counted(report.outputs.len(), "output")));
    let mut table = Table::new(&[("#", Align::Right), ("type", Align::Left)]);
    for (index, ty) in report.outputs.iter().enumerate() {
        table.row([index.to_string(), ty.clone()]);
    }
    text.push_str(&table.render(style));
    if !report.modules.is_empty() {
        heading(&mut text, format!("\n{}", counted(report.modules.len(), "module")));
        let mut table = Table::new(&[
            ("module", Align::Left),
            ("parameters", Align::Right),
            ("size", Align::Right),
            ("dots and convolutions", Align::Left),
        ]);
        for m in &report.modules {
            let path = if m.path.is_empty() { "(root)".to_owned() } else { m.path.clone() };
            table.row([path, m.parameters.to_string(), bytes(m.bytes), m.products.join(", ")]);
        }
        text.push_str(&table.render(style));
    }
    heading(&mut text, format!("\n{}", counted(report.ops.values().sum(), "op")));
    let mut ops: Vec<(&String, &usize)> = report.ops.iter().collect();
    ops.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let mut table = Table::new(&[("op", Align::Left), ("count", Align::Right)]);
    for (name, count) in ops {
        table.row([name.clone(), count.to_string()]);
    }
    text.push_str(&table.render(style));
    if !report.unsupported.is_empty() {
        heading(&mut text, format!("\n{} that cannot run here", counted(report.unsupported.len(), "op")));
        let mut table = Table::new(&[
            ("op", Align::Left),
            ("instruction", Align::Left),
            ("scope", Align::Left),
            ("why", Align::Left),
        ]);
        for u in &report.unsupported {
            table.row([u.opcode.clone(), u.instruction.clone(), u.scope.clone(), u.reason.clone()]);
        }
        text.push_str(&table.render(style));
    }
    text
}

/// What stands beside a parameter whose role is a guess.
fn guess(ambiguous: bool) -> String {
    if ambiguous { "a guess; a checkpoint decides".to_owned() } else { String::new() }
}
