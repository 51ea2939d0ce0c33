//! How the host learns, without asking again and again, that the agent listens.
//!
//! A guest's connection to a port of the host arrives at the Unix socket `<socket>_<port>`, with
//! Firecracker as with `vhost-device-vsock`. The agent makes one such connection, to
//! [`READY_PORT`], when it listens; nothing is said on it. Any process of the guest could do that
//! too, but none runs yet, and all that it could do is make the host dial.
//!
//! Dialling before the guest's driver is ready is worse than slow: it can end the worker thread of
//! `vhost-device-vsock` 0.3.0, which returns an error from its event handler for a connection that
//! comes between the memory table and the queues (`vhu_vsock.rs`, `BACKEND_EVENT`). Afterwards
//! nothing reaches that guest any more.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::unix_path;
use crate::READY_PORT;
use crate::error::ProtoError;

/// How often `alive` is asked.
const LOOK: Duration = Duration::from_millis(20);

/// A socket at which the guest rings once. Dropping it removes the socket.
pub struct Doorbell {
    listener: UnixListener,
    path: PathBuf,
}

impl Doorbell {
    /// Makes the socket beside the VMM's vsock `socket`. It must be there before the guest boots,
    /// and the VMM must be permitted to connect to it.
    ///
    /// # Errors
    /// Those of bind(2): the path is taken, its directory is missing.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let path = Self::path_for(socket);
        let listener = unix_path::short_path(&path, |short| UnixListener::bind(short))?;
        listener.set_nonblocking(true)?;
        Ok(Doorbell { listener, path })
    }

    /// Where the socket for a vsock `socket` is.
    #[must_use]
    pub fn path_for(socket: &Path) -> PathBuf {
        let mut path = OsString::from(socket);
        path.push(format!("_{READY_PORT}"));
        PathBuf::from(path)
    }

    /// Waits until the guest rings. `alive` is asked meanwhile: an error of it (the VMM has ended,
    /// the launch is cancelled) ends the wait.
    ///
    /// # Errors
    /// That of `alive`; [`ProtoError::Timeout`] at the deadline.
    pub fn wait<E: From<ProtoError>>(
        &self,
        deadline: Instant,
        mut alive: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            alive()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(E::from(ProtoError::Timeout {
                    what: "the agent's first sign of life",
                }));
            }
            let step = Timespec {
                tv_sec: 0,
                // At most 20 ms.
                tv_nsec: i64::from(left.min(LOOK).subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            match poll(&mut fds, Some(&step)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => {
                    let error = io::Error::from(e);
                    return Err(E::from(ProtoError::io("waiting for the agent", &error)));
                }
            }
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // Gone already, or its directory is: that is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_ring_ends_the_wait_and_the_socket_goes() {
        let dir = tempfile::tempdir().unwrap();
        // Row 52: deeper than a socket address is long.
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let socket = deep.join("vsock");
        let bell = Doorbell::new(&socket).unwrap();
        let soon = || Instant::now() + Duration::from_millis(50);
        let quiet = bell.wait(soon(), || Ok::<_, ProtoError>(()));
        assert!(matches!(quiet, Err(ProtoError::Timeout { .. })));
        let dead = bell.wait(soon(), || Err(ProtoError::Ended));
        assert_eq!(dead, Err(ProtoError::Ended));
        let path = Doorbell::path_for(&socket);
        unix_path::short_path(&path, |p| UnixStream::connect(p)).unwrap();
        bell.wait(soon(), || Ok::<_, ProtoError>(())).unwrap();
        drop(bell);
        assert!(!path.exists());
    }
}
