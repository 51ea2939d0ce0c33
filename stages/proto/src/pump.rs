//! Threads' work: moves bytes between descriptors and streams until either ends.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::fcntl_getpipe_size;

use crate::error::ProtoError;
use crate::frame::MAX_DATA;
use crate::mux::{Inlet, Outlet, StreamEnd};

/// Tells a pump that waits on a descriptor to stop.
pub struct Stop(OwnedFd);

impl Stop {
    /// # Errors
    /// When the process may not have another descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Stop(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Stops what waits with it, now and later.
    pub fn set(&self) {
        // Only an overflow of the counter fails, and then it is set.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// What [`send_fd`] does with what the descriptor still holds when it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStop {
    /// Leaves it: nobody reads it any more.
    Leave,
    /// Sends what is there without waiting for more: the writer has ended. Somebody else may have the other end open and
    /// write on and on; so it is no more than can have been there.
    Drain,
}

/// More than a terminal holds.
const TERMINAL: usize = 1 << 20;

/// Sends what comes from `fd`, then the stream's end.
///
/// `fd` may be a terminal or a pipe that never has anything: the wait ends with `stop`.
/// Returns why it ended early, if it did.
pub fn send_fd(fd: &impl AsFd, outlet: &Outlet, stop: &Stop, at_stop: AtStop) -> Option<StreamEnd> {
    let mut buffer = vec![0; MAX_DATA];
    // How much may still be sent, once it is stopped.
    let mut left = None;
    let end = loop {
        let (ready, stopped) = match wait(fd.as_fd(), PollFlags::IN, stop, left.is_some()) {
            Ok(state) => state,
            Err(_) => break None,
        };
        if stopped && at_stop == AtStop::Leave {
            break None;
        }
        if stopped && left.is_none() {
            // What was written before may have come after the look.
            left = Some(fcntl_getpipe_size(fd).unwrap_or(TERMINAL));
            continue;
        }
        if !ready || left == Some(0) {
            if left.is_some() {
                break None;
            }
            continue;
        }
        let most = left.map_or(MAX_DATA, |left| left.min(MAX_DATA));
        match rustix::io::read(fd, &mut buffer[..most]) {
            Ok(0) => break None,
            Ok(n) => {
                left = left.map(|left| left - n);
                if let Err(end) = outlet.write(&buffer[..n]) {
                    break Some(end);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal that was hung up, a directory: to the reader it is an end.
            Err(_) => break None,
        }
    };
    outlet.finish();
    end
}

/// Writes what comes on the stream to `fd`, a descriptor that does not block. `true` where all was written, to the
/// stream's end.
pub fn receive_fd(inlet: &Inlet, fd: &impl AsFd, stop: &Stop) -> bool {
    let mut buffer = vec![0; MAX_DATA];
    loop {
        let n = match inlet.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => n,
            Err(_) => return false,
        };
        if !write_all(fd, &buffer[..n], stop) {
            inlet.close();
            return false;
        }
    }
}

/// Writes all of it to a descriptor that does not block; `false` where that failed, or was stopped.
pub fn write_all(fd: &impl AsFd, mut bytes: &[u8], stop: &Stop) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let waited = wait(fd.as_fd(), PollFlags::OUT, stop, false);
                if !matches!(waited, Ok((_, false))) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Writes what comes on the stream to `to`. A receiver that has gone resets the stream.
///
/// # Errors
/// Both kinds are kept apart: `Err` of the connection, or `Ok(Err)` of the writer.
pub fn receive(inlet: &Inlet, to: &mut impl Write) -> Result<io::Result<()>, ProtoError> {
    let mut buffer = vec![0; MAX_DATA];
    loop {
        let n = inlet.read(&mut buffer)?;
        if n == 0 {
            return Ok(to.flush());
        }
        if let Err(e) = to.write_all(&buffer[..n]).and_then(|()| to.flush()) {
            inlet.close();
            return Ok(Err(e));
        }
    }
}

/// Waits for `fd` or for `stop`: whether each is ready. With `now` it only looks.
fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    stop: &Stop,
    now: bool,
) -> rustix::io::Result<(bool, bool)> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [
        PollFd::from_borrowed_fd(fd, events),
        PollFd::new(&stop.0, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, now.then_some(&zero)) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::frame::{self, StreamId};
    use crate::mux::{Mux, Side};
    use crate::process::ProcessId;

    /// How many of five bytes a pump that is stopped before it begins has left in the pipe.
    fn left(at_stop: AtStop) -> usize {
        let (a, _b) = UnixStream::pair().unwrap();
        let mux = Mux::new(&a, Side::Host, 100).unwrap();
        let outlet = mux.open_out(StreamId::new(ProcessId::INIT, frame::Stdio::In));
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"five!").unwrap();
        let stop = Stop::new().unwrap();
        stop.set();
        assert_eq!(send_fd(&read, &outlet.unwrap(), &stop, at_stop), None);
        drop(write);
        rustix::io::read(&read, &mut [0; 10]).unwrap()
    }

    #[test]
    fn what_nobody_reads_any_more_stays_with_its_owner() {
        assert_eq!(left(AtStop::Leave), 5);
    }

    #[test]
    fn what_a_process_wrote_before_its_end_is_sent() {
        assert_eq!(left(AtStop::Drain), 0);
    }

    /// A child that has the pipe and never rests must not keep the stream open.
    #[test]
    fn row_46_what_others_write_after_a_process_s_end_is_not_waited_for() {
        let (a, b) = UnixStream::pair().unwrap();
        let mux = Mux::new(&a, Side::Guest, 100).unwrap();
        let peer = Mux::new(&b, Side::Host, 100).unwrap();
        let id = StreamId::new(ProcessId::INIT, frame::Stdio::Out);
        let (outlet, inlet) = (mux.open_out(id).unwrap(), peer.open_in(id).unwrap());
        std::thread::spawn(move || {
            let mut a = a;
            while let Ok(Some(frame)) = frame::Frame::read(&mut a, 100) {
                mux.deliver(frame).unwrap();
            }
        });
        std::thread::spawn(move || {
            let mut b = b;
            while let Ok(Some(frame)) = frame::Frame::read(&mut b, 100) {
                peer.deliver(frame).unwrap();
            }
        });
        // There is always more of this.
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let stop = Stop::new().unwrap();
        stop.set();
        let sender = std::thread::spawn(move || send_fd(&zero, &outlet, &stop, AtStop::Drain));
        let mut all = 0;
        let mut buffer = [0; 4096];
        loop {
            match inlet.read(&mut buffer).unwrap() {
                0 => break,
                n => all += n,
            }
            assert!(all <= TERMINAL, "{all}");
        }
        assert_eq!(sender.join().unwrap(), None);
        assert_eq!(all, TERMINAL);
    }
}
