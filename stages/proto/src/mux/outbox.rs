//! What waits to be written to the connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::lock;
use crate::frame::{Frame, StreamId};

/// The most control frames that may wait. A peer that reads lets them pass at once.
const MOST_URGENT: usize = 4096;

/// Two queues: control frames go first. Data is bounded by the credit of the streams.
pub(super) struct Outbox {
    /// The largest control message that the peer takes.
    limit: usize,
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Frame>,
    data: VecDeque<Frame>,
    /// Bytes of each stream in `data`.
    unsent: BTreeMap<StreamId, u32>,
    /// The writer has taken a frame and not come back.
    writing: bool,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Outbox {
            limit,
            queues: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// `false` when the connection has ended, or too much waits.
    pub(super) fn urgent(&self, frame: Frame) -> bool {
        let mut queues = lock(&self.queues);
        if queues.closed || queues.urgent.len() >= MOST_URGENT {
            return false;
        }
        queues.urgent.push_back(frame);
        self.changed.notify_all();
        true
    }

    pub(super) fn data(&self, frame: Frame) {
        let mut queues = lock(&self.queues);
        if queues.closed {
            return;
        }
        if let Frame::Data(id, bytes) = &frame {
            // A window at most, as there is credit for it.
            *queues.unsent.entry(*id).or_default() += bytes.len() as u32;
        }
        queues.data.push_back(frame);
        self.changed.notify_all();
    }

    /// Bytes of a stream that the peer cannot have.
    pub(super) fn unsent(&self, id: StreamId) -> u32 {
        let queues = lock(&self.queues);
        queues.unsent.get(&id).copied().unwrap_or_default()
    }

    /// The next frame to write, when there is one; `None` once closed.
    pub(super) fn next(&self) -> Option<Frame> {
        let mut queues = lock(&self.queues);
        queues.writing = false;
        self.changed.notify_all();
        loop {
            if queues.closed {
                return None;
            }
            let frame = queues.urgent.pop_front();
            if let Some(frame) = frame.or_else(|| queues.next_data()) {
                queues.writing = true;
                return Some(frame);
            }
            queues = self
                .changed
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let mut queues = lock(&self.queues);
        loop {
            if queues.urgent.is_empty() && queues.data.is_empty() && !queues.writing {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if queues.closed || left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(queues, left);
            queues = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn close(&self) {
        let mut queues = lock(&self.queues);
        queues.closed = true;
        queues.urgent.clear();
        queues.data.clear();
        queues.unsent.clear();
        self.changed.notify_all();
    }
}

impl Queues {
    fn next_data(&mut self) -> Option<Frame> {
        let frame = self.data.pop_front()?;
        if let Frame::Data(id, bytes) = &frame
            && let Some(unsent) = self.unsent.get_mut(id)
        {
            *unsent -= bytes.len() as u32;
            if *unsent == 0 {
                self.unsent.remove(id);
            }
        }
        Some(frame)
    }
}
