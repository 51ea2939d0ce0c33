//! Records and notes: small files that carry a hash of themselves.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags};
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

/// [`Kept`], as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The output's own part.
    pub body: serde_json::Value,
    /// Its objects and their lengths in bytes.
    pub objects: Vec<(ObjectId, u64)>,
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
        let record: Record = read_sealed(&self.records, &key.to_string())?;
        let known = record.key == *key && (record.synced || record.boot_id == self.boot_id);
        let objects = record.kept.iter().flat_map(|kept| &kept.objects);
        let usable = known
            && objects
                .into_iter()
                .all(|(id, size)| self.find_object(id, *size).is_some());
        if !usable {
            tracing::debug!(%key, "a record can't be used");
            return None;
        }
        if !record.synced {
            // Whoever made it may have died before syncing it.
            lock(&self.unsynced).insert(*key);
        }
        Some(record)
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
        record.made = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        // A record that stands alone proves itself: torn by a power cut, it fails its own check.
        record.synced = !has_objects;
        self.write_sealed(&self.records, "records", &record.key, record, false)?;
        if has_objects {
            lock(&self.unsynced).insert(record.key);
        }
        Ok(())
    }

    pub(super) fn put_synced_record(&self, record: &Record) -> Result<(), StoreError> {
        self.write_sealed(&self.records, "records", &record.key, record, true)
    }

    /// Drops the record of a key, so that its stage runs next time.
    pub fn forget(&self, key: &Key) -> Result<(), StoreError> {
        self.remove_record(key)
    }

    pub(super) fn remove_record(&self, key: &Key) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.records, key.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.io(&self.root.join("records"), errno.into())),
        }
    }

    /// What was noted under a key.
    pub(crate) fn note<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        read_sealed(&self.notes, &key.to_string())
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

/// Reads a sealed file; anything that is wrong with it makes `None`.
fn read_sealed<T: DeserializeOwned>(dir: &OwnedFd, name: &str) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = rustix::fs::openat(dir, name, flags, Mode::empty())
        .ok()?
        .into();
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    let value = unsealed(&bytes).and_then(|body| serde_json::from_slice(body).ok());
    if value.is_none() {
        tracing::warn!(name, "damaged file in the store, taken as missing");
    }
    value
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
