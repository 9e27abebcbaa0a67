//! `qwix run`: inputs in, outputs out.

use anyhow::{Result, bail};
use qwix::{Checkpoint, Model, Package, Params, TensorFile, files, widened, write_tensors};

use crate::args::Run;

pub fn run(args: &Run) -> Result<()> {
    let backend = qwix::backend(&args.backend)?;
    let (model, params) = load(args)?;
    let inputs = model.read_inputs(&TensorFile::open(&args.inputs)?)?;
    let outputs = model.compile(backend.as_ref(), params)?.run(&inputs)?;
    let outputs = outputs.iter().enumerate().map(|(i, array)| (i.to_string(), widened(array))).collect();
    Ok(files::write_file(&args.output, |out| write_tensors(out, &outputs))?)
}

fn load(args: &Run) -> Result<(Model, Params)> {
    match (&args.params, args.model.is_dir()) {
        (None, true) => {
            let package = Package::open(&args.model)?;
            package.verify()?;
            Ok((package.model().clone(), package.read_all()?))
        }
        (Some(params), false) => {
            let mut model = Model::load(&args.model)?;
            let checkpoint = Checkpoint::open(params)?;
            model.resolve_roles(&checkpoint);
            let params = model.read_params(&checkpoint, args.allow_extra_params)?;
            Ok((model, params))
        }
        (Some(_), true) => {
            bail!("`{}` is a package, which has its own parameters; leave --params out", args.model.display())
        }
        // A file that is not there is said to be not there, rather than to lack parameters.
        (None, false) => {
            let model = Model::load(&args.model)?;
            let variables = model.variables().count();
            bail!("`{}` has {variables} parameters; give them with --params", args.model.display())
        }
    }
}
