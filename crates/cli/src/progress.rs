//! Bars for a person who waits: on standard error, and only when that is a terminal.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A bar of batches: how many, how fast, how long it will take.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// An empty bar for so many batches.
    pub fn batches(count: usize) -> Self {
        let bar = ProgressBar::new(count as u64);
        if let Ok(style) = ProgressStyle::with_template("  {bar:30} {pos}/{len} batches  {rate}  {eta} left")
        {
            // Nobody can be told when the bar cannot be written.
            let rate = |state: &ProgressState, out: &mut dyn Write| {
                let _ = write!(out, "{:.1}/s", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate));
        }
        Bar { bar }
    }

    /// So many are done.
    pub fn at(&self, done: usize) {
        self.bar.set_position(done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar of bytes: how many, how fast, how long it will take.
pub struct Bytes {
    bar: ProgressBar,
}

impl Bytes {
    /// An empty bar; its length is given with each step.
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        let template = "  {bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Bytes { bar }
    }

    /// So many of so many bytes are done; what is being done now.
    pub fn at(&self, done: u64, total: u64, what: &str) {
        self.bar.set_length(total);
        self.bar.set_message(crate::table::printable(what));
        self.bar.set_position(done);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
