//! What a child does between its birth and exec, in its parent's memory (`vfork.rs`). The only code here that runs in such a process.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

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
    /// Its PID namespace is a shim's, and ends with that.
    pub(crate) caged: bool,
    /// It is the first process of its PID namespace.
    pub(crate) first: bool,
}

/// All that the child needs, made before its birth: nothing may be allocated after it, and no lock taken.
pub(crate) struct Child<'a> {
    pub(crate) parent: Pid,
    pub(crate) confined: &'a Confined,
    /// The files by which it enters control groups.
    pub(crate) entrances: &'a [BorrowedFd<'a>],
    /// Its standard streams, all above the standard numbers.
    pub(crate) streams: [BorrowedFd<'a>; 3],
    pub(crate) dir: &'a CStr,
    pub(crate) path: &'a CStr,
    /// Arguments and environment, as execve(2) takes them.
    pub(crate) argv: &'a [*const libc::c_char],
    pub(crate) envp: &'a [*const libc::c_char],
}

impl Child<'_> {
    /// Becomes the program. Comes back only with why not.
    ///
    /// The standard library's `Command` does the same, but has no way to be born in a control group; and entering one
    /// afterwards waits for a grace period of the kernel's (some milliseconds) where the group is of version 2.
    pub(crate) fn become_program(&self) -> Errno {
        match self.prepare() {
            Ok(()) => exec(self.path, self.argv, self.envp),
            Err(errno) => errno,
        }
    }

    fn prepare(&self) -> Result<(), Errno> {
        let confined = self.confined;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // If the parent died before that call, no signal will come: this process has already been given to another. In another
        // PID namespace the parent has no number: there the shim's end is this process's, and the shim sees the end of its pipe.
        if !confined.caged && !confined.first && rustix::process::getppid() != Some(self.parent) {
            return Err(Errno::SRCH);
        }
        rustix::process::setsid()?;
        for entrance in self.entrances {
            // "0" is the writer.
            rustix::io::write(entrance, b"0")?;
        }
        if let Some(netns) = &confined.netns {
            // This process has one thread, so all of it goes.
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        let [stdin, stdout, stderr] = &self.streams;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        rustix::process::chdir(self.dir)?;
        usual_signals()?;
        close_on_exec(&confined.inherit)
    }
}

#[allow(unsafe_code, reason = "execve has no safe form that allocates nothing")]
fn exec(path: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> Errno {
    // SAFETY: both arrays end with a null pointer, and their strings outlive this process's use of them: `Spawn::spawn` sees to it.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last_error()
}

fn last_error() -> Errno {
    // It reads errno, and nothing else.
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

/// No signal blocked, and SIGPIPE as programs expect it: both outlive exec. Signals that this program handles would be back to the usual by
/// exec alone, but one that came before it would have the handler run here, in the parent's memory.
#[allow(
    unsafe_code,
    reason = "signal masks and dispositions have no safe form"
)]
fn usual_signals() -> Result<(), Errno> {
    let mut usual = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    let mut none = std::mem::MaybeUninit::uninit();
    // SAFETY: both structures are of integers, valid when zeroed, and live through the calls; this process has one thread, and dispositions
    // of its own. Signals are blocked until the last call.
    let failed = unsafe {
        let usual = usual.as_mut_ptr();
        (*usual).sa_sigaction = libc::SIG_DFL;
        for signal in 1..=libc::SIGRTMAX() {
            let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
            let now = now.as_mut_ptr();
            // Some are the C library's own, and refused.
            let known = libc::sigaction(signal, std::ptr::null(), now) == 0;
            if known && ((*now).sa_sigaction > libc::SIG_IGN || signal == libc::SIGPIPE) {
                libc::sigaction(signal, usual, std::ptr::null_mut());
            }
        }
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) != 0
    };
    match failed {
        true => Err(last_error()),
        false => Ok(()),
    }
}

/// Marks every descriptor above the standard three close-on-exec, and those in `inherit` not.
///
/// They are not just closed: those in `inherit` are among them.
#[allow(unsafe_code, reason = "close_range has no safe form")]
fn close_on_exec(inherit: &[Arc<OwnedFd>]) -> Result<(), Errno> {
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: it changes one flag of this process's own descriptors, which nothing here depends on.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOEXEC) };
    if marked != 0 {
        // Kernels before 5.11.
        one_by_one()?;
    }
    for fd in inherit {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// The same for each number that there can be.
#[allow(
    unsafe_code,
    reason = "descriptors that were inherited are known by number only"
)]
fn one_by_one() -> Result<(), Errno> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    for number in 3..most.unwrap_or(1 << 20).min(1 << 20) as RawFd {
        // SAFETY: the borrow ends with this statement; a number that is not open is EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        match rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_marked_one_by_one_where_the_kernel_cannot_all_at_once() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let flags = || rustix::io::fcntl_getfd(&read).unwrap();
        assert_eq!(flags(), FdFlags::empty());
        // The other descriptors of this program are marked so already.
        one_by_one().unwrap();
        assert_eq!(flags(), FdFlags::CLOEXEC);
    }
}
