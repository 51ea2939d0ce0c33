//! Source: Documentation/filesystems/ext4/journal.rst. Big-endian.

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const MAGIC: u32 = 0xC03B_3998;
/// `JBD2_SUPERBLOCK_V2`.
pub(crate) const SUPERBLOCK_V2: u32 = 4;

/// The beginning of `journal_superblock_s`; the rest of its 1,024 bytes is zero in a new journal.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct JournalSuperBlock {
    pub(crate) h_magic: U32,
    pub(crate) h_blocktype: U32,
    pub(crate) h_sequence: U32,
    pub(crate) s_blocksize: U32,
    pub(crate) s_maxlen: U32,
    pub(crate) s_first: U32,
    pub(crate) s_sequence: U32,
    /// 0: there is nothing to replay.
    pub(crate) s_start: U32,
    pub(crate) s_errno: U32,
    pub(crate) s_feature_compat: U32,
    pub(crate) s_feature_incompat: U32,
    pub(crate) s_feature_ro_compat: U32,
    pub(crate) s_uuid: [u8; 16],
    pub(crate) s_nr_users: U32,
}

const _: () = assert!(size_of::<JournalSuperBlock>() == 0x44);
