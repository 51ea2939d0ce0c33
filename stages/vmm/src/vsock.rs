//! The host's end of a vsock device: a Unix socket that speaks `CONNECT <port>\n` → `OK <port>\n`.
//!
//! Firecracker's protocol (docs/vsock.md there, "host-initiated connections"), which `vhost-device-vsock` speaks too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Between two attempts, and between two looks at whether there is still a reason to wait.
const PAUSE: Duration = Duration::from_millis(5);

/// How long one attempt may stay without an answer. It has been delivered to the guest by then or never will be.
const ATTEMPT: Duration = Duration::from_secs(5);

/// More than `OK 4294967295\n`.
const ANSWER: usize = 32;

/// A launch's directory as a descriptor, by which sockets in it are reached whatever the length of its path
/// (a socket's address has room for 108 bytes).
pub(crate) struct SocketDir {
    dir: OwnedFd,
}

/// Why [`SocketDir::connect`] gave up.
pub(crate) enum Failed<E> {
    /// `check` said so.
    Check(E),
    /// The deadline; how the last attempt ended.
    Deadline(String),
    /// Something answered, but not with this protocol.
    Protocol(String),
}

/// How one attempt ended without a stream.
enum Attempt<E> {
    /// Try again: the words say why.
    Again(String),
    Failed(Failed<E>),
}

impl AsFd for SocketDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl SocketDir {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        Ok(Self { dir })
    }

    /// Removes a socket (or whatever has its name) that an earlier machine left here.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        rustix::fs::statat(&self.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// A stream to the guest's `port` through the device's socket `name`.
    ///
    /// `check` is asked again and again: an error ends the waiting, and as long as it answers `false` the socket is
    /// left alone.
    pub(crate) fn connect<E>(
        &self,
        name: &str,
        port: u32,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<bool, E>,
    ) -> Result<UnixStream, Failed<E>> {
        let mut last = "the guest's vsock device did not come up".to_owned();
        loop {
            if check().map_err(Failed::Check)? {
                match self.attempt(name, port, deadline, check) {
                    Ok(stream) => return Ok(stream),
                    Err(Attempt::Failed(failed)) => return Err(failed),
                    Err(Attempt::Again(why)) => last = why,
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failed::Deadline(last));
            }
            std::thread::sleep(PAUSE.min(left));
        }
    }

    /// One connection. Once `CONNECT` was sent it is not closed before there is an answer (or [`ATTEMPT`] has passed):
    /// `vhost-device-vsock` 0.3 never forgets a connection whose end it sees together with its first bytes, and spins.
    fn attempt<E>(
        &self,
        name: &str,
        port: u32,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<bool, E>,
    ) -> Result<UnixStream, Attempt<E>> {
        let again = |what: &str, error: Errno| {
            Attempt::Again(format!("{what}: {}", io::Error::from(error)))
        };
        let stream = self
            .open_stream(name)
            .map_err(|error| again("connect", error))?;
        // In one piece: the device reads once and takes what it got for the whole line.
        let line = format!("CONNECT {port}\n");
        rustix::net::send(&stream, line.as_bytes(), SendFlags::NOSIGNAL)
            .map_err(|error| again("send", error))?;
        let until = deadline.min(Instant::now() + ATTEMPT);
        let mut answer = Vec::with_capacity(ANSWER);
        while !answer.ends_with(b"\n") {
            // Byte by byte: what follows the line is the agent's.
            let mut byte = [0];
            match rustix::net::recv(&stream, &mut byte, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    return Err(Attempt::Again("nobody listens on that port yet".to_owned()));
                }
                Ok(_) => answer.extend_from_slice(&byte),
                Err(Errno::AGAIN) => {
                    check().map_err(|error| Attempt::Failed(Failed::Check(error)))?;
                    if Instant::now() >= until {
                        return Err(Attempt::Again("the guest did not answer".to_owned()));
                    }
                    wait_readable(&stream);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(again("receive", error)),
            }
            if answer.len() > ANSWER {
                break;
            }
        }
        if !is_ok(&answer) {
            let got = answer.escape_ascii().to_string();
            return Err(Attempt::Failed(Failed::Protocol(got)));
        }
        let stream = UnixStream::from(stream);
        stream
            .set_nonblocking(false)
            .map_err(|error| Attempt::Again(error.to_string()))?;
        Ok(stream)
    }

    /// A connected, non-blocking socket. Non-blocking from the start: connecting to a socket whose backlog is full would otherwise wait for ever.
    pub(crate) fn open_stream(&self, name: &str) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd());
        let address = SocketAddrUnix::new(path.as_str())?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    }
}

/// `OK <port>\n`, where the port is the host's end and means nothing here.
fn is_ok(answer: &[u8]) -> bool {
    answer
        .strip_prefix(b"OK ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit))
}

/// Until there is something to read, or for [`PAUSE`]. An error shows at the next read.
fn wait_readable(stream: &impl AsFd) {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: PAUSE.subsec_nanos().into(),
    };
    let _ = rustix::event::poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&pause));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_protocols_answer_is_taken() {
        assert!(is_ok(b"OK 1073741824\n"));
        for bad in [
            &b"OK\n"[..],
            b"OK \n",
            b"OK 1",
            b"HTTP/1.1 400\n",
            b"OK 1 2\n",
        ] {
            assert!(!is_ok(bad), "{}", bad.escape_ascii());
        }
    }
}
