//! The client's side: of a launch that it starts, and of one that others started.

use std::ffi::c_int;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use fcpipe_proto::ProtoError;
use fcpipe_proto::host::short_path;

use crate::fork::{Side, split};
use crate::message::{Reply, Request};
use crate::server::SOCKET;
use crate::supervise::{Order, supervise};
use crate::wire::{Receiver, send};

/// How often it is looked whether the supervisor has read.
const STEP: Duration = Duration::from_millis(10);

/// A connection to a supervisor.
pub struct Connection {
    receiver: Receiver,
    line: Line,
}

/// What can be said while an answer is waited for. Clones are the same connection.
#[derive(Clone)]
pub struct Line(Arc<Said>);

struct Said {
    stream: UnixStream,
    /// The signal by which the client gave up; 0 for none.
    gave_up: AtomicI32,
}

impl Line {
    /// Says a signal or a size: few enough bytes to go out in one piece, so that threads need not take turns. A supervisor
    /// that has gone needs to be told nothing.
    pub fn say(&self, request: &Request) {
        let _ = send(&self.0.stream, request, &[]);
    }

    /// Says a signal, of which it is not the first. A supervisor that has not read what was said after `patience` is stopped, or hangs: the
    /// caller is told that it has gone.
    pub fn insist(&self, signal: i32, patience: Duration) {
        self.say(&Request::Signal { signal });
        let end = Instant::now() + patience;
        while unread(&self.0.stream).is_ok_and(|bytes| bytes > 0) {
            if Instant::now() >= end {
                self.0.gave_up.store(signal, Ordering::Relaxed);
                let _ = self.0.stream.shutdown(Shutdown::Both);
                return;
            }
            std::thread::sleep(STEP);
        }
    }
}

/// Starts a supervisor with an order. In the supervisor's own process this does not return.
///
/// There must be one thread only, and it must not have been told of the order's terminal or files in any other way than
/// by its standard streams.
pub fn start(order: Order) -> std::io::Result<Connection> {
    match split()? {
        Side::Supervisor(channel) => {
            supervise(order, channel);
            std::process::exit(0)
        }
        Side::Client(stream) => Connection::over(stream),
    }
}

/// Reaches the supervisor of a launch. `None`: it is gone, or there never was one.
pub fn connect(state: &Path, id: &str) -> std::io::Result<Option<Connection>> {
    use std::io::ErrorKind;
    let path = state.join(id).join(SOCKET);
    match short_path(&path, |path| UnixStream::connect(path)) {
        Ok(stream) => Ok(Some(Connection::over(stream)?)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Connection {
    fn over(stream: UnixStream) -> std::io::Result<Self> {
        let receiver = Receiver::new(stream.try_clone()?);
        let line = Line(Arc::new(Said {
            stream,
            gave_up: AtomicI32::new(0),
        }));
        Ok(Connection { receiver, line })
    }

    /// The signal that ended this connection, because the supervisor did not hear it.
    pub fn gave_up(&self) -> Option<i32> {
        match self.line.0.gave_up.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// The way to say something from another thread.
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Asks, with the descriptors that belong to it. Before anything is said on its line. Where the supervisor has gone meanwhile, the
    /// reply says so.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ProtoError> {
        match send(&self.line.0.stream, request, fds) {
            Err(ProtoError::Io {
                kind: std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset,
                ..
            }) => Ok(()),
            sent => sent,
        }
    }

    /// The next answer; `None` where the supervisor has gone.
    pub fn reply(&mut self) -> Result<Option<Reply>, ProtoError> {
        match self.receiver.receive() {
            Ok(reply) => Ok(reply.map(|(reply, _)| reply)),
            // Killed while it was speaking.
            Err(ProtoError::Closed) => Ok(None),
            Err(ProtoError::Io {
                kind: std::io::ErrorKind::ConnectionReset,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How much of what was sent the other end has not read: `SIOCOUTQ` of unix(7).
#[allow(unsafe_code, reason = "there is no safe form of this ioctl")]
fn unread(stream: &UnixStream) -> rustix::io::Result<c_int> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: the kernel writes one int.
    unsafe {
        let question = rustix::ioctl::Getter::<SIOCOUTQ, c_int>::new();
        rustix::ioctl::ioctl(stream, question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_49_a_supervisor_that_reads_nothing_has_gone_for_whoever_insists() {
        let patience = Duration::from_millis(50);
        let (client, supervisor) = UnixStream::pair().unwrap();
        let mut connection = Connection::over(client).unwrap();
        let line = connection.line();
        line.say(&Request::Signal { signal: 15 });
        line.insist(2, patience);
        assert_eq!(connection.gave_up(), Some(2));
        assert!(connection.reply().unwrap().is_none());
        drop(supervisor);

        // One that reads has time, and one that has gone is waited for by nobody.
        let (client, supervisor) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::new(supervisor);
        let reader = std::thread::spawn(move || {
            let mut read = || receiver.receive::<Request>().unwrap().unwrap();
            (read(), read())
        });
        let connection = Connection::over(client).unwrap();
        let line = connection.line();
        line.say(&Request::Signal { signal: 15 });
        line.insist(2, Duration::from_secs(3600));
        reader.join().unwrap();
        line.insist(2, Duration::from_secs(3600));
        assert_eq!(connection.gave_up(), None);
    }
}
