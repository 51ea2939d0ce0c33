//! Source: Documentation/filesystems/ext4/ifork.rst, "Extent Tree".

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const MAGIC: u16 = 0xF30A;
/// Blocks in one initialised extent: lengths above mean "not yet written".
pub(crate) const MAX_LEN: u32 = 32_768;
/// Entries in `i_block`.
pub(crate) const IN_INODE: usize = 4;
/// Entries in a block: what is left beside the header and the tail.
pub(crate) const IN_BLOCK: usize = (4096 - 12 - 4) / 12;
/// Where a block's tail begins: the checksum of all before it.
pub(crate) const TAIL_OFFSET: usize = 12 + IN_BLOCK * 12;

/// `struct ext4_extent_header`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) eh_magic: U16,
    pub(crate) eh_entries: U16,
    pub(crate) eh_max: U16,
    pub(crate) eh_depth: U16,
    pub(crate) eh_generation: U32,
}

/// `struct ext4_extent`, in leaves.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Leaf {
    pub(crate) ee_block: U32,
    pub(crate) ee_len: U16,
    pub(crate) ee_start_hi: U16,
    pub(crate) ee_start_lo: U32,
}

/// `struct ext4_extent_idx`, above leaves.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Index {
    pub(crate) ei_block: U32,
    pub(crate) ei_leaf_lo: U32,
    pub(crate) ei_leaf_hi: U16,
    pub(crate) ei_unused: U16,
}

const _: () = assert!(size_of::<Header>() == 12);
const _: () = assert!(size_of::<Leaf>() == 12);
const _: () = assert!(size_of::<Index>() == 12);
const _: () = assert!(TAIL_OFFSET + 4 <= 4096);
