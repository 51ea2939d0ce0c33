//! Source: Documentation/filesystems/ext4/attributes.rst; ACLs: fs/ext4/acl.h and
//! include/uapi/linux/posix_acl_xattr.h.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Of xattr blocks, and of the xattrs in an inode.
pub(crate) const MAGIC: u32 = 0xEA02_0000;
/// `EXT4_XATTR_REFCOUNT_MAX`: inodes that share one block.
pub(crate) const REFCOUNT_MAX: u32 = 1024;
/// `XATTR_SIZE_MAX` of the kernel: bytes in one value.
pub(crate) const VALUE_MAX: usize = 65_536;
/// `EXT4_XATTR_MIN_LARGE_EA_SIZE`: values above this may live in an inode of their own.
pub(crate) const MIN_LARGE: usize = 4096 >> 4;

/// `struct ext4_xattr_header`, at the beginning of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) h_magic: U32,
    pub(crate) h_refcount: U32,
    pub(crate) h_blocks: U32,
    pub(crate) h_hash: U32,
    pub(crate) h_checksum: U32,
    pub(crate) h_reserved: [U32; 3],
}

/// `struct ext4_xattr_entry`, without the name.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) e_name_len: u8,
    pub(crate) e_name_index: u8,
    pub(crate) e_value_offs: U16,
    pub(crate) e_value_inum: U32,
    pub(crate) e_value_size: U32,
    pub(crate) e_hash: U32,
}

const _: () = assert!(size_of::<Header>() == 32);
const _: () = assert!(size_of::<Entry>() == 16);

/// `struct posix_acl_xattr_header` is a version; this is the one there is.
pub(crate) const ACL_XATTR_VERSION: u32 = 2;
/// `EXT4_ACL_VERSION`, the same on the disk.
pub(crate) const ACL_DISK_VERSION: u32 = 1;

pub(crate) const ACL_USER_OBJ: u16 = 0x01;
pub(crate) const ACL_USER: u16 = 0x02;
pub(crate) const ACL_GROUP_OBJ: u16 = 0x04;
pub(crate) const ACL_GROUP: u16 = 0x08;
pub(crate) const ACL_MASK: u16 = 0x10;
pub(crate) const ACL_OTHER: u16 = 0x20;

/// `struct posix_acl_xattr_entry`. On the disk, `e_id` is there for users and groups only.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct AclEntry {
    pub(crate) e_tag: U16,
    pub(crate) e_perm: U16,
    pub(crate) e_id: U32,
}
