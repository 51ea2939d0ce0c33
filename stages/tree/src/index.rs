//! What the last scan of a source has seen, kept in a file, so that the next one looks only at what changed.
//!
//! Begin at [`IndexDir`]. `format` is the file's form, `read` and `write` go between it and a scan.
//!
//! Architecture invariant: an index saves work and decides nothing. It is used where its hashes hold and
//! statx says now what it said then; all else is read anew. It may be deleted or damaged at any time.

mod format;
mod read;
mod write;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fcpipe_spec::Content;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::scan::ScanOptions;

pub use format::{FieldChange, FieldValue};
pub(crate) use format::{Row, Seen, flag};
pub(crate) use read::{Block, Blocks, Index};
pub(crate) use write::{Body, Encoded, Encoder};

/// How many indexes are kept; those used longest ago go first.
const MOST: usize = 256;
/// An index that was not used for so long goes.
const UNUSED: Duration = Duration::from_secs(60 * 24 * 3600);
/// A file of a writer that died is not younger than this.
const ABANDONED: Duration = Duration::from_secs(3600);
/// How old the time of the last use may be.
const USED: Duration = Duration::from_secs(24 * 3600);

/// A directory of index files, one for each source and way to scan it.
///
/// Any number of processes may use it at once: files are written beside and renamed into place.
#[derive(Debug, Clone)]
pub struct IndexDir {
    path: PathBuf,
    read_only: bool,
}

impl IndexDir {
    /// The directory is made when the first index is written. The one it is in has to be the user's own.
    pub fn new(path: PathBuf) -> Self {
        IndexDir {
            path,
            read_only: false,
        }
    }

    /// The same, but nothing is written: for a look that is to leave no trace.
    #[must_use]
    pub fn read_only(self) -> Self {
        IndexDir {
            read_only: true,
            ..self
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The index of what `identity` stands for.
    pub(crate) fn read(&self, identity: &blake3::Hash) -> Option<Index> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = self.path.join(name(identity));
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_uid != rustix::process::geteuid().as_raw()
        {
            return None;
        }
        let file = File::from(file);
        if !self.read_only {
            touch(&file);
        }
        Index::read(file, identity)
    }

    /// Puts an index in place of the one there was.
    pub(crate) fn write(&self, identity: &blake3::Hash, encoded: &Encoded) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match rustix::fs::mkdir(&self.path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let dir = rustix::fs::open(
            &self.path,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("new.{}.{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // A name that is taken is that of a dead process with the same number.
        let _ = rustix::fs::unlinkat(&dir, &*temporary, AtFlags::empty());
        let file = rustix::fs::openat(&dir, &*temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let written = write_all(File::from(file), encoded).and_then(|()| {
            Ok(rustix::fs::renameat(
                &dir,
                &*temporary,
                &dir,
                name(identity),
            )?)
        });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&dir, &*temporary, AtFlags::empty());
        }
        written?;
        self.prune();
        Ok(())
    }

    /// Removes what nobody used for long, and what dead writers left.
    fn prune(&self) {
        let Ok(all) = std::fs::read_dir(&self.path) else {
            return;
        };
        let now = SystemTime::now();
        let mut kept = Vec::new();
        for entry in all.flatten() {
            let Ok(used) = entry.metadata().and_then(|meta| meta.modified()) else {
                continue;
            };
            let age = now.duration_since(used).unwrap_or_default();
            let temporary = entry.file_name().as_bytes().starts_with(b"new.");
            if age > if temporary { ABANDONED } else { UNUSED } {
                let _ = std::fs::remove_file(entry.path());
            } else if !temporary {
                kept.push((used, entry.path()));
            }
        }
        if kept.len() > MOST {
            kept.sort_unstable();
            for (_, path) in &kept[..kept.len() - MOST] {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn write_all(file: File, encoded: &Encoded) -> io::Result<()> {
    // A file system with large folios takes memory in pieces as large as a write, and huge ones may be dear (`memory`).
    const PIECE: usize = 256 << 10;
    let mut out = BufWriter::with_capacity(PIECE, file);
    let mut pieces = encoded.pieces().flat_map(|piece| piece.chunks(PIECE));
    pieces.try_for_each(|piece| out.write_all(piece))?;
    out.flush()
}

/// Notes the use, for [`IndexDir::prune`]; about once a day.
fn touch(file: &File) {
    let used = file.metadata().and_then(|meta| meta.modified());
    let recent = used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age < USED));
    if !recent {
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        // Nothing depends on it.
        let _ = rustix::fs::futimens(file.as_fd(), &times);
    }
}

fn name(identity: &blake3::Hash) -> String {
    identity.to_hex()[..32].to_owned()
}

/// What is scanned, and how: everything that a scan's result depends on besides the file system.
pub(crate) fn identity(
    source: &Path,
    content: &Content,
    options: &ScanOptions<'_>,
) -> blake3::Hash {
    let mut h = blake3::Hasher::new_derive_key("fcpipe stat index 1");
    let mut part = |bytes: &[u8]| {
        h.update(&(bytes.len() as u64).to_le_bytes());
        h.update(bytes);
    };
    part(source.as_os_str().as_bytes());
    part(&[options.cross_mounts.into(), options.trust as u8]);
    part(options.declared.unwrap_or_default().as_bytes());
    for pattern in &content.exclude {
        part(pattern.as_bytes());
    }
    h.finalize()
}
