//! Cuts an image map into pieces of work, in the disk's order.
//!
//! A piece is either several whole extents (small files, metadata) or a part of one large extent. It
//! is found when a thread asks for it, so the plan needs no memory of its own.

use crate::copy::CopyError;
use crate::map::{BLOCK_SIZE, ImageMap, MapExtent, Origin};

/// The most blocks in a piece: 2 MiB, a huge page. Each thread has a buffer of it; larger ones were
/// slower, as the processor's cache does not hold what was read until it is written.
pub(super) const PIECE: u32 = 512;

/// A part of an extent that needs no copying any more, in blocks from the extent's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) extent: usize,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Gives the pieces out, one after another.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    extents: &'a [MapExtent],
    /// What is left out, in order.
    done: &'a [Done],
    extent: usize,
    /// Blocks of that extent that were given out.
    taken: u32,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(extents: &'a [MapExtent], done: &'a [Done]) -> Self {
        Cursor {
            extents,
            done,
            extent: 0,
            taken: 0,
        }
    }

    /// Puts the next piece into `piece`, emptied first. Nothing in it: all was given out.
    pub(super) fn next(&mut self, piece: &mut Vec<MapExtent>) {
        piece.clear();
        let mut blocks = 0;
        while let Some(rest) = self.rest() {
            if blocks + rest.blocks <= PIECE {
                blocks += rest.blocks;
                self.taken += rest.blocks;
                piece.push(rest);
                continue;
            }
            // A large extent begins a piece of its own, so that a small file is never cut.
            if piece.is_empty() {
                self.taken += PIECE;
                piece.push(part(rest, 0, PIECE));
            }
            return;
        }
    }

    /// The runs of blocks that are left to write, each as long as can be: first block, and blocks.
    pub(super) fn runs(mut self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        while let Some(rest) = self.rest() {
            self.taken += rest.blocks;
            match runs.last_mut() {
                Some((first, blocks)) if *first + *blocks == rest.block => {
                    *blocks += u64::from(rest.blocks);
                }
                _ => runs.push((rest.block, u64::from(rest.blocks))),
            }
        }
        runs
    }

    /// What is left of the first extent that has something left, up to the next part that is done.
    fn rest(&mut self) -> Option<MapExtent> {
        loop {
            let extent = *self.extents.get(self.extent)?;
            let mut end = extent.blocks;
            if let [next, after @ ..] = self.done
                && next.extent == self.extent
            {
                if self.taken >= next.from {
                    self.taken = next.to;
                    self.done = after;
                    continue;
                }
                end = next.from;
            }
            if self.taken < end {
                return Some(part(extent, self.taken, end));
            }
            self.extent += 1;
            self.taken = 0;
        }
    }
}

/// The blocks `from..to` of an extent, as an extent.
pub(super) fn part(extent: MapExtent, from: u32, to: u32) -> MapExtent {
    let skip = u64::from(from) * BLOCK_SIZE;
    MapExtent {
        block: extent.block + u64::from(from),
        blocks: to - from,
        origin: match extent.origin {
            Origin::Metadata { offset } => Origin::Metadata {
                offset: offset + skip,
            },
            Origin::File { node, offset } => Origin::File {
                node,
                offset: offset + skip,
            },
        },
    }
}

/// Refuses a map whose extents overlap, leave the disk, or point past the metadata.
pub(super) fn validate(map: &ImageMap) -> Result<(), CopyError> {
    let mut end = 0;
    for extent in &map.extents {
        let last = extent.block.checked_add(u64::from(extent.blocks));
        let good = match extent.origin {
            Origin::Metadata { offset } => offset
                .checked_add(u64::from(extent.blocks) * BLOCK_SIZE)
                .is_some_and(|last| last <= map.metadata.len() as u64),
            Origin::File { offset, .. } => offset % BLOCK_SIZE == 0,
        };
        match last {
            Some(last) if good && extent.block >= end && last <= map.blocks => end = last,
            _ => {
                return Err(CopyError::Map {
                    block: extent.block,
                });
            }
        }
    }
    Ok(())
}
