//! `qwix quantize`: a float model and its parameters in, a package out.

use anyhow::Result;
use qwix::{Model, PackageWriter, bytes_of_variables};

use super::online::{Online, Parts};
use crate::args::Quantize;
use crate::output::print;
use crate::table::{bytes, counted};

pub fn run(args: &Quantize) -> Result<()> {
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
    online.load(args.float_memory, |path, value| writer.write(&path, &value))?;
    writer.finish(&online.rules, args.qwix_compat)?;

    let (before, after) = (bytes_of_variables(&online.model), bytes_of_variables(&quantized));
    let verdicts = &online.ptq_model.verdicts;
    let count = verdicts.iter().filter(|v| v.outcome.is_quantized()).count();
    print(&format!(
        "{}: {count} of {} quantized; parameters {} → {}\n",
        args.output.display(),
        counted(verdicts.len(), "dot and convolution"),
        bytes(before),
        bytes(after)
    ))
}
