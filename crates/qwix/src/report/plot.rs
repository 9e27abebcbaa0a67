//! Drawings of a report, as SVG that stands in a page. Their colours are the page's.

use std::fmt::Write;

use super::html::escaped;
use super::{BINS, Histogram, Kind, TensorReport};

/// Colours that lines can be told apart by; the page has as many.
pub(super) const COLOURS: usize = 8;

/// A kind's lowest ratio in each layer.
pub(super) struct Line<'a> {
    pub(super) kind: &'a str,
    points: Vec<(u64, f64, &'a TensorReport)>,
}

/// A line for each kind that has layers, in the order of the kinds.
pub(super) fn lines<'a>(kinds: &'a [Kind<'a>]) -> Vec<Line<'a>> {
    kinds.iter().filter_map(Line::of).collect()
}

impl<'a> Line<'a> {
    fn of(kind: &'a Kind<'a>) -> Option<Self> {
        let mut points: Vec<(u64, f64, &TensorReport)> = kind
            .tensors
            .iter()
            .filter_map(|t| Some((t.layer()?, t.sqnr_db.filter(|db| db.is_finite())?, *t)))
            .collect();
        points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        points.dedup_by_key(|point| point.0);
        (!points.is_empty()).then_some(Line { kind: &kind.name, points })
    }

    /// The lowest of all layers.
    pub(super) fn lowest(&self) -> f64 {
        self.points.iter().fold(f64::INFINITY, |low, point| low.min(point.1))
    }
}

/// The ratios by layer, in decibels.
pub(super) fn by_layer(lines: &[Line<'_>]) -> String {
    const WIDTH: f64 = 960.0;
    const HEIGHT: f64 = 340.0;
    let (left, right, top, bottom) = (48.0, WIDTH - 16.0, 14.0, HEIGHT - 40.0);
    let points = || lines.iter().flat_map(|line| &line.points);
    let layers = || points().map(|point| point.0);
    let (Some(first), Some(last)) = (layers().min(), layers().max()) else { return String::new() };
    let low = points().fold(f64::INFINITY, |low, point| low.min(point.1));
    let high = points().fold(f64::NEG_INFINITY, |high, point| high.max(point.1));
    let step =
        [1.0, 2.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|s| (high - low) / s <= 6.0).unwrap_or(100.0);
    let (floor, ceiling) = ((low / step).floor() * step, ((high / step).floor() + 1.0) * step);
    // A single layer stands in the middle.
    let span = last.saturating_sub(first).max(1) as f64;
    let lone = if first == last { (right - left) / 2.0 } else { 0.0 };
    let inset = 12.0;
    let x = |layer: u64| {
        left + inset + lone + (layer.saturating_sub(first)) as f64 / span * (right - left - 2.0 * inset)
    };
    let y = |db: f64| bottom - (db - floor) / (ceiling - floor) * (bottom - top);

    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Signal-to-noise ratio of each kind by layer\">"
    );
    let mut tick = floor;
    while tick <= ceiling + step / 2.0 {
        let at = y(tick);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            left - 8.0,
            at + 4.0
        );
        tick += step;
    }
    let every = [1, 2, 5, 10, 20, 50, 100].into_iter().find(|n| (last - first) / n <= 24);
    let every = every.unwrap_or(((last - first) / 24).max(1));
    let mut layer = first;
    loop {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
            x(layer),
            bottom + 18.0
        );
        match layer.checked_add(every) {
            Some(next) if next <= last => layer = next,
            Some(_) | None => break,
        }
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">layer</text>\
         <text x=\"0\" y=\"{:.1}\" class=\"unit\">dB</text>",
        (left + right) / 2.0,
        HEIGHT - 4.0,
        top + 4.0
    );
    for (number, line) in lines.iter().enumerate() {
        let _ = write!(svg, "<g class=\"c{}{}\">", number % COLOURS, dashed(number));
        let path: Vec<String> = line.points.iter().map(|p| format!("{:.1} {:.1}", x(p.0), y(p.1))).collect();
        let _ = write!(svg, "<path class=\"line\" d=\"M{}\"/>", path.join("L"));
        for &(layer, db, tensor) in &line.points {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}: {db:.1} dB</title></circle>",
                x(layer),
                y(db),
                escaped(tensor.path.as_str())
            );
        }
        svg.push_str("</g>");
    }
    svg.push_str("</svg>");
    svg
}

/// Where a line has a colour that another one has already.
pub(super) fn dashed(number: usize) -> &'static str {
    if number / COLOURS % 2 == 1 { " dashed" } else { "" }
}

/// Where the values of a kind lie in their ranges.
pub(super) fn histogram(histogram: &Histogram) -> String {
    const WIDTH: f64 = 260.0;
    const BASE: f64 = 84.0;
    let highest = histogram.0.iter().copied().max().unwrap_or(0).max(1) as f64;
    let width = WIDTH / BINS as f64;
    let mut outline = format!("M0 {BASE}");
    for (bin, &count) in histogram.0.iter().enumerate() {
        let height = BASE - count as f64 / highest * (BASE - 4.0);
        let _ = write!(outline, "V{height:.1}H{:.1}", (bin + 1) as f64 * width);
    }
    let middle = WIDTH / 2.0;
    format!(
        "<svg viewBox=\"0 0 {WIDTH} 102\" role=\"img\" aria-label=\"Histogram\"><path class=\"bars\" d=\"{outline}V{BASE}Z\"/>\
         <path class=\"grid\" d=\"M0 {BASE}H{WIDTH}M{middle} {BASE}v4\"/>\
         <text x=\"0\" y=\"98\">−1</text><text x=\"{middle}\" y=\"98\" text-anchor=\"middle\">0</text>\
         <text x=\"{WIDTH}\" y=\"98\" text-anchor=\"end\">1</text></svg>"
    )
}
