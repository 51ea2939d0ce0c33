//! Records and notes: small files that carry a hash of themselves.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{NamedTmp, ObjectId, Store, StoreError, lock};
use crate::digest::{Digest, Key};
use crate::key::Manifest;
use crate::value::{Identity, Kept};

/// What a stage made of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key; must be the record's file name too.
    pub key: Key,
    /// The stage's name.
    pub stage: String,
    /// The stage's version.
    pub version: u32,
    /// The node it was, when it was made.
    pub node: String,
    /// What the inputs were, in words.
    pub inputs: Manifest,
    /// What the output is.
    pub identity: Identity,
    /// The output, unless it is made again when needed.
    pub kept: Option<KeptRecord>,
    /// How long it took, in microseconds.
    pub wall_us: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// The boot it was made in.
    pub boot_id: String,
    /// Whether the objects had reached the disk when this was written.
    pub synced: bool,
}

/// [`Kept`], as it is written. It may name objects of other keys, which those keys' records are in charge of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The output's own part.
    pub body: serde_json::Value,
    /// Its objects and their lengths in bytes.
    pub objects: Vec<(ObjectId, u64)>,
    /// What those objects hold, where somebody has looked since: see [`content`](super::content).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contents: BTreeMap<ObjectId, Digest>,
}

impl Record {
    /// The objects that the record names, with their lengths in bytes.
    pub fn objects(&self) -> impl Iterator<Item = (&ObjectId, u64)> {
        self.kept
            .iter()
            .flat_map(|kept| &kept.objects)
            .map(|(id, size)| (id, *size))
    }

    /// Those of them that were made under this record's key.
    pub fn own_objects(&self) -> impl Iterator<Item = (&ObjectId, u64)> {
        self.objects().filter(|(id, _)| id.key() == self.key)
    }

    /// Those of them that other records are in charge of.
    pub fn borrowed_objects(&self) -> impl Iterator<Item = &ObjectId> {
        let others = self.objects().filter(|(id, _)| id.key() != self.key);
        others.map(|(id, _)| id)
    }

    /// Whether the content of every object of its own is known.
    pub fn proven(&self) -> bool {
        let known = |id| {
            let contents = self.kept.as_ref().map(|kept| &kept.contents);
            contents.is_some_and(|contents| contents.contains_key(id))
        };
        self.own_objects().all(|(id, _)| known(id))
    }
}

/// Why a file among the records is no hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// It fails its own check, or is not in a form that this program reads.
    Damaged,
    /// It is about another key than its name says.
    Misplaced,
    /// It was made in an earlier boot, and its objects were not brought to the disk before that ended.
    OtherBoot,
    /// One of its objects is missing, or is not as long as it was.
    ObjectLost(ObjectId),
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged => f.write_str("it fails its own check"),
            Self::Misplaced => f.write_str("it is about another key"),
            Self::OtherBoot => {
                f.write_str("it was not brought to the disk before the host stopped")
            }
            Self::ObjectLost(id) => write!(f, "object {id} is missing or cut short"),
        }
    }
}

/// The first line of such a file is this and a digest of the rest.
const MAGIC: &str = "fcpipe-1";
const DOMAIN: &str = "fcpipe engine 1: record file";
/// Longer than any record; a file beyond it is damaged, and not read into memory.
const LONGEST: u64 = 64 << 20;

fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{MAGIC} {}\n", Digest::of(DOMAIN, &[body])).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The part of a sealed file that follows the first line, if nothing in the file is damaged.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let digest: Digest = head.strip_prefix(MAGIC)?.strip_prefix(' ')?.parse().ok()?;
    (digest == Digest::of(DOMAIN, &[body])).then_some(body)
}

impl Store {
    /// The record of a key, if it is whole, can be trusted after the last boot, and its objects are there.
    ///
    /// Anything wrong makes a miss, never an error: the cache is only a cache.
    pub fn record(&self, key: &Key) -> Option<Record> {
        match self.judge(key, Touch::Not) {
            Ok(Ok(record)) => Some(record),
            Ok(Err(why)) => {
                tracing::debug!(%key, %why, "a record can't be used");
                None
            }
            Err(Absent) => None,
        }
    }

    /// The same for a launch that goes by it. Marks it as used now, and remembers to bring to the disk, and to
    /// look at, what its maker did not.
    pub(crate) fn use_record(&self, key: &Key) -> Option<Record> {
        let record = self.judge(key, Touch::Used).ok()?.ok()?;
        if !record.synced || !record.proven() {
            lock(&self.pending).insert(*key);
        }
        Some(record)
    }

    /// The record of a key, or why it is none; `Absent` where there is no file.
    pub(super) fn judge(
        &self,
        key: &Key,
        touch: Touch,
    ) -> Result<Result<Record, Unusable>, Absent> {
        let record: Record = match read_sealed(&self.records, &key.to_string(), touch)? {
            Some(record) => record,
            None => return Ok(Err(Unusable::Damaged)),
        };
        if record.key != *key {
            return Ok(Err(Unusable::Misplaced));
        }
        if !record.synced && record.boot_id != self.boot_id {
            return Ok(Err(Unusable::OtherBoot));
        }
        let lost = record
            .objects()
            .find(|(id, size)| self.find_object(id, *size).is_none())
            .map(|(id, _)| id.clone());
        Ok(lost.map_or(Ok(record), |id| Err(Unusable::ObjectLost(id))))
    }

    /// What a record keeps, with its objects found.
    pub(crate) fn kept(&self, record: &KeptRecord) -> Option<Kept> {
        let objects = record
            .objects
            .iter()
            .map(|(id, size)| self.find_object(id, *size));
        Some(Kept {
            body: record.body.clone(),
            objects: objects.collect::<Option<_>>()?,
        })
    }

    /// Writes a record. Its objects must be published; only the holder of the key's lock may do this.
    pub(crate) fn put_record(&self, record: &mut Record) -> Result<(), StoreError> {
        let has_objects = record
            .kept
            .as_ref()
            .is_some_and(|kept| !kept.objects.is_empty());
        record.boot_id.clone_from(&self.boot_id);
        record.made = now();
        // A record that stands alone proves itself: torn by a power cut, it fails its own check.
        record.synced = !has_objects;
        self.write_sealed(&self.records, "records", &record.key, record, false)?;
        if has_objects {
            lock(&self.pending).insert(record.key);
        }
        Ok(())
    }

    /// Writes a record anew with more known about it; `sync` waits for the disk.
    pub(super) fn put_again(&self, record: &Record, sync: bool) -> Result<(), StoreError> {
        self.write_sealed(&self.records, "records", &record.key, record, sync)
    }

    /// Drops the record of a key, so that its stage runs next time.
    pub fn forget(&self, key: &Key) -> Result<(), StoreError> {
        self.remove_record(key)
    }

    pub(super) fn remove_record(&self, key: &Key) -> Result<(), StoreError> {
        let name = key.to_string();
        match rustix::fs::unlinkat(&self.records, name.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                self.put_aside(&self.records, &name.as_str());
                Ok(())
            }
            Err(errno) => Err(self.io(&self.root.join("records"), errno.into())),
        }
    }

    /// What was noted under a key.
    pub(crate) fn note<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        read_sealed(&self.notes, &key.to_string(), Touch::Used).ok()?
    }

    /// Whether a file among the notes is whole.
    pub(super) fn note_is_whole(&self, name: &str) -> bool {
        matches!(
            read_sealed::<serde::de::IgnoredAny>(&self.notes, name, Touch::Not),
            Ok(Some(_)) | Err(Absent)
        )
    }

    /// Notes something that is only for telling people, so losing it matters little.
    pub(crate) fn put_note<T: Serialize>(&self, key: &Key, note: &T) -> Result<(), StoreError> {
        self.write_sealed(&self.notes, "notes", key, note, false)
    }

    fn write_sealed<T: Serialize>(
        &self,
        dir: &OwnedFd,
        dir_name: &str,
        key: &Key,
        value: &T,
        sync: bool,
    ) -> Result<(), StoreError> {
        let path = self.root.join(dir_name).join(key.to_string());
        let io = |e| self.io(&path, e);
        let body = serde_json::to_vec(value).map_err(|e| io(e.into()))?;
        let mut tmp = NamedTmp::create(self)?;
        tmp.file.write_all(&sealed(&body)).map_err(io)?;
        if sync {
            tmp.file.sync_all().map_err(io)?;
        }
        tmp.rename(dir, &key.to_string()).map_err(io)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// There is no file of this name.
#[derive(Debug)]
pub(super) struct Absent;

/// Whether reading a file counts as using it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// Its time of modification becomes now: the collector goes by that.
    Used,
    Not,
}

/// A file used again within this many seconds keeps its time, so that a warm launch writes nothing.
const TOUCH_AFTER: u64 = 60;

/// Reads a sealed file; anything that is wrong with it makes `None`.
fn read_sealed<T: DeserializeOwned>(
    dir: &OwnedFd,
    name: &str,
    touch: Touch,
) -> Result<Option<T>, Absent> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(Errno::NOENT) => return Err(Absent),
        Err(_) => return Ok(None),
    };
    let mut bytes = Vec::new();
    let read = (&file).take(LONGEST).read_to_end(&mut bytes);
    let value = read
        .ok()
        .and_then(|_| unsealed(&bytes))
        .and_then(|body| serde_json::from_slice(body).ok());
    if value.is_none() {
        tracing::warn!(name, "damaged file in the store, taken as missing");
    } else if touch == Touch::Used {
        mark_used(&file);
    }
    Ok(value)
}

/// Sets a file's time of modification to now. Losing that (a read-only store) only makes it look older to the collector.
fn mark_used(file: &File) {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return;
    };
    // A time in the future is as wrong as one long ago.
    if now().abs_diff(u64::try_from(stat.st_mtime).unwrap_or(0)) > TOUCH_AFTER {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        let _ = rustix::fs::futimens(file, &times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_36_no_damaged_byte_passes_the_seal() {
        let whole = sealed(b"{\"a\":1}");
        assert_eq!(unsealed(&whole), Some(&b"{\"a\":1}"[..]));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(unsealed(&damaged), None, "byte {at}");
            assert_eq!(unsealed(&whole[..at]), None, "cut at {at}");
        }
    }
}
