//! Tables whose columns line up, and colours where a person looks.

use std::io::IsTerminal;

/// How a column stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a heading.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row, a cell a column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, each line indented and ended.
    pub fn render(&self, style: Style) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            let heading = self.columns.get(column).map_or(0, |c| c.0.chars().count());
            cells.chain([heading]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let mut line = String::from(" ");
            for ((cell, &width), &(_, align)) in cells.iter().zip(&widths).zip(&self.columns) {
                match align {
                    Align::Left => line.push_str(&format!(" {cell:<width$} ")),
                    Align::Right => line.push_str(&format!(" {cell:>width$} ")),
                }
            }
            line.trim_end().to_owned()
        };
        let heading = line(self.columns.iter().map(|c| c.0).collect());
        let mut text = style.dim(&heading);
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(row.iter().map(String::as_str).collect()));
            text.push('\n');
        }
        text
    }
}

/// Whether to colour.
#[derive(Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub fn stdout() -> Self {
        Style { colour: std::io::stdout().is_terminal() && wanted() }
    }

    /// Colours when standard error is a terminal and `NO_COLOR` is not set.
    pub fn stderr() -> Self {
        Style { colour: std::io::stderr().is_terminal() && wanted() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A title.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// An error.
    pub fn red(self, text: &str) -> String {
        self.paint("31;1", text)
    }

    /// A warning.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33;1", text)
    }
}

/// The text with control characters escaped: names come from files, and a terminal obeys what it is sent.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `NO_COLOR` counts when it is set and not empty.
fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A number of things for people: `1 input`, `2 inputs`.
pub fn counted(count: usize, thing: &str) -> String {
    if count == 1 {
        return format!("1 {thing}");
    }
    // `dot and convolution` becomes `dots and convolutions`.
    let things: Vec<String> = thing.split(" and ").map(|t| format!("{t}s")).collect();
    format!("{count} {}", things.join(" and "))
}

/// A number of bytes for people: `1.2 MB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("what", Align::Left), ("size", Align::Right)]);
        table.row(["a".to_owned(), "10".to_owned()]);
        table.row(["bcdef".to_owned(), "9".to_owned()]);
        assert_eq!(table.render(Style { colour: false }), "  what   size\n  a        10\n  bcdef     9\n");
    }

    #[test]
    fn bytes_have_units() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (999_600, "1.0 MB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
