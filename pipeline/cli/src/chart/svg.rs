//! The chart as a picture.

use std::fmt::Write as _;

use fcpipe_engine::Outcome;

use super::{Comparison, escape, time, word};

const NAMES: f64 = 190.0;
const CHART: f64 = 620.0;
const TIMES: f64 = 90.0;
const ROW: f64 = 22.0;
const TOP: f64 = 34.0;

/// The chart as SVG that needs nothing else.
pub(crate) fn svg(launch: &Comparison<'_>) -> String {
    let rows = launch.rows();
    let width = NAMES + CHART + TIMES;
    let height = TOP + ROW * rows.len() as f64 + 8.0;
    let scale = CHART / launch.total() as f64;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        escape(&launch.title())
    );
    for tick in ticks(launch.total()) {
        let x = NAMES + tick as f64 * scale;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#e2e5ea\"/>\
             <text x=\"{x:.1}\" y=\"16\" text-anchor=\"middle\" fill=\"#5b6472\">{}</text>",
            TOP - 10.0,
            height - 6.0,
            time(tick)
        );
    }
    for (n, row) in rows.iter().enumerate() {
        let y = TOP + ROW * n as f64;
        let x = NAMES + row.start_us as f64 * scale;
        let bar = (row.wall_us as f64 * scale).max(1.5);
        let critical = launch.critical(row);
        let weight = if critical { " font-weight=\"600\"" } else { "" };
        let edge = if critical { " stroke=\"#1f2733\"" } else { "" };
        let why = launch
            .why(row)
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "<g><title>{}: {} in {}{}</title>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1f2733\"{weight}>{}</text>\
             <rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{bar:.1}\" height=\"14\" rx=\"2\" fill=\"{}\"{edge}/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#5b6472\">{}</text></g>",
            escape(&row.id),
            word(row.outcome),
            time(row.wall_us),
            escape(&why),
            NAMES - 8.0,
            y + 11.0,
            escape(&shorten(&row.id)),
            y,
            colour(row.outcome),
            (x + bar + 5.0).min(NAMES + CHART + 5.0),
            y + 11.0,
            time(row.wall_us),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn colour(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ran => "#3b76d6",
        Outcome::Hit => "#3aa76d",
        Outcome::Skipped => "#b9bfc9",
        Outcome::Failed => "#d64545",
    }
}

/// The end of a name tells more than its beginning.
fn shorten(name: &str) -> String {
    let length = name.chars().count();
    if length <= 28 {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - 27).collect();
    format!("…{end}")
}

/// Round times, four to ten of them.
fn ticks(total: u64) -> Vec<u64> {
    let mut step = 1u64;
    let mut factors = [2, 5, 10].iter().cycle();
    let mut base = 1u64;
    while total / step > 8 {
        let factor = *factors.next().unwrap_or(&10);
        step = base * factor;
        if factor == 10 {
            base = step;
        }
    }
    (0..=total / step).map(|n| n * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            ticks(1_400_000),
            [
                0, 200_000, 400_000, 600_000, 800_000, 1_000_000, 1_200_000, 1_400_000
            ]
        );
        for total in [1, 7, 99, 12_345, 9_999_999] {
            assert!((1..=9).contains(&ticks(total).len()), "{total}");
        }
    }
}
