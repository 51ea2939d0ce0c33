//! The client's side: of a launch that it starts, and of one that others started.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use fcpipe_proto::ProtoError;
use fcpipe_proto::host::short_path;

use crate::fork::{Side, split};
use crate::message::{Reply, Request};
use crate::server::SOCKET;
use crate::supervise::{Order, supervise};
use crate::wire::{Receiver, send};

/// A connection to a supervisor.
pub struct Connection {
    receiver: Receiver,
    line: Line,
}

/// What can be said while an answer is waited for. Clones are the same connection.
#[derive(Clone)]
pub struct Line(Arc<UnixStream>);

impl Line {
    /// Says a signal or a size: few enough bytes to go out in one piece, so that threads need not take turns. A supervisor
    /// that has gone needs to be told nothing.
    pub fn say(&self, request: &Request) {
        let _ = send(&self.0, request, &[]);
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
        let line = Line(Arc::new(stream));
        Ok(Connection { receiver, line })
    }

    /// The way to say something from another thread.
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Asks, with the descriptors that belong to it. Before anything is said on its line. Where the supervisor has gone meanwhile, the
    /// reply says so.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ProtoError> {
        match send(&self.line.0, request, fds) {
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
