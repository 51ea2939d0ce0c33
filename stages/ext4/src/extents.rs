//! Extent trees: how many blocks one takes, and its bytes.
//!
//! Up to four extents stand in the inode. More go to blocks, filled one after the other, under as many
//! levels of index blocks as it takes to have four entries in the inode at most.
//!
//! Source: Documentation/filesystems/ext4/ifork.rst, "Extent Tree".

use zerocopy::IntoBytes;

use crate::checksum::Seed;
use crate::ondisk::extent::{self, Header, IN_BLOCK, IN_INODE, Index, Leaf, MAX_LEN};
use crate::ondisk::{lo32, top16};

/// A piece of content: where it is in its file and on the disk. It may be longer than an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its first block on the disk.
    pub(crate) block: u64,
    /// Its first block in the file.
    pub(crate) logical: u32,
    pub(crate) blocks: u32,
}

/// How many extents pieces take.
pub(crate) fn count(pieces: &[Piece]) -> usize {
    pieces
        .iter()
        .map(|piece| piece.blocks.div_ceil(MAX_LEN) as usize)
        .sum()
}

/// Blocks of the levels of a tree over so many extents, from the leaves up; none if the inode suffices.
fn levels(extents: usize) -> impl Iterator<Item = usize> {
    let over = |entries: usize| (entries > IN_INODE).then(|| entries.div_ceil(IN_BLOCK));
    std::iter::successors(over(extents), move |&entries| over(entries))
}

/// Blocks that a tree over so many extents takes beside the inode.
pub(crate) fn tree_blocks(extents: usize) -> usize {
    levels(extents).sum()
}

/// Cuts pieces into extents.
fn leaves(pieces: &[Piece]) -> impl Iterator<Item = Leaf> {
    pieces.iter().flat_map(|piece| {
        (0..piece.blocks)
            .step_by(MAX_LEN as usize)
            .map(move |from| {
                let block = piece.block + u64::from(from);
                Leaf {
                    ee_block: (piece.logical + from).into(),
                    ee_len: ((piece.blocks - from).min(MAX_LEN) as u16).into(),
                    ee_start_hi: top16(block),
                    ee_start_lo: lo32(block),
                }
            })
    })
}

/// Writes `i_block` of an inode whose tree blocks, if it has any, are at `tree`.
pub(crate) fn encode_root(pieces: &[Piece], tree: &[Piece], out: &mut [u8; 60]) {
    let extents = count(pieces);
    let Some(top) = levels(extents).last() else {
        let header = header(extents, IN_INODE, 0);
        out[..12].copy_from_slice(header.as_bytes());
        for (leaf, slot) in leaves(pieces).zip(out[12..].as_chunks_mut::<12>().0.iter_mut()) {
            slot.copy_from_slice(leaf.as_bytes());
        }
        return;
    };
    let depth = levels(extents).count();
    out[..12].copy_from_slice(header(top, IN_INODE, depth).as_bytes());
    // The top level comes last in the tree.
    let first = tree_blocks(extents) - top;
    // Extents below one block of the top level.
    let below = IN_BLOCK.pow(depth as u32);
    let starts = leaves(pieces)
        .step_by(below)
        .map(|leaf| leaf.ee_block.get());
    for ((i, start), slot) in starts
        .enumerate()
        .zip(out[12..].as_chunks_mut::<12>().0.iter_mut())
    {
        let index = index(start, nth_block(tree, first + i));
        slot.copy_from_slice(index.as_bytes());
    }
}

/// Writes the blocks of a tree that are at `tree`, the leaves first. Nothing if there are none.
pub(crate) fn encode_tree(seed: Seed, pieces: &[Piece], tree: &[Piece], out: &mut [u8]) {
    let extents = count(pieces);
    let mut blocks = out.as_chunks_mut::<4096>().0.iter_mut();
    // First file blocks of what the level below holds, one for each of its blocks.
    let mut starts: Vec<u32> = Vec::new();
    let mut first_below = 0;
    for (depth, size) in levels(extents).enumerate() {
        let level = blocks.by_ref().take(size);
        let mut here = Vec::with_capacity(size);
        if depth == 0 {
            let mut leaves = leaves(pieces);
            for (block, count) in level.zip(fills(extents)) {
                let mut first = None;
                fill(seed, block, depth, count, || {
                    leaves.next().inspect(|leaf| {
                        first.get_or_insert(leaf.ee_block.get());
                    })
                });
                here.extend(first);
            }
        } else {
            let mut below = starts.iter().enumerate();
            for (block, count) in level.zip(fills(starts.len())) {
                let mut first = None;
                fill(seed, block, depth, count, || {
                    below.next().map(|(i, &start)| {
                        first.get_or_insert(start);
                        index(start, nth_block(tree, first_below + i))
                    })
                });
                here.extend(first);
            }
            first_below += starts.len();
        }
        starts = here;
    }
}

/// How many entries each block of a level has.
fn fills(entries: usize) -> impl Iterator<Item = usize> {
    (0..entries)
        .step_by(IN_BLOCK)
        .map(move |at| (entries - at).min(IN_BLOCK))
}

fn fill<T: IntoBytes + zerocopy::Immutable>(
    seed: Seed,
    block: &mut [u8],
    depth: usize,
    count: usize,
    mut next: impl FnMut() -> Option<T>,
) {
    block[..12].copy_from_slice(header(count, IN_BLOCK, depth).as_bytes());
    for slot in block[12..].as_chunks_mut::<12>().0.iter_mut().take(count) {
        if let Some(entry) = next() {
            slot.copy_from_slice(entry.as_bytes());
        }
    }
    let (covered, tail) = block.split_at_mut(extent::TAIL_OFFSET);
    tail[..4].copy_from_slice(&seed.with(covered).0.to_le_bytes());
}

fn header(entries: usize, max: usize, depth: usize) -> Header {
    Header {
        eh_magic: extent::MAGIC.into(),
        eh_entries: (entries as u16).into(),
        eh_max: (max as u16).into(),
        eh_depth: (depth as u16).into(),
        eh_generation: 0.into(),
    }
}

fn index(start: u32, block: u64) -> Index {
    Index {
        ei_block: start.into(),
        ei_leaf_lo: lo32(block),
        ei_leaf_hi: top16(block),
        ei_unused: 0.into(),
    }
}

/// The place on the disk of the nth block of what consists of `pieces`, which are in order.
pub(crate) fn nth_block(pieces: &[Piece], n: usize) -> u64 {
    let at = pieces.partition_point(|piece| piece.logical as usize <= n) - 1;
    pieces[at].block + (n - pieces[at].logical as usize) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_grow_a_level_where_the_one_below_is_full() {
        assert_eq!(tree_blocks(0), 0);
        assert_eq!(tree_blocks(4), 0);
        assert_eq!(tree_blocks(5), 1);
        assert_eq!(tree_blocks(340), 1);
        assert_eq!(tree_blocks(341), 2);
        assert_eq!(tree_blocks(4 * 340), 4);
        assert_eq!(tree_blocks(4 * 340 + 1), 5 + 1);
    }

    #[test]
    fn a_piece_is_cut_at_32768_blocks() {
        let piece = Piece {
            block: 100,
            logical: 7,
            blocks: 32_768 + 1,
        };
        let cut: Vec<(u32, u16, u32)> = leaves(&[piece])
            .map(|l| (l.ee_block.get(), l.ee_len.get(), l.ee_start_lo.get()))
            .collect();
        assert_eq!(cut, [(7, 32_768, 100), (7 + 32_768, 1, 100 + 32_768)]);
        assert_eq!(count(&[piece]), 2);
    }
}
