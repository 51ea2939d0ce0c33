//! The second implementation: a staged copy of the tree, and e2fsprogs' `mke2fs -d` over it.
//!
//! This is how images were made before there was a native writer, and it stays to be compared with. It
//! copies every byte twice, needs root where owners differ from the caller, and inherits mke2fs's
//! limits (whole seconds, quadratic time in large flat directories).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bstr::ByteSlice as _;
use fcpipe_tree::{Composed, HOLE_UNIT, Kind, NodeId, Opener, Tree};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// What goes wrong on the way through mke2fs.
#[derive(Debug, thiserror::Error)]
pub enum Mke2fsError {
    /// A source could not be read, or changed meanwhile.
    #[error(transparent)]
    Source(#[from] fcpipe_tree::OpenError),
    /// The staged copy could not be made.
    #[error("staging {}: {what}: {source}", path.as_bstr())]
    Stage {
        path: Vec<u8>,
        what: &'static str,
        source: io::Error,
    },
    /// mke2fs is not installed, or did not start.
    #[error("mke2fs: {source}")]
    Start { source: io::Error },
    /// mke2fs refused.
    #[error("mke2fs failed ({status}): {message}")]
    Failed {
        status: std::process::ExitStatus,
        message: String,
    },
    /// Somebody asked for an end.
    #[error("cancelled")]
    Cancelled,
}

/// How large an image of a tree is made: what it needs and 30 %, at least 128 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// Bytes.
    pub size: u64,
    pub inodes: u64,
}

impl Sizing {
    const BLOCK: u64 = 4096;
    const LEAST: u64 = 128 << 20;

    /// Sizes an image from metadata alone; `least` is the size that the spec asks for.
    pub fn of(tree: &Tree, least: Option<u64>) -> Sizing {
        let mut blocks = 0u64;
        for node in tree.nodes() {
            blocks += match tree.kind(node) {
                Kind::File { size } => match tree.data_runs(node) {
                    Some(runs) => runs.iter().map(|run| u64::from(run.end - run.start)).sum(),
                    None => size.div_ceil(Self::BLOCK),
                },
                Kind::Directory => {
                    let names: u64 = tree.entries(node).map(|e| 12 + e.name.len() as u64).sum();
                    1 + names.div_ceil(Self::BLOCK / 2)
                }
                Kind::Symlink => u64::from(tree.target(node).len() >= 60),
                _ => 0,
            };
            blocks += u64::from(!tree.xattrs(node).is_empty());
        }
        let inodes = (tree.len() as u64 + 16) * 13 / 10;
        let tables = inodes.div_ceil(Self::BLOCK / 256);
        let size = ((blocks + tables) * 13 / 10 + 1024) * Self::BLOCK;
        Sizing {
            size: size.max(Self::LEAST).max(least.unwrap_or(0)),
            inodes,
        }
    }
}

/// Writes an image of `composed` to `image`, a file of any size that is overwritten.
///
/// `scratch` is an empty directory of the caller's; the staged copy is made in it and removed again.
///
/// # Errors
/// See [`Mke2fsError`]. The staged copy is removed in any case.
pub fn build(
    composed: &Composed,
    sizing: Sizing,
    journal: bool,
    image: &File,
    scratch: &Path,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Mke2fsError> {
    let staged = scratch.join("staged");
    let result = stage(composed, &staged, cancelled).and_then(|()| {
        image
            .set_len(0)
            .and_then(|()| image.set_len(sizing.size))
            .map_err(|source| Mke2fsError::Stage {
                path: b"the image".to_vec(),
                what: "cannot be sized",
                source,
            })?;
        run(&staged, sizing, journal, image, cancelled)
    });
    // What is left here goes with the scratch directory, which is its owner's to remove.
    let _ = std::fs::remove_dir_all(&staged);
    result
}

fn run(
    staged: &Path,
    sizing: Sizing,
    journal: bool,
    image: &File,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Mke2fsError> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    // Not on the PATH of everybody who may run it.
    path.push(":/usr/sbin:/sbin");
    let mut child = Command::new("mke2fs")
        .env("PATH", path)
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0",
        ])
        .args([
            "-O",
            if journal {
                "has_journal"
            } else {
                "^has_journal"
            },
        ])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .args(["-N", &sizing.inodes.to_string(), "-d"])
        .arg(staged)
        .arg(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            image.as_raw_fd()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Mke2fsError::Start { source })?;
    let stderr = child.stderr.take();
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            // Half a message is better than none.
            let _ = io::Read::read_to_end(&mut io::Read::take(&mut stderr, 64 << 10), &mut text);
        }
        text
    });
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .map_err(|source| Mke2fsError::Start { source })?
        {
            break status;
        }
        if cancelled() {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Mke2fsError::Cancelled);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let message = complaints.join().unwrap_or_default();
    match status.success() {
        true => Ok(()),
        false => Err(Mke2fsError::Failed {
            status,
            message: message.as_bstr().trim().as_bstr().to_string(),
        }),
    }
}

/// Copies the tree to a new directory, with everything that mke2fs reads.
fn stage(composed: &Composed, to: &Path, cancelled: &dyn Fn() -> bool) -> Result<(), Mke2fsError> {
    let failed = |what, source: Errno| Mke2fsError::Stage {
        path: b"/".to_vec(),
        what,
        source: source.into(),
    };
    rustix::fs::mkdir(to, Mode::RWXU).map_err(|e| failed("cannot be made", e))?;
    let root = open_directory(rustix::fs::CWD, to.as_os_str())
        .map_err(|e| failed("cannot be opened", e))?;
    let mut stager = Stager {
        tree: composed.tree(),
        opener: composed.opener(),
        root: &root,
        linked: HashMap::new(),
        cancelled,
    };
    stager.directory(&root, NodeId::ROOT, Path::new(""))?;
    stager.metadata(root.as_fd(), OsStr::new("."), NodeId::ROOT)
}

struct Stager<'a> {
    tree: &'a Tree,
    opener: Opener,
    root: &'a OwnedFd,
    /// Nodes with several names, and where the first one was put.
    linked: HashMap<NodeId, PathBuf>,
    cancelled: &'a dyn Fn() -> bool,
}

impl Stager<'_> {
    fn directory(&mut self, dir: &OwnedFd, node: NodeId, path: &Path) -> Result<(), Mke2fsError> {
        let tree = self.tree;
        for entry in tree.entries(node) {
            if (self.cancelled)() {
                return Err(Mke2fsError::Cancelled);
            }
            let name = OsStr::from_bytes(entry.name);
            let here = path.join(name);
            if let Some(first) = self.linked.get(&entry.node) {
                rustix::fs::linkat(self.root, first, dir, name, AtFlags::empty())
                    .map_err(|e| self.failed(entry.node, "cannot be linked", e))?;
                continue;
            }
            if tree.names(entry.node) > 1 {
                self.linked.insert(entry.node, here.clone());
            }
            self.node(dir, name, entry.node, &here)?;
            self.metadata(dir.as_fd(), name, entry.node)?;
        }
        Ok(())
    }

    fn node(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        node: NodeId,
        path: &Path,
    ) -> Result<(), Mke2fsError> {
        let mode = Mode::RUSR | Mode::WUSR;
        let special = |kind, device| rustix::fs::mknodat(dir, name, kind, mode, device);
        let made = match self.tree.kind(node) {
            Kind::Directory => {
                rustix::fs::mkdirat(dir, name, Mode::RWXU)
                    .map_err(|e| self.failed(node, "cannot be made", e))?;
                let inner = open_directory(dir, name)
                    .map_err(|e| self.failed(node, "cannot be opened", e))?;
                return self.directory(&inner, node, path);
            }
            Kind::File { size } => return self.file(dir, name, node, size),
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(self.tree.target(node)), dir, name)
            }
            Kind::CharDevice { major, minor } => {
                special(FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            Kind::BlockDevice { major, minor } => {
                special(FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
            Kind::Fifo => special(FileType::Fifo, 0),
            Kind::Socket => special(FileType::Socket, 0),
        };
        made.map_err(|e| self.failed(node, "cannot be made", e))
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        node: NodeId,
        size: u64,
    ) -> Result<(), Mke2fsError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.failed(node, "cannot be made", e))?;
        let source = self.opener.open(node)?;
        rustix::fs::ftruncate(&to, size).map_err(|e| self.failed(node, "cannot be sized", e))?;
        let whole = [fcpipe_tree::DataRun {
            start: 0,
            end: size.div_ceil(HOLE_UNIT) as u32,
        }];
        for run in self.tree.data_runs(node).unwrap_or(&whole) {
            let mut at = u64::from(run.start) * HOLE_UNIT;
            let end = (u64::from(run.end) * HOLE_UNIT).min(size);
            let mut buffer = vec![0; (end - at).min(1 << 20) as usize];
            while at < end {
                let most = buffer.len().min((end - at) as usize);
                let read = rustix::io::pread(source.file(), &mut buffer[..most], at)
                    .map_err(|e| self.failed(node, "cannot be read", e))?;
                if read == 0 {
                    break; // It shrank: the check below says so.
                }
                let mut written = 0;
                while written < read {
                    written += rustix::io::pwrite(&to, &buffer[written..read], at + written as u64)
                        .map_err(|e| self.failed(node, "cannot be written", e))?;
                }
                at += read as u64;
            }
        }
        source.check()?;
        Ok(())
    }

    /// Owner, xattrs, mode and time, in the order in which none undoes another.
    fn metadata(&self, dir: impl AsFd, name: &OsStr, node: NodeId) -> Result<(), Mke2fsError> {
        let meta = self.tree.meta(node);
        let dir = dir.as_fd();
        let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
        rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(
            |e| {
                self.failed(
                    node,
                    "cannot be given its owner (mke2fs as builder needs root)",
                    e,
                )
            },
        )?;
        for xattr in self.tree.xattrs(node) {
            let path = Path::new("/proc/self/fd")
                .join(dir.as_raw_fd().to_string())
                .join(name);
            rustix::fs::lsetxattr(
                &path,
                OsStr::from_bytes(&xattr.name),
                &xattr.value,
                XattrFlags::empty(),
            )
            .map_err(|e| self.failed(node, "cannot be given its xattrs", e))?;
        }
        if self.tree.kind(node) != Kind::Symlink {
            rustix::fs::chmodat(
                dir,
                name,
                Mode::from_raw_mode(meta.mode.into()),
                AtFlags::empty(),
            )
            .map_err(|e| self.failed(node, "cannot be given its mode", e))?;
        }
        let time = Timespec {
            tv_sec: meta.mtime.secs,
            tv_nsec: meta.mtime.nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.failed(node, "cannot be given its time", e))
    }

    fn failed(&self, node: NodeId, what: &'static str, source: Errno) -> Mke2fsError {
        Mke2fsError::Stage {
            path: self.tree.path(node),
            what,
            source: source.into(),
        }
    }
}

fn open_directory(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}
