//! The store: outputs of stages, and the records that say which output a key has.
//!
//! ```text
//! CACHE/v1/            a directory per version of this form; others are left alone
//!   lock               shared flock while used, exclusive to collect
//!   objects/KEY/NAME.NONCE    immutable outputs, 0444
//!   records/KEY        what a stage made, self-checked
//!   notes/KEY          what was seen last time, for telling people; never needed to be right
//!   scans/             what scans remember; each file proves itself, and its writers bound how many there are
//!   locks/KEY          flock of whoever is making KEY now
//!   tmp/               files being written, where the file system has no O_TMPFILE
//! ```
//!
//! The rules that make it sound:
//! - An object's name carries a number that is never used again, so no record, however old, can name other bytes than
//!   those it was written for: after a power cut an old record may come back, but only with its own objects.
//! - A record is written after its objects. What lies under a key without a valid record belongs to nobody, and
//!   whoever holds the key's lock may remove it.
//! - Nothing is trusted after a reboot that was not synced before it.

pub mod archive;
mod collect;
pub mod content;
mod flight;
mod object;
mod past_cache;
mod record;
mod survey;
mod sync;
mod verify;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Key;
use crate::fsutil::{self, DirError};

pub use collect::{Collect, Collected};
pub(crate) use object::Keep;
pub use object::{Lease, Object, ObjectId, ObjectWriter};
pub use record::{KeptRecord, Record, Unusable};
pub use survey::{Entry, ObjectEntry, Survey, Usage};
pub use verify::{Finding, Verified};

/// The directory of this version.
const VERSION_DIR: &str = "v1";

/// What the store fails with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory can't be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The disk is full.
    #[error("no space left for {}: {}{free} bytes are free", path.display(), needed.map(|n| format!("{n} bytes needed, ")).unwrap_or_default())]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// How much was needed, where it was known.
        needed: Option<u64>,
        /// How much there is.
        free: u64,
    },
    /// Others use the store, and it was needed alone.
    #[error("{} is in use by another command", path.display())]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// An object is not there any more, or not whole.
    #[error("object {id} is missing or damaged")]
    Lost {
        /// Which.
        id: ObjectId,
    },
    /// Something else went wrong with a file.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What can be chosen at opening.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Whether to try O_TMPFILE. Without it, or where the file system has none, files are written under a temporary name.
    pub tmpfile: bool,
    /// The boot id to go by, in place of the kernel's; for tests of what a reboot does.
    pub boot_id: Option<String>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            tmpfile: true,
            boot_id: None,
        }
    }
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    objects: OwnedFd,
    records: OwnedFd,
    notes: OwnedFd,
    scans: OwnedFd,
    locks: OwnedFd,
    tmp: OwnedFd,
    tmpfile: bool,
    boot_id: String,
    /// Holds the shared lock while it is `Some`.
    in_use: Mutex<Option<File>>,
    /// Keys of records whose objects are to be synced, or looked at, behind the launch.
    pending: Mutex<BTreeSet<Key>>,
    /// Objects that end with this handle (`--cache off`): their names in `tmp`, and their locks.
    scratch: Mutex<Vec<(String, File)>>,
}

impl Store {
    /// Opens the store under the cache directory `path`, making what is missing.
    ///
    /// Refused if the directory is a symlink, belongs to somebody else or can be written by others. Temporary
    /// files and locks of processes that died are removed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, &StoreOptions::default())
    }

    /// The same with options.
    pub fn open_with(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let (path, cache) = fsutil::own_dir(path)?;
        // Objects are handed to other processes by path: keep that right when the working directory changes.
        let root = std::path::absolute(&path)
            .map_err(|e| io_error(&path, e))?
            .join(VERSION_DIR);
        let version = fsutil::own_dir_at(&cache, Path::new(VERSION_DIR), &root)
            .map_err(|e| dir_error(&cache, e))?;
        let part = |name: &str| {
            fsutil::own_dir_at(&version, Path::new(name), &root.join(name))
                .map_err(|e| dir_error(&version, e))
        };
        let store = Self {
            objects: part("objects")?,
            records: part("records")?,
            notes: part("notes")?,
            scans: part("scans")?,
            locks: part("locks")?,
            tmp: part("tmp")?,
            // Without /proc there is no way to give such a file its name.
            tmpfile: options.tmpfile && Path::new("/proc/self/fd").is_dir(),
            boot_id: options.boot_id.clone().unwrap_or_else(boot_id),
            in_use: Mutex::new(None),
            pending: Mutex::default(),
            scratch: Mutex::default(),
            root,
        };
        store.hold()?;
        store.remove_dead(&store.tmp, "tmp")?;
        store.remove_dead(&store.locks, "locks")?;
        Ok(store)
    }

    /// The directory of this version, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory for files that save looking at sources again. Whoever writes there makes each file prove itself, replaces
    /// it by renaming, and sets its time of modification when it is used; the collector may remove any at any time.
    pub fn scans_dir(&self) -> PathBuf {
        self.root.join("scans")
    }

    /// Takes the shared lock that keeps a collector out, if it is not held yet. Waits while one is at work.
    pub fn hold(&self) -> Result<(), StoreError> {
        let mut in_use = lock(&self.in_use);
        if in_use.is_none() {
            let path = self.root.join("lock");
            let io = |e| self.io(&path, e);
            let file = fsutil::open_lock(rustix::fs::CWD, &path).map_err(io)?;
            fsutil::flock(&file, FlockOperation::LockShared).map_err(io)?;
            *in_use = Some(file);
        }
        Ok(())
    }

    /// Lets the shared lock go. From here on only what is leased is safe from a collector; for launches that have all
    /// they need and live on. Running another stage takes the lock again.
    pub fn release(&self) {
        *lock(&self.in_use) = None;
    }

    /// An error about a file of the store; a full disk is told apart, and how full it is.
    fn io(&self, path: &Path, source: io::Error) -> StoreError {
        full_or(&self.objects, path, source)
    }

    /// Removes files of `dir` that nobody holds a lock on: temporary files and locks of the dead. Whoever makes such a
    /// file looks, once it has the lock, whether the file still has its name.
    fn remove_dead(&self, dir: &OwnedFd, name: &str) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let io = |e: Errno| self.io(&path, e.into());
        for entry in rustix::fs::Dir::read_from(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // Gone meanwhile, or not a file of ours: leave it.
            let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) else {
                continue;
            };
            // Locked, and it still has its name: the name is this file's, for only who holds its lock takes it away. Without
            // the second look the name could be a newer file's by now.
            let dead = fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive)
                .unwrap_or(false)
                && !fsutil::is_unlinked(&file).unwrap_or(true);
            if dead {
                let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
            }
        }
        Ok(())
    }

    /// Takes away what stands in the place of a file or a directory of the store's and is something else: damage that costs time,
    /// and nothing else. A directory with something in it is put among the temporary files and stays there.
    fn put_aside(&self, dir: impl AsFd, name: &(impl rustix::path::Arg + Copy)) {
        let what = name.to_string_lossy();
        tracing::warn!("{what:?} in the store is not what it should be, and is put aside");
        let aside = format!("aside.{}", fsutil::nonce());
        if rustix::fs::renameat(dir, *name, &self.tmp, aside.as_str()).is_ok()
            && rustix::fs::unlinkat(&self.tmp, aside.as_str(), AtFlags::empty()).is_err()
        {
            let _ = rustix::fs::unlinkat(&self.tmp, aside.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for (name, _lock) in lock(&self.scratch).drain(..) {
            let _ = rustix::fs::unlinkat(&self.tmp, name.as_str(), AtFlags::empty());
        }
    }
}

/// A file in `tmp` that is gone unless it is moved elsewhere. Its writer holds a shared flock on it as long as it
/// lives, so whoever can lock it exclusively may remove it.
#[derive(Debug)]
struct NamedTmp<'s> {
    store: &'s Store,
    name: String,
    file: File,
    moved: bool,
}

impl<'s> NamedTmp<'s> {
    fn create(store: &'s Store) -> Result<Self, StoreError> {
        loop {
            let name = format!("{}.{}", std::process::id(), fsutil::nonce());
            let io = |e| store.io(&store.root.join("tmp"), e);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file: File =
                match rustix::fs::openat(&store.tmp, name.as_str(), flags, Mode::RUSR | Mode::WUSR)
                {
                    Ok(fd) => fd.into(),
                    Err(Errno::EXIST) => continue,
                    Err(errno) => return Err(io(errno.into())),
                };
            fsutil::flock(&file, FlockOperation::LockShared).map_err(io)?;
            // Between its creation and its lock the file looked like a dead writer's, and may have been removed.
            if !fsutil::is_unlinked(&file).map_err(io)? {
                return Ok(Self {
                    store,
                    name,
                    file,
                    moved: false,
                });
            }
        }
    }

    /// Moves the file to `name` in `dir`, over whatever is there.
    fn rename(mut self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let rename = || rustix::fs::renameat(&self.store.tmp, self.name.as_str(), dir, name);
        match rename() {
            // A directory.
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.store.put_aside(dir, &name);
                rename()?;
            }
            renamed => renamed?,
        }
        self.moved = true;
        Ok(())
    }
}

impl Drop for NamedTmp<'_> {
    fn drop(&mut self) {
        if !self.moved {
            let _ = rustix::fs::unlinkat(&self.store.tmp, self.name.as_str(), AtFlags::empty());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}

fn dir_error(near: &OwnedFd, error: DirError) -> StoreError {
    match error {
        DirError::Io { path, source } => full_or(near, &path, source),
        refused @ DirError::Refused { .. } => refused.into(),
    }
}

/// `source` as an error about `path`; `near` is on the same file system.
fn full_or(near: &OwnedFd, path: &Path, source: io::Error) -> StoreError {
    let full = [Errno::NOSPC, Errno::DQUOT]
        .map(|e| Some(e.raw_os_error()))
        .contains(&source.raw_os_error());
    if full {
        return StoreError::Full {
            path: path.to_owned(),
            needed: None,
            free: free_bytes(near),
        };
    }
    io_error(path, source)
}

/// What an unprivileged writer may still write on the file system of `dir`.
fn free_bytes(dir: &OwnedFd) -> u64 {
    rustix::fs::fstatvfs(dir.as_fd()).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

/// This boot's id. Where the kernel doesn't tell, an id of its own for every opening: nothing unsynced is trusted then.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .ok()
        .filter(|id| !id.is_empty())
        .unwrap_or_else(fsutil::nonce)
}
