//! One connection's streams: the same machinery at both ends.
//!
//! A [`Mux`] owns the sending half of a connection, through one writer thread, and the table of
//! streams. The receiving half belongs to whoever reads frames: it hands all but control messages
//! to [`Mux::deliver`], which never waits. So a stream that nobody reads or that has no credit
//! stops only itself, and control messages always pass: they also overtake data in the outbox.

mod inlet;
mod outbox;
mod outlet;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde::Serialize;

pub use inlet::Inlet;
pub use outlet::{Outlet, StreamEnd};

use crate::error::ProtoError;
use crate::frame::{Frame, Stdio, StreamId};
use crate::message;
use crate::patience::PatientWriter;
use crate::process::ProcessId;
use crate::stream::Stream;
use outbox::Outbox;

/// Which end this is: it decides which way data may flow on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

impl Side {
    /// Whether this side receives the data of such a stream.
    fn receives(self, stdio: Stdio) -> bool {
        (self == Side::Guest) == (stdio == Stdio::In)
    }
}

/// One connection's sending half and its streams.
pub struct Mux {
    side: Side,
    outbox: Arc<Outbox>,
    table: Mutex<Table>,
    ended: Condvar,
    /// Ends the connection's socket, which wakes the reader.
    hang_up: Box<dyn Fn() + Send + Sync>,
}

struct Table {
    streams: BTreeMap<StreamId, Entry>,
    /// The highest process that ever had a stream: frames that cross a stream's end on the way
    /// are told from frames about nothing.
    highest: u32,
    ended: Option<ProtoError>,
}

enum Entry {
    In(Arc<Inlet>),
    Out(Arc<Outlet>),
}

/// A poisoned lock means that a thread panicked; the data are counters and queues that are
/// changed in one step, so what is there is still right.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mux {
    /// Takes over `stream` for sending; `limit` is that of control messages to the peer.
    ///
    /// # Errors
    /// When the stream cannot be shared or the writer thread cannot be started.
    pub fn new<S: Stream>(stream: &S, side: Side, limit: usize) -> Result<Arc<Self>, ProtoError> {
        let share = |s: &S| {
            s.try_clone()
                .map_err(|e| ProtoError::io("sharing the connection", &e))
        };
        let (writer, handle) = (share(stream)?, share(stream)?);
        let mux = Arc::new(Mux {
            side,
            outbox: Arc::new(Outbox::new(limit)),
            table: Mutex::new(Table {
                streams: BTreeMap::new(),
                highest: 0,
                ended: None,
            }),
            ended: Condvar::new(),
            hang_up: Box::new(move || handle.shutdown()),
        });
        let owned = Arc::clone(&mux);
        thread::Builder::new()
            .name("proto-writer".to_owned())
            .spawn(move || owned.write_all(writer))
            .map_err(|e| ProtoError::io("starting the writer thread", &e))?;
        Ok(mux)
    }

    /// The writer thread: sends what the outbox holds until the connection ends.
    fn write_all(&self, to: impl Write) {
        let mut to = PatientWriter::new(to);
        let mut bytes = Vec::new();
        while let Some(frame) = self.outbox.next() {
            bytes.clear();
            frame.encode(&mut bytes);
            if let Err(e) = to.write_all(&bytes) {
                self.end(ProtoError::io("writing to the connection", &e));
                return;
            }
        }
    }

    /// Sends a control message, ahead of any data that waits.
    ///
    /// # Errors
    /// [`ProtoError::TooLarge`], or the error that ended the connection.
    pub fn send(&self, message: &impl Serialize, what: &'static str) -> Result<(), ProtoError> {
        let json = message::to_json(message, what, self.outbox.limit())?;
        self.urgent(Frame::Control(json))
    }

    fn urgent(&self, frame: Frame) -> Result<(), ProtoError> {
        if self.outbox.urgent(frame) {
            return Ok(());
        }
        if self.error().is_none() {
            self.end(ProtoError::broken("it does not read what it is sent"));
        }
        Err(self.error().unwrap_or(ProtoError::Ended))
    }

    /// Opens a stream whose data this side receives.
    ///
    /// # Errors
    /// When the connection has ended, or the stream is open already.
    pub fn open_in(self: &Arc<Self>, id: StreamId) -> Result<Arc<Inlet>, ProtoError> {
        debug_assert!(self.side.receives(id.stdio()));
        let inlet = Arc::new(Inlet::new(id, Arc::downgrade(self)));
        self.insert(id, Entry::In(Arc::clone(&inlet)))?;
        Ok(inlet)
    }

    /// Opens a stream whose data this side sends.
    ///
    /// # Errors
    /// As for [`Mux::open_in`].
    pub fn open_out(self: &Arc<Self>, id: StreamId) -> Result<Arc<Outlet>, ProtoError> {
        debug_assert!(!self.side.receives(id.stdio()));
        let outlet = Arc::new(Outlet::new(id, Arc::downgrade(self)));
        self.insert(id, Entry::Out(Arc::clone(&outlet)))?;
        Ok(outlet)
    }

    fn insert(&self, id: StreamId, entry: Entry) -> Result<(), ProtoError> {
        let mut table = lock(&self.table);
        if let Some(error) = &table.ended {
            return Err(error.clone());
        }
        if table.streams.contains_key(&id) {
            return Err(ProtoError::broken(format!("stream {} twice", id.wire())));
        }
        table.highest = table.highest.max(id.process().get());
        table.streams.insert(id, entry);
        Ok(())
    }

    /// Forgets the streams of a process that never ran.
    pub fn retire(&self, process: ProcessId) {
        let mut gone = Vec::new();
        let mut table = lock(&self.table);
        for stdio in [Stdio::In, Stdio::Out, Stdio::Err] {
            gone.extend(table.streams.remove(&StreamId::new(process, stdio)));
        }
        drop(table);
        for entry in gone {
            match entry {
                Entry::In(inlet) => inlet.finish(),
                Entry::Out(outlet) => outlet.abandon(),
            }
        }
    }

    /// Takes a frame that is about a stream. Never waits.
    ///
    /// # Errors
    /// [`ProtoError::Broken`] for a frame that the peer must not have sent; the caller ends the
    /// connection with it.
    pub fn deliver(&self, frame: Frame) -> Result<(), ProtoError> {
        match frame {
            Frame::Control(_) => Err(ProtoError::broken("a control message among the data")),
            Frame::Data(id, bytes) => self.inlet(id, "data")?.push(&bytes),
            Frame::Eof(id) => {
                self.inlet(id, "an end")?.finish();
                lock(&self.table).streams.remove(&id);
                Ok(())
            }
            Frame::Credit(id, bytes) => match self.outlet(id, "credit")? {
                Some(outlet) => outlet.credit(bytes),
                None => Ok(()),
            },
            Frame::Reset(id) => {
                if let Some(outlet) = self.outlet(id, "a reset")? {
                    outlet.reset();
                }
                Ok(())
            }
        }
    }

    fn inlet(&self, id: StreamId, what: &str) -> Result<Arc<Inlet>, ProtoError> {
        match lock(&self.table).streams.get(&id) {
            Some(Entry::In(inlet)) => Ok(Arc::clone(inlet)),
            _ => Err(ProtoError::broken(format!(
                "{what} on stream {}, which is not open",
                id.wire()
            ))),
        }
    }

    /// `None` for a stream that has ended, where such frames may still be under way.
    fn outlet(&self, id: StreamId, what: &str) -> Result<Option<Arc<Outlet>>, ProtoError> {
        let table = lock(&self.table);
        let known = id.process().get() <= table.highest && !self.side.receives(id.stdio());
        match table.streams.get(&id) {
            Some(Entry::Out(outlet)) => Ok(Some(Arc::clone(outlet))),
            None if known => Ok(None),
            _ => Err(ProtoError::broken(format!(
                "{what} for stream {}, which is not sent",
                id.wire()
            ))),
        }
    }

    /// Ends the connection, at once. The first error stays: it answers all that waits.
    pub fn end(&self, error: ProtoError) {
        let mut table = lock(&self.table);
        if table.ended.is_some() {
            return;
        }
        table.ended = Some(error.clone());
        let streams = std::mem::take(&mut table.streams);
        drop(table);
        self.ended.notify_all();
        for entry in streams.into_values() {
            match entry {
                Entry::In(inlet) => inlet.lose(&error),
                Entry::Out(outlet) => outlet.abandon(),
            }
        }
        self.outbox.close();
        (self.hang_up)();
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn error(&self) -> Option<ProtoError> {
        lock(&self.table).ended.clone()
    }

    /// Waits for the connection's end; `false` at the deadline.
    pub fn wait_end(&self, deadline: Instant) -> bool {
        let mut table = lock(&self.table);
        while table.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until all that was sent has been written to the socket; `false` at the deadline.
    #[must_use]
    pub fn flush(&self, deadline: Instant) -> bool {
        self.outbox.flush(deadline)
    }

    /// For a stream's own end: credit, reset. The connection may have ended: then it is moot.
    fn control(&self, frame: Frame) {
        let _ = self.urgent(frame);
    }

    /// Sends data for which there is credit.
    fn data(&self, frame: Frame) {
        self.outbox.data(frame);
    }

    /// Bytes of a stream that wait to be sent.
    fn unsent(&self, id: StreamId) -> u32 {
        self.outbox.unsent(id)
    }

    /// Sends a stream's end, after its data.
    fn eof(&self, id: StreamId) {
        lock(&self.table).streams.remove(&id);
        self.outbox.data(Frame::Eof(id));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::frame::MAX_CONTROL_FROM_GUEST;
    use crate::message::GuestMessage;

    #[test]
    fn row_47_a_peer_that_asks_and_never_reads_is_cut_off_before_much_waits_for_it() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mux = Mux::new(&ours, Side::Guest, MAX_CONTROL_FROM_GUEST).unwrap();
        let answer = || mux.send(&GuestMessage::Pong, "an answer").err();
        // Far more than a socket takes, and what may wait beside.
        let error = (0..100_000).find_map(|_| answer());
        let ended = ProtoError::broken("it does not read what it is sent");
        assert_eq!(error, Some(ended.clone()));
        assert_eq!(mux.error(), Some(ended));
    }
}
