//! What can be chosen about an image beside what is in it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of the format that [`crate::layout`] writes. It goes up whenever the same [`fcpipe_tree::Tree`]
/// and [`Options`] come to give other bytes, and it belongs into every key of a stored image.
pub const FORMAT_VERSION: u32 = 2;

/// What can be chosen about an image. The default is what a disposable root wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bytes of the whole disk, rounded up to a block. `None`: what the tree needs in blocks and inodes,
    /// 30 % more of both, and 128 MiB at least.
    pub size: Option<u64>,
    /// Whether there is a journal, of the size that mke2fs would choose.
    pub journal: bool,
    /// The volume's name.
    pub label: Label,
}

/// A volume name: up to 16 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Label([u8; 16]);

impl Label {
    /// `None` if the name has more than 16 bytes, or a NUL, which would end it.
    pub fn new(name: &[u8]) -> Option<Label> {
        if name.contains(&0) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Label(bytes))
    }

    /// As the superblock holds it, filled up with NULs.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(16);
        bstr::BStr::new(&self.0[..end]).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_sixteen_bytes_at_most() {
        assert!(Label::new(b"sixteen bytes ok").is_some());
        assert!(Label::new(b"seventeen bytes !").is_none());
        assert!(Label::new(b"a\0b").is_none());
        assert_eq!(Label::new(b""), Some(Label::default()));
    }
}
