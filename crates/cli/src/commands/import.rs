//! `qwix import`: a checkpoint that was quantized elsewhere in, its parameters out as they are.

use std::path::Path;

use anyhow::{Result, anyhow};
use qwix::{
    ActOrder, ImportOptions, Layout, Model, NameMap, PackageWriter, Prequantized, ProcessPrequantized,
    PtqProvider, QType, QuantizationRule, RestoreRules, RestoredActs, Type, bytes_of, files, quantize_model,
    read_rules,
};
use serde::Serialize;

use crate::args::Import;
use crate::output::{print, print_json, warning};
use crate::table::{Align, Style, Table, bytes, counted};

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    checkpoint: String,
    format: &'static str,
    parameters: Vec<ParameterReport>,
}

#[derive(Serialize)]
struct ParameterReport {
    path: String,
    #[serde(rename = "type")]
    ty: String,
    /// Nothing for what stays a plain array.
    qtype: Option<&'static str>,
    shape: Option<Vec<usize>>,
    bytes: u64,
}

pub fn run(args: &Import) -> Result<()> {
    let options = ImportOptions {
        layout: if args.in_out { Layout::InOut } else { Layout::AsStored },
        act_order: match args.act_order.as_str() {
            "permute" => ActOrder::Permute,
            "expand" => ActOrder::Expand,
            _ => ActOrder::Refuse,
        },
        weights_only: args.weights_only,
        ignore_config: args.ignore_config.clone(),
        qtype: args.qtype.as_deref().map(QType::by_name).transpose()?,
    };
    let names = args.names.as_ref().map(NameMap::read).transpose()?.unwrap_or_default();
    let checkpoint = Prequantized::open(&args.checkpoint, &options)?;
    if let Some(file) = &args.rules_out {
        let text = serde_json::to_string_pretty(&restored(args, &checkpoint, &names)?)? + "\n";
        files::write_file(file, |out| out.write_all(text.as_bytes()))?;
    }
    match (&args.output, &args.model) {
        (Some(output), Some(model)) => package(args, &checkpoint, &names, model, output)?,
        (Some(output), None) => checkpoint.write_flat(output)?,
        (None, _) => {}
    }
    if args.json {
        return print_json(&report(args, &checkpoint));
    }
    match (&args.output, &args.rules_out) {
        (Some(output), _) => print(&format!("{}: {}\n", output.display(), summary(&checkpoint))),
        (None, Some(_)) => Ok(()),
        (None, None) => list(&checkpoint),
    }
}

/// The rules that the checkpoint's weights show.
fn restored(args: &Import, checkpoint: &Prequantized, names: &NameMap) -> Result<Vec<QuantizationRule>> {
    let act_qtype = match &args.act_qtype {
        None => RestoredActs::Float,
        Some(name) => RestoredActs::Qtype(QType::by_name(name)?.name.to_owned()),
    };
    let options = RestoreRules { act_qtype, ..RestoreRules::default() };
    Ok(checkpoint.restore_rules(names, &options)?)
}

fn package(
    args: &Import,
    checkpoint: &Prequantized,
    names: &NameMap,
    model: &Path,
    output: &Path,
) -> Result<()> {
    let mut model = Model::load(model)?;
    let targets = match names.is_empty() {
        true => checkpoint.types().map(|(path, _)| path.clone()).collect(),
        false => names.iter().map(|(path, _)| path.clone()).collect(),
    };
    model.resolve_roles_of(&targets);
    let (rules, provider) = match &args.rules {
        None => {
            let rules = restored(args, checkpoint, names)?;
            (rules.clone(), PtqProvider::new(rules)?)
        }
        Some(file) => {
            let rules = read_rules(file)?;
            let provider =
                PtqProvider::new(rules.clone()).map_err(|e| anyhow!("`{}`: {e}", file.display()))?;
            (rules, provider)
        }
    };
    let ptq_model = quantize_model(&model, &provider)?;
    for said in &ptq_model.warnings {
        warning(&said.to_string());
    }
    let quantized = Model::from(ptq_model.graph.clone());
    let mut writer = PackageWriter::begin(output, &quantized, args.force)?;
    let options = ProcessPrequantized {
        allow_extra_params: args.allow_extra_params,
        allow_rounding: args.allow_rounding,
    };
    checkpoint
        .process(&ptq_model.abstract_params(), names, options, |path, value| writer.write(&path, &value))?;
    let rules = serde_json::to_string_pretty(&rules)? + "\n";
    Ok(writer.finish(&rules, false)?)
}

fn total(checkpoint: &Prequantized) -> u64 {
    checkpoint.types().map(|(_, ty)| bytes_of(ty)).fold(0, u64::saturating_add)
}

fn summary(checkpoint: &Prequantized) -> String {
    format!(
        "{}, {} of {} quantized, {}",
        checkpoint.format(),
        checkpoint.count_quantized(),
        counted(checkpoint.types().count(), "parameter"),
        bytes(total(checkpoint))
    )
}

fn list(checkpoint: &Prequantized) -> Result<()> {
    let columns =
        [("parameter", Align::Left), ("type", Align::Left), ("scales", Align::Left), ("bytes", Align::Right)];
    let mut table = Table::new(&columns);
    for (path, ty) in checkpoint.types() {
        let (what, how) = match ty {
            Type::QArray(q) => {
                let dims: Vec<String> = q.array.shape.iter().map(usize::to_string).collect();
                (
                    format!("{}[{}]", q.how.qtype, dims.join(",")),
                    format!("{} {}", q.array.dtype, q.how_text()),
                )
            }
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                (ty.to_string(), String::new())
            }
        };
        table.row([path.to_string(), what, how, bytes(bytes_of(ty))]);
    }
    print(&format!("{}\n\n{}", summary(checkpoint), table.render(Style::stdout())))
}

fn report(args: &Import, checkpoint: &Prequantized) -> Report {
    let parameter = |(path, ty): (&qwix::Path, &Type)| ParameterReport {
        path: path.to_string(),
        ty: ty.to_string(),
        qtype: match ty {
            Type::QArray(q) => Some(q.how.qtype.name),
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        },
        shape: ty.as_array().map(|array| array.shape.clone()),
        bytes: bytes_of(ty),
    };
    Report {
        checkpoint: args.checkpoint.display().to_string(),
        format: checkpoint.format(),
        parameters: checkpoint.types().map(parameter).collect(),
    }
}
