//! Bitmaps and group descriptors.
//!
//! A group in which nothing is in use but its copy of the superblock has no bitmap on the disk
//! (BLOCK_UNINIT), one without inodes no inode table (INODE_UNINIT): a large empty image costs 64 bytes a
//! group. Sources: Documentation/filesystems/ext4/group_descr.rst, bitmaps.rst, "Lazy Block Group
//! Initialization" in blockgroup.rst.

use zerocopy::IntoBytes;

use super::{BLOCK, Decided};
use crate::checksum::SEED;
use crate::geometry::{BLOCKS_PER_GROUP, Geometry};
use crate::ids::{GroupNo, InodeNo, Run};
use crate::numbers::Item;
use crate::ondisk::group::{BLOCK_UNINIT, DESC_SIZE, GroupDesc, INODE_UNINIT, INODE_ZEROED};
use crate::ondisk::{hi16, hi32, lo16, lo32};

#[derive(Debug, Clone, Copy, Default)]
struct Group {
    free_blocks: u32,
    used_inodes: u32,
    /// The part of the group's inodes behind which all are free.
    inodes_reached: u32,
    used_dirs: u32,
    has_block_bitmap: bool,
    block_bitmap_csum: u32,
    inode_bitmap_csum: u32,
}

pub(super) struct Groups {
    all: Vec<Group>,
    inodes_per_group: u32,
}

impl Groups {
    pub(super) fn new(decided: &Decided<'_>) -> Groups {
        let Decided {
            content,
            geometry,
            placement,
            last_inode,
            ..
        } = decided;
        let mut all = vec![Group::default(); geometry.groups() as usize];
        for (group, part) in placement.free.iter().flat_map(|&run| by_group(run)) {
            all[group.index()].free_blocks += part.len() as u32;
        }
        for dir in &content.dirs {
            let ino = match dir.node {
                Some(node) => content.numbers.of_item(Item(node.0)),
                None => InodeNo::FIRST,
            };
            let (group, _) = ino.place(geometry.inodes_per_group);
            all[group.index()].used_dirs += 1;
        }
        let last = all.len() - 1;
        for (i, group) in all.iter_mut().enumerate() {
            let number = GroupNo(i as u32);
            let before = u64::from(geometry.inodes_per_group) * i as u64;
            group.inodes_reached = u64::from(*last_inode)
                .saturating_sub(before)
                .min(u64::from(geometry.inodes_per_group))
                as u32;
            let in_use = |i: &u32| content.numbers.is_in_use(InodeNo(before as u32 + i));
            group.used_inodes = (1..=group.inodes_reached).filter(in_use).count() as u32;
            // The last group's bitmap must say where the disk ends; mke2fs writes it always.
            group.has_block_bitmap = i == 0 || i == last || {
                let blocks = geometry.group_end(number) - geometry.group_start(number);
                u64::from(group.free_blocks) + geometry.super_blocks(number) != blocks
            };
        }
        let mut groups = Groups {
            all,
            inodes_per_group: geometry.inodes_per_group,
        };
        // Where it is all zero, it is not made.
        groups.note_block_bitmap(GroupNo(last as u32), &[0; BLOCK]);
        groups
    }

    /// How many inodes of a group are in its table.
    pub(super) fn inodes_reached(&self, group: GroupNo) -> u32 {
        self.all[group.index()].inodes_reached
    }

    /// Whether a group's block bitmap is there.
    pub(super) fn has_block_bitmap(&self, group: GroupNo) -> bool {
        self.all[group.index()].has_block_bitmap
    }

    /// Whether a group's block bitmap is all zero, which on an empty disk it is without being written.
    pub(super) fn block_bitmap_is_zero(&self, group: GroupNo) -> bool {
        u64::from(self.all[group.index()].free_blocks) == BLOCKS_PER_GROUP
    }

    pub(super) fn free_blocks(&self) -> u64 {
        self.all
            .iter()
            .map(|group| u64::from(group.free_blocks))
            .sum()
    }

    /// Notes the checksum of a block bitmap that was made.
    pub(super) fn note_block_bitmap(&mut self, group: GroupNo, bitmap: &[u8]) {
        self.all[group.index()].block_bitmap_csum = SEED.with(bitmap).0;
    }

    /// Notes the checksum of an inode bitmap that was made: of the part that stands for inodes.
    pub(super) fn note_inode_bitmap(&mut self, group: GroupNo, bitmap: &[u8]) {
        let bytes = self.inodes_per_group as usize / 8;
        self.all[group.index()].inode_bitmap_csum = SEED.with(&bitmap[..bytes]).0;
    }

    /// All is in use but what is known to be free.
    pub(super) fn block_bitmap(&self, decided: &Decided<'_>, group: GroupNo, out: &mut [u8]) {
        out.fill(0xFF);
        let start = decided.geometry.group_start(group);
        let end = decided.geometry.group_end(group);
        let free = &decided.placement.free;
        let first = free.partition_point(|run| run.end <= start);
        for run in free[first..].iter().take_while(|run| run.start < end) {
            let from = run.start.max(start) - start;
            let to = run.end.min(end) - start;
            clear(out, from as usize, to as usize);
        }
    }

    /// In use is what is reached but for what is known to be free there, and what does not exist.
    pub(super) fn inode_bitmap(&self, decided: &Decided<'_>, group: GroupNo, out: &mut [u8]) {
        out.fill(0xFF);
        let Group {
            inodes_reached,
            used_inodes,
            ..
        } = self.all[group.index()];
        let reached = inodes_reached as usize;
        clear(out, reached, self.inodes_per_group as usize);
        if used_inodes < inodes_reached {
            let first = group.0 * self.inodes_per_group + 1;
            for at in 0..reached {
                if !decided
                    .content
                    .numbers
                    .is_in_use(InodeNo(first + at as u32))
                {
                    clear(out, at, at + 1);
                }
            }
        }
    }

    /// The descriptors of all groups, as whole blocks. The bitmaps' checksums must have been noted.
    pub(super) fn encode(&self, decided: &Decided<'_>) -> Vec<u8> {
        let geometry = decided.geometry;
        let mut out = vec![0; geometry.gdt_blocks as usize * BLOCK];
        for (i, slot) in out
            .as_chunks_mut::<DESC_SIZE>()
            .0
            .iter_mut()
            .enumerate()
            .take(self.all.len())
        {
            let number = i as u32;
            let mut desc = self.describe(geometry, GroupNo(number));
            let checksum = SEED.with(&number.to_le_bytes()).with(desc.as_bytes());
            desc.bg_checksum = lo16(checksum.0);
            slot.copy_from_slice(desc.as_bytes());
        }
        out
    }

    fn describe(&self, geometry: &Geometry, number: GroupNo) -> GroupDesc {
        let group = &self.all[number.index()];
        let tables = &geometry.tables[number.index()];
        let free_inodes = self.inodes_per_group - group.used_inodes;
        let untouched = self.inodes_per_group - group.inodes_reached;
        let mut flags = INODE_ZEROED;
        let mut block_csum = group.block_bitmap_csum;
        if !group.has_block_bitmap {
            flags |= BLOCK_UNINIT;
            block_csum = 0;
        }
        if group.used_inodes == 0 {
            flags |= INODE_UNINIT;
        }
        GroupDesc {
            bg_block_bitmap_lo: lo32(tables.block_bitmap),
            bg_inode_bitmap_lo: lo32(tables.inode_bitmap),
            bg_inode_table_lo: lo32(tables.inode_table),
            bg_free_blocks_count_lo: lo16(group.free_blocks),
            bg_free_inodes_count_lo: lo16(free_inodes),
            bg_used_dirs_count_lo: lo16(group.used_dirs),
            bg_flags: flags.into(),
            bg_exclude_bitmap_lo: 0.into(),
            bg_block_bitmap_csum_lo: lo16(block_csum),
            bg_inode_bitmap_csum_lo: lo16(group.inode_bitmap_csum),
            bg_itable_unused_lo: lo16(untouched),
            bg_checksum: 0.into(),
            bg_block_bitmap_hi: hi32(tables.block_bitmap),
            bg_inode_bitmap_hi: hi32(tables.inode_bitmap),
            bg_inode_table_hi: hi32(tables.inode_table),
            bg_free_blocks_count_hi: hi16(group.free_blocks),
            bg_free_inodes_count_hi: hi16(free_inodes),
            bg_used_dirs_count_hi: hi16(group.used_dirs),
            bg_itable_unused_hi: hi16(untouched),
            bg_exclude_bitmap_hi: 0.into(),
            bg_block_bitmap_csum_hi: hi16(block_csum),
            bg_inode_bitmap_csum_hi: hi16(group.inode_bitmap_csum),
            bg_reserved: 0.into(),
        }
    }
}

/// A run, cut where groups end.
fn by_group(run: Run) -> impl Iterator<Item = (GroupNo, Run)> {
    let first = run.start / BLOCKS_PER_GROUP;
    let last = run.end.div_ceil(BLOCKS_PER_GROUP);
    (first..last).map(move |group| {
        let start = run.start.max(group * BLOCKS_PER_GROUP);
        let end = run.end.min((group + 1) * BLOCKS_PER_GROUP);
        (GroupNo(group as u32), Run { start, end })
    })
}

/// Clears the bits from `from` to before `to`.
fn clear(bitmap: &mut [u8], from: usize, to: usize) {
    let (first, last) = (from.div_ceil(8), to / 8);
    if first > last {
        for bit in from..to {
            bitmap[bit / 8] &= !(1 << (bit % 8));
        }
        return;
    }
    for bit in (from..first * 8).chain(last * 8..to) {
        bitmap[bit / 8] &= !(1 << (bit % 8));
    }
    bitmap[first..last].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bits_are_cleared_exactly() {
        for from in 0..40 {
            for to in from..40 {
                let mut bits = [0xFF; 5];
                clear(&mut bits, from, to);
                for bit in 0..40 {
                    let set = bits[bit / 8] >> (bit % 8) & 1 == 1;
                    assert_eq!(set, !(from..to).contains(&bit), "{from}..{to}: {bit}");
                }
            }
        }
    }
}
