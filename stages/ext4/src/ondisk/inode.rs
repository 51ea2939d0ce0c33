//! Source: Documentation/filesystems/ext4/inodes.rst.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `s_inode_size`: what an inode takes in the table.
pub(crate) const INODE_SIZE: usize = 256;
/// `i_extra_isize`: all fields up to and with `i_projid`.
pub(crate) const EXTRA_ISIZE: usize = 32;
/// Bytes after the fields, for xattrs.
pub(crate) const BODY_XATTR_SIZE: usize = INODE_SIZE - size_of::<Inode>();
/// A symlink with a target of fewer bytes keeps it in `i_block`.
pub(crate) const FAST_SYMLINK_LIMIT: usize = 60;
/// `EXT4_LINK_MAX`: links that a file can have, and that a directory can count.
pub(crate) const LINK_MAX: u32 = 65_000;

pub(crate) const S_IFIFO: u16 = 0x1000;
pub(crate) const S_IFCHR: u16 = 0x2000;
pub(crate) const S_IFDIR: u16 = 0x4000;
pub(crate) const S_IFBLK: u16 = 0x6000;
pub(crate) const S_IFREG: u16 = 0x8000;
pub(crate) const S_IFLNK: u16 = 0xA000;
pub(crate) const S_IFSOCK: u16 = 0xC000;

/// The directory is indexed.
pub(crate) const INDEX_FL: u32 = 0x0000_1000;
/// `i_block` is the root of an extent tree.
pub(crate) const EXTENTS_FL: u32 = 0x0008_0000;
/// The inode is the value of an xattr.
pub(crate) const EA_INODE_FL: u32 = 0x0020_0000;

/// `struct ext4_inode`, without the xattrs that follow it.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Inode {
    pub(crate) i_mode: U16,
    pub(crate) i_uid: U16,
    pub(crate) i_size_lo: U32,
    pub(crate) i_atime: U32,
    pub(crate) i_ctime: U32,
    pub(crate) i_mtime: U32,
    pub(crate) i_dtime: U32,
    pub(crate) i_gid: U16,
    pub(crate) i_links_count: U16,
    pub(crate) i_blocks_lo: U32,
    pub(crate) i_flags: U32,
    /// `l_i_version`, the low half of the version.
    pub(crate) i_disk_version: U32,
    pub(crate) i_block: [u8; 60],
    pub(crate) i_generation: U32,
    pub(crate) i_file_acl_lo: U32,
    pub(crate) i_size_high: U32,
    pub(crate) i_obso_faddr: U32,
    pub(crate) l_i_blocks_high: U16,
    pub(crate) l_i_file_acl_high: U16,
    pub(crate) l_i_uid_high: U16,
    pub(crate) l_i_gid_high: U16,
    pub(crate) l_i_checksum_lo: U16,
    pub(crate) l_i_reserved: U16,
    pub(crate) i_extra_isize: U16,
    pub(crate) i_checksum_hi: U16,
    pub(crate) i_ctime_extra: U32,
    pub(crate) i_mtime_extra: U32,
    pub(crate) i_atime_extra: U32,
    pub(crate) i_crtime: U32,
    pub(crate) i_crtime_extra: U32,
    pub(crate) i_version_hi: U32,
    pub(crate) i_projid: U32,
}

const _: () = assert!(size_of::<Inode>() == 128 + EXTRA_ISIZE);
const _: () = assert!(std::mem::offset_of!(Inode, i_block) == 0x28);
const _: () = assert!(std::mem::offset_of!(Inode, l_i_checksum_lo) == 0x7C);
const _: () = assert!(std::mem::offset_of!(Inode, i_checksum_hi) == 0x82);
