//! Progress on a terminal: a line a working step, drawn over, with bytes, files and rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fcpipe_engine::{Event, Outcome};
use fcpipe_launch::PROCESS;
use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::{Renderer, harmless};

pub(super) struct Bars {
    all: MultiProgress,
    working: HashMap<Arc<str>, ProgressBar>,
    /// How many steps were found done.
    hits: u32,
    /// When the first step began.
    begun: Option<Instant>,
    /// The terminal belongs to the guest's process now.
    silent: bool,
}

/// A step that has not taken this long is not worth a line while it works.
const PATIENCE: Duration = Duration::from_millis(120);

impl Bars {
    pub(super) fn new() -> Self {
        Bars {
            all: MultiProgress::new(),
            working: HashMap::new(),
            hits: 0,
            begun: None,
            silent: false,
        }
    }

    fn bar(&self, node: &str) -> ProgressBar {
        let bar = self.all.add(ProgressBar::no_length());
        bar.set_style(style("{spinner} {prefix:<18} {msg}"));
        bar.set_prefix(harmless(node));
        bar.enable_steady_tick(PATIENCE);
        bar
    }
}

impl Renderer for Bars {
    fn event(&mut self, event: &Event) {
        match event {
            // What the process writes is all that the terminal shows from here on.
            Event::Started { node } if **node == *PROCESS => {
                self.summary();
                self.silent = true;
            }
            Event::Started { node } => {
                self.begun.get_or_insert_with(Instant::now);
                let bar = self.bar(node);
                self.working.insert(Arc::clone(node), bar);
            }
            Event::Progress { node, done, total } => {
                let Some(bar) = self.working.get(node) else {
                    return;
                };
                let moved = done.bytes_written.max(done.bytes_read);
                match total.map(|total| total.bytes_written.max(total.bytes_read)) {
                    Some(length) if length > 0 => {
                        bar.set_length(length);
                        bar.set_position(moved);
                        bar.set_style(style(
                            "{spinner} {prefix:<18} {bar:24} {bytes}/{total_bytes} {msg} {binary_bytes_per_sec}",
                        ));
                        bar.set_message(format!("{} files", HumanCount(done.files)));
                    }
                    _ if moved > 0 => bar.set_message(format!(
                        "{} files, {}",
                        HumanCount(done.files),
                        HumanBytes(moved)
                    )),
                    _ => bar.set_message(format!("{} entries", HumanCount(done.files))),
                }
            }
            Event::Finished {
                node,
                outcome,
                wall,
                ..
            } => {
                if let Some(bar) = self.working.remove(node) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
                match outcome {
                    Outcome::Hit => self.hits += 1,
                    Outcome::Ran if *wall >= PATIENCE && !self.silent => {
                        self.line(&format!(
                            "✓ {:<18} {:.2} s",
                            harmless(node),
                            wall.as_secs_f64()
                        ));
                    }
                    _ => {}
                }
            }
            Event::Warning { message, .. } => self.line(&format!("warning: {}", harmless(message))),
            _ => {}
        }
    }

    fn end(&mut self) {
        if !self.silent {
            self.summary();
        }
    }
}

impl Bars {
    /// What was reused and what all of it took, in the place of the bars.
    fn summary(&mut self) {
        let took = self
            .begun
            .map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        self.line(&match self.hits {
            0 => format!("✓ ready in {took:.2} s"),
            hits => format!("✓ ready in {took:.2} s, {hits} steps unchanged"),
        });
        // A terminal that is gone needs no clearing.
        let _ = self.all.clear();
    }

    /// A line that stays, above what is being drawn.
    fn line(&self, text: &str) {
        let _ = self.all.println(text);
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; one that did not parse would show as indicatif's default.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
