//! What a child does between fork and exec. The only code here that runs in a forked process.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What a child is confined to.
#[derive(Default)]
pub(crate) struct Confined {
    /// The descriptors it gets besides its three standard ones.
    pub(crate) inherit: Vec<Arc<OwnedFd>>,
    /// The network namespace it is in; `None`: this process's.
    pub(crate) netns: Option<Arc<OwnedFd>>,
    /// The control groups it joins: their `cgroup.procs`, open for writing.
    pub(crate) cgroups: Vec<Arc<OwnedFd>>,
    /// Its PID namespace is a shim's, and ends with that.
    pub(crate) caged: bool,
    /// It is the first process of its PID namespace.
    pub(crate) first: bool,
}

/// Makes `command`'s child die with the thread that spawns it, in a session of its own, and confined.
#[allow(
    unsafe_code,
    reason = "pre_exec is the only way to run code between fork and exec"
)]
pub(crate) fn confine(command: &mut Command, confined: Confined) {
    let parent = rustix::process::getpid();
    // Plain numbers, collected here because nothing may be allocated after the fork. The descriptors are open as long as the
    // closure, which has them.
    let inherit: Vec<RawFd> = confined.inherit.iter().map(|fd| fd.as_raw_fd()).collect();
    // SAFETY: the closure runs between fork and exec of a process that may have threads, so it may only do what is
    // async-signal-safe: `before_exec` makes system calls and touches the stack and memory allocated above,
    // takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || before_exec(parent, &inherit, &confined).map_err(io::Error::from));
    }
}

fn before_exec(parent: Pid, inherit: &[RawFd], confined: &Confined) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the parent died before that call, no signal will come: this process has already been given to another. In another
    // PID namespace the parent has no number: there the shim's end is this process's, and the shim sees the end of its pipe.
    if !confined.caged && !confined.first && rustix::process::getppid() != Some(parent) {
        return Err(Errno::SRCH);
    }
    rustix::process::setsid()?;
    for cgroup in &confined.cgroups {
        // "0" is the writer.
        rustix::io::write(cgroup, b"0")?;
    }
    if let Some(netns) = &confined.netns {
        // This process has one thread, so all of it goes.
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    close_on_exec(inherit)
}

/// Marks every descriptor above the standard three close-on-exec, and those in `inherit` not.
///
/// The standard library's own pipe, by which it reports that exec failed, is among them and is already so marked: that is why
/// they are not just closed.
fn close_on_exec(inherit: &[RawFd]) -> Result<(), Errno> {
    let dir = rustix::fs::open(
        c"/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let Some(fd) = number(entry?.file_name().to_bytes()) else {
            continue;
        };
        if fd <= 2 {
            continue;
        }
        let flags = if inherit.contains(&fd) {
            FdFlags::empty()
        } else {
            FdFlags::CLOEXEC
        };
        set_flags(fd, flags)?;
    }
    Ok(())
}

#[allow(
    unsafe_code,
    reason = "descriptors of the forked process are known by number only"
)]
fn set_flags(fd: RawFd, flags: FdFlags) -> Result<(), Errno> {
    // SAFETY: the number was just listed in /proc/self/fd by the only thread of this process, so it is open,
    // and the borrow ends with this statement.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(fd, flags)
}

/// A decimal number, without the standard library's parser (which may not be used after a fork: nothing promises that
/// its error path does not allocate).
fn number(name: &[u8]) -> Option<RawFd> {
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0 as RawFd, |sum, &digit| {
        if !digit.is_ascii_digit() {
            return None;
        }
        sum.checked_mul(10)?.checked_add(RawFd::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"17"), Some(17));
        assert_eq!(number(b".."), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"99999999999"), None);
    }
}
