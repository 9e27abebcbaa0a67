//! `qwix plugin`: the libraries that drive XLA devices.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use qwix::pjrt::{self, Kind, Plugin, Source, WHEELS};

use crate::args::{Plugin as Args, PluginAction};
use crate::output;

pub fn run(args: &Args) -> Result<()> {
    match &args.action {
        PluginAction::List => list(),
        PluginAction::Install { name, force, python } => install(name, *force, python),
        PluginAction::Path { kind } => {
            let kind = Kind::ALL.into_iter().find(|known| known.name() == kind);
            let kind = kind.ok_or_else(|| anyhow!("there is no such kind of device"))?;
            output::print(&format!("{}\n", pjrt::find(kind)?.display()))
        }
    }
}

fn list() -> Result<()> {
    let mut text = String::new();
    for kind in Kind::ALL {
        let found = pjrt::candidates(kind);
        if found.is_empty() {
            let names: Vec<&str> = kind.wheels().map(|wheel| wheel.name).collect();
            writeln!(text, "{:<5} none; qwix plugin install {}", kind.name(), names.join(" | "))?;
        }
        for (index, (source, path)) in found.iter().enumerate() {
            let source = match source {
                Source::Variable => kind.variable(),
                Source::Installed => "installed by qwix",
                Source::Wheel => "installed by pip",
            };
            let used = if index == 0 { "" } else { ", not used" };
            writeln!(text, "{:<5} {} ({source}{used})", kind.name(), path.display())?;
        }
    }
    output::print(&text)
}

fn install(name: &str, force: bool, python: &str) -> Result<()> {
    let wheel = WHEELS.iter().find(|wheel| wheel.name == name);
    let wheel = wheel.ok_or_else(|| anyhow!("there is no such plugin"))?;
    output::print(&format!("{}: {}\n", wheel.requirement, wheel.note))?;
    let installed = pjrt::install(wheel, python, force)?;
    let mut text = String::new();
    // The one whose terms are not those of free software.
    if wheel.kind == Kind::Tpu {
        for licence in &installed.licences {
            writeln!(text, "{}\n", licence.trim_end())?;
        }
    }
    let path = installed.path.display();
    match &installed.wheel {
        Some(file) => writeln!(text, "{path} (from {file})")?,
        None => writeln!(text, "{path} was there already; --force fetches it again")?,
    }
    output::print(&text)?;
    // Whether it can be used here shows only now.
    if let Err(error) = Plugin::load(&installed.path) {
        output::warning(&format!("it does not load on this machine: {error}"));
    }
    Ok(())
}
