//! The names in the launch's directory by which Firecracker reaches what it needs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::console::Capture;
use crate::error::VmmError;
use crate::firecracker::{API_SOCKET, LOG, METRICS, VSOCK_SOCKET};
use crate::vsock::SocketDir;

/// The directory that is Firecracker's working directory.
pub(crate) struct Home {
    /// Absolute.
    pub(crate) dir: PathBuf,
    pub(crate) at: SocketDir,
}

impl Home {
    /// Opens the directory and removes what an earlier machine left there: Firecracker takes no socket's name over.
    pub(crate) fn open(dir: &Path) -> Result<Self, VmmError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| VmmError::Io { what, path, source }
        };
        let dir = std::path::absolute(dir).map_err(failed("no such directory", dir))?;
        let at =
            SocketDir::open(&dir).map_err(failed("cannot open the launch's directory", &dir))?;
        let home = Self { dir, at };
        for name in [API_SOCKET, VSOCK_SOCKET, LOG, METRICS] {
            home.at
                .remove(name)
                .map_err(failed("cannot remove an old socket", &home.dir.join(name)))?;
        }
        Ok(home)
    }

    /// Gives `target` the short name `name`.
    pub(crate) fn link(&self, name: &str, target: &Path) -> Result<(), VmmError> {
        let make = || -> io::Result<()> {
            let target = std::path::absolute(target)?;
            self.at.remove(name)?;
            rustix::fs::symlinkat(target, &self.at, name)?;
            Ok(())
        };
        make().map_err(|source| self.error("cannot make a link", name, source))
    }

    /// A named pipe that is read from now on, and its writing end for the child: as long as the child holds that, there is
    /// a reader for the name, and when it ends, the reading does.
    pub(crate) fn pipe(
        &self,
        name: &str,
        thread: &str,
        log: &str,
    ) -> Result<(Capture, File), VmmError> {
        let path = self.dir.join(log);
        let make = || -> io::Result<(Capture, File)> {
            rustix::fs::mknodat(&self.at, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            let open = |flags| {
                let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(&self.at, name, flags, Mode::empty())
            };
            // In this order neither waits for the other.
            let (read, write) = (open(OFlags::RDONLY)?, open(OFlags::WRONLY)?);
            for end in [&read, &write] {
                rustix::fs::fcntl_setfl(end, OFlags::empty())?;
            }
            Ok((
                Capture::start(thread, read, Some(&path))?,
                File::from(write),
            ))
        };
        make().map_err(|source| self.error("cannot make a pipe", name, source))
    }

    fn error(&self, what: &'static str, name: &str, source: io::Error) -> VmmError {
        VmmError::Io {
            what,
            path: self.dir.join(name),
            source,
        }
    }
}
