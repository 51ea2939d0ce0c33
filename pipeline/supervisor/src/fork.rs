//! Splitting a program in two: the caller goes on as the client, its copy becomes the supervisor.
//!
//! A copy, and not the program started anew: the spec has been read and judged by then, what was resolved need not be put
//! into words and taken out of them again, and two milliseconds of starting are saved. It is safe because there is one
//! thread at that time, which is checked.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::unistd::ForkResult;
use rustix::fs::{Mode, OFlags};

/// Which of the two this is.
pub(crate) enum Side {
    Client(UnixStream),
    Supervisor(UnixStream),
}

/// Splits the program. Each side gets its end of a connection to the other.
///
/// # Errors
/// Where there are other threads, or the system has no room for another process.
#[allow(unsafe_code, reason = "fork has no safe form")]
pub(crate) fn split() -> io::Result<Side> {
    let (client, supervisor) = UnixStream::pair()?;
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there are other threads"));
    }
    // SAFETY: this is the only thread, so no lock is held by a thread that the copy would not have, and the copy may do whatever
    // the original may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { .. } => Ok(Side::Client(client)),
        ForkResult::Child => Ok(Side::Supervisor(supervisor)),
    }
}

/// The way of a process in the background to whoever waits for it to begin.
pub struct Herald(UnixStream);

impl Herald {
    /// Says with which code the caller may end: 0, it has begun. Only the first is heard.
    pub fn tell(&self, code: u8) {
        // Nobody may be there any more.
        let _ = rustix::net::send(&self.0, &[code], rustix::net::SendFlags::NOSIGNAL);
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// Splits the program: its copy does `work`, in a session of its own and with the caller's standard streams, and ends with the code
/// that comes of it. The caller gets what the copy tells first.
///
/// # Errors
/// As for `split`; and where the copy is killed before it has begun.
pub fn in_background(work: impl FnOnce(&Herald) -> u8) -> io::Result<u8> {
    match split()? {
        Side::Supervisor(channel) => {
            // It fails only for the first of a session, which a new process is not.
            let _ = rustix::process::setsid();
            let code = work(&Herald(channel));
            std::process::exit(code.into())
        }
        Side::Client(mut channel) => {
            let mut said = [0];
            io::Read::read_exact(&mut channel, &mut said)?;
            let [code] = said;
            Ok(code)
        }
    }
}

/// Makes the copy a process of its own: another session, no descriptors but `keep`, and the caller's three standard streams,
/// which are given back as descriptors for the launch's process to use.
pub(crate) fn detach(keep: &[RawFd]) -> io::Result<[OwnedFd; 3]> {
    rustix::process::setsid()?;
    let streams = [
        copy(&std::io::stdin())?,
        copy(&std::io::stdout())?,
        copy(&std::io::stderr())?,
    ];
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut keep = keep.to_vec();
    keep.extend(streams.iter().map(|fd| fd.as_raw_fd()));
    close_others(&keep)?;
    // The directory that the caller was in may be on a file system that somebody wants to unmount.
    std::env::set_current_dir("/")?;
    // Only a name in lists of processes.
    let _ = rustix::thread::set_name(c"fcpipe-super");
    Ok(streams)
}

/// A copy above the standard streams, even where one of those is closed.
fn copy(fd: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    match rustix::io::fcntl_dupfd_cloexec(fd, 3) {
        Ok(copy) => Ok(copy),
        // The caller has closed it.
        Err(rustix::io::Errno::BADF) => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
            Ok(rustix::io::fcntl_dupfd_cloexec(&null, 3)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the caller had inherited and does not know of: a pipe whose end somebody waits for.
#[allow(unsafe_code, reason = "inherited descriptors are known by number only")]
fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for fd in open {
        // The listing's own descriptor is among them, and closed by now.
        if fd > 2 && !keep.contains(&fd) && is_open(fd) {
            // SAFETY: nothing in this copy of the program uses it: what the program itself had opened before is dropped without
            // use, because this process ends by `exit`.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok(())
}

fn is_open(fd: RawFd) -> bool {
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}
