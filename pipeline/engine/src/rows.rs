//! What one node will say of itself in the receipt, counted while it runs. Updated from any number of threads.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::Key;
use crate::event::{Amount, Event, EventSender, Outcome};
use crate::key::Change;
use crate::receipt::Row;
use crate::run::lock;

/// A time that has not come.
const UNSET: u64 = u64::MAX;
/// Progress events of one node are at least this far apart.
const TICK_US: u64 = 100_000;

/// A node's rows: one, or one for each of its phases.
#[derive(Debug)]
pub(crate) struct Rows {
    epoch: Instant,
    phases: &'static [&'static str],
    cells: Vec<Cell>,
    current: AtomicUsize,
    last_event_us: AtomicU64,
    again_us: AtomicU64,
    total: Mutex<Option<Amount>>,
    noticed: Mutex<Vec<Change>>,
}

#[derive(Debug)]
struct Cell {
    id: Arc<str>,
    start_us: AtomicU64,
    end_us: AtomicU64,
    files: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl Rows {
    /// Rows with these ids: as many as there are phases, or one.
    pub(crate) fn new(epoch: Instant, phases: &'static [&'static str], ids: Vec<Arc<str>>) -> Self {
        let cell = |id| Cell {
            id,
            start_us: AtomicU64::new(UNSET),
            end_us: AtomicU64::new(UNSET),
            files: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        };
        Self {
            epoch,
            phases,
            cells: ids.into_iter().map(cell).collect(),
            current: AtomicUsize::new(0),
            last_event_us: AtomicU64::new(0),
            again_us: AtomicU64::new(0),
            total: Mutex::new(None),
            noticed: Mutex::default(),
        }
    }

    /// Something that the node saw is not as it was.
    pub(crate) fn notice(&self, change: Change) {
        lock(&self.noticed).push(change);
    }

    pub(crate) fn noticed(&self) -> Vec<Change> {
        lock(&self.noticed).clone()
    }

    /// The row that others wait for.
    pub(crate) fn last_id(&self) -> &str {
        self.cells.last().map_or("", |cell| &*cell.id)
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.cells.iter().map(|cell| cell.id.to_string()).collect()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(UNSET)
    }

    /// The node starts. Time before its first phase counts as that phase's.
    pub(crate) fn start(&self, events: &EventSender) {
        let now = self.now_us();
        if let Some(cell) = self.cells.first() {
            cell.start_us.store(now, Relaxed);
            events.send(Event::Started {
                node: cell.id.clone(),
            });
        }
    }

    /// A phase starts: the one before has ended. `None` if the stage did not declare it, or it is already past.
    pub(crate) fn enter(
        &self,
        phase: &str,
        key: Option<Key>,
        events: &EventSender,
    ) -> Option<usize> {
        let index = self.phases.iter().position(|p| *p == phase)?;
        let current = self.current.load(Relaxed);
        if index < current {
            return None;
        }
        let now = self.now_us();
        for (i, cell) in self.cells.iter().enumerate().take(index + 1).skip(current) {
            // A phase that is entered again goes on; time between two phases is the later one's.
            let _ = cell.start_us.compare_exchange(UNSET, now, Relaxed, Relaxed);
            if i < index {
                cell.end_us.store(now, Relaxed);
                self.tell_finished(cell, Outcome::Ran, key, events);
            }
        }
        if index > current {
            self.current.store(index, Relaxed);
            events.send(Event::Started {
                node: self.cells[index].id.clone(),
            });
        }
        Some(index)
    }

    /// The node ends.
    pub(crate) fn end(&self, outcome: Outcome, key: Option<Key>, events: &EventSender) {
        let now = self.now_us();
        let current = if outcome == Outcome::Hit {
            0
        } else {
            self.current.load(Relaxed)
        };
        for (i, cell) in self.cells.iter().enumerate().skip(current) {
            let _ = cell.start_us.compare_exchange(UNSET, now, Relaxed, Relaxed);
            cell.end_us.store(now, Relaxed);
            self.tell_finished(cell, self.outcome_of(i, outcome), key, events);
        }
    }

    /// How a row ended when its node ended so: the phase that was under way failed, later ones did not start.
    fn outcome_of(&self, index: usize, outcome: Outcome) -> Outcome {
        let current = self.current.load(Relaxed);
        match outcome {
            Outcome::Failed if index < current => Outcome::Ran,
            Outcome::Failed if index > current => Outcome::Skipped,
            Outcome::Skipped if index < current => Outcome::Ran,
            other => other,
        }
    }

    fn tell_finished(&self, cell: &Cell, outcome: Outcome, key: Option<Key>, events: &EventSender) {
        let wall = cell
            .end_us
            .load(Relaxed)
            .saturating_sub(cell.start_us.load(Relaxed));
        events.send(Event::Finished {
            node: cell.id.clone(),
            outcome,
            key,
            wall: Duration::from_micros(wall),
        });
    }

    /// Counts work, and now and then tells of it.
    pub(crate) fn add(&self, amount: Amount, events: &EventSender) {
        let Some(cell) = self.cells.get(self.current.load(Relaxed)) else {
            return;
        };
        cell.files.fetch_add(amount.files, Relaxed);
        cell.read.fetch_add(amount.bytes_read, Relaxed);
        cell.written.fetch_add(amount.bytes_written, Relaxed);
        let now = self.now_us();
        let last = self.last_event_us.load(Relaxed);
        if now.saturating_sub(last) >= TICK_US
            && self
                .last_event_us
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_ok()
        {
            let total = *self.total.lock().unwrap_or_else(PoisonError::into_inner);
            events.send(Event::Progress {
                node: cell.id.clone(),
                done: cell.done(),
                total,
            });
        }
    }

    /// Says how much there is to do in the phase under way.
    pub(crate) fn set_total(&self, total: Amount) {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner) = Some(total);
    }

    /// The node's value was made again.
    pub(crate) fn made_again(&self, wall: Duration, events: &EventSender) {
        let us = u64::try_from(wall.as_micros()).unwrap_or(UNSET);
        self.again_us.fetch_add(us, Relaxed);
        if let Some(cell) = self.cells.first() {
            events.send(Event::MadeAgain {
                node: cell.id.clone(),
                wall,
            });
        }
    }

    /// The rows of the receipt. `deps` are the rows that the first one had to wait for.
    pub(crate) fn rows(&self, outcome: Outcome, key: Option<Key>, deps: Vec<String>) -> Vec<Row> {
        let mut deps = deps;
        let mut rows = Vec::with_capacity(self.cells.len());
        for (i, cell) in self.cells.iter().enumerate() {
            let done = cell.done();
            let start_us = cell.start_us.load(Relaxed);
            rows.push(Row {
                id: cell.id.to_string(),
                outcome: self.outcome_of(i, outcome),
                key: key.map(|key| key.to_string()).unwrap_or_default(),
                start_us,
                wall_us: cell.end_us.load(Relaxed).saturating_sub(start_us),
                files: done.files,
                bytes_read: done.bytes_read,
                bytes_written: done.bytes_written,
                deps: std::mem::replace(&mut deps, vec![cell.id.to_string()]),
                again_us: if i == 0 {
                    self.again_us.load(Relaxed)
                } else {
                    0
                },
            });
        }
        rows
    }
}

impl Cell {
    fn done(&self) -> Amount {
        Amount {
            files: self.files.load(Relaxed),
            bytes_read: self.read.load(Relaxed),
            bytes_written: self.written.load(Relaxed),
        }
    }
}
