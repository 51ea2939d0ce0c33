//! Objects: immutable files, written once and then linked into place.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{NamedTmp, Store, StoreError, free_bytes, lock};
use crate::digest::Key;
use crate::fsutil;

/// An object's name: `KEY/NAME.NONCE`. It comes from the stage's key, not from the content, so an object of a
/// gigabyte is named without reading it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId {
    key: Key,
    file: String,
}

/// A text that is no object's name.
#[derive(Debug, thiserror::Error)]
#[error("not an object id: {text:?}")]
pub struct BadObjectId {
    /// The text.
    pub text: String,
}

impl ObjectId {
    /// The key of the stage that made it.
    pub const fn key(&self) -> Key {
        self.key
    }

    /// The name that the stage gave it; without the number that makes it the only one.
    pub fn name(&self) -> &str {
        self.file
            .rsplit_once('.')
            .map_or(&self.file, |(name, _)| name)
    }
}

impl FromStr for ObjectId {
    type Err = BadObjectId;

    fn from_str(text: &str) -> Result<Self, BadObjectId> {
        let parsed = text.split_once('/').and_then(|(key, file)| {
            is_file_name(file).then_some(())?;
            Some(Self {
                key: key.parse().ok()?,
                file: file.to_owned(),
            })
        });
        parsed.ok_or_else(|| BadObjectId {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for ObjectId {
    type Error = BadObjectId;

    fn try_from(text: String) -> Result<Self, BadObjectId> {
        text.parse()
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.key, self.file)
    }
}

/// Longest name that a stage may give an object.
pub(super) const NAME_MAX: usize = 64;

/// Lower case, digits and a few signs; never `.` or `..`, never a slash.
fn is_file_name(name: &str) -> bool {
    let fits =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(fits)
}

/// An object that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub id: ObjectId,
    /// Where it is, absolute. Never to be written to.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
}

/// Whether an object outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It waits in the store for a record that names it.
    Stored,
    /// It is removed when the [`Store`] is closed.
    Scratch,
}

/// An object being written. Dropped before `publish`, it leaves nothing behind.
#[derive(Debug)]
pub struct ObjectWriter<'s> {
    store: &'s Store,
    key: Key,
    name: String,
    keep: Keep,
    pending: Pending<'s>,
}

/// The file before it has its name.
#[derive(Debug)]
enum Pending<'s> {
    /// O_TMPFILE: no name at all.
    Unnamed(File),
    Named(NamedTmp<'s>),
}

impl ObjectWriter<'_> {
    /// The file to write to. It is empty, and open for reading and writing.
    pub const fn file(&self) -> &File {
        match &self.pending {
            Pending::Unnamed(file) => file,
            Pending::Named(tmp) => &tmp.file,
        }
    }

    /// Fails now if `bytes` more would not fit, rather than after writing most of them.
    pub fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let free = free_bytes(&self.store.objects);
        if free < bytes {
            return Err(StoreError::Full {
                path: self.store.root.join("objects"),
                needed: Some(bytes),
                free,
            });
        }
        Ok(())
    }

    /// Makes the file an object: read-only from here on, and visible under its name all at once.
    pub fn publish(self) -> Result<Object, StoreError> {
        let (store, key) = (self.store, self.key);
        let dir_path = match self.keep {
            Keep::Stored => store.root.join("objects").join(self.key.to_string()),
            Keep::Scratch => store.root.join("tmp"),
        };
        let io = |e: io::Error| store.io(&dir_path, e);
        let file = self.file();
        rustix::fs::fchmod(file, Mode::RUSR | Mode::RGRP | Mode::ROTH).map_err(|e| io(e.into()))?;
        let size = file.metadata().map_err(io)?.len();
        let file_name = match self.keep {
            Keep::Stored => self.link(&dir_path)?,
            Keep::Scratch => self.link_scratch().map_err(io)?,
        };
        let path = dir_path.join(&file_name);
        Ok(Object {
            id: ObjectId {
                key,
                file: file_name,
            },
            path,
            size,
        })
    }

    fn link(self, dir_path: &Path) -> Result<String, StoreError> {
        let store = self.store;
        let io = |e: Errno| store.io(dir_path, e.into());
        let dir = store.key_dir(&self.key, true).map_err(io)?;
        loop {
            let name = format!("{}.{}", self.name, fsutil::nonce());
            let linked = match &self.pending {
                Pending::Unnamed(file) => fsutil::link_unnamed(file, &dir, &name),
                // Linked, then dropped from tmp: unlike a rename this can't put one object over another.
                Pending::Named(tmp) => rustix::fs::linkat(
                    &store.tmp,
                    tmp.name.as_str(),
                    &dir,
                    name.as_str(),
                    AtFlags::empty(),
                ),
            };
            match linked {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(io(errno)),
            }
        }
    }

    fn link_scratch(self) -> io::Result<String> {
        let (name, file) = match self.pending {
            Pending::Unnamed(file) => {
                // Locked before it has a name, so that nobody takes it for a dead writer's.
                fsutil::flock(&file, FlockOperation::LockShared)?;
                let name = format!("{}.{}", self.name, fsutil::nonce());
                fsutil::link_unnamed(&file, &self.store.tmp, &name)?;
                (name, file)
            }
            Pending::Named(mut tmp) => {
                tmp.moved = true;
                (tmp.name.clone(), tmp.file.try_clone()?)
            }
        };
        lock(&self.store.scratch).push((name.clone(), file));
        Ok(name)
    }
}

/// An object in use: a shared lock on the open file keeps a collector away from it.
///
/// The lock belongs to the open file, not to this process: a descriptor that a child inherits holds it as well.
#[derive(Debug)]
pub struct Lease {
    /// The object, open for reading.
    pub file: File,
    /// Which it is.
    pub object: Object,
}

impl Store {
    pub(crate) fn object_writer(
        &self,
        key: Key,
        name: &str,
        keep: Keep,
    ) -> Result<ObjectWriter<'_>, StoreError> {
        assert!(
            is_file_name(name) && name.len() <= NAME_MAX,
            "not a name for an object: {name:?}"
        );
        let pending = match self.tmpfile.then(|| self.unnamed()).transpose()?.flatten() {
            Some(file) => Pending::Unnamed(file),
            None => Pending::Named(NamedTmp::create(self)?),
        };
        Ok(ObjectWriter {
            store: self,
            key,
            name: name.to_owned(),
            keep,
            pending,
        })
    }

    /// A file without a name, or `None` where the file system or the kernel doesn't know such.
    fn unnamed(&self) -> Result<Option<File>, StoreError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.objects, ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.io(&self.root.join("objects"), errno.into())),
        }
    }

    /// The directory of a key's objects.
    pub(super) fn key_dir(&self, key: &Key, make: bool) -> Result<std::os::fd::OwnedFd, Errno> {
        let name = key.to_string();
        let open = || {
            if make {
                match rustix::fs::mkdirat(&self.objects, name.as_str(), Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.objects, name.as_str(), flags, Mode::empty())
        };
        match open() {
            // A file or a symlink.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.put_aside(&self.objects, &name.as_str());
                open()
            }
            dir => dir,
        }
    }

    /// The object of this id if it is there and as long as it should be. One stat; nothing is read.
    pub(super) fn find_object(&self, id: &ObjectId, size: u64) -> Option<Object> {
        let stat =
            rustix::fs::statat(&self.objects, id.to_string(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        let whole = is_file && u64::try_from(stat.st_size) == Ok(size);
        whole.then(|| Object {
            id: id.clone(),
            path: self.root.join("objects").join(id.to_string()),
            size,
        })
    }

    /// Opens an object and keeps it from being collected until the lease (and every copy of its descriptor) is gone.
    pub fn lease(&self, object: &Object) -> Result<Lease, StoreError> {
        let io = |e| self.io(&object.path, e);
        let lost = || StoreError::Lost {
            id: object.id.clone(),
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = match rustix::fs::open(&object.path, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Err(lost()),
            Err(errno) => return Err(io(errno.into())),
        };
        fsutil::flock(&file, FlockOperation::LockShared).map_err(io)?;
        // A collector may have removed it between the opening and the lock.
        if fsutil::is_unlinked(&file).map_err(io)?
            || file.metadata().map_err(io)?.len() != object.size
        {
            return Err(lost());
        }
        Ok(Lease {
            file,
            object: object.clone(),
        })
    }

    /// Removes what lies under a key, leased objects excepted. Only for the holder of the key's lock, when the key has
    /// no valid record.
    pub(crate) fn sweep(&self, key: &Key) -> Result<(), StoreError> {
        let path = self.root.join("objects").join(key.to_string());
        let io = |e: Errno| self.io(&path, e.into());
        self.remove_record(key)?;
        let dir = match self.key_dir(key, false) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(io(errno)),
        };
        for entry in rustix::fs::Dir::read_from(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let leased = rustix::fs::openat(&dir, name, flags, Mode::empty()).is_ok_and(|file| {
                matches!(
                    fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive),
                    Ok(false)
                )
            });
            if !leased {
                match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR) => self.put_aside(&dir, &name),
                    Err(errno) => return Err(io(errno)),
                }
            }
        }
        // Not empty when something is leased: then it stays.
        let _ = rustix::fs::unlinkat(&self.objects, key.to_string(), AtFlags::REMOVEDIR);
        Ok(())
    }
}
