//! How often each duration came: bars on a terminal, and as SVG or HTML.

use std::fmt::Write as _;

use super::Report;
use crate::{
    bench::{histogram::Bar, latencies::Summary, plot::label},
    output::microseconds,
};

/// Of a terminal.
const BAR_CELLS: usize = 40;
/// Eighths of a cell.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

const WIDTH: f64 = 760.0;
const PANEL: f64 = 190.0;
const TOP: f64 = 48.0;
const SIDES: f64 = 32.0;
const COLOUR: &str = "#0072b2";

/// The three that are measured.
fn panels(report: &Report) -> [(&'static str, &[Bar], &Summary); 3] {
    let bars = &report.histograms;
    [
        ("time to first token", &bars.first_token, &report.first_token),
        ("time per token", &bars.each_token, &report.each_token),
        ("time to the answer's end", &bars.answer, &report.answer),
    ]
}

/// For people at a terminal.
pub(super) fn lines(report: &Report) -> String {
    let mut text = String::new();
    for (name, bars, _) in panels(report) {
        let most = bars.iter().map(|bar| bar.count).max().unwrap_or(0);
        if most == 0 {
            continue;
        }
        let _ = writeln!(text, "\n{name}");
        for bar in bars {
            let eighths = (bar.count * 8 * BAR_CELLS as u64).div_ceil(most) as usize;
            let mut drawn = EIGHTHS[7].to_string().repeat(eighths / 8);
            drawn.extend(EIGHTHS[..eighths % 8].last());
            let _ = writeln!(text, "{:>9}  {drawn} {}", microseconds(bar.to_us), bar.count);
        }
    }
    text
}

/// As a picture.
pub(super) fn svg(report: &Report) -> String {
    let height = TOP + 3.0 * PANEL;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    label(&mut svg, [SIDES, 28.0], "start", "#000", &title(report));
    for (at, (name, bars, summary)) in panels(report).into_iter().enumerate() {
        panel(&mut svg, TOP + PANEL * at as f64, name, bars, summary);
    }
    svg.push_str("</svg>\n");
    svg
}

/// As a page with the picture and the figures.
pub(super) fn html(report: &Report, figures: &str) -> String {
    let escaped = figures.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{0}</title>\n\
         <body style=\"font-family: sans-serif; max-width: 60em; margin: 2em auto\">\n<h1>{0}</h1>\n<pre>{escaped}</pre>\n{1}</body>\n</html>\n",
        title(report).replace('&', "&amp;").replace('<', "&lt;"),
        svg(report)
    )
}

fn title(report: &Report) -> String {
    format!("{}: {:.1} answers/s, {:.1} tokens/s", report.model, report.answers_per_s, report.tokens_per_s)
}

fn panel(svg: &mut String, top: f64, name: &str, bars: &[Bar], summary: &Summary) {
    label(svg, [SIDES, top + 16.0], "start", "#000", name);
    let (Some(first), Some(last)) = (bars.first(), bars.last()) else { return };
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(1).max(1) as f64;
    // Durations over a decade or more are told apart on a logarithmic axis only.
    let log = |us: u64| (us.max(1) as f64).ln();
    let (low, high) = (log(first.from_us), log(last.to_us).max(log(first.from_us) + 0.01));
    let x = |at: f64| SIDES + (WIDTH - 2.0 * SIDES) * ((at - low) / (high - low)).clamp(0.0, 1.0);
    let (bottom, room) = (top + PANEL - 36.0, PANEL - 66.0);
    for bar in bars.iter().filter(|bar| bar.count > 0) {
        let (left, right, tall) = (x(log(bar.from_us)), x(log(bar.to_us)), room * bar.count as f64 / most);
        let (width, y) = ((right - left - 1.0).max(1.0), bottom - tall);
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\" fill=\"{COLOUR}\"><title>{} to {}: \
             {}</title></rect>",
            microseconds(bar.from_us),
            microseconds(bar.to_us),
            bar.count
        );
    }
    let _ = writeln!(svg, "<path d=\"M{SIDES} {bottom:.1}H{:.1}\" stroke=\"#444\"/>", WIDTH - SIDES);
    label(svg, [SIDES, bottom + 16.0], "start", "#444", &microseconds(first.from_us));
    label(svg, [WIDTH - SIDES, bottom + 16.0], "end", "#444", &microseconds(last.to_us));
    for (name, us) in [("p50", summary.p50_us), ("p99", summary.p99_us)] {
        let at = x(us.max(1.0).ln());
        let _ = writeln!(svg, "<path d=\"M{at:.1} {:.1}V{bottom:.1}\" stroke=\"#d55e00\" stroke-dasharray=\"3 3\"/>", top + 26.0);
        label(svg, [at, top + 22.0], "middle", "#d55e00", &format!("{name} {}", microseconds(us as u64)));
    }
}
