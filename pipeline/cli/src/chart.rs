//! A launch's stages as bars over time: in the terminal, as SVG, as a page, and for trace viewers.

mod html;
mod svg;
mod terminal;
mod trace;

pub(crate) use html::html;
pub(crate) use svg::svg;
pub(crate) use terminal::terminal;
pub(crate) use trace::trace;

use fcpipe_engine::{Outcome, Row};

use crate::history::Past;

/// A launch and the one of the same spec before it.
pub(crate) struct Comparison<'a> {
    pub(crate) past: &'a Past,
    pub(crate) before: Option<&'a Past>,
}

impl Comparison<'_> {
    fn rows(&self) -> &[Row] {
        &self.past.receipt.stages
    }

    /// The whole launch's time, µs; never 0, as it is what bars are measured by.
    fn total(&self) -> u64 {
        self.past.receipt.total_us.max(1)
    }

    fn critical(&self, row: &Row) -> bool {
        self.past.receipt.critical_path.contains(&row.id)
    }

    /// The change of a row's time against the launch before, µs.
    fn change(&self, row: &Row) -> Option<i64> {
        let before = self
            .before?
            .receipt
            .stages
            .iter()
            .find(|b| b.id == row.id)?;
        Some(row.wall_us as i64 - before.wall_us as i64)
    }

    fn why(&self, row: &Row) -> Option<&str> {
        self.past.why.get(&row.id).map(String::as_str)
    }

    /// What the chart is of, in a line.
    fn title(&self) -> String {
        format!(
            "{} {} of {}: {} in {}",
            self.past.command,
            self.past.receipt.id,
            self.past.spec.display(),
            self.past.result,
            time(self.past.receipt.total_us),
        )
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ran => "ran",
        Outcome::Hit => "hit",
        Outcome::Skipped => "skipped",
        Outcome::Failed => "failed",
    }
}

/// A time as people read it.
fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A difference of times, with its sign.
fn difference(us: i64) -> String {
    let sign = if us < 0 { '-' } else { '+' };
    format!("{sign}{}", time(us.unsigned_abs()))
}

/// Text for HTML and SVG.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use fcpipe_engine::Receipt;

    fn row(id: &str, outcome: Outcome, start_us: u64, wall_us: u64, deps: &[&str]) -> Row {
        Row {
            id: id.to_owned(),
            outcome,
            key: String::new(),
            start_us,
            wall_us,
            files: 3,
            bytes_read: 0,
            bytes_written: 4096,
            deps: deps.iter().map(|d| (*d).to_owned()).collect(),
            again_us: 0,
        }
    }

    fn past(boot_us: u64) -> Past {
        Past {
            spec: "/a <b>.json".into(),
            command: "run".to_owned(),
            ended_ms: 0,
            result: "exit 0".to_owned(),
            why: BTreeMap::from([("scan:/<x>".to_owned(), "size 1 → 2".to_owned())]),
            receipt: Receipt {
                schema: fcpipe_engine::RECEIPT_SCHEMA.to_owned(),
                id: "l1".to_owned(),
                total_us: 1000 + boot_us,
                critical_path: vec!["scan:/<x>".to_owned(), "boot".to_owned()],
                stages: vec![
                    row("scan:/<x>", Outcome::Ran, 0, 1000, &[]),
                    row("initrd", Outcome::Hit, 0, 500, &[]),
                    row("boot", Outcome::Ran, 1000, boot_us, &["scan:/<x>"]),
                ],
                outputs: BTreeMap::new(),
            },
        }
    }

    #[test]
    fn bars_are_as_long_as_their_time_and_compared_with_the_launch_before() {
        let (now, before) = (past(9000), past(4000));
        let comparison = Comparison {
            past: &now,
            before: Some(&before),
        };
        let text = terminal(&comparison, 100);
        let boot = text.lines().find(|line| line.contains("boot")).unwrap();
        assert!(boot.contains("+5.00 ms"), "{text}");
        let bar = |id: &str| {
            let line = text.lines().find(|line| line.contains(id)).unwrap();
            line.matches('█').count()
        };
        assert!(bar("boot") > 8 * bar("scan"), "{text}");
        assert!(text.contains("size 1 → 2"), "{text}");
    }

    #[test]
    fn svg_and_html_are_well_formed_whatever_the_names() {
        let now = past(9000);
        let comparison = Comparison {
            past: &now,
            before: None,
        };
        for text in [svg(&comparison), html(&comparison)] {
            assert!(text.contains("scan:/&lt;x&gt;"), "{text}");
            assert!(!text.contains("<x>") && !text.contains("<b>."), "{text}");
            for other in ["http://", "https://", "<script", "src="] {
                let own = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!own.contains(other), "not self-contained: {other}");
            }
        }
    }

    #[test]
    fn a_trace_has_no_two_rows_at_once_in_one_lane() {
        let now = past(9000);
        let comparison = Comparison {
            past: &now,
            before: None,
        };
        let trace: serde_json::Value = serde_json::from_str(&trace(&comparison)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let lane = |name: &str| {
            let event = events.iter().find(|e| e["name"] == name).unwrap();
            event["tid"].as_u64().unwrap()
        };
        assert_ne!(lane("scan:/<x>"), lane("initrd"));
        assert_eq!(lane("scan:/<x>"), lane("boot"));
    }
}
