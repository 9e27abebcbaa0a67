//! A report as one page. What comes from files is escaped wherever it stands.

use std::fmt::Write;

use qwix_ptq::human_bytes;

use super::{Report, SAMPLED, TensorReport, Totals, plot};

/// Lines that one plot can have and still be read.
const LINES: usize = 16;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Text for a page: nothing in it is markup, and what cannot be seen is spelt out.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || is_bidi(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Marks that turn the direction of the text around them, and so what a person reads.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn page(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Quantization report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>Quantization report</h1>\n"
    );
    tiles(&mut out, report);
    qtypes(&mut out, report);
    layers(&mut out, report);
    histograms(&mut out, report);
    table(&mut out, report);
    let _ = write!(
        out,
        "<footer>Made by qwix {}.</footer>\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    out
}

fn tiles(out: &mut String, report: &Report) {
    let totals = report.totals();
    let mut tiles = String::new();
    let mut put = |value: String, what: &str| {
        let _ = writeln!(tiles, "<div><dt>{what}</dt><dd>{value}</dd></div>");
    };
    put(grouped(totals.weights), "weights");
    put(format!("{} → {}", human_bytes(totals.bytes_before), human_bytes(totals.bytes_after)), "parameters");
    put(format!("{:.2}×", totals.bytes_before as f64 / totals.bytes_after.max(1) as f64), "smaller");
    put(bits(totals.bits_per_weight), "bits per weight, scales included");
    if let Some(worst) = report.worst_first().first() {
        put(shown(worst.sqnr_db), "lowest SQNR");
    }
    let _ = write!(out, "<dl class=\"tiles\">\n{tiles}</dl>\n");
}

fn qtypes(out: &mut String, report: &Report) {
    out.push_str(
        "<div class=\"wide sums\"><table><thead><tr><th>qtype</th><th class=\"n\">parameters</th><th class=\"n\">weights</th>\
         <th class=\"n\">before</th><th class=\"n\">after</th><th class=\"n\">bits per weight</th></tr></thead>\n<tbody>\n",
    );
    let mut row = |name: &str, totals: Totals| {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            escaped(name),
            totals.tensors,
            grouped(totals.weights),
            human_bytes(totals.bytes_before),
            human_bytes(totals.bytes_after),
            bits(totals.bits_per_weight)
        );
    };
    for (name, totals) in report.by_qtype() {
        row(name.unwrap_or("float"), totals);
    }
    if report.static_bytes > 0 {
        row("static ranges", Totals { bytes_after: report.static_bytes, ..Totals::default() });
    }
    out.push_str("</tbody></table></div>\n");
}

fn layers(out: &mut String, report: &Report) {
    let kinds = report.kinds();
    let mut lines = plot::lines(&kinds);
    if lines.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Error by layer</h2>\n<p>The signal-to-quantization-noise ratio (SQNR) of each kind of parameter, the \
         lowest of a layer; the layer is the first number of the path. Higher is better: 10 dB more is a tenth of the noise's \
         power.",
    );
    if lines.len() > LINES {
        let _ = write!(out, " Of {} kinds, the {LINES} with the lowest ratio are drawn.", lines.len());
        let mut lowest: Vec<f64> = lines.iter().map(plot::Line::lowest).collect();
        lowest.sort_by(f64::total_cmp);
        let limit = lowest[LINES - 1];
        lines.retain(|line| line.lowest() <= limit);
        lines.truncate(LINES);
    }
    let _ = write!(out, "</p>\n<figure class=\"plot\"><div>{}</div>", plot::by_layer(&lines));
    out.push_str("<figcaption>");
    for (number, line) in lines.iter().enumerate() {
        let (colour, dashed) = (number % plot::COLOURS, plot::dashed(number));
        let _ = write!(out, "<span class=\"key c{colour}{dashed}\">{}</span>", escaped(line.kind));
    }
    out.push_str("</figcaption></figure></section>\n");
}

fn histograms(out: &mut String, report: &Report) {
    let kinds = report.kinds();
    let drawn: Vec<_> = kinds.iter().filter_map(|kind| Some((kind, kind.histogram()?))).collect();
    if drawn.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Values in their ranges</h2>\n<p>Where the weights of each kind lie between the ends of the range that \
         their scale gives them; what lies beyond counts at the ends. The largest value of each scale makes the peaks \
         there; a narrow hill leaves most of the type's levels unused.</p>\n<div class=\"cards\">\n",
    );
    for (kind, histogram) in drawn {
        let quantized = kind.tensors.iter().filter_map(|t| t.sqnr_db);
        let (low, high) =
            quantized.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), db| (low.min(db), high.max(db)));
        let ratio = match (low, high) {
            (low, high) if low > high => String::new(),
            (low, high) if shown(Some(low)) == shown(Some(high)) => format!(", {}", shown(Some(low))),
            (low, high) if high.is_finite() => format!(", {low:.1} to {high:.1} dB"),
            (low, _) => format!(", {low:.1} dB to exact"),
        };
        let name = escaped(&kind.name);
        let count = kind.tensors.iter().filter(|t| t.histogram.is_some()).count();
        let _ = writeln!(
            out,
            "<figure><figcaption><b>{name}</b><br>{count} parameter{}{ratio}</figcaption>{}</figure>",
            if count == 1 { "" } else { "s" },
            plot::histogram(&histogram)
        );
    }
    out.push_str("</div></section>\n");
}

fn table(out: &mut String, report: &Report) {
    let count = report.tensors().len();
    let unseen = match report.unseen() {
        0 => String::new(),
        1 => " 1 quantized parameter was not looked at.".to_owned(),
        count => format!(" {count} quantized parameters were not looked at."),
    };
    let _ = write!(
        out,
        "<section><h2>Parameters</h2>\n<p>SQNR is that of all elements of a parameter with up to {}, and of that many, \
         spread over it, of a larger one.{unseen}</p>\n\
         <p class=\"search\"><input id=\"search\" type=\"search\" placeholder=\"Search, such as mlp int4\" \
         aria-label=\"Search the parameters\"> <span id=\"count\">{count} of {count}</span></p>\n\
         <div class=\"wide\"><table id=\"parameters\"><thead><tr>",
        grouped(SAMPLED as u64)
    );
    let columns = [
        ("parameter", ""),
        ("type", ""),
        ("qtype", ""),
        ("SQNR, dB", "n"),
        ("looked at", "n"),
        ("bits per weight", "n"),
        ("before", "n"),
        ("after", "n"),
    ];
    for (name, class) in columns {
        let _ = write!(out, "<th class=\"{class}\"><button>{name}</button></th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    let finite = report.tensors().iter().filter_map(|t| t.sqnr_db).filter(|db| db.is_finite());
    let highest = finite.fold(0.0, f64::max);
    for tensor in report.tensors() {
        row(out, tensor, highest);
    }
    out.push_str("</tbody></table></div></section>\n");
}

/// `data-v` is what a column is sorted by.
fn row(out: &mut String, tensor: &TensorReport, highest: f64) {
    let (sort, bar) = match tensor.sqnr_db {
        Some(db) if db.is_finite() => (format!("{db}"), (db / highest * 100.0).clamp(0.0, 100.0)),
        Some(db) if db > 0.0 => ("1e9".to_owned(), 100.0),
        Some(_) => ("-1e9".to_owned(), 0.0),
        None => (String::new(), 0.0),
    };
    let number = tensor.sqnr_db.map_or(String::new(), |db| match db.is_finite() {
        true => format!("{db:.1}"),
        false => shown(Some(db)),
    });
    let origin = match tensor.source_path == tensor.path {
        true => String::new(),
        false => format!(" <small>from {}</small>", escaped(tensor.source_path.as_str())),
    };
    let _ = writeln!(
        out,
        "<tr><td>{}{origin}</td><td>{}</td><td>{}</td><td class=\"n bar\" data-v=\"{sort}\" style=\"--w:{bar:.0}%\">{number}</td>\
         <td class=\"n\" data-v=\"{}\">{}</td><td class=\"n\" data-v=\"{}\">{}</td><td class=\"n\" data-v=\"{}\">{}</td>\
         <td class=\"n\" data-v=\"{}\">{}</td></tr>",
        escaped(tensor.path.as_str()),
        escaped(&tensor.source.to_string()),
        escaped(tensor.qtype.unwrap_or("float")),
        tensor.sampled,
        if tensor.sqnr_db.is_none() { String::new() } else { grouped(tensor.sampled) },
        tensor.bits_per_weight.unwrap_or(0.0),
        bits(tensor.bits_per_weight),
        tensor.bytes_before,
        human_bytes(tensor.bytes_before),
        tensor.bytes_after,
        human_bytes(tensor.bytes_after),
    );
}

fn shown(db: Option<f64>) -> String {
    match db {
        Some(db) if db == f64::INFINITY => "exact".to_owned(),
        Some(db) => format!("{db:.1} dB"),
        None => String::new(),
    }
}

fn bits(bits: Option<f64>) -> String {
    bits.map_or(String::new(), |bits| format!("{bits:.2}"))
}

/// A number in groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut groups: Vec<&str> = Vec::new();
    if first > 0 {
        groups.push(&digits[..first]);
    }
    groups.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    groups.join("\u{202f}")
}
