//! What happens while a run goes on, for whoever shows it. The work never waits for the reader.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde::{Deserialize, Serialize};

use crate::digest::Key;

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It did its work. A probe: and saw something else than last time.
    Ran,
    /// A record answered. A probe: it saw what it had seen last time.
    Hit,
    /// It did not start, or gave up, because something else failed or somebody asked for an end.
    Skipped,
    /// It failed.
    Failed,
}

/// Work done, or to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Files, directories and other entries.
    pub files: u64,
    /// Bytes read from sources.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

/// One thing that happened. A stage with phases reports each phase as a node of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A node started.
    Started {
        /// Its id.
        node: Arc<str>,
    },
    /// A node got on. Several a second at most, and left out when the reader is slow.
    Progress {
        /// Its id.
        node: Arc<str>,
        /// What it did so far.
        done: Amount,
        /// What there is to do, if it is known.
        total: Option<Amount>,
    },
    /// A node ended.
    Finished {
        /// Its id.
        node: Arc<str>,
        /// How.
        outcome: Outcome,
        /// Its key, if it came so far.
        key: Option<Key>,
        /// From its start to its end.
        wall: Duration,
    },
    /// A node that was a hit had its value made again, because somebody needed the value itself.
    MadeAgain {
        /// Its id.
        node: Arc<str>,
        /// How long it took.
        wall: Duration,
    },
    /// Something that the user should know and that stops nothing.
    Warning {
        /// The node that says so.
        node: Arc<str>,
        /// One sentence.
        message: String,
    },
}

/// Events that a slow reader may lag behind before progress is left out.
const BACKLOG: usize = 256;

/// The end of the event channel that the engine writes to.
#[derive(Debug, Clone)]
pub struct EventSender(Option<Sender<Event>>);

/// A channel for events. Its length is bounded in effect: progress is left out when 256 events wait, and of the other
/// events there are a few per node.
pub fn event_channel() -> (EventSender, Receiver<Event>) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    (EventSender(Some(sender)), receiver)
}

impl EventSender {
    /// A sender to nobody.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Sends an event, or passes on that of a run in another process.
    pub fn send(&self, event: Event) {
        if let Some(sender) = &self.0
            && !(matches!(event, Event::Progress { .. }) && sender.len() >= BACKLOG)
        {
            // A reader that is gone is no reason to stop.
            let _ = sender.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_loses_progress_and_nothing_else() {
        let (sender, receiver) = event_channel();
        let node: Arc<str> = "n".into();
        for _ in 0..BACKLOG * 2 {
            sender.send(Event::Progress {
                node: node.clone(),
                done: Amount::default(),
                total: None,
            });
        }
        for _ in 0..BACKLOG {
            sender.send(Event::Warning {
                node: node.clone(),
                message: String::new(),
            });
        }
        let (progress, others): (Vec<_>, Vec<_>) = receiver
            .try_iter()
            .partition(|event| matches!(event, Event::Progress { .. }));
        assert_eq!((progress.len(), others.len()), (BACKLOG, BACKLOG));
    }

    #[test]
    fn a_reader_that_is_gone_stops_nothing() {
        let (sender, receiver) = event_channel();
        drop(receiver);
        sender.send(Event::Started { node: "n".into() });
    }
}
