//! The `qwix` command.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod output;
mod progress;
mod size;
mod table;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Explain(args) => commands::explain::run(args),
        Command::Calibrate(args) => commands::calibrate::run(args),
        Command::Merge(args) => commands::calibrate::merge(args),
        Command::Quantize(args) => commands::quantize::run(args),
        Command::Import(args) => commands::import::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Run(args) => commands::run::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Dump(args) => commands::dump::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Plugin(args) => commands::plugin::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
