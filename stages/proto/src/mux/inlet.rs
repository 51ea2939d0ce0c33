//! The receiving end of a stream.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::{Mux, lock};
use crate::error::ProtoError;
use crate::frame::{Frame, StreamId, WINDOW};

/// Credit goes back in pieces of at least this, so that small reads don't make many frames.
const CREDIT_PIECE: u32 = WINDOW / 4;

/// Where a stream's bytes wait for their reader: never more than [`WINDOW`].
pub struct Inlet {
    id: StreamId,
    mux: Weak<Mux>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: VecDeque<u8>,
    /// What the peer may still send.
    credit: u32,
    /// What was read and not given back as credit.
    read: u32,
    /// The peer sends no more.
    eof: bool,
    /// This end wants no more.
    closed: bool,
    lost: Option<ProtoError>,
    /// When the last bytes came or were taken.
    moved: Instant,
}

impl Inlet {
    pub(super) fn new(id: StreamId, mux: Weak<Mux>) -> Self {
        Inlet {
            id,
            mux,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                credit: WINDOW,
                read: 0,
                eof: false,
                closed: false,
                lost: None,
                moved: Instant::now(),
            }),
            changed: Condvar::new(),
        }
    }

    /// Takes bytes, waiting for some; `Ok(0)` at the stream's end, or once it is closed here.
    ///
    /// # Errors
    /// Why the connection ended, when it did before the stream and all its bytes were read.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, ProtoError> {
        let mut state = lock(&self.state);
        let taken = loop {
            if state.closed {
                return Ok(0);
            }
            if !state.waiting.is_empty() {
                break state.take(buffer);
            }
            if state.eof {
                return Ok(0);
            }
            if let Some(error) = &state.lost {
                return Err(error.clone());
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        };

        let give = state.read >= CREDIT_PIECE && !state.eof && state.lost.is_none();
        let credit = if give {
            std::mem::take(&mut state.read)
        } else {
            0
        };
        state.credit += credit;
        drop(state);
        if credit > 0
            && let Some(mux) = self.mux.upgrade()
        {
            mux.control(Frame::Credit(self.id, credit));
        }
        Ok(taken)
    }

    /// Wants no more: what waits and what comes is thrown away, and the sender is told.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        state.closed = true;
        state.waiting = VecDeque::new();
        let tell = !state.eof && state.lost.is_none();
        self.changed.notify_all();
        drop(state);
        if tell && let Some(mux) = self.mux.upgrade() {
            mux.control(Frame::Reset(self.id));
        }
    }

    /// Since when nothing has come or been taken: `None` while bytes wait here.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.waiting.is_empty().then_some(state.moved)
    }

    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), ProtoError> {
        let mut state = lock(&self.state);
        // A frame's data is at most 64 KiB.
        let len = bytes.len() as u32;
        if len > state.credit {
            return Err(ProtoError::broken(format!(
                "{len} bytes on stream {}, whose credit was {}",
                self.id.wire(),
                state.credit
            )));
        }
        state.credit -= len;
        state.moved = Instant::now();
        if !state.closed {
            state.waiting.extend(bytes);
            self.changed.notify_all();
        }
        Ok(())
    }

    pub(super) fn finish(&self) {
        lock(&self.state).eof = true;
        self.changed.notify_all();
    }

    pub(super) fn lose(&self, error: &ProtoError) {
        lock(&self.state).lost = Some(error.clone());
        self.changed.notify_all();
    }
}

impl State {
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let (front, _) = self.waiting.as_slices();
        let taken = front.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&front[..taken]);
        self.waiting.drain(..taken);
        self.read += taken as u32;
        self.moved = Instant::now();
        taken
    }
}
