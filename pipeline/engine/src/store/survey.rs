//! What there is in the store, for people and for the collector. Looks, and changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::AddAssign;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::record::{Touch, Unusable};
use super::{ObjectId, Record, Store, StoreError, VERSION_DIR};
use crate::digest::{Digest, Key};
use crate::fsutil;

/// How much some files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many.
    pub files: u64,
    /// Their lengths in bytes; an image's has its holes in it.
    pub bytes: u64,
    /// What they take of the disk, in bytes. Blocks shared by reflink count for each file.
    pub disk: u64,
}

impl Usage {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            files: 1,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            disk: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.disk += other.disk;
    }
}

/// An object's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its name.
    pub id: ObjectId,
    /// How much it is.
    pub usage: Usage,
    /// Whether somebody uses it now.
    pub leased: bool,
    /// What it holds, if somebody has looked.
    pub content: Option<Digest>,
}

/// A record's file and what it names.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key it is found by.
    pub key: Key,
    /// What it says, or why it is no hit.
    pub record: Result<Record, Unusable>,
    /// When a launch last went by it, to the minute.
    pub used: SystemTime,
    /// The record's own file.
    pub usage: Usage,
    /// Its objects, and those of other keys that only it still names.
    pub objects: Vec<ObjectEntry>,
    /// Keys of records whose objects it names beside its own: those must stay as long as it does.
    pub borrows_from: Vec<Key>,
}

impl Entry {
    /// The record and its objects together.
    pub fn whole(&self) -> Usage {
        let mut all = self.usage;
        for object in &self.objects {
            all += object.usage;
        }
        all
    }

    /// Whether somebody uses one of its objects now.
    pub fn leased(&self) -> bool {
        self.objects.iter().any(|object| object.leased)
    }
}

/// Everything in the store.
#[derive(Debug, Default)]
pub struct Survey {
    /// Records, the one used last first.
    pub entries: Vec<Entry>,
    /// Objects that no usable record names.
    pub orphans: Vec<ObjectEntry>,
    /// Notes of what was seen last.
    pub notes: Usage,
    /// What scans remember.
    pub scans: Usage,
    /// Files being written, and what is left of dead writers.
    pub temporary: Usage,
    /// Directories of other versions beside this one.
    pub other_versions: Vec<String>,
}

impl Survey {
    /// All that there is in this version's directory.
    pub fn total(&self) -> Usage {
        let mut all = self.notes;
        all += self.scans;
        all += self.temporary;
        for entry in &self.entries {
            all += entry.whole();
        }
        for orphan in &self.orphans {
            all += orphan.usage;
        }
        all
    }
}

impl Store {
    /// Looks at everything in the store: a few calls for each file; objects are not read.
    pub fn survey(&self) -> Result<Survey, StoreError> {
        let mut survey = Survey {
            entries: self.entries()?,
            other_versions: self.other_versions()?,
            ..Survey::default()
        };
        let mut objects: BTreeMap<ObjectId, ObjectEntry> = self.all_objects()?;
        for entry in &mut survey.entries {
            let Ok(record) = &entry.record else { continue };
            for (id, _) in record.own_objects() {
                // Made after the objects were listed, otherwise.
                let Some(mut object) = objects.remove(id) else {
                    continue;
                };
                object.content = record
                    .kept
                    .as_ref()
                    .and_then(|kept| kept.contents.get(id).copied());
                entry.objects.push(object);
            }
        }
        for entry in &mut survey.entries {
            let Ok(record) = &entry.record else { continue };
            for id in record.borrowed_objects() {
                match objects.remove(id) {
                    // Its own record is gone.
                    Some(object) => entry.objects.push(object),
                    None => entry.borrows_from.push(id.key()),
                }
            }
        }
        survey.orphans = objects.into_values().collect();
        for (_, stat) in self.files(&self.notes, "notes")? {
            survey.notes += Usage::of(&stat);
        }
        for (_, stat) in self.files(&self.scans, "scans")? {
            survey.scans += Usage::of(&stat);
        }
        for (_, stat) in self.files(&self.tmp, "tmp")? {
            survey.temporary += Usage::of(&stat);
        }
        survey.entries.sort_by_key(|entry| entry.used);
        survey.entries.reverse();
        Ok(survey)
    }

    fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let files = self.files(&self.records, "records")?.into_iter();
        let entries = files.filter_map(|(name, stat)| {
            let key: Key = std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()?;
            Some(Entry {
                key,
                record: self.judge(&key, Touch::Not).ok()?,
                used: time(&stat),
                usage: Usage::of(&stat),
                objects: Vec::new(),
                borrows_from: Vec::new(),
            })
        });
        Ok(entries.collect())
    }

    fn all_objects(&self) -> Result<BTreeMap<ObjectId, ObjectEntry>, StoreError> {
        let mut all = BTreeMap::new();
        for dir_name in self.names(&self.objects, "objects")? {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let path = Path::new(&dir_name);
            // Gone meanwhile, or not one of ours.
            let Ok(dir) = rustix::fs::openat(&self.objects, path, flags, Mode::empty()) else {
                continue;
            };
            for (name, stat) in self.files(&dir, "objects")? {
                let id = Path::new(&dir_name).join(&name);
                let Some(Ok(id)) = id.to_str().map(str::parse::<ObjectId>) else {
                    continue;
                };
                let entry = ObjectEntry {
                    id: id.clone(),
                    usage: Usage::of(&stat),
                    leased: is_leased(&dir, &name),
                    content: None,
                };
                all.insert(id, entry);
            }
        }
        Ok(all)
    }

    fn other_versions(&self) -> Result<Vec<String>, StoreError> {
        let Some(cache) = self.root.parent() else {
            return Ok(Vec::new());
        };
        let mut versions = Vec::new();
        for entry in std::fs::read_dir(cache).map_err(|e| self.io(cache, e))? {
            let name = entry.map_err(|e| self.io(cache, e))?.file_name();
            let version = name.to_str().filter(|name| {
                let number = name.strip_prefix('v').unwrap_or_default();
                *name != VERSION_DIR
                    && !number.is_empty()
                    && number.bytes().all(|c| c.is_ascii_digit())
            });
            versions.extend(version.map(str::to_owned));
        }
        versions.sort();
        Ok(versions)
    }

    /// The regular files of a directory. `part` is for messages.
    pub(super) fn files(
        &self,
        dir: &OwnedFd,
        part: &str,
    ) -> Result<Vec<(std::ffi::OsString, Stat)>, StoreError> {
        let mut files = Vec::new();
        for name in self.names(dir, part)? {
            let stat = rustix::fs::statat(dir, Path::new(&name), AtFlags::SYMLINK_NOFOLLOW);
            match stat {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                    files.push((name, stat));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.io(&self.root.join(part), errno.into())),
            }
        }
        Ok(files)
    }

    /// The names in a directory, without `.` and `..`.
    pub(super) fn names(
        &self,
        dir: &OwnedFd,
        part: &str,
    ) -> Result<Vec<std::ffi::OsString>, StoreError> {
        let io = |e: Errno| self.io(&self.root.join(part), e.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
        }
        Ok(names)
    }
}

/// When a file was last written or used. A time before 1970 is taken for that.
pub(super) fn time(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// Opens an object to lock it; an error for anything else.
pub(super) fn open_object(dir: impl AsFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, Path::new(name), flags, Mode::empty()).map(File::from)
}

fn is_leased(dir: &OwnedFd, name: &OsStr) -> bool {
    open_object(dir, name).is_ok_and(|file| {
        let free = fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive);
        // Not left to the closing: a child that is being started has a copy of the descriptor for a moment.
        let _ = fsutil::try_flock(&file, FlockOperation::Unlock);
        matches!(free, Ok(false))
    })
}
