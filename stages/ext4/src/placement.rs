//! Gives every block of content its place: metadata first, then files, all in the order of the tree.
//!
//! The disk's free runs are filled from the front without a gap, so what is in use is what lies before
//! one point. Directories, symlinks and xattrs come first, then the journal, then files in the Tree's
//! order (a copy reads directory by directory), and last the blocks of extent trees, whose number is
//! known only when the files have their places.

use std::collections::HashMap;

use fcpipe_tree::{Kind, Tree};

use crate::dirs::DirPlan;
use crate::extents::{self, Piece};
use crate::ids::{Run, Span};
use crate::numbers::{Item, Numbers};
use crate::ondisk::inode::FAST_SYMLINK_LIMIT;
use crate::xattrs::Xattrs;

/// All that will be written, and how much of it there is.
#[derive(Debug)]
pub(crate) struct Content<'t> {
    pub(crate) tree: &'t Tree,
    pub(crate) numbers: Numbers,
    /// All directories, in the order of their nodes; a `lost+found` that was not in the tree comes last.
    pub(crate) dirs: Vec<DirPlan<'t>>,
    pub(crate) xattrs: Xattrs<'t>,
}

/// There are not enough free blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// Where content is.
#[derive(Debug)]
pub(crate) struct Placement {
    pieces: Vec<Piece>,
    of_item: Vec<Span>,
    lost_found: Span,
    /// By the number of the value or block.
    of_value: Vec<Span>,
    pub(crate) of_xattr_block: Vec<u64>,
    journal: Span,
    /// Of what has more than four extents: the blocks of its tree.
    trees: HashMap<Owner, Span>,
    /// What nothing was put into, in the order of the disk.
    pub(crate) free: Vec<Run>,
}

/// What content belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Item(Item),
    LostFound,
    Value(u32),
    Journal,
}

impl Placement {
    /// Fills `free` with content and a journal of so many blocks.
    pub(crate) fn new(
        content: &Content<'_>,
        journal: u32,
        free: &[Run],
    ) -> Result<Placement, NoRoom> {
        let Content {
            tree,
            numbers,
            dirs,
            xattrs,
        } = content;
        let mut filler = Filler {
            free,
            at: 0,
            next: free.first().map_or(0, |run| run.start),
            pieces: Vec::with_capacity(numbers.items() as usize),
        };
        let mut of_item = vec![Span::default(); numbers.items() as usize];
        let mut lost_found = Span::default();
        for dir in dirs {
            let span = filler.put(dir.blocks())?;
            match dir.node {
                Some(node) => of_item[node.index()] = span,
                None => lost_found = span,
            }
        }
        for item in numbers.all_items() {
            if is_slow_symlink(tree, numbers, item) {
                of_item[item.index()] = filler.put(1)?;
            }
        }
        let mut of_xattr_block = Vec::with_capacity(xattrs.blocks.len());
        for _ in &xattrs.blocks {
            let span = filler.put(1)?;
            of_xattr_block.push(filler.pieces[span.start as usize].block);
        }
        let mut of_value = Vec::with_capacity(xattrs.values.len());
        for value in &xattrs.values {
            of_value.push(filler.put(value.bytes.len().div_ceil(4096) as u32)?);
        }
        let journal = filler.put(journal)?;
        for item in numbers.all_items() {
            let node = numbers.node(item);
            if let Kind::File { size } = tree.kind(node) {
                let blocks = file_blocks(size);
                of_item[item.index()] = match tree.data_runs(node) {
                    None => filler.put(blocks)?,
                    Some(runs) => {
                        filler.put_runs(runs.iter().map(|run| (run.start, run.end.min(blocks))))?
                    }
                };
            }
        }

        let mut trees = HashMap::new();
        let others = std::iter::once((Owner::LostFound, lost_found))
            .chain([(Owner::Journal, journal)])
            .chain(
                (0..)
                    .zip(&of_value)
                    .map(|(i, &span)| (Owner::Value(i), span)),
            );
        let items = numbers
            .all_items()
            .map(|item| (Owner::Item(item), of_item[item.index()]));
        for (owner, span) in items.chain(others) {
            let extents = extents::count(&filler.pieces[span.range()]);
            let blocks = extents::tree_blocks(extents);
            if blocks > 0 {
                trees.insert(owner, filler.put(blocks as u32)?);
            }
        }
        let free = filler.rest();
        Ok(Placement {
            pieces: filler.pieces,
            of_item,
            lost_found,
            of_value,
            of_xattr_block,
            journal,
            trees,
            free,
        })
    }

    /// A placement that was found elsewhere. `made`: of `lost+found` and of the journal.
    pub(crate) fn of(
        pieces: Vec<Piece>,
        of_item: Vec<Span>,
        made: (Span, Span),
        of_value: Vec<Span>,
        of_xattr_block: Vec<u64>,
        trees: HashMap<Owner, Span>,
        free: Vec<Run>,
    ) -> Placement {
        Placement {
            pieces,
            of_item,
            lost_found: made.0,
            of_value,
            of_xattr_block,
            journal: made.1,
            trees,
            free,
        }
    }

    /// Everything that spans point into; pieces that none points to may be among them.
    pub(crate) fn all_pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub(crate) fn span(&self, owner: Owner) -> Span {
        match owner {
            Owner::Item(item) => self.of_item[item.index()],
            Owner::LostFound => self.lost_found,
            Owner::Value(value) => self.of_value[value as usize],
            Owner::Journal => self.journal,
        }
    }

    pub(crate) fn tree_span(&self, owner: Owner) -> Span {
        self.trees.get(&owner).copied().unwrap_or_default()
    }

    /// The content of an owner.
    pub(crate) fn pieces(&self, owner: Owner) -> &[Piece] {
        &self.pieces[self.span(owner).range()]
    }

    /// The blocks of an owner's extent tree; none if the inode suffices.
    pub(crate) fn tree(&self, owner: Owner) -> &[Piece] {
        match self.trees.get(&owner) {
            Some(span) => &self.pieces[span.range()],
            None => &[],
        }
    }

    /// All owners that have blocks for their extent tree, in the order of the disk.
    pub(crate) fn trees(&self) -> Vec<Owner> {
        let mut all: Vec<_> = self.trees.iter().collect();
        all.sort_by_key(|(_, span)| span.start);
        all.into_iter().map(|(&owner, _)| owner).collect()
    }
}

impl Content<'_> {
    /// Blocks that content needs at most, without a journal, on a disk with so many free runs.
    pub(crate) fn blocks(&self, runs: u64) -> u64 {
        let mut blocks = runs_cost(runs);
        blocks += self
            .dirs
            .iter()
            .map(|dir| u64::from(dir.blocks()))
            .sum::<u64>();
        blocks += self.xattrs.blocks.len() as u64;
        for value in &self.xattrs.values {
            blocks += value.bytes.len().div_ceil(4096) as u64;
        }
        for item in self.numbers.all_items() {
            let node = self.numbers.node(item);
            match self.tree.kind(node) {
                Kind::File { size } => {
                    let all = file_blocks(size);
                    match self.tree.data_runs(node) {
                        None => blocks += with_tree(std::iter::once(all)),
                        Some(runs) => {
                            blocks += with_tree(
                                runs.iter()
                                    .map(|run| run.end.min(all).saturating_sub(run.start)),
                            );
                        }
                    }
                }
                _ => blocks += u64::from(is_slow_symlink(self.tree, &self.numbers, item)),
            }
        }
        for dir in &self.dirs {
            blocks += with_tree(std::iter::once(dir.blocks())) - u64::from(dir.blocks());
        }
        blocks
    }
}

/// What it costs at most that content is cut where free runs end: each time one extent more, which can
/// ask for a block on each level of a tree.
fn runs_cost(runs: u64) -> u64 {
    const LEVELS: u64 = 4;
    runs * LEVELS
}

/// The blocks of runs, and of the extent tree over them.
fn with_tree(runs: impl Iterator<Item = u32>) -> u64 {
    let mut blocks = 0;
    let mut count = 0;
    for run in runs {
        blocks += u64::from(run);
        count += run.div_ceil(crate::ondisk::extent::MAX_LEN) as usize;
    }
    blocks + extents::tree_blocks(count) as u64
}

/// Blocks of a file without holes. The size was checked against ext4's limit.
pub(crate) fn file_blocks(size: u64) -> u32 {
    size.div_ceil(4096) as u32
}

pub(crate) fn is_slow_symlink(tree: &Tree, numbers: &Numbers, item: Item) -> bool {
    let node = numbers.node(item);
    tree.kind(node) == Kind::Symlink && tree.target(node).len() >= FAST_SYMLINK_LIMIT
}

/// Fills free runs from the front.
struct Filler<'f> {
    free: &'f [Run],
    /// The run that is being filled, and its first block that is free.
    at: usize,
    next: u64,
    pieces: Vec<Piece>,
}

impl Filler<'_> {
    /// The next so many blocks, as content that begins at block 0 of its file.
    fn put(&mut self, blocks: u32) -> Result<Span, NoRoom> {
        self.put_runs(std::iter::once((0, blocks)))
    }

    /// The next blocks, for data at those (begin, end) of a file.
    fn put_runs(&mut self, runs: impl Iterator<Item = (u32, u32)>) -> Result<Span, NoRoom> {
        let start = self.pieces.len() as u32;
        for (mut logical, end) in runs {
            while logical < end {
                let run = self.free.get(self.at).ok_or(NoRoom)?;
                let blocks = u64::from(end - logical).min(run.end - self.next) as u32;
                self.pieces.push(Piece {
                    block: self.next,
                    logical,
                    blocks,
                });
                logical += blocks;
                self.next += u64::from(blocks);
                if self.next == run.end {
                    self.at += 1;
                    self.next = self.free.get(self.at).map_or(0, |run| run.start);
                }
            }
        }
        Ok(Span {
            start,
            len: self.pieces.len() as u32 - start,
        })
    }

    /// What is still free.
    fn rest(&self) -> Vec<Run> {
        let mut rest = self.free.get(self.at..).unwrap_or_default().to_vec();
        if let Some(first) = rest.first_mut() {
            first.start = self.next;
        }
        rest
    }
}
