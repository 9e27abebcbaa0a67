//! `qwix quantize`: a float model and its parameters in, a package out.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use qwix::{
    Checkpoint, Model, PackageWriter, PtqProvider, bytes_of_variables, quantize_model, quantize_param,
    read_rules,
};

use crate::args::Quantize;
use crate::output::{print, warning};
use crate::table::{bytes, counted};

pub fn run(args: &Quantize) -> Result<()> {
    let mut model = Model::load(&args.model)?;
    let rules = read_rules(&args.rules)?;
    let rules_text = serde_json::to_string_pretty(&rules)? + "\n";
    let provider = PtqProvider::new(rules)
        .map_err(|e| anyhow::anyhow!("`{}`: {e}", args.rules.display()))?
        .qwix_compat(args.qwix_compat);
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
    let ptq_model = quantize_model(&model, &provider)?;
    for said in &ptq_model.warnings {
        warning(&said.to_string());
    }
    for rule in ptq_model.get_unused_rules() {
        warning(&format!(
            "the rule for `{}` is for no dot or convolution; `qwix explain` says why",
            rule.module_path
        ));
    }

    let template = ptq_model.abstract_params();
    let quantized = Model::from(ptq_model.graph.clone());
    let mut writer = PackageWriter::begin(&args.output, &quantized, args.force)?;
    let sources: Vec<_> = template.sources().collect();
    // Draws on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(sources.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("  {bar:30} {pos}/{len} {wide_msg}") {
        bar.set_style(style);
    }
    for path in sources {
        bar.set_message(path.to_string());
        let array = checkpoint.read(path)?;
        for (path, value) in quantize_param(&template, path, &array)? {
            writer.write(&path, &value)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.finish(&rules_text, args.qwix_compat)?;

    let (before, after) = (bytes_of_variables(&model), bytes_of_variables(&quantized));
    let products = ptq_model.verdicts.len();
    let count = ptq_model.verdicts.iter().filter(|v| v.outcome.is_quantized()).count();
    print(&format!(
        "{}: {count} of {} quantized; parameters {} → {}\n",
        args.output.display(),
        counted(products, "dot and convolution"),
        bytes(before),
        bytes(after)
    ))
}
