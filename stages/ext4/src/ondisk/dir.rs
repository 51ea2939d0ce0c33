//! Source: Documentation/filesystems/ext4/directory.rst.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const FT_REG_FILE: u8 = 1;
pub(crate) const FT_DIR: u8 = 2;
pub(crate) const FT_CHRDEV: u8 = 3;
pub(crate) const FT_BLKDEV: u8 = 4;
pub(crate) const FT_FIFO: u8 = 5;
pub(crate) const FT_SOCK: u8 = 6;
pub(crate) const FT_SYMLINK: u8 = 7;

/// The file type of a leaf's tail, so that no one takes it for an entry.
pub(crate) const FT_DIR_CSUM: u8 = 0xDE;
/// Bytes at the end of a leaf that hold its checksum.
pub(crate) const TAIL_SIZE: usize = size_of::<DirTail>();

/// `struct ext4_dir_entry_2`, without the name.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DirEntry {
    pub(crate) inode: U32,
    pub(crate) rec_len: U16,
    pub(crate) name_len: u8,
    pub(crate) file_type: u8,
}

/// `struct ext4_dir_entry_tail`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DirTail {
    pub(crate) det_reserved_zero1: U32,
    pub(crate) det_rec_len: U16,
    pub(crate) det_reserved_zero2: u8,
    pub(crate) det_reserved_ft: u8,
    pub(crate) det_checksum: U32,
}

/// `struct dx_root_info`: after `.` and `..` in the first block of an indexed directory.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DxRootInfo {
    pub(crate) reserved_zero: U32,
    pub(crate) hash_version: u8,
    pub(crate) info_length: u8,
    pub(crate) indirect_levels: u8,
    pub(crate) unused_flags: u8,
}

/// `struct dx_countlimit`: stands where the first entry's hash would.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DxCountLimit {
    pub(crate) limit: U16,
    pub(crate) count: U16,
}

/// `struct dx_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DxEntry {
    pub(crate) hash: U32,
    pub(crate) block: U32,
}

/// `struct dx_tail`: after the last possible entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DxTail {
    pub(crate) dt_reserved: U32,
    pub(crate) dt_checksum: U32,
}

/// Where the root's entries begin: `.`, `..`, [`DxRootInfo`].
pub(crate) const ROOT_ENTRIES: usize = 12 + 12 + size_of::<DxRootInfo>();
/// Where an inner node's entries begin: after an entry that covers the whole block.
pub(crate) const NODE_ENTRIES: usize = size_of::<DirEntry>();
/// How many entries a root can have.
pub(crate) const ROOT_LIMIT: usize = (4096 - ROOT_ENTRIES - 8) / 8;
/// How many entries an inner node can have.
pub(crate) const NODE_LIMIT: usize = (4096 - NODE_ENTRIES - 8) / 8;

const _: () = assert!(ROOT_LIMIT == 507 && NODE_LIMIT == 510);
const _: () = assert!(TAIL_SIZE == 12);

/// What an entry takes in a block.
pub(crate) fn rec_len(name: usize) -> usize {
    (size_of::<DirEntry>() + name).next_multiple_of(4)
}
