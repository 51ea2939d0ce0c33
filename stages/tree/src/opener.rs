//! Opening the files that a scan has seen, and no others.
//!
//! A file is opened below its source without following a link, and its stamp is compared with the
//! scan's, at the latest when it was read ([`SourceFile::check`]). So bytes that were read are those of
//! the file the scan saw, or there is an error.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::compose::Composed;
use crate::model::{Kind, NodeId};
use crate::scan::{Scan, ScanRoot, Stamp};
use crate::sys;

/// Why a file of a source can't be read, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is not what the scan saw.
    #[error("{path:?} changed since it was scanned: {what}")]
    Changed { path: PathBuf, what: &'static str },
    #[error("{path:?}: can't open it")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path:?} is not a regular file of a source")]
    NotAFile { path: PathBuf },
}

/// Opens files of a [`Composed`]'s sources. One for each thread: it keeps the directory of the last
/// file open, so that files in canonical order cost one openat and one fstat each.
#[derive(Debug)]
pub struct Opener {
    /// Counted for this thread alone: every file that is open counts as well, and one counter for all
    /// threads would go from processor to processor with each of them.
    composed: Arc<Composed>,
    top: Option<(usize, OwnedFd)>,
    /// By layer and the node in its scan.
    parent: Option<((usize, NodeId), OwnedFd)>,
}

/// A file that is open and was, when opened, what the scan saw.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    stamp: Stamp,
    composed: Arc<Composed>,
    node: NodeId,
}

impl Opener {
    pub(crate) fn new(composed: Composed) -> Self {
        Opener {
            composed: Arc::new(composed),
            top: None,
            parent: None,
        }
    }

    /// Opens the content of a regular file. `node` is of [`Composed::tree`].
    pub fn open(&mut self, node: NodeId) -> Result<SourceFile, OpenError> {
        let file = self.open_unchecked(node)?;
        file.check()?;
        Ok(file)
    }

    /// As [`Opener::open`], but what was opened may be something else than the scan saw, of any type:
    /// nothing that is read counts before [`SourceFile::check`] was content with it. For small files,
    /// where looking once instead of twice is to be felt.
    pub fn open_unchecked(&mut self, node: NodeId) -> Result<SourceFile, OpenError> {
        // A cheap clone, so that borrowing its scan leaves `self` free.
        let composed = Arc::clone(&self.composed);
        let not_a_file = || OpenError::NotAFile {
            path: composed.source_path(node),
        };
        let (layer, scan, scanned) = composed.scanned(node).ok_or_else(not_a_file)?;
        if !matches!(scan.tree.kind(scanned), Kind::File { .. }) {
            return Err(not_a_file());
        }
        let stamp = scan.stamps[scanned.index()];
        let opened = match scan.root {
            ScanRoot::File => open_source_file(scan),
            ScanRoot::Directory => self.open_below(layer, scan, scanned),
        };
        let file = opened.map_err(|errno| failure(&composed, node, errno))?;
        Ok(SourceFile {
            file: file.into(),
            stamp,
            composed,
            node,
        })
    }

    fn open_below(&mut self, layer: usize, scan: &Scan, node: NodeId) -> Result<OwnedFd, Errno> {
        let parent = scan.tree.parent(node);
        let key = (layer, parent);
        let dir = match self.parent.take() {
            Some((known, dir)) if known == key => dir,
            _ => {
                let path = scan.tree.path(parent);
                let names: Vec<&[u8]> = path[1..]
                    .split(|&b| b == b'/')
                    .filter(|name| !name.is_empty())
                    .collect();
                sys::open_below(self.enter(layer, scan)?, &names, scan.cross_mounts)?
            }
        };
        let file = sys::open_file(dir.as_fd(), scan.tree.name(node));
        self.parent = Some((key, dir));
        file
    }

    /// The source's own directory, which must still be the one that was scanned.
    fn enter(&mut self, layer: usize, scan: &Scan) -> Result<BorrowedFd<'_>, Errno> {
        let fd = match self.top.take() {
            Some((known, fd)) if known == layer => fd,
            _ => {
                let found = sys::look_at_source(&scan.source)?;
                let fd = sys::enter(found.as_fd(), scan.entrance)?;
                let (now, _) = sys::stamp_of_open(fd.as_fd())?;
                let then = scan.stamps[NodeId::ROOT.index()];
                if (now.dev, now.ino) != (then.dev, then.ino) {
                    return Err(Errno::STALE);
                }
                fd
            }
        };
        Ok(self.top.insert((layer, fd)).1.as_fd())
    }
}

fn open_source_file(scan: &Scan) -> Result<OwnedFd, Errno> {
    let found = sys::look_at_source(&scan.source)?;
    // Looked at before it is opened: a device that has come in its place is never opened.
    let (_, mode) = sys::stamp_of_open(found.as_fd())?;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(Errno::STALE);
    }
    sys::open_source(found.as_fd(), &scan.source)
}

fn failure(composed: &Composed, node: NodeId, errno: Errno) -> OpenError {
    let path = composed.source_path(node);
    let what = match errno {
        Errno::NOENT => "it is gone",
        // O_NOFOLLOW met a symlink; a directory of the path became something else; a socket can't
        // be opened.
        Errno::LOOP => "it, or a directory above it, became a symlink",
        Errno::NOTDIR => "a directory above it became something else",
        Errno::NXIO => "it became a socket or a device",
        Errno::STALE => "its source was replaced",
        Errno::XDEV => "something was mounted above it",
        _ => {
            return OpenError::Io {
                path,
                source: errno.into(),
            };
        }
    };
    OpenError::Changed { path, what }
}

impl SourceFile {
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes, as the scan has it.
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    /// The node in [`Composed::tree`].
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the scan saw of it.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// On the host, for messages.
    pub fn path(&self) -> PathBuf {
        self.composed.source_path(self.node)
    }

    /// To be called when all was read: an error says that what was read may not be what was scanned.
    pub fn check(&self) -> Result<(), OpenError> {
        let (now, mode) = sys::stamp_of_open(self.file.as_fd())
            .map_err(|errno| failure(&self.composed, self.node, errno))?;
        let what = if FileType::from_raw_mode(mode) != FileType::RegularFile {
            Some("it is not a regular file any more")
        } else {
            self.stamp.difference(&now)
        };
        match what {
            None => Ok(()),
            Some(what) => Err(OpenError::Changed {
                path: self.path(),
                what,
            }),
        }
    }
}

impl AsFd for SourceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
