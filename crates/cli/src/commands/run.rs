//! `qwix run`: inputs in, outputs out.

use anyhow::{Result, bail};
use qwix::{Backend, Checkpoint, Executable, Model, Package, TensorFile, files, widened, write_tensors};

use super::backend::backend;
use super::online::{Online, Parts};
use crate::args::Run;

pub fn run(args: &Run) -> Result<()> {
    let backend = backend(&args.backend)?;
    let (model, executable) = load(args, backend.as_ref())?;
    let inputs = model.read_inputs(&TensorFile::open(&args.inputs)?)?;
    let outputs = executable.run(&inputs)?;
    let outputs = outputs.iter().enumerate().map(|(i, array)| (i.to_string(), widened(array))).collect();
    Ok(files::write_file(&args.output, |out| write_tensors(out, &outputs))?)
}

fn load(args: &Run, backend: &dyn Backend) -> Result<(Model, Box<dyn Executable>)> {
    match (&args.params, &args.rules, args.model.is_dir()) {
        (None, None, true) => {
            let package = Package::open(&args.model)?;
            if args.verify {
                package.verify()?;
            }
            let executable = package.compile(backend)?;
            Ok((package.model()?.clone(), executable))
        }
        (Some(params), Some(rules), false) => {
            let online = Online::new(&Parts {
                model: &args.model,
                params,
                rules,
                quant_stats: args.quant_stats.as_deref(),
                qwix_compat: args.qwix_compat,
                allow_extra_params: args.allow_extra_params,
            })?;
            let mut loader = backend.load(&online.ptq_model.graph)?;
            online.load(args.float_memory, None, |path, value| Ok(loader.put(&path, value)?))?;
            Ok((online.model, loader.finish()?))
        }
        (Some(params), None, false) => {
            let mut model = Model::load(&args.model)?;
            let checkpoint = Checkpoint::open(params)?;
            model.resolve_roles(&checkpoint);
            let params = model.read_params(&checkpoint, args.allow_extra_params)?;
            let executable = model.compile(backend, params)?;
            Ok((model, executable))
        }
        (Some(_), _, true) => {
            bail!("`{}` is a package, which has its own parameters; leave --params out", args.model.display())
        }
        (None, Some(_), true) => {
            bail!("`{}` is a package, which is quantized already; leave --rules out", args.model.display())
        }
        // A file that is not there is said to be not there, rather than to lack parameters.
        (None, _, false) => {
            let model = Model::load(&args.model)?;
            let variables = model.variables().count();
            bail!("`{}` has {variables} parameters; give them with --params", args.model.display())
        }
    }
}
