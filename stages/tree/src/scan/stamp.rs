//! What tells whether a file's content may have changed.

use super::Scan;
use crate::model::{NodeId, Timestamp};

/// Beside a Tree's node: what tells whether a file's content may have changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    pub dev: u64,
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Stamp {
    /// The first field in which two stamps differ, in words.
    pub fn difference(&self, other: &Stamp) -> Option<&'static str> {
        if (self.dev, self.ino) != (other.dev, other.ino) {
            Some("it is another file")
        } else if self.size != other.size {
            Some("its size changed")
        } else if self.mtime != other.mtime {
            Some("its modification time changed")
        } else if self.ctime != other.ctime {
            Some("its status change time changed")
        } else {
            None
        }
    }
}

/// A digest over the stamps of regular files in canonical order: the layer, the scan, the node in it.
pub(crate) fn digest_stamps<'a>(
    files: impl Iterator<Item = Option<(u32, &'a Scan, NodeId)>>,
    scans: impl Iterator<Item = &'a Scan>,
) -> blake3::Hash {
    let mut h = blake3::Hasher::new_derive_key("fcpipe stamps 2");
    let mut out = Vec::with_capacity(64 * 1024 + 64);
    for scan in scans {
        match (&scan.declared, &scan.unsettled) {
            (Some(declared), _) => out.extend_from_slice(declared.as_bytes()),
            // So that it differs from every other digest.
            (None, Some(number)) => out.extend_from_slice(number),
            (None, None) => {}
        }
    }
    for file in files {
        match file {
            Some((_, scan, _)) if scan.declared.is_some() => {}
            Some((layer, scan, node)) => {
                out.extend_from_slice(&layer.to_le_bytes());
                let content = scan.contents.get(node.index());
                scan.fields
                    .encode(&scan.stamps[node.index()], content, &mut out);
            }
            None => out.extend_from_slice(&u32::MAX.to_le_bytes()),
        }
        if out.len() >= 64 * 1024 {
            h.update(&out);
            out.clear();
        }
    }
    h.update(&out);
    h.finalize()
}
