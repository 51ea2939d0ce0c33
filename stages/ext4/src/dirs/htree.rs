//! Indexed directories: leaves of entries ordered by the hash of the name, under a tree of hashes.
//!
//! Blocks of the directory, in order: the root of the index, its inner nodes level by level from the
//! top, the leaves. Leaves are filled to [`LEAF_FILL`] and inner nodes to [`NODE_FILL`], so that names
//! can be added without splitting at once.
//!
//! Source: Documentation/filesystems/ext4/directory.rst, "Hash Tree Directories".

use rayon::slice::ParallelSliceMut;
use zerocopy::IntoBytes;

use super::{LEAF_SPACE, Leaf, Name, put_dots};
use crate::InodeNo;
use crate::checksum::Seed;
use crate::hash::{self, NameHash};
use crate::ondisk::dir::{self, DirEntry, DxCountLimit, DxEntry, DxRootInfo, DxTail};
use crate::ondisk::superblock::HASH_HALF_MD4;

/// Bytes of a leaf that are filled at most: 88 %. With the longest names it is 82 %.
const LEAF_FILL: usize = 3600;
/// Entries of an inner node that are filled at most: 88 %.
const NODE_FILL: usize = 448;
/// Levels below the root that every kernel reads; one more is `large_dir`.
const PLAIN_LEVELS: usize = 1;
const MAX_LEVELS: usize = 2;
/// From so many names on, sorting them pays for more than one thread.
const PARALLEL_SORT: usize = 20_000;

const _: () = assert!(LEAF_FILL <= LEAF_SPACE && NODE_FILL <= dir::NODE_LIMIT);

#[derive(Debug, Clone, Copy)]
struct Hashed<'t> {
    hash: NameHash,
    name: Name<'t>,
}

#[derive(Debug)]
pub(super) struct Htree<'t> {
    names: Vec<Hashed<'t>>,
    /// Where among the names each leaf begins.
    leaves: Vec<u32>,
    /// Inner nodes of each level below the root, from the top.
    levels: Vec<u32>,
}

/// A part of the index: the least hash below it, and its block in the directory.
#[derive(Clone, Copy)]
struct Child {
    hash: u32,
    block: u32,
}

impl<'t> Htree<'t> {
    /// Orders names by hash and cuts them into leaves; `None` if there are too many for any index.
    pub(super) fn new(names: impl Iterator<Item = Name<'t>>) -> Option<Htree<'t>> {
        let mut names: Vec<Hashed<'t>> = names
            .map(|name| Hashed {
                hash: hash::half_md4(&hash::SEED, name.name),
                name,
            })
            .collect();
        let order = |a: &Hashed<'_>, b: &Hashed<'_>| {
            a.hash
                .cmp(&b.hash)
                .then_with(|| a.name.name.cmp(b.name.name))
        };
        if names.len() < PARALLEL_SORT {
            names.sort_unstable_by(order);
        } else {
            names.par_sort_unstable_by(order);
        }

        let mut leaves = vec![0];
        let mut filled = 0;
        for (at, name) in names.iter().enumerate() {
            let size = dir::rec_len(name.name.name.len());
            if filled + size > LEAF_FILL {
                leaves.push(at as u32);
                filled = 0;
            }
            filled += size;
        }

        let mut levels = Vec::new();
        let mut top = leaves.len();
        while top > dir::ROOT_LIMIT {
            top = top.div_ceil(NODE_FILL);
            levels.insert(0, top as u32);
        }
        (levels.len() <= MAX_LEVELS).then_some(Htree {
            names,
            leaves,
            levels,
        })
    }

    pub(super) fn is_large(&self) -> bool {
        self.levels.len() > PLAIN_LEVELS
    }

    pub(super) fn blocks(&self) -> u32 {
        1 + self.levels.iter().sum::<u32>() + self.leaves.len() as u32
    }

    pub(super) fn encode(&self, ino: InodeNo, parent: InodeNo, out: &mut [u8]) {
        let seed = Seed::of_inode(ino);
        let (root, rest) = out.split_at_mut(4096);
        let inner: u32 = self.levels.iter().sum();
        let (inner_blocks, leaf_blocks) = rest.split_at_mut(inner as usize * 4096);
        self.encode_leaves(seed, leaf_blocks);

        let mut children = self.leaf_children(1 + inner);
        let mut end = inner;
        for &count in self.levels.iter().rev() {
            let begin = end - count;
            let blocks = &mut inner_blocks[begin as usize * 4096..end as usize * 4096];
            let mut parents = Vec::with_capacity(count as usize);
            let groups = children.chunks(NODE_FILL);
            for (i, (group, block)) in groups
                .zip(blocks.as_chunks_mut::<4096>().0.iter_mut())
                .enumerate()
            {
                encode_node(seed, group, block);
                parents.push(Child {
                    hash: group[0].hash,
                    block: 1 + begin + i as u32,
                });
            }
            children = parents;
            end = begin;
        }
        self.encode_root(seed, ino, parent, &children, root);
    }

    fn encode_leaves(&self, seed: Seed, blocks: &mut [u8]) {
        let ends = self.leaves[1..]
            .iter()
            .copied()
            .chain([self.names.len() as u32]);
        let ranges = self.leaves.iter().zip(ends);
        for ((&begin, end), block) in ranges.zip(blocks.as_chunks_mut::<4096>().0.iter_mut()) {
            let mut leaf = Leaf::new(block);
            for hashed in &self.names[begin as usize..end as usize] {
                leaf.push(&hashed.name);
            }
            leaf.finish(seed);
        }
    }

    /// The leaves as the index sees them, the first of which is that block of the directory.
    fn leaf_children(&self, first: u32) -> Vec<Child> {
        let child = |(i, &begin): (usize, &u32)| {
            let hash = self.names[begin as usize].hash.major;
            // The lowest bit says that names of this hash begin in the leaf before.
            let continued = begin > 0 && self.names[begin as usize - 1].hash.major == hash;
            Child {
                hash: hash | u32::from(continued),
                block: first + i as u32,
            }
        };
        self.leaves.iter().enumerate().map(child).collect()
    }

    fn encode_root(
        &self,
        seed: Seed,
        ino: InodeNo,
        parent: InodeNo,
        children: &[Child],
        block: &mut [u8],
    ) {
        put_dots(block, ino, parent, 4096 - 12);
        let info = DxRootInfo {
            reserved_zero: 0.into(),
            hash_version: HASH_HALF_MD4,
            info_length: size_of::<DxRootInfo>() as u8,
            indirect_levels: self.levels.len() as u8,
            unused_flags: 0,
        };
        block[super::DOTS..dir::ROOT_ENTRIES].copy_from_slice(info.as_bytes());
        put_children(seed, children, dir::ROOT_ENTRIES, dir::ROOT_LIMIT, block);
    }
}

fn encode_node(seed: Seed, children: &[Child], block: &mut [u8]) {
    let cover = DirEntry {
        inode: 0.into(),
        rec_len: 4096.into(),
        name_len: 0,
        file_type: 0,
    };
    block[..dir::NODE_ENTRIES].copy_from_slice(cover.as_bytes());
    put_children(seed, children, dir::NODE_ENTRIES, dir::NODE_LIMIT, block);
}

/// Writes the entries of a block of the index from `offset` on, and its checksum.
fn put_children(seed: Seed, children: &[Child], offset: usize, limit: usize, block: &mut [u8]) {
    let mut at = offset;
    for child in children {
        let entry = DxEntry {
            hash: child.hash.into(),
            block: child.block.into(),
        };
        block[at..at + 8].copy_from_slice(entry.as_bytes());
        at += 8;
    }
    // The first entry covers all hashes below the second, and has the counts in place of its own.
    let counts = DxCountLimit {
        limit: (limit as u16).into(),
        count: (children.len() as u16).into(),
    };
    block[offset..offset + 4].copy_from_slice(counts.as_bytes());

    let tail_at = offset + limit * 8;
    // The checksum covers the entries in use, then the tail with its own field as zero.
    let checksum = seed.with(&block[..at]).with(&[0; 4]).with(&[0; 4]);
    let tail = DxTail {
        dt_reserved: 0.into(),
        dt_checksum: checksum.0.into(),
    };
    block[tail_at..tail_at + size_of::<DxTail>()].copy_from_slice(tail.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(names: &[Vec<u8>]) -> Htree<'_> {
        let named = names.iter().map(|name| Name {
            name,
            ino: InodeNo(12),
            file_type: dir::FT_REG_FILE,
        });
        Htree::new(named).expect("not too many")
    }

    #[test]
    fn row_24_leaves_are_filled_between_80_and_90_percent() {
        for length in [8, 40, 255] {
            let names: Vec<Vec<u8>> = (0..20_000)
                .map(|i| format!("{i:0length$}").into_bytes())
                .collect();
            let htree = tree_of(&names);
            let used = names.len() * dir::rec_len(length);
            let percent = used * 100 / (htree.leaves.len() * 4096);
            assert!((80..=90).contains(&percent), "{length}: {percent} %");
        }
    }

    #[test]
    fn row_24_levels_come_with_the_names() {
        let names: Vec<Vec<u8>> = (0..10_000)
            .map(|i| format!("{i:0255}").into_bytes())
            .collect();
        // 13 names a leaf: 507 leaves in the root, and one more needs a level.
        assert_eq!(tree_of(&names[..13 * 507]).levels, [0u32; 0]);
        assert_eq!(tree_of(&names[..13 * 507 + 1]).levels, [2]);
        assert!(!tree_of(&names).is_large());
    }
}
