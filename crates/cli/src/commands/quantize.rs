//! `qwix quantize`: a float model and its parameters in, a package out.

use anyhow::Result;

use crate::args::Quantize;

pub fn run(args: &Quantize) -> Result<()> {
    let _ = args;
    anyhow::bail!("not there yet")
}
