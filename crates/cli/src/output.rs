//! What is said, and where: results on standard output, errors and warnings on standard error, a line each.

use std::io::{self, Write};
use std::process;

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::table::{Style, printable};

/// Prints a result. A reader that has gone away ends the program, as it ends others in a pipe.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        Err(e) => Err(anyhow!("cannot write to standard output: {e}")),
    }
}

/// Prints a result as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Says why the command failed.
pub fn error(error: &anyhow::Error) {
    line(&Style::stderr().red("error:"), &error.to_string());
}

/// Says that something is probably not as meant.
pub fn warning(text: &str) {
    line(&Style::stderr().yellow("warning:"), text);
}

fn line(label: &str, text: &str) {
    // One line, whatever a library put into its message; and nobody can be told when standard error is closed.
    let text =
        text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr(), "{label} {}", printable(&text));
}
