//! A terminal of the host's that is joined to the process's terminal in the guest: what `create --console-socket` gives away.
//!
//! The other program gets the master; the supervisor has the slave, as raw as can be, and reads and writes it as the
//! process's streams. It is the supervisor's controlling terminal, so that the kernel tells it of a new size (SIGWINCH) and of the
//! master's end (SIGHUP).

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use fcpipe_launch::Streams;
use fcpipe_proto::WindowSize;
use fcpipe_proto::host::short_path;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use crate::life::Life;
use crate::output::Output;

/// The slave's end.
pub struct Console(OwnedFd);

impl AsRawFd for Console {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Console {
    /// Makes a terminal and sends its master over the Unix socket at `path`, as OCI runtimes do.
    pub fn send_to(path: &Path) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty())?;
        let mut settings = rustix::termios::tcgetattr(&slave)?;
        // The guest's terminal does all of it: echo, lines, signals.
        settings.make_raw();
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &settings)?;

        let socket = short_path(path, |path| UnixStream::connect(path))?;
        let fds = [master.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        // With its name, as runc sends it.
        let name = [io::IoSlice::new(name.to_bytes())];
        rustix::net::sendmsg(&socket, &name, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(Console(slave))
    }

    /// Its size now.
    pub fn size(&self) -> io::Result<WindowSize> {
        let size = rustix::termios::tcgetwinsize(&self.0)?;
        Ok(WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }

    /// The process's streams.
    pub(crate) fn streams(self) -> io::Result<Streams> {
        Ok(Streams {
            stdin: Some(File::from(self.0.try_clone()?)),
            stdout: Box::new(Output::new(self.0)),
            stderr: Box::new(io::sink()),
        })
    }

    /// Passes sizes on. The caller leads a session that has no terminal yet, and blocks SIGWINCH in every thread.
    pub(crate) fn follow(&self, life: Arc<Life>) -> io::Result<()> {
        rustix::process::ioctl_tiocsctty(&self.0)?;
        let slave = Console(self.0.try_clone()?);
        let mut set = SigSet::empty();
        set.add(Signal::SIGWINCH);
        let thread = std::thread::Builder::new().name("console".to_owned());
        thread.spawn(move || {
            while set.wait().is_ok() {
                if let (Some(process), Ok(size)) = (life.process(), slave.size()) {
                    // One that has ended takes no notice.
                    let _ = process.resize(size);
                }
            }
        })?;
        Ok(())
    }
}
