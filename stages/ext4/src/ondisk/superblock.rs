//! Source: Documentation/filesystems/ext4/super.rst.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the superblock begins in its block of the first group; in backups it begins at 0.
pub(crate) const PRIMARY_OFFSET: usize = 1024;
pub(crate) const MAGIC: u16 = 0xEF53;

pub(crate) const STATE_VALID: u16 = 0x0001;
pub(crate) const ERRORS_CONTINUE: u16 = 1;
pub(crate) const DYNAMIC_REV: u32 = 1;
pub(crate) const HASH_HALF_MD4: u8 = 1;
pub(crate) const FLAGS_UNSIGNED_HASH: u32 = 0x0002;
pub(crate) const CRC32C_CHKSUM: u8 = 1;
pub(crate) const DEFM_XATTR_USER: u32 = 0x0004;
pub(crate) const DEFM_ACL: u32 = 0x0008;
/// `s_jnl_backup_type`: `s_jnl_blocks` holds the journal inode's `i_block` and size.
pub(crate) const JNL_BACKUP_BLOCKS: u8 = 1;

pub(crate) mod compat {
    pub(crate) const HAS_JOURNAL: u32 = 0x0004;
    pub(crate) const EXT_ATTR: u32 = 0x0008;
    pub(crate) const DIR_INDEX: u32 = 0x0020;
}

pub(crate) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x0002;
    pub(crate) const EXTENTS: u32 = 0x0040;
    pub(crate) const SIXTYFOUR_BIT: u32 = 0x0080;
    pub(crate) const FLEX_BG: u32 = 0x0200;
    pub(crate) const EA_INODE: u32 = 0x0400;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
}

pub(crate) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x0001;
    pub(crate) const LARGE_FILE: u32 = 0x0002;
    pub(crate) const HUGE_FILE: u32 = 0x0008;
    pub(crate) const DIR_NLINK: u32 = 0x0020;
    pub(crate) const EXTRA_ISIZE: u32 = 0x0040;
    pub(crate) const METADATA_CSUM: u32 = 0x0400;
}

/// `struct ext4_super_block`.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SuperBlock {
    pub(crate) s_inodes_count: U32,
    pub(crate) s_blocks_count_lo: U32,
    pub(crate) s_r_blocks_count_lo: U32,
    pub(crate) s_free_blocks_count_lo: U32,
    pub(crate) s_free_inodes_count: U32,
    pub(crate) s_first_data_block: U32,
    pub(crate) s_log_block_size: U32,
    pub(crate) s_log_cluster_size: U32,
    pub(crate) s_blocks_per_group: U32,
    pub(crate) s_clusters_per_group: U32,
    pub(crate) s_inodes_per_group: U32,
    pub(crate) s_mtime: U32,
    pub(crate) s_wtime: U32,
    pub(crate) s_mnt_count: U16,
    pub(crate) s_max_mnt_count: U16,
    pub(crate) s_magic: U16,
    pub(crate) s_state: U16,
    pub(crate) s_errors: U16,
    pub(crate) s_minor_rev_level: U16,
    pub(crate) s_lastcheck: U32,
    pub(crate) s_checkinterval: U32,
    pub(crate) s_creator_os: U32,
    pub(crate) s_rev_level: U32,
    pub(crate) s_def_resuid: U16,
    pub(crate) s_def_resgid: U16,
    pub(crate) s_first_ino: U32,
    pub(crate) s_inode_size: U16,
    pub(crate) s_block_group_nr: U16,
    pub(crate) s_feature_compat: U32,
    pub(crate) s_feature_incompat: U32,
    pub(crate) s_feature_ro_compat: U32,
    pub(crate) s_uuid: [u8; 16],
    pub(crate) s_volume_name: [u8; 16],
    pub(crate) s_last_mounted: [u8; 64],
    pub(crate) s_algorithm_usage_bitmap: U32,
    pub(crate) s_prealloc_blocks: u8,
    pub(crate) s_prealloc_dir_blocks: u8,
    pub(crate) s_reserved_gdt_blocks: U16,
    pub(crate) s_journal_uuid: [u8; 16],
    pub(crate) s_journal_inum: U32,
    pub(crate) s_journal_dev: U32,
    pub(crate) s_last_orphan: U32,
    pub(crate) s_hash_seed: [U32; 4],
    pub(crate) s_def_hash_version: u8,
    pub(crate) s_jnl_backup_type: u8,
    pub(crate) s_desc_size: U16,
    pub(crate) s_default_mount_opts: U32,
    pub(crate) s_first_meta_bg: U32,
    pub(crate) s_mkfs_time: U32,
    pub(crate) s_jnl_blocks: [U32; 17],
    pub(crate) s_blocks_count_hi: U32,
    pub(crate) s_r_blocks_count_hi: U32,
    pub(crate) s_free_blocks_count_hi: U32,
    pub(crate) s_min_extra_isize: U16,
    pub(crate) s_want_extra_isize: U16,
    pub(crate) s_flags: U32,
    pub(crate) s_raid_stride: U16,
    pub(crate) s_mmp_interval: U16,
    pub(crate) s_mmp_block: U64,
    pub(crate) s_raid_stripe_width: U32,
    pub(crate) s_log_groups_per_flex: u8,
    pub(crate) s_checksum_type: u8,
    pub(crate) s_encryption_level: u8,
    pub(crate) s_reserved_pad: u8,
    pub(crate) s_kbytes_written: U64,
    /// Snapshots, errors seen, mount options: 0x180 to 0x247, all zero in a new file system.
    pub(crate) s_state_of_use: [u8; 0xC8],
    pub(crate) s_overhead_clusters: U32,
    pub(crate) s_backup_bgs: [U32; 2],
    pub(crate) s_encrypt_algos: [u8; 4],
    pub(crate) s_encrypt_pw_salt: [u8; 16],
    pub(crate) s_lpf_ino: U32,
    pub(crate) s_prj_quota_inum: U32,
    pub(crate) s_checksum_seed: U32,
    /// High bytes of times, error codes, encoding, orphan file: 0x274 to 0x283.
    pub(crate) s_later_fields: [u8; 16],
    pub(crate) s_reserved: [U32; 94],
    pub(crate) s_checksum: U32,
}

const _: () = assert!(size_of::<SuperBlock>() == 1024);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_uuid) == 0x68);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_hash_seed) == 0xEC);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_jnl_blocks) == 0x10C);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_flags) == 0x160);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_overhead_clusters) == 0x248);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_checksum_seed) == 0x270);
const _: () = assert!(std::mem::offset_of!(SuperBlock, s_checksum) == 0x3FC);
