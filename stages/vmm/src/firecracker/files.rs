//! The names in the launch's directory by which Firecracker reaches what it needs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::console::Capture;
use crate::error::VmmError;
use crate::firecracker::jail::Jail;
use crate::firecracker::{API_SOCKET, LOG, METRICS, VSOCK_SOCKET};
use crate::vsock::SocketDir;

/// The directory that is Firecracker's working directory: the launch's, or the root of a jail in it.
pub(crate) struct Home {
    /// Absolute.
    pub(crate) dir: PathBuf,
    pub(crate) at: SocketDir,
    jail: Option<Jail>,
}

impl Home {
    /// Opens the directory and removes what an earlier machine left there: Firecracker takes no socket's name over.
    pub(crate) fn open(dir: &Path, jail: Option<Jail>) -> Result<Self, VmmError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| VmmError::Io { what, path, source }
        };
        let dir = std::path::absolute(dir).map_err(failed("no such directory", dir))?;
        let at =
            SocketDir::open(&dir).map_err(failed("cannot open the launch's directory", &dir))?;
        let home = Self { dir, at, jail };
        for name in [API_SOCKET, VSOCK_SOCKET, LOG, METRICS] {
            home.at
                .remove(name)
                .map_err(failed("cannot remove an old socket", &home.dir.join(name)))?;
        }
        Ok(home)
    }

    /// Gives `target` the short name `name`: a symbolic link, or in a jail a mount that the process `pid` sees.
    pub(crate) fn give(
        &self,
        pid: u32,
        name: &str,
        target: &Path,
        read_only: bool,
    ) -> Result<(), VmmError> {
        let (what, given) = match &self.jail {
            None => ("cannot make a link", self.link(name, target)),
            Some(jail) => (
                "cannot be mounted in the jail",
                jail.mount(&self.at, pid, name, target, read_only),
            ),
        };
        given.map_err(|source| self.error(what, name, source))
    }

    fn link(&self, name: &str, target: &Path) -> io::Result<()> {
        let target = std::path::absolute(target)?;
        self.at.remove(name)?;
        rustix::fs::symlinkat(target, &self.at, name)?;
        Ok(())
    }

    /// A named pipe that is read from now on, and its writing end for the child: as long as the child holds that, there is
    /// a reader for the name, and when it ends, the reading does.
    pub(crate) fn pipe(
        &self,
        name: &str,
        thread: &str,
        log: &Path,
    ) -> Result<(Capture, File), VmmError> {
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
            if let Some(jail) = &self.jail {
                jail.own(&self.at, name)?;
            }
            Ok((Capture::start(thread, read, Some(log))?, File::from(write)))
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
