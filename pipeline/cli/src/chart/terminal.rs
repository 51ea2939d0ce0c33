//! The chart as text.

use std::fmt::Write as _;

use fcpipe_engine::Row;

use super::{Comparison, difference, time, word};
use crate::render::harmless;

/// Eighths of a block, so that a short bar is still seen.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// The chart in lines of at most `width` columns, but for long names and reasons.
pub(crate) fn terminal(launch: &Comparison<'_>, width: usize) -> String {
    let names = launch.rows().iter().map(|row| row.id.chars().count());
    let name = names.max().unwrap_or(0).clamp(8, 32);
    // Outcome, star, time, change and the spaces between them.
    let bar = width.saturating_sub(name + 34).clamp(10, 80);
    let mut text = String::new();
    let _ = writeln!(text, "{}", harmless(&launch.title()));
    if let Some(before) = launch.before {
        let change = launch.past.receipt.total_us as i64 - before.receipt.total_us as i64;
        let _ = writeln!(
            text,
            "the launch before, {}: {} in {} ({})",
            harmless(&before.receipt.id),
            harmless(&before.result),
            time(before.receipt.total_us),
            difference(change)
        );
    }
    for row in launch.rows() {
        let star = if launch.critical(row) { '*' } else { ' ' };
        let change = launch.change(row).map(difference).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:name$} {:7} {star} {:bar$} {:>9} {change:>10}",
            harmless(&row.id),
            word(row.outcome),
            drawn(launch, row, bar),
            time(row.wall_us),
        );
        if let Some(why) = launch.why(row) {
            let _ = writeln!(text, "  {}", harmless(why));
        }
    }
    text.push_str("* what the end had to wait for\n");
    text
}

fn drawn(launch: &Comparison<'_>, row: &Row, width: usize) -> String {
    let total = launch.total() as f64;
    let columns = |us: u64| us as f64 / total * width as f64;
    let start = (columns(row.start_us) as usize).min(width - 1);
    let eighths = (columns(row.wall_us) * 8.0).round().max(1.0) as usize;
    let (full, part) = (eighths / 8, eighths % 8);
    let mut bar = " ".repeat(start);
    bar.extend(std::iter::repeat_n('█', full.min(width - start)));
    if part > 0 && start + full < width {
        bar.push(EIGHTHS[part]);
    }
    bar
}
