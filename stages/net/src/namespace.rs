//! A network namespace by its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::error::NetError;
use crate::sys;

/// Which namespace a descriptor is of; a path may lead to another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

/// A network namespace that is held open. It lives at least as long as this does.
#[derive(Debug, Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    identity: Identity,
}

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

impl Namespace {
    /// Opens what is at `path`, and makes sure that it is a network namespace.
    pub fn open(path: &Path) -> Result<Self, NetError> {
        let open = |source: rustix::io::Errno| NetError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        // Without O_NONBLOCK a FIFO at that path would hang the launch.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(open)?;
        Self::of(fd, path)
    }

    /// A new namespace that has no name; it ends with the last process that is in it and the last descriptor of it.
    pub(crate) fn new(path: &Path) -> Result<Self, NetError> {
        let made = on_a_thread(|| {
            sys::unshare_net()?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(
                "/proc/thread-self/ns/net",
                flags,
                Mode::empty(),
            )?)
        });
        let fd = made.map_err(NetError::kernel("making a network namespace"))?;
        Self::of(fd, path)
    }

    fn of(fd: OwnedFd, path: &Path) -> Result<Self, NetError> {
        let open = |source: rustix::io::Errno| NetError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        let not = |what: &str| NetError::NotNamespace {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let stat = rustix::fs::fstat(&fd).map_err(open)?;
        if rustix::fs::fstatfs(&fd).map_err(open)?.f_type as i64 != NSFS_MAGIC {
            return Err(not(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => "a directory",
                FileType::RegularFile => {
                    "a file (nothing is mounted on it: has the namespace ended?)"
                }
                _ => "something else",
            }));
        }
        match sys::namespace_type(fd.as_fd()) {
            Ok(libc::CLONE_NEWNET) => {}
            Ok(_) => return Err(not("a namespace of another kind")),
            Err(source) => {
                return Err(NetError::Open {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        Ok(Self {
            fd: Arc::new(fd),
            path: path.to_owned(),
            identity: identity(&stat),
        })
    }

    /// Known by this process's descriptor of it: the only path that one without a name has.
    pub(crate) fn by_descriptor(self) -> Self {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into();
        Self { path, ..self }
    }

    /// The namespace of whoever asks.
    pub(crate) fn current() -> Result<Self, NetError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether it is the host's: the one of process 1, or the one that fcpipe itself is in. Interfaces there are not a container's.
    pub(crate) fn is_the_host_s(&self) -> bool {
        ["/proc/1/ns/net", "/proc/thread-self/ns/net"]
            .iter()
            .filter_map(|path| rustix::fs::stat(*path).ok())
            .any(|stat| self.identity == identity(&stat))
    }

    /// For whoever starts a process in it.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the path still leads to this namespace. One whose name was taken away lives on while something holds it.
    pub fn is_there(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| self.identity == identity(&stat))
    }

    /// Does `work` on a thread that is in the namespace, and waits for it. The thread ends there: it never has to find back.
    pub fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetError> + Send,
    ) -> Result<T, NetError> {
        let enter = |source: io::Error| NetError::Enter {
            path: self.path.clone(),
            source,
        };
        let done = on_a_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        done.map_err(enter)?
    }
}

fn identity(stat: &rustix::fs::Stat) -> Identity {
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
