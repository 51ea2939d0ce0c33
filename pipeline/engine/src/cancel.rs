//! One flag that ends everything, in a form for loops, for timed waits and for poll(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

/// A shared flag: once set it stays set.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
    /// Readable once the flag is set; nobody reads it, so it stays readable for everybody.
    event: OwnedFd,
}

impl CancelToken {
    /// A token that is not set. Fails when the process is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner {
            set: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
            event,
        })))
    }

    /// Sets the flag and wakes every wait.
    pub fn cancel(&self) {
        let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.set.swap(true, Ordering::Release) {
            // The counter was 0, so the write can't block; failing would only mean that it is readable already.
            let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        }
        drop(guard);
        self.0.changed.notify_all();
    }

    /// Whether the flag is set. One atomic load: cheap enough for every block of a copy loop.
    pub fn cancelled(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Sleeps, but not beyond a cancel. True if the flag is set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.cancelled() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self
                .0
                .changed
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// Readable (POLLIN) once the flag is set. Poll it; don't read from it.
impl AsFd for CancelToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(token: &CancelToken) -> bool {
        let mut fds = [PollFd::new(token, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn cancel_shows_in_loops_waits_and_poll() {
        let token = CancelToken::new().unwrap();
        assert!(
            !token.cancelled()
                && !readable(&token)
                && !token.wait_timeout(Duration::from_millis(1))
        );
        let other = token.clone();
        let waiter = std::thread::spawn(move || {
            let start = Instant::now();
            (
                other.wait_timeout(Duration::from_secs(600)),
                start.elapsed(),
            )
        });
        token.cancel();
        token.cancel();
        let (set, waited) = waiter.join().unwrap();
        assert!(set && waited < Duration::from_secs(60));
        assert!(token.cancelled() && readable(&token) && readable(&token));
    }
}
