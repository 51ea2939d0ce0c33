//! What stands for one file's content, for whoever kept something made of it.

use super::{Fields, Scan};
use crate::model::NodeId;

/// Says of a file's content what its [`Stamp`](super::Stamp) and the source's trust say: two that are equal, of files
/// with the same size and mtime, are of the same content, if the first was taken from a scan that was
/// [settled](Scan::is_settled).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId {
    /// What the words are; equal numbers mean comparable words.
    pub sort: u32,
    pub words: [u64; 4],
}

impl ContentId {
    /// The sort whose words tell a file from every other one of the host, wherever it is named.
    pub const ANYWHERE: u32 = 1;

    fn of_hash(sort: u32, hash: &[u8; 32]) -> ContentId {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        ContentId { sort, words }
    }
}

impl Scan {
    /// Of a regular file; of other nodes nothing sensible.
    pub(crate) fn content_id(&self, node: NodeId) -> ContentId {
        if let Some(declared) = &self.declared {
            return ContentId::of_hash(5, declared.as_bytes());
        }
        let stamp = &self.stamps[node.index()];
        let times = [stamp.ctime.secs as u64, u64::from(stamp.ctime.nanos)];
        let words = |sort, dev, ino| ContentId {
            sort,
            words: [dev, ino, times[0], times[1]],
        };
        match self.fields {
            Fields::Full => words(ContentId::ANYWHERE, stamp.dev, stamp.ino),
            Fields::Inode => words(2, 0, stamp.ino),
            Fields::Times => words(3, 0, 0),
            Fields::Content { .. } => match self.contents.get(node.index()) {
                Some(hash) => ContentId::of_hash(4, hash),
                // Never equal to anything that is kept: no scan has two such.
                None => words(u32::MAX, stamp.dev, stamp.ino),
            },
        }
    }
}
