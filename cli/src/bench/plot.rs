//! A small picture: tokens a second over the batch sizes, a line for each run and a dashed one for its limit.

use std::fmt::Write as _;

use crate::bench::engine::{Measured, Run};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
/// Left, right, top, bottom of the plot within the picture.
const MARGINS: [f64; 4] = [72.0, 150.0, 48.0, 56.0];
/// Told apart by most colour-blind people (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// The picture as SVG.
pub(crate) fn draw(measured: &Measured) -> String {
    let rows = || measured.runs.iter().flat_map(|run| &run.report.decode);
    let batches = || rows().map(|row| f64::from(row.batch));
    let most_batch = batches().fold(1.0, f64::max);
    let most = rows().map(|row| row.tokens_per_s).fold(1.0, f64::max);
    let scale = Scale { batches: most_batch.log2().max(1.0), tokens_per_s: nice(most * 1.05) };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let model = measured.runs.first().map_or("", |run| run.report.model.as_str());
    label(&mut svg, [MARGINS[0], 24.0], "start", "#000", &format!("{model} on {}", measured.machine.processor));
    grid(&mut svg, &scale, &mut batches());
    for (run, colour) in measured.runs.iter().zip(COLOURS.iter().cycle()) {
        line(&mut svg, &scale, run, colour);
    }
    legend(&mut svg, &measured.runs);
    svg.push_str("</svg>\n");
    svg
}

struct Scale {
    /// Powers of two to the right end.
    batches: f64,
    /// At the top.
    tokens_per_s: f64,
}

impl Scale {
    fn x(&self, batch: f64) -> f64 {
        MARGINS[0] + (WIDTH - MARGINS[0] - MARGINS[1]) * batch.log2() / self.batches
    }

    fn y(&self, tokens_per_s: f64) -> f64 {
        let bottom = HEIGHT - MARGINS[3];
        bottom - (bottom - MARGINS[2]) * tokens_per_s / self.tokens_per_s
    }
}

fn grid(svg: &mut String, scale: &Scale, batches: &mut dyn Iterator<Item = f64>) {
    let (left, right) = (MARGINS[0], WIDTH - MARGINS[1]);
    for step in 0..=4 {
        let value = scale.tokens_per_s * f64::from(step) / 4.0;
        let y = scale.y(value);
        let _ = writeln!(svg, "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\"/>");
        label(svg, [left - 8.0, y + 4.0], "end", "#444", &format!("{value:.0}"));
    }
    let mut batches: Vec<f64> = batches.collect();
    batches.sort_by(f64::total_cmp);
    batches.dedup();
    let bottom = HEIGHT - MARGINS[3];
    for batch in batches {
        label(svg, [scale.x(batch), bottom + 20.0], "middle", "#444", &format!("{batch}"));
    }
    label(svg, [(left + right) / 2.0, bottom + 42.0], "middle", "#000", "sequences at once");
    label(svg, [left, MARGINS[2] - 8.0], "end", "#000", "tokens/s");
}

fn line(svg: &mut String, scale: &Scale, run: &Run, colour: &str) {
    let points = |values: &mut dyn Iterator<Item = (u32, f64)>| {
        values.map(|(batch, value)| format!("{:.1},{:.1} ", scale.x(f64::from(batch)), scale.y(value))).collect::<String>()
    };
    let rows = &run.report.decode;
    let measured = points(&mut rows.iter().map(|row| (row.batch, row.tokens_per_s)));
    // A limit far above the figures would press them flat: it is drawn as far as the picture goes.
    let limit = points(
        &mut rows.iter().filter_map(|row| Some((row.batch, row.limit_tokens_per_s?))).filter(|row| row.1 <= scale.tokens_per_s),
    );
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", measured.trim_end());
    if !limit.is_empty() {
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-dasharray=\"4 4\"/>",
            limit.trim_end()
        );
    }
    for row in rows {
        let (x, y) = (scale.x(f64::from(row.batch)), scale.y(row.tokens_per_s));
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
    }
}

fn legend(svg: &mut String, runs: &[Run]) {
    let x = WIDTH - MARGINS[1] + 16.0;
    for (at, (run, colour)) in runs.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = MARGINS[2] + 20.0 * at as f64;
        let _ = writeln!(svg, "<path d=\"M{x:.1} {:.1}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>", y - 4.0);
        let threads = crate::output::count(run.report.threads, "thread");
        label(svg, [x + 24.0, y], "start", "#000", &format!("{}, {threads}", run.report.dtype));
    }
    let y = MARGINS[2] + 20.0 * runs.len() as f64;
    label(svg, [x, y], "start", "#444", "dashed: the limit");
}

pub(crate) fn label(svg: &mut String, [x, y]: [f64; 2], anchor: &str, colour: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>");
}

/// The next number that divides well into four.
fn nice(most: f64) -> f64 {
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= most).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tables;

    #[test]
    fn a_run_is_a_line_with_its_points_and_its_limit() {
        let svg = draw(&tables::tests::measured());
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (1, 2));
        assert!(svg.contains(">f32, 2 threads</text>") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn the_top_is_a_number_that_people_read() {
        assert_eq!([3.0, 130.0, 571.0, 4100.0].map(nice), [4.0, 200.0, 600.0, 6000.0]);
    }
}
