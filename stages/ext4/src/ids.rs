//! Numbers that must not be mixed up.

use std::fmt;

/// A block of the image, counted from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct BlockNo(pub(crate) u64);

/// An inode. They are counted from 1; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InodeNo(pub(crate) u32);

/// A block group, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupNo(pub(crate) u32);

impl InodeNo {
    /// The root directory (`EXT2_ROOT_INO`).
    pub(crate) const ROOT: InodeNo = InodeNo(2);
    /// The journal (`EXT2_JOURNAL_INO`).
    pub(crate) const JOURNAL: InodeNo = InodeNo(8);
    /// The first that is not reserved (`EXT2_GOOD_OLD_FIRST_INO`); by custom that of `lost+found`.
    pub(crate) const FIRST: InodeNo = InodeNo(11);

    /// The group whose table holds it, and its place there.
    pub(crate) fn place(self, inodes_per_group: u32) -> (GroupNo, u32) {
        let at = self.0 - 1;
        (GroupNo(at / inodes_per_group), at % inodes_per_group)
    }
}

impl GroupNo {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for InodeNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of blocks; `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Run {
    pub(crate) fn len(self) -> u64 {
        self.end - self.start
    }
}

/// A part of some vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Span {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}
