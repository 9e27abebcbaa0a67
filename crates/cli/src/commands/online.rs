//! What `quantize` and `run --rules` have in common: a float model, its checkpoint and rules.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use qwix::{
    Checkpoint, Loaded, Loading, Made, Model, Progress, PtqModel, PtqProvider, QuantStats, Template, Value,
    quantize_checkpoint, quantize_model, quantize_stats, read_rules, read_stats,
};

use crate::output::warning;
use crate::progress::Bytes;
use crate::table::counted;

/// A float model with its checkpoint, and what the rules make of it.
pub struct Online {
    pub model: Model,
    pub checkpoint: Checkpoint,
    pub ptq_model: PtqModel,
    pub quant_stats: QuantStats,
    /// The rules as they were understood, as JSON.
    pub rules: String,
}

/// Where the parts are, and what to allow.
pub struct Parts<'a> {
    pub model: &'a Path,
    pub params: &'a Path,
    pub rules: &'a Path,
    pub quant_stats: Option<&'a Path>,
    pub qwix_compat: bool,
    pub allow_extra_params: bool,
}

impl Online {
    /// Reads the model, the rules and the checkpoint's header, and quantizes the graph; warns of what is not meant.
    pub fn new(parts: &Parts) -> Result<Self> {
        let mut model = Model::load(parts.model)?;
        let rules = read_rules(parts.rules)?;
        let rules_text = serde_json::to_string_pretty(&rules)? + "\n";
        let provider = PtqProvider::new(rules)
            .map_err(|e| anyhow!("`{}`: {e}", parts.rules.display()))?
            .qwix_compat(parts.qwix_compat);
        let checkpoint = Checkpoint::open(parts.params)?;
        model.resolve_roles(&checkpoint);
        let extra = model.check_params(&checkpoint, parts.allow_extra_params)?;
        if !extra.is_empty() {
            warning(&format!(
                "{} of `{}` left out: the model does not have them",
                counted(extra.len(), "parameter"),
                parts.params.display()
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
        let quant_stats = quant_stats(parts, &ptq_model.abstract_params())?;
        Ok(Online { model, checkpoint, ptq_model, quant_stats, rules: rules_text })
    }

    /// Quantizes the checkpoint, parameter by parameter, with a bar; `made` is as [`Loading::made`].
    pub fn load(
        &self,
        float_bytes: u64,
        made: Option<&Made<'_>>,
        sink: impl FnMut(qwix::Path, Value) -> qwix::Result<()>,
    ) -> Result<Loaded> {
        let bar = Bytes::new();
        let progress = |p: &Progress<'_>| bar.at(p.done, p.total, p.path.as_str());
        // What is too many was warned of.
        let loading = Loading {
            float_bytes,
            allow_extra_params: true,
            quant_stats: Some(&self.quant_stats),
            progress: Some(&progress),
            made,
            ..Loading::default()
        };
        Ok(quantize_checkpoint(&self.checkpoint, &self.ptq_model.abstract_params(), &loading, sink)?)
    }
}

/// The statistics for the model's static ranges. What is wrong with them is said before any parameter is read.
fn quant_stats(parts: &Parts, template: &Template) -> Result<QuantStats> {
    let Some(file) = parts.quant_stats else {
        let Some(first) = template.statistics().next() else { return Ok(QuantStats::new()) };
        bail!(
            "statistics `{first}` are missing ({} in all): `{}` asks for static ranges with act_static_scale; make \
             statistics with `qwix calibrate`, and give them with --quant-stats",
            template.statistics().count(),
            parts.rules.display()
        )
    };
    let stats = read_stats(file)?;
    quantize_stats(&stats, template).map_err(|e| anyhow!("`{}`: {e}", file.display()))?;
    Ok(stats)
}
