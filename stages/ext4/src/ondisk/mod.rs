//! The structures of ext4, declared once, with the kernel's names (fs/ext4/ext4.h and its neighbours).
//!
//! Everything is little-endian but the journal, which is big-endian. All types are unaligned, so a value
//! can be written into any slice. Nothing here decides anything.

pub(crate) mod dir;
pub(crate) mod extent;
pub(crate) mod group;
pub(crate) mod inode;
pub(crate) mod journal;
pub(crate) mod superblock;
pub(crate) mod xattr;
