//! When the vsock device may be spoken to.
//!
//! `vhost-device-vsock` 0.3 has a window, of a millisecond or so, in which a connection breaks it for good: between the
//! messages by which QEMU gives it the guest's memory and those by which it gives it the rings. A connection that arrives there makes its
//! event loop end with an error (`process_tx` fails on a ring that is not ready), and from then on every connection is
//! accepted and none is answered. Connecting every few milliseconds hits it in one boot of twenty.
//!
//! So nothing connects before the device has both rings. That shows from outside, in `/proc/<pid>/fdinfo`
//! (proc_pid_fdinfo(5)): the device waits for its rings' eventfds in an epoll set whose entries' `data` is 0 for the
//! receive ring and 1 for the transmit ring, and 4 and 5 for the device's own events, which are there from the start.

use std::fs;
use std::time::{Duration, Instant};

/// A ring is marked ready just after its eventfd went into the set: so much later it certainly was.
const SETTLE: Duration = Duration::from_millis(10);

/// Knows when the device with this pid has its rings.
pub(crate) struct Gate {
    pid: u32,
    seen: Option<Instant>,
}

/// What the entries of one process's epoll sets tell.
#[derive(Debug, PartialEq, Eq)]
enum Rings {
    /// No epoll set looks like this device's: another program, or another version of it.
    Unknown,
    Down,
    Up,
}

impl Gate {
    pub(crate) fn new(pid: u32) -> Self {
        Self { pid, seen: None }
    }

    /// Whether it is safe to connect. Also when the device is not one that this module knows: then waiting is no use.
    pub(crate) fn is_open(&mut self) -> bool {
        if let Some(seen) = self.seen {
            return seen.elapsed() >= SETTLE;
        }
        match rings(self.pid) {
            Rings::Unknown => true,
            Rings::Down => false,
            Rings::Up => {
                self.seen = Some(Instant::now());
                false
            }
        }
    }
}

fn rings(pid: u32) -> Rings {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return Rings::Unknown;
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .map(|text| state(&text))
        .find(|state| *state != Rings::Unknown)
        .unwrap_or(Rings::Unknown)
}

/// One descriptor's fdinfo. A line of an epoll set: `tfd: 7 events: 19 data: 4  pos:0 ino:… sdev:…`, numbers in `data` hexadecimal.
fn state(text: &str) -> Rings {
    let data: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("tfd:"))
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.find(|word| *word == "data:")?;
            u64::from_str_radix(words.next()?, 16).ok()
        })
        .collect();
    let has = |wanted: &[u64]| wanted.iter().all(|number| data.contains(number));
    if !has(&[4, 5]) {
        Rings::Unknown
    } else if has(&[0, 1]) {
        Rings::Up
    } else {
        Rings::Down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(data: u64) -> String {
        format!("tfd:       10 events:       19 data: {data:16x}  pos:0 ino:2061 sdev:e\n")
    }

    fn set(data: &[u64]) -> String {
        let lines: String = data.iter().map(|&number| line(number)).collect();
        format!("pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2061\n{lines}")
    }

    #[test]
    fn rings_show_in_the_epoll_set() {
        assert_eq!(state(&set(&[3, 4, 5])), Rings::Down);
        assert_eq!(state(&set(&[3, 4, 5, 0])), Rings::Down);
        assert_eq!(state(&set(&[3, 4, 5, 0, 1])), Rings::Up);
    }

    #[test]
    fn other_descriptors_say_nothing() {
        assert_eq!(state("pos:\t0\nflags:\t02\n"), Rings::Unknown);
        assert_eq!(state(&set(&[7, 8])), Rings::Unknown);
    }

    #[test]
    fn a_process_that_is_no_such_device_does_not_hold_anybody_up() {
        assert!(Gate::new(u32::MAX).is_open());
    }
}
