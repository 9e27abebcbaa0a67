//! The backend of a command line.

use anyhow::{Result, bail};
use qwix::Backend;
use qwix::pjrt::Cache;

use crate::args;
use crate::output;

pub fn backend(args: &args::Backend) -> Result<Box<dyn Backend>> {
    let Some(dir) = &args.xla_cache else { return Ok(qwix::backend(&args.name)?) };
    let (name, plugin) = args.name.split_once(':').unwrap_or((&args.name, ""));
    if name != "xla" {
        bail!("--xla-cache is for --backend xla; `{name}` compiles nothing that could be kept");
    }
    let backend = qwix::xla_backend(plugin)?.with_cache(Cache::new(dir), output::warning);
    Ok(Box::new(backend))
}
