//! `qwix export`: a package's model as plain HLO.

use anyhow::Result;
use qwix::{Package, files};

use crate::args::Export;

pub fn run(args: &Export) -> Result<()> {
    let package = Package::open(&args.package)?;
    let bytes = package.model()?.to_hlo_proto()?;
    Ok(files::write_file(&args.output, |out| out.write_all(&bytes))?)
}
