//! `qwix verify`: every byte of a package against its manifest.

use anyhow::{Result, bail};
use qwix::{Verifying, verify_package};
use serde_json::json;

use crate::args::Verify;
use crate::output::{print, print_json};
use crate::progress::Bytes;
use crate::table::{Align, Style, Table, counted};

pub fn run(args: &Verify) -> Result<()> {
    let bar = Bytes::new();
    let progress = |done, total| bar.at(done, total, "");
    let how = Verifying { threads: args.jobs.map_or(0, usize::from), progress: Some(&progress) };
    let faults = verify_package(&args.package, &how)?;
    drop(bar);
    if args.json {
        let faults = faults.iter().map(|f| json!({ "file": f.file, "tensor": f.tensor, "what": f.what }));
        print_json(&json!({ "faults": faults.collect::<Vec<_>>() }))?;
    } else if faults.is_empty() {
        print(&format!("{}: every byte is as it was written\n", args.package.display()))?;
    } else {
        let mut table = Table::new(&[("file", Align::Left), ("tensor", Align::Left), ("what", Align::Left)]);
        for fault in &faults {
            table.row([fault.file.clone(), fault.tensor.clone().unwrap_or_default(), fault.what.clone()]);
        }
        print(&table.render(Style::stdout()))?;
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "`{}` is not as it was written: {}; quantize again, or copy it again from where it is whole",
        args.package.display(),
        counted(faults.len(), "fault")
    )
}
