//! One launch's outputs as one file, to be used on another host or in another store.
//!
//! The file is a plain tar of regular files:
//!
//! ```text
//! manifest.json     Manifest: the records, and what each object holds
//! manifest.blake3   64 hexadecimal digits: the blake3 of manifest.json
//! objects/0         the pieces of the first object that are not all zeros, one after the other
//! objects/1         …
//! ```
//!
//! Architecture invariant: nothing of an archive is published before all of it was read and every digest was
//! found right. What an archive *says* can't be checked: whoever made it is trusted with what the image holds. That
//! is why the archive has a digest of its own, which can be passed along by another way and asked for.

mod export;
mod import;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use export::Exported;
pub use import::Imported;

use super::{ObjectId, Record, StoreError};
use crate::digest::{Digest, Key};

/// The form of an archive.
pub const ARCHIVE_SCHEMA: &str = "fcpipe.cache-archive/1";

const MANIFEST: &str = "manifest.json";
const MANIFEST_DIGEST: &str = "manifest.blake3";

/// Longest manifest that is read into memory: bytes.
const LONGEST_MANIFEST: u64 = 64 << 20;

/// `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema: String,
    records: Vec<Record>,
    /// In the order in which their bytes follow.
    objects: Vec<Packed>,
}

/// An object in an archive.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    id: ObjectId,
    /// Bytes, holes included.
    size: u64,
    /// See [`content`](super::content).
    content: Digest,
    /// Which pieces follow.
    pieces: Vec<Range<u64>>,
}

/// The path of an object's bytes.
fn member(number: usize) -> String {
    format!("objects/{number}")
}

/// Why an archive was not written or not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is no usable record of this key.
    #[error("there is no usable record of key {key}")]
    NotThere {
        /// The key.
        key: Key,
    },
    /// A record that names no object but says something of its own is about a file of this host.
    #[error("key {key} is about a file outside of the cache, and can't be exported")]
    NotPortable {
        /// The key.
        key: Key,
    },
    /// It is not what it should be; nothing was imported.
    #[error("the archive is refused: {why}")]
    Refused {
        /// What is wrong with it.
        why: String,
    },
    /// An object did not hold what its record says; nothing was exported.
    #[error("object {id} is damaged: run `cache verify`")]
    Damaged {
        /// Which.
        id: ObjectId,
    },
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive can't be read or written.
    #[error("{}", path.display())]
    Io {
        /// The archive.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn refused<T>(why: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Refused { why: why.into() })
}
