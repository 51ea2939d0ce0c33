//! The sending end of a stream.

use std::sync::{Condvar, Mutex, PoisonError, Weak};

use super::{Mux, lock};
use crate::error::ProtoError;
use crate::frame::{Frame, MAX_DATA, StreamId, WINDOW};

/// Why a stream takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// Its receiver wants no more: the end of a pipe whose reader has gone.
    Reset,
    /// The connection, or what the stream belonged to, has ended.
    Lost,
}

/// Sends a stream's bytes, as far as the receiver gave credit.
pub struct Outlet {
    id: StreamId,
    mux: Weak<Mux>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    credit: u32,
    end: Option<StreamEnd>,
    /// The stream's end was sent.
    ended: bool,
}

impl Outlet {
    pub(super) fn new(id: StreamId, mux: Weak<Mux>) -> Self {
        Outlet {
            id,
            mux,
            state: Mutex::new(State {
                credit: WINDOW,
                end: None,
                ended: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Sends all of `bytes`, waiting for credit where there is none.
    ///
    /// # Errors
    /// When the stream ended before all was sent.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), StreamEnd> {
        while !bytes.is_empty() {
            let mut state = lock(&self.state);
            while state.credit == 0 && state.end.is_none() {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(end) = state.end {
                return Err(end);
            }
            let piece = bytes.len().min(MAX_DATA).min(state.credit as usize);
            state.credit -= piece as u32;
            let (now, rest) = bytes.split_at(piece);
            let mux = self.mux.upgrade().ok_or(StreamEnd::Lost)?;
            // Before the lock is let go: whoever looks at the credit finds these bytes among what is unsent.
            mux.data(Frame::Data(self.id, now.to_vec()));
            drop(state);
            bytes = rest;
        }
        Ok(())
    }

    /// Says that no more comes, after what was written. Once.
    pub fn finish(&self) {
        let mut state = lock(&self.state);
        if state.ended || state.end == Some(StreamEnd::Lost) {
            return;
        }
        state.ended = true;
        state.end = Some(StreamEnd::Lost);
        drop(state);
        if let Some(mux) = self.mux.upgrade() {
            mux.eof(self.id);
        }
    }

    pub(super) fn credit(&self, bytes: u32) -> Result<(), ProtoError> {
        let mut state = lock(&self.state);
        // Credit is for what the peer has taken. One that gave it for what it cannot have yet, and read nothing, would have
        // everything that comes wait here.
        let unsent = self.mux.upgrade().map_or(0, |mux| mux.unsent(self.id));
        let credit = state.credit.saturating_add(bytes);
        if credit.saturating_add(unsent) > WINDOW {
            return Err(ProtoError::broken(format!(
                "credit of {bytes} bytes on stream {}, on which fewer were sent",
                self.id.wire()
            )));
        }
        state.credit = credit;
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn reset(&self) {
        lock(&self.state).end.get_or_insert(StreamEnd::Reset);
        self.changed.notify_all();
    }

    /// Takes no more, and sends no end: nobody is there, or nobody cares.
    pub fn abandon(&self) {
        lock(&self.state).end = Some(StreamEnd::Lost);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::frame::{HEADER, Stdio};
    use crate::mux::Side;
    use crate::process::ProcessId;

    /// Takes a peer's data until it has `most` bytes, or nothing comes for a while.
    fn take(from: &mut UnixStream, most: usize) -> usize {
        let mut taken = 0;
        while taken < most {
            match Frame::read(from, 0) {
                Ok(Some(Frame::Data(_, bytes))) => taken += bytes.len(),
                Err(ProtoError::Io { .. }) => break,
                other => panic!("{other:?}"),
            }
        }
        taken
    }

    #[test]
    fn row_64_a_sender_waits_for_credit() {
        const WINDOW_LEN: usize = WINDOW as usize;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mux = Mux::new(&ours, Side::Guest, HEADER).unwrap();
        let id = StreamId::new(ProcessId::INIT, Stdio::Out);
        let outlet = mux.open_out(id).unwrap();
        let sender = thread::spawn(move || outlet.write(&vec![7; 2 * WINDOW_LEN]));
        let patience = |for_ever: bool| {
            let time = Duration::from_millis(if for_ever { 60_000 } else { 100 });
            theirs.set_read_timeout(Some(time)).unwrap();
        };
        patience(true);
        let mut reading = theirs.try_clone().unwrap();
        assert_eq!(take(&mut reading, WINDOW_LEN), WINDOW_LEN);
        // All the credit that there was is used up, and a little of it comes back.
        for given in [0, 1, 1000] {
            if given > 0 {
                mux.deliver(Frame::Credit(id, given)).unwrap();
                patience(true);
                assert_eq!(take(&mut reading, given as usize), given as usize);
            }
            patience(false);
            assert_eq!(take(&mut reading, 1), 0, "more than the credit of {given}");
        }
        mux.end(ProtoError::Ended);
        assert_eq!(sender.join().unwrap(), Err(StreamEnd::Lost));
    }
}
