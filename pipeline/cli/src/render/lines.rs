//! Progress as lines: for logs, for programs, and for those who want none.

use std::io::Write as _;

use fcpipe_engine::{Amount, Event, Outcome};
use serde_json::json;

use super::{Renderer, harmless};

/// A line for each step that took work, and for each warning.
pub(super) struct Plain;

/// A JSON object a line for every event.
pub(super) struct Json;

/// Warnings alone.
pub(super) struct Quiet;

impl Renderer for Plain {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Finished {
                node,
                outcome: outcome @ (Outcome::Ran | Outcome::Hit),
                wall,
                ..
            } => {
                let word = if *outcome == Outcome::Hit {
                    "hit"
                } else {
                    "ran"
                };
                say(&format!(
                    "{word}  {:9.1} ms  {}",
                    wall.as_secs_f64() * 1e3,
                    harmless(node)
                ));
            }
            Event::Warning { message, .. } => warn(message),
            _ => {}
        }
    }
}

impl Renderer for Quiet {
    fn event(&mut self, event: &Event) {
        if let Event::Warning { message, .. } = event {
            warn(message);
        }
    }
}

impl Renderer for Json {
    fn event(&mut self, event: &Event) {
        let amount = |amount: &Amount| {
            json!({
                "files": amount.files,
                "bytes_read": amount.bytes_read,
                "bytes_written": amount.bytes_written,
            })
        };
        let line = match event {
            Event::Started { node } => json!({"event": "started", "stage": **node}),
            Event::Progress { node, done, total } => json!({
                "event": "progress",
                "stage": **node,
                "done": amount(done),
                "total": total.as_ref().map(amount),
            }),
            Event::Finished {
                node,
                outcome,
                wall,
                ..
            } => json!({
                "event": "finished",
                "stage": **node,
                "outcome": outcome,
                "wall_us": wall.as_micros() as u64,
            }),
            Event::MadeAgain { node, wall } => json!({
                "event": "made_again",
                "stage": **node,
                "wall_us": wall.as_micros() as u64,
            }),
            Event::Warning { node, message } => json!({
                "event": "warning",
                "stage": **node,
                "message": message,
            }),
            _ => return,
        };
        say(&line.to_string());
    }
}

pub(super) fn warn(message: &str) {
    say(&format!("warning: {}", harmless(message)));
}

/// A line on stderr. Nobody is left to tell when stderr is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
