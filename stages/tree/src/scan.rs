//! Reading a source's metadata from the host.
//!
//! Begin with [`scan`]. `walk` lists directories from several threads, `assemble` turns what they
//! found into a [`Tree`] with canonical numbers. Nothing but directories is opened, except a file with
//! holes (to ask where they are) and a source that is itself a file.

mod assemble;
mod content_id;
mod exclude;
mod holes;
mod route;
mod settle;
mod single;
mod stamp;
mod trust;
mod walk;
mod xattrs;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bstr::ByteSlice;
use fcpipe_spec::Content;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::model::{Kind, NodeId, Timestamp, Tree, TreeBuilder};
use crate::sys::{self, Entrance};

use crate::index::{Encoder, FieldChange, Index, Seen};
pub use fcpipe_spec::Trust;
pub(crate) use trust::{Fields, Manner};

pub(crate) use assemble::made_directory;
pub use content_id::ContentId;
pub use stamp::Stamp;
pub(crate) use stamp::digest_stamps;
pub(crate) use xattrs::Set;

/// The name of the only file in the [`Tree`] of a source that is a file.
pub const FILE_NAME: &[u8] = b"file";

/// How to scan. [`Default`]: other mounts are not crossed, all processors work.
#[derive(Clone, Copy, Default)]
pub struct ScanOptions<'a> {
    /// `rbind`: go into what other file systems are mounted below the source.
    pub cross_mounts: bool,
    /// What shows that a file's content may have changed.
    pub trust: Trust,
    /// The source never changes: with an index of it, it is not walked.
    pub immutable: bool,
    /// What the source is in the user's words: with an index made under the same words, it is not walked, and
    /// nothing else enters the digest of its stamps.
    pub declared: Option<&'a str>,
    /// How many threads work; `None`: one a processor.
    pub threads: Option<NonZeroUsize>,
    /// Host paths that stay out wherever they are met: the store, the state directory, the output.
    /// They are compared by device and inode; those that do not exist are ignored.
    pub leave_out: &'a [PathBuf],
    /// Asked now and then; `true` ends the scan with [`ScanError::Cancelled`].
    pub cancel: Option<&'a (dyn Fn() -> bool + Sync)>,
    /// Told how many entries were seen so far, about once per thousand; from any thread.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanRoot {
    /// The Tree's root is the source itself.
    Directory,
    /// The Tree's root is made up, and holds the source under [`FILE_NAME`].
    File,
}

/// A source's metadata at one time.
#[derive(Debug, Clone)]
pub struct Scan {
    /// As it was asked for.
    pub source: PathBuf,
    pub root: ScanRoot,
    /// Owners as they are on the host: [`crate::compose`] maps them by `content`.
    pub tree: Arc<Tree>,
    /// By [`NodeId`]; zeros for what stands in for a directory that could not be seen.
    pub stamps: Vec<Stamp>,
    /// Sorted, so that they are the same in every run.
    pub warnings: Vec<ScanWarning>,
    pub content: Content,
    /// The sum of all regular files' sizes, each hard-linked file once.
    pub bytes: u64,
    /// How many names were found, without the root's.
    pub entries: u64,
    /// The coarse clock before anything was read. A file whose times are not older may have been
    /// written again within the clock's grain.
    pub started: Timestamp,
    /// There where a regular file may change after it was looked at without a trace in its stamp. A
    /// number that nobody had before, so that no other scan has the same digest of stamps.
    pub(crate) unsettled: Option<[u8; 16]>,
    /// What of the stamps counts.
    pub(crate) fields: Fields,
    /// A source that is a file, as statx has it: there is no index of it.
    pub(crate) seen: Option<Seen>,
    /// By node, the hash of each regular file; empty where contents are not read.
    pub(crate) contents: Vec<[u8; 32]>,
    /// Of the words in which the user declared what the source is; it stands for all stamps.
    pub(crate) declared: Option<blake3::Hash>,
    pub(crate) cross_mounts: bool,
    pub(crate) entrance: Entrance,
}

impl Scan {
    /// An empty directory that is nowhere on the host.
    pub(crate) fn of_nothing() -> Scan {
        let (tree, _) = TreeBuilder::new(made_directory(Timestamp::default()), Vec::new()).finish();
        Scan {
            source: PathBuf::new(),
            root: ScanRoot::Directory,
            tree: Arc::new(tree),
            stamps: vec![Stamp::default()],
            warnings: Vec::new(),
            content: Content::default(),
            bytes: 0,
            entries: 0,
            started: Timestamp::default(),
            unsettled: None,
            fields: Fields::Full,
            seen: None,
            contents: Vec::new(),
            declared: None,
            cross_mounts: false,
            entrance: Entrance::AsSeen,
        }
    }

    /// The node that is the source: the Tree's root, or the only file in it.
    pub fn top(&self) -> NodeId {
        match self.root {
            ScanRoot::Directory => NodeId::ROOT,
            ScanRoot::File => NodeId(1),
        }
    }

    /// Changes when the content of any regular file may have changed. Directories do not enter: what
    /// they hold is in [`Tree::digest`].
    pub fn digest_of_stamps(&self) -> blake3::Hash {
        digest_stamps(
            self.file_nodes().map(|id| Some((0, self, id))),
            std::iter::once(self),
        )
    }

    /// Whether every change that is made to a regular file's content after the scan shows in its stamp.
    /// Where not, the digest of the stamps is one that never comes again.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_none()
    }

    /// Where a node is on the host.
    pub fn source_path(&self, node: NodeId) -> PathBuf {
        match self.root {
            ScanRoot::File => self.source.clone(),
            ScanRoot::Directory => join(&self.source, &self.tree.path(node)[1..]),
        }
    }

    fn file_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.tree
            .nodes()
            .filter(|&id| matches!(self.tree.kind(id), Kind::File { .. }))
    }
}

/// Something that a user should hear of; the scan is whole all the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScanWarning {
    /// It is the store, the state directory or the output (row 13).
    LeftOut { path: PathBuf },
    /// Another file system is mounted on this directory: an empty directory stands for it, mode 0755,
    /// owner 0:0, with its parent's mtime.
    NotCrossed { path: PathBuf },
    /// A file is mounted on this name, and what it covers can't be seen: nothing stands for it.
    CoveredFile { path: PathBuf },
    /// An attribute that belongs to the file system and not to the file; `path` is the first of
    /// `count` that have it.
    ForeignAttribute {
        name: Vec<u8>,
        path: PathBuf,
        count: u64,
    },
}

impl std::fmt::Display for ScanWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ScanWarning::LeftOut { path } => {
                write!(f, "{path:?} is fcpipe's own and was left out of the image")
            }
            ScanWarning::NotCrossed { path } => write!(
                f,
                "{path:?} is a mount point, which `bind` does not cross: it is an empty directory in \
                 the image (`rbind` takes what is mounted there)"
            ),
            ScanWarning::CoveredFile { path } => write!(
                f,
                "{path:?} is a mounted file, which `bind` does not cross: it was left out (`rbind` \
                 takes it)"
            ),
            ScanWarning::ForeignAttribute { name, path, count } => write!(
                f,
                "the attribute {:?} of {path:?} (and of {} more) belongs to the host's file system \
                 and was left out",
                name.as_bstr(),
                count - 1
            ),
        }
    }
}

/// Why there is no scan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    #[error("{path:?} does not exist")]
    Missing { path: PathBuf },
    #[error("{path:?} is {kind}: only a directory or a regular file can be a source")]
    Special { path: PathBuf, kind: &'static str },
    #[error("{path:?}: can't {action}")]
    Io {
        path: PathBuf,
        /// What was tried, as in "can't …".
        action: &'static str,
        source: io::Error,
    },
    #[error("{path:?}: can't read the attribute {:?}", name.as_bstr())]
    Attribute {
        path: PathBuf,
        name: Vec<u8>,
        source: io::Error,
    },
    #[error("{path:?} became something else while it was scanned")]
    Changed { path: PathBuf },
    #[error(
        "{path:?} is a sparse file of {size} bytes: 16 TiB less 4 KiB is the most a file can have"
    )]
    FileTooLarge { path: PathBuf, size: u64 },
    #[error("{path:?} holds more names than one image can")]
    TooMany { path: PathBuf },
    #[error("{path:?} is fcpipe's own store, state directory or output, and can't be a source")]
    Own { path: PathBuf },
    #[error("the exclude pattern {pattern:?} can't be used: {reason}")]
    Pattern { pattern: String, reason: String },
    #[error("the scan was cancelled")]
    Cancelled,
}

impl ScanError {
    pub(crate) fn io(path: PathBuf, action: &'static str, errno: Errno) -> Self {
        ScanError::Io {
            path,
            action,
            source: errno.into(),
        }
    }
}

/// Reads the metadata of everything below `source`, which may also be a regular file.
///
/// The result does not depend on the number of threads nor on the order in which the host lists
/// directories. Links to the source itself are followed, no others.
///
/// A name that is listed but gone when it is looked at is as if it had not been listed: a scan is not
/// a snapshot, and the same scan a moment later would not have seen it. Whatever else can't be read
/// is an error that names it.
pub fn scan(
    source: &Path,
    content: &Content,
    options: &ScanOptions<'_>,
) -> Result<Scan, ScanError> {
    match look(source, content, options, None, false)? {
        Found::Scanned { scan, .. } => Ok(*scan),
        // There is no index that it could be the same as.
        Found::Same { .. } => Err(ScanError::Changed {
            path: source.to_path_buf(),
        }),
    }
}

/// Something that is not as it was at the last scan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScanChange {
    /// Relative to the source; empty for the source itself.
    pub path: PathBuf,
    pub what: Difference,
}

/// How something differs from the last scan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    New,
    Gone,
    Changed(Vec<FieldChange>),
}

/// What came of a look.
pub(crate) enum Found {
    /// Everything is as the index has it.
    Same {
        index: Index,
        asked: (Timestamp, Manner),
    },
    Scanned {
        scan: Box<Scan>,
        /// The index of this scan, if there can be one.
        encoder: Option<Encoder>,
        /// What is not as the index has it, if there is one.
        changes: Option<Vec<ScanChange>>,
    },
}

/// A scan that reads what is not as `index` has it. `encode`: also make the next index.
pub(crate) fn look(
    source: &Path,
    content: &Content,
    options: &ScanOptions<'_>,
    index: Option<Index>,
    encode: bool,
) -> Result<Found, ScanError> {
    let started = sys::now();
    let found = sys::look_at_source(source).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => ScanError::Missing {
            path: source.to_path_buf(),
        },
        errno => ScanError::io(source.to_path_buf(), "look at it", errno),
    })?;
    let f_type = rustix::fs::fstatfs(&found).map_or(0, |fs| fs.f_type as u64);
    let request = Request {
        source,
        content,
        options,
        started,
        manner: Manner::new(options.trust, f_type),
        own: own(options.leave_out),
    };
    let looked = sys::stat(found.as_fd(), c"")
        .map_err(|errno| ScanError::io(source.to_path_buf(), "look at it", errno))?;
    let stamp = sys::stamp_of(&looked);
    if request.own.contains(&(stamp.dev, stamp.ino)) {
        return Err(ScanError::Own {
            path: source.to_path_buf(),
        });
    }
    let kind = match FileType::from_raw_mode(u32::from(looked.stx_mode)) {
        FileType::Directory => return look_directory(&request, found.as_fd(), index, encode),
        FileType::RegularFile => {
            return Ok(Found::Scanned {
                scan: Box::new(single::file(&request, found.as_fd(), &looked)?),
                encoder: None,
                changes: None,
            });
        }
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown kind",
    };
    Err(ScanError::Special {
        path: source.to_path_buf(),
        kind,
    })
}

/// The scan that an index was written after; `None` where it is damaged, or about another directory.
pub(crate) fn remembered(
    source: &Path,
    content: &Content,
    options: &ScanOptions<'_>,
    index: &Index,
    (started, manner): (Timestamp, Manner),
) -> Result<Option<Scan>, ScanError> {
    let request = Request {
        manner,
        source,
        content,
        options,
        started,
        own: Vec::new(),
    };
    // A source that is not walked may have been mounted again: then nothing in it could be opened by what
    // the index has.
    let there = sys::look_at_source(source).is_ok_and(|found| is_of(index, found.as_fd()));
    if !there {
        return Ok(None);
    }
    let walked = walk::remembered(index);
    let assembled = assemble::directory(&request, walked, Some(index), Entrance::AsSeen, false)?;
    Ok(assembled.map(|assembled| assembled.scan))
}

/// What one call of [`scan`] was asked.
struct Request<'a> {
    source: &'a Path,
    content: &'a Content,
    options: &'a ScanOptions<'a>,
    started: Timestamp,
    manner: Manner,
    /// Device and inode of what stays out.
    own: Vec<(u64, u64)>,
}

fn look_directory(
    request: &Request<'_>,
    found: BorrowedFd<'_>,
    mut index: Option<Index>,
    mut encode: bool,
) -> Result<Found, ScanError> {
    let enter = |entrance| {
        sys::enter(found, entrance).map_err(|errno| {
            ScanError::io(request.source.to_path_buf(), "open the directory", errno)
        })
    };
    if (request.options.immutable || request.options.declared.is_some())
        && let Some(known) = index.take_if(|index| stands_still(request, index, found))
    {
        return Ok(Found::Same {
            index: known,
            asked: (request.started, request.manner),
        });
    }
    let mut entrance = Entrance::AsSeen;
    let mut walked = walk::directory(request, enter(entrance)?.as_fd(), index.as_ref())?;
    if walked.covered {
        // What is below other mounts is nothing that an index tells of.
        encode = false;
        // With the privilege for it, look below the mounts as a non-recursive bind would show it.
        if let Ok(below) = enter(Entrance::Uncovered) {
            entrance = Entrance::Uncovered;
            index = None;
            walked = walk::directory(request, below.as_fd(), None)?;
        }
    }
    if walked.is_same()
        && let Some(index) = index
    {
        return Ok(Found::Same {
            index,
            asked: (request.started, request.manner),
        });
    }
    let changes = index.as_ref().map(|_| {
        let mut changes = std::mem::take(&mut walked.changes);
        changes.sort();
        changes
    });
    let mut assembled = assemble::directory(request, walked, index.as_ref(), entrance, encode)?;
    if assembled.is_none() {
        // The index was damaged between two looks at it.
        let walked = walk::directory(request, enter(entrance)?.as_fd(), None)?;
        assembled = assemble::directory(request, walked, None, entrance, encode)?;
    }
    let Some(assembled) = assembled else {
        return Err(ScanError::Changed {
            path: request.source.to_path_buf(),
        });
    };
    Ok(Found::Scanned {
        scan: Box::new(assembled.scan),
        encoder: assembled.encoder,
        changes,
    })
}

/// Whether a source that never changes is the one that the index is about.
fn stands_still(request: &Request<'_>, index: &Index, found: BorrowedFd<'_>) -> bool {
    request.options.declared.is_some() || is_of(index, found)
}

/// Whether `found` is the very directory that the index is about.
fn is_of(index: &Index, found: BorrowedFd<'_>) -> bool {
    let (Some(block), Ok(now)) = (index.block(0), sys::stat(found, c"")) else {
        return false;
    };
    let (now, then) = (sys::stamp_of(&now), block.head().seen.stamp());
    (now.dev, now.ino) == (then.dev, then.ino)
}

fn own(paths: &[PathBuf]) -> Vec<(u64, u64)> {
    paths
        .iter()
        .filter_map(|path| {
            let found = sys::look_at_source(path).ok()?;
            let stat = sys::stat(found.as_fd(), c"").ok()?;
            let stamp = sys::stamp_of(&stat);
            Some((stamp.dev, stamp.ino))
        })
        .collect()
}

/// A host path from bytes relative to a source.
pub(crate) fn join(source: &Path, relative: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    if relative.is_empty() {
        source.to_path_buf()
    } else {
        source.join(std::ffi::OsStr::from_bytes(relative))
    }
}
