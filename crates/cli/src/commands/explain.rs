//! stub
use crate::args::Explain;
pub fn run(args: &Explain) -> anyhow::Result<()> {
    let _ = args;
    anyhow::bail!("not there yet")
}
