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

use zerocopy::little_endian::{U16, U32};

/// The lower half of a number that is kept in two.
pub(crate) fn lo16(value: u32) -> U16 {
    (value as u16).into()
}

pub(crate) fn hi16(value: u32) -> U16 {
    ((value >> 16) as u16).into()
}

pub(crate) fn lo32(value: u64) -> U32 {
    (value as u32).into()
}

pub(crate) fn hi32(value: u64) -> U32 {
    ((value >> 32) as u32).into()
}

/// What is above the lower 32 bits of a number of 48.
pub(crate) fn top16(value: u64) -> U16 {
    ((value >> 32) as u16).into()
}
