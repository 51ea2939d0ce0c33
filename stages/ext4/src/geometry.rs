//! Where the fixed metadata of every block group is, and which blocks are left for content.
//!
//! Groups are taken 16 at a time (flex_bg). The bitmaps and inode tables of all 16 stand together at the
//! front of the first, so that metadata is in few pieces and content in long ones. Superblock and group
//! descriptors are repeated in groups 1 and the powers of 3, 5 and 7 (sparse_super).
//!
//! Sources: Documentation/filesystems/ext4/blockgroup.rst, "Flexible Block Groups" and "Layout".

use crate::ids::{GroupNo, Run};
use crate::ondisk::{group, inode};

pub(crate) const BLOCKS_PER_GROUP: u64 = 32_768;
pub(crate) const INODES_PER_BLOCK: u32 = (4096 / inode::INODE_SIZE) as u32;
/// As many as the inode bitmap, one block, has bits.
pub(crate) const MAX_INODES_PER_GROUP: u32 = 32_768;
pub(crate) const LOG_GROUPS_PER_FLEX: u8 = 4;
const GROUPS_PER_FLEX: u32 = 1 << LOG_GROUPS_PER_FLEX;
/// 16 TiB. Above, every backup of the group descriptors takes more than 8 MiB.
pub(crate) const MAX_BLOCKS: u64 = 1 << 32;
/// A last group with fewer blocks to use than this is left off, as mke2fs does.
const MIN_TAIL: u64 = 50;

/// Where a group's own metadata is: anywhere in its flex group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tables {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of the file system; the disk may have a few more.
    pub(crate) blocks: u64,
    pub(crate) inodes_per_group: u32,
    /// Blocks of the group descriptors, after each superblock.
    pub(crate) gdt_blocks: u64,
    /// One for each group.
    pub(crate) tables: Vec<Tables>,
    /// What is left for content, in the order of the disk.
    pub(crate) free: Vec<Run>,
}

impl Geometry {
    /// The geometry of a disk with room for so many inodes at least, or `None` if there is no such one.
    pub(crate) fn new(disk_blocks: u64, inodes: u64) -> Option<Geometry> {
        let mut blocks = disk_blocks;
        loop {
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            if blocks == 0 || blocks > MAX_BLOCKS {
                return None;
            }
            let per_group = inodes
                .div_ceil(groups)
                .next_multiple_of(u64::from(INODES_PER_BLOCK));
            if per_group > u64::from(MAX_INODES_PER_GROUP)
                || per_group * groups > u64::from(u32::MAX)
            {
                return None;
            }
            if let Some(geometry) = Geometry::place(blocks, groups as u32, per_group as u32) {
                return Some(geometry);
            }
            // The last group is too short for what it must hold: do without it.
            blocks = (groups - 1) * BLOCKS_PER_GROUP;
        }
    }

    /// The geometry of which these two numbers are known.
    pub(crate) fn known(blocks: u64, inodes_per_group: u32) -> Option<Geometry> {
        let good = (1..=MAX_BLOCKS).contains(&blocks)
            && (1..=MAX_INODES_PER_GROUP).contains(&inodes_per_group)
            && inodes_per_group.is_multiple_of(INODES_PER_BLOCK);
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP) as u32;
        good.then(|| Geometry::place(blocks, groups, inodes_per_group))?
    }

    fn place(blocks: u64, groups: u32, inodes_per_group: u32) -> Option<Geometry> {
        let gdt_blocks = u64::from(groups).div_ceil(4096 / group::DESC_SIZE as u64);
        let mut geometry = Geometry {
            blocks,
            inodes_per_group,
            gdt_blocks,
            tables: vec![Tables::default(); groups as usize],
            free: Vec::new(),
        };
        let mut at = 0;
        for first in (0..groups).step_by(GROUPS_PER_FLEX as usize) {
            let members = first..groups.min(first + GROUPS_PER_FLEX);
            at = geometry.place_flex(at, members)?;
        }
        geometry.release(at, blocks);
        let tail = geometry.free.last().map_or(0, |run| run.len());
        // A tail that is not part of a longer run would be of no use.
        if groups > 1 && !blocks.is_multiple_of(BLOCKS_PER_GROUP) && tail < MIN_TAIL {
            return None;
        }
        Some(geometry)
    }

    /// Places the metadata of one flex group; everything from `at` on is undecided. Returns what is
    /// undecided after it.
    fn place_flex(&mut self, at: u64, members: std::ops::Range<u32>) -> Option<u64> {
        let start = u64::from(members.start) * BLOCKS_PER_GROUP;
        self.release(at, start);
        let mut at = start;
        for g in members.clone() {
            self.tables[g as usize].block_bitmap = self.claim(&mut at, 1)?;
        }
        for g in members.clone() {
            self.tables[g as usize].inode_bitmap = self.claim(&mut at, 1)?;
        }
        for g in members {
            let blocks = u64::from(self.table_blocks());
            self.tables[g as usize].inode_table = self.claim(&mut at, blocks)?;
        }
        Some(at)
    }

    /// Claims the next `count` blocks that lie in one group and hold no backup. What is passed over is
    /// free.
    fn claim(&mut self, at: &mut u64, count: u64) -> Option<u64> {
        loop {
            let group = GroupNo((*at / BLOCKS_PER_GROUP) as u32);
            let begin = (*at).max(self.first_usable(group));
            let end = self.group_end(group);
            if begin + count <= end {
                self.release(*at, begin);
                *at = begin + count;
                return Some(begin);
            }
            if end >= self.blocks {
                return None;
            }
            self.release(*at, end);
            *at = end;
        }
    }

    /// Gives the blocks of a range to content, but for backups.
    fn release(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let group = GroupNo((at / BLOCKS_PER_GROUP) as u32);
            let stop = self.group_end(group).min(end);
            let begin = at.max(self.first_usable(group)).min(stop);
            if begin < stop {
                match self.free.last_mut() {
                    Some(last) if last.end == begin => last.end = stop,
                    _ => self.free.push(Run {
                        start: begin,
                        end: stop,
                    }),
                }
            }
            at = stop;
        }
    }

    /// The first block of a group after its copy of superblock and descriptors, if it has one.
    fn first_usable(&self, group: GroupNo) -> u64 {
        self.group_start(group) + self.super_blocks(group)
    }

    /// Blocks of a group's copy of superblock and descriptors.
    pub(crate) fn super_blocks(&self, group: GroupNo) -> u64 {
        if has_super(group) {
            1 + self.gdt_blocks
        } else {
            0
        }
    }

    pub(crate) fn groups(&self) -> u32 {
        self.tables.len() as u32
    }

    pub(crate) fn all_groups(&self) -> impl ExactSizeIterator<Item = GroupNo> + use<> {
        (0..self.groups()).map(GroupNo)
    }

    pub(crate) fn group_start(&self, group: GroupNo) -> u64 {
        u64::from(group.0) * BLOCKS_PER_GROUP
    }

    pub(crate) fn group_end(&self, group: GroupNo) -> u64 {
        (self.group_start(group) + BLOCKS_PER_GROUP).min(self.blocks)
    }

    /// Blocks of one group's inode table.
    pub(crate) fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// All inodes, used or not.
    pub(crate) fn inodes(&self) -> u32 {
        self.inodes_per_group * self.groups()
    }

    /// Blocks that content can have.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.free.iter().map(|run| run.len()).sum()
    }
}

/// Whether a group begins with a superblock and the group descriptors.
pub(crate) fn has_super(group: GroupNo) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group.0 {
            power = power.saturating_mul(base);
        }
        power == group.0
    };
    group.0 <= 1 || power_of(3) || power_of(5) || power_of(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_in_powers_of_three_five_and_seven() {
        let with: Vec<u32> = (0..130).filter(|&g| has_super(GroupNo(g))).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    /// Every block is either a group's metadata or free, never both.
    #[test]
    fn nothing_overlaps_and_nothing_is_lost() {
        for (blocks, inodes) in [
            (300, 16),
            (32_768, 8_192),
            (32_768 * 16 + 20_000, 100_000),
            // So many inodes that the tables of a flex group fill more than a group.
            (32_768 * 33 + 4_000, 32_768 * 33),
            (32_768 * 40, 1_300_000),
        ] {
            let geometry = Geometry::new(blocks, inodes).expect("a geometry");
            assert!(u64::from(geometry.inodes()) >= inodes);
            let mut used: Vec<Run> = geometry.free.clone();
            for g in geometry.all_groups() {
                let start = geometry.group_start(g);
                let t = &geometry.tables[g.index()];
                let mut add = |start, len| {
                    if len > 0 {
                        used.push(Run {
                            start,
                            end: start + len,
                        });
                    }
                };
                add(start, geometry.super_blocks(g));
                add(t.block_bitmap, 1);
                add(t.inode_bitmap, 1);
                add(t.inode_table, u64::from(geometry.table_blocks()));
            }
            used.sort_by_key(|run| run.start);
            let mut at = 0;
            for run in used {
                assert_eq!(run.start, at, "{blocks} blocks");
                at = run.end;
            }
            assert_eq!(at, geometry.blocks);
        }
    }

    #[test]
    fn a_last_group_that_is_too_short_is_left_off() {
        let geometry = Geometry::new(32_768 + 40, 8_192).expect("a geometry");
        assert_eq!(geometry.blocks, 32_768);
    }

    #[test]
    fn there_is_no_geometry_for_too_many_inodes() {
        assert_eq!(Geometry::new(32_768, 32_769), None);
    }
}
