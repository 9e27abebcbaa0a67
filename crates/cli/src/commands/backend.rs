//! The backend of a command line.

use anyhow::{Result, bail};
use qwix::pjrt::Cache;
use qwix::{Backend, NativeKernels};

use crate::args;
use crate::output;

pub fn backend(args: &args::Backend) -> Result<Box<dyn Backend>> {
    let for_xla = [
        ("--xla-cache", args.xla_cache.is_some()),
        ("--xla-precision", args.xla_precision.is_some()),
        ("--xla-devices", args.xla_devices.is_some()),
        ("--xla-kernels", args.xla_kernels),
    ];
    let Some((option, _)) = for_xla.iter().find(|(_, given)| *given) else {
        return Ok(qwix::backend(&args.name)?);
    };
    let (name, plugin) = args.name.split_once(':').unwrap_or((&args.name, ""));
    if name != "xla" {
        bail!("{option} is for --backend xla; `{name}` has no use for it");
    }
    let mut backend = qwix::xla_backend(plugin)?;
    if let Some(dir) = &args.xla_cache {
        backend = backend.with_cache(Cache::new(dir), output::warning);
    }
    if let Some(precision) = args.xla_precision {
        backend = backend.with_precision(precision);
    }
    if let Some(devices) = args.xla_devices {
        backend = backend.with_devices(devices.get());
    }
    if args.xla_kernels {
        backend = backend.with_kernels(NativeKernels, output::warning);
    }
    Ok(Box::new(backend))
}
