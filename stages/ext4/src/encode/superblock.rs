//! Superblocks, with the group descriptors behind them, and the journal's own.

use zerocopy::{FromZeros, IntoBytes};

use super::groups::Groups;
use super::{BLOCK, Decided, inodes};
use crate::checksum::{SEED, Seed};
use crate::geometry::{BLOCKS_PER_GROUP, LOG_GROUPS_PER_FLEX};
use crate::hash;
use crate::ids::{GroupNo, InodeNo};
use crate::ondisk::group::DESC_SIZE;
use crate::ondisk::inode::{EXTRA_ISIZE, INODE_SIZE};
use crate::ondisk::journal::{self, JournalSuperBlock};
use crate::ondisk::superblock::*;
use crate::ondisk::{hi32, lo32};

/// Writes a group's copy of the superblock and of the descriptors.
pub(super) fn encode(
    decided: &Decided<'_>,
    groups: &Groups,
    group: GroupNo,
    descriptors: &[u8],
    out: &mut [u8],
) {
    let offset = if group.0 == 0 { PRIMARY_OFFSET } else { 0 };
    let mut block = superblock(decided, groups);
    block.s_block_group_nr = (group.0 as u16).into();
    let covered = std::mem::offset_of!(SuperBlock, s_checksum);
    block.s_checksum = Seed::NONE.with(&block.as_bytes()[..covered]).0.into();
    out[offset..offset + size_of::<SuperBlock>()].copy_from_slice(block.as_bytes());
    out[BLOCK..].copy_from_slice(descriptors);
}

fn superblock(decided: &Decided<'_>, groups: &Groups) -> SuperBlock {
    let geometry = decided.geometry;
    let blocks = geometry.blocks;
    let free_blocks = groups.free_blocks();
    let mut s = SuperBlock::new_zeroed();
    s.s_inodes_count = geometry.inodes().into();
    s.s_blocks_count_lo = lo32(blocks);
    s.s_blocks_count_hi = hi32(blocks);
    s.s_free_blocks_count_lo = lo32(free_blocks);
    s.s_free_blocks_count_hi = hi32(free_blocks);
    s.s_free_inodes_count = (geometry.inodes() - decided.inodes_in_use).into();
    // 1,024 shifted by two: blocks and clusters of 4 KiB.
    s.s_log_block_size = 2.into();
    s.s_log_cluster_size = 2.into();
    s.s_blocks_per_group = (BLOCKS_PER_GROUP as u32).into();
    s.s_clusters_per_group = (BLOCKS_PER_GROUP as u32).into();
    s.s_inodes_per_group = geometry.inodes_per_group.into();
    // No check is due after any number of mounts. All times are 0: the same bytes at any time.
    s.s_max_mnt_count = u16::MAX.into();
    s.s_magic = MAGIC.into();
    s.s_state = STATE_VALID.into();
    s.s_errors = ERRORS_CONTINUE.into();
    s.s_rev_level = DYNAMIC_REV.into();
    s.s_first_ino = InodeNo::FIRST.0.into();
    s.s_inode_size = (INODE_SIZE as u16).into();
    s.s_min_extra_isize = (EXTRA_ISIZE as u16).into();
    s.s_want_extra_isize = (EXTRA_ISIZE as u16).into();
    put_features(decided, &mut s);
    s.s_uuid = decided.uuid;
    s.s_volume_name = *decided.options.label.as_bytes();
    s.s_hash_seed = hash::SEED.map(Into::into);
    s.s_def_hash_version = HASH_HALF_MD4;
    s.s_flags = FLAGS_UNSIGNED_HASH.into();
    s.s_desc_size = (DESC_SIZE as u16).into();
    s.s_default_mount_opts = (DEFM_XATTR_USER | DEFM_ACL).into();
    s.s_log_groups_per_flex = LOG_GROUPS_PER_FLEX;
    s.s_checksum_type = CRC32C_CHKSUM;
    s.s_checksum_seed = SEED.0.into();
    s.s_overhead_clusters = (overhead(decided) as u32).into();
    if decided.journal_blocks > 0 {
        s.s_journal_inum = InodeNo::JOURNAL.0.into();
        s.s_jnl_backup_type = JNL_BACKUP_BLOCKS;
        s.s_jnl_blocks
            .as_mut_bytes()
            .copy_from_slice(&inodes::journal_backup(decided));
    }
    s
}

fn put_features(decided: &Decided<'_>, s: &mut SuperBlock) {
    let mut compat = compat::EXT_ATTR | compat::DIR_INDEX;
    let mut incompat = incompat::FILETYPE
        | incompat::EXTENTS
        | incompat::SIXTYFOUR_BIT
        | incompat::FLEX_BG
        | incompat::CSUM_SEED;
    if decided.journal_blocks > 0 {
        compat |= compat::HAS_JOURNAL;
    }
    if !decided.content.xattrs.values.is_empty() {
        incompat |= incompat::EA_INODE;
    }
    if decided.content.dirs.iter().any(|dir| dir.is_large()) {
        incompat |= incompat::LARGEDIR;
    }
    s.s_feature_compat = compat.into();
    s.s_feature_incompat = incompat.into();
    s.s_feature_ro_compat = (ro_compat::SPARSE_SUPER
        | ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::METADATA_CSUM)
        .into();
}

/// Blocks that no file can ever have. Source: fs/ext4/super.c, ext4_calculate_overhead.
fn overhead(decided: &Decided<'_>) -> u64 {
    let geometry = decided.geometry;
    geometry.blocks - geometry.free_blocks() + u64::from(decided.journal_blocks)
}

/// Writes the first block of an empty journal. Its UUID stays zero: it is asked for in journals on
/// devices of their own, and would tie the block to the image's.
pub(super) fn encode_journal(blocks: u32, out: &mut [u8]) {
    let mut s = JournalSuperBlock::new_zeroed();
    s.h_magic = journal::MAGIC.into();
    s.h_blocktype = journal::SUPERBLOCK_V2.into();
    s.s_blocksize = (BLOCK as u32).into();
    s.s_maxlen = blocks.into();
    s.s_first = 1.into();
    s.s_sequence = 1.into();
    s.s_nr_users = 1.into();
    out[..size_of::<JournalSuperBlock>()].copy_from_slice(s.as_bytes());
}
