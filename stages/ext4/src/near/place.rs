//! Places what changed in what is free, takes over the rest, and finds what must be written.

use std::collections::HashMap;

use fcpipe_tree::{Kind, NodeId, Tree};

use super::imprint::{Imprint, PNode, PSpan, hashes_of_sets, kind_of, number_of};
use super::matching::{Matched, content_of, same_runs};
use super::space::Space;
use super::{Contents, Values};
use crate::encode::Changes;
use crate::extents::{self, Piece};
use crate::geometry::INODES_PER_BLOCK;
use crate::ids::{InodeNo, Run, Span};
use crate::numbers::Item;
use crate::placement::{Content, NoRoom, Owner, Placement, file_blocks, is_slow_symlink};

/// The work of placing: what is known, and what was decided so far.
pub(super) struct Nearby<'a, 't> {
    tree: &'t Tree,
    content: &'a Content<'t>,
    earlier: &'a Imprint,
    matched: &'a Matched,
    contents: Contents<'a>,
    /// By the tree's number.
    sets: Vec<[u8; 32]>,
    space: Space,
    /// The earlier image's, and behind them new ones.
    pieces: Vec<Piece>,
    /// Extent trees of the earlier image, by owner; what is taken over is taken out.
    trees: HashMap<(u32, u32), Span>,
    changes: Changes,
}

/// The content of something before and now.
enum Wanted {
    /// Blocks in one piece.
    Blocks(u32),
    /// Data at (begin, end) of a file with holes.
    Runs(Vec<(u32, u32)>),
    /// As before.
    Same,
}

impl<'a, 't> Nearby<'a, 't> {
    pub(super) fn new(
        tree: &'t Tree,
        content: &'a Content<'t>,
        earlier: &'a Imprint,
        matched: &'a Matched,
        contents: Contents<'a>,
    ) -> Self {
        Nearby {
            tree,
            content,
            earlier,
            matched,
            contents,
            sets: hashes_of_sets(tree),
            space: Space::new(earlier.free().iter().map(Run::from)),
            pieces: earlier
                .pieces()
                .iter()
                .map(|piece| Piece {
                    block: piece.block.get(),
                    logical: piece.logical.get(),
                    blocks: piece.blocks.get(),
                })
                .collect(),
            trees: earlier
                .trees()
                .iter()
                .map(|tree| ((tree.sort.get(), tree.number.get()), tree.pieces.into()))
                .collect(),
            changes: Changes {
                contents: vec![false; tree.len()],
                ..Changes::default()
            },
        }
    }

    /// What was found to differ.
    pub(super) fn into_changes(self) -> Changes {
        self.changes
    }

    pub(super) fn place(&mut self, values: &Values) -> Result<Placement, NoRoom> {
        let nodes = self.earlier.nodes();
        let Content { xattrs, dirs, .. } = self.content;
        // First all that is given up, so that there is room.
        for old in self.matched.gone() {
            let old_node = &nodes[old as usize];
            self.give_up(old_node.pieces.into());
            self.give_up_tree((0, old));
            self.dirty(InodeNo(old_node.ino.get()));
        }
        for &old in &values.gone {
            let value = &self.earlier.values()[old];
            let (pieces, ino) = (value.pieces.into(), value.ino.get());
            self.give_up(pieces);
            self.give_up_tree((2, old as u32));
            self.dirty(InodeNo(ino));
        }
        let mut of_xattr_block = self.xattr_blocks();

        let tree = self.tree;
        let mut of_item = vec![Span::default(); tree.len()];
        let mut wanted: Vec<(Owner, Option<u32>, Wanted)> = Vec::new();
        let mut dir_plans = dirs.iter();
        for node in tree.nodes() {
            let old = self.matched.old(node);
            let before = old.map(|old| &nodes[old as usize]);
            let now = match tree.kind(node) {
                Kind::Directory => {
                    // In the order of the nodes, all of them.
                    let dir = dir_plans.next().ok_or(NoRoom)?;
                    self.changes
                        .dirs
                        .push(before.is_none() || self.matched.renamed[node.index()]);
                    match before {
                        Some(old) if old.blocks.get() == dir.blocks() => Wanted::Same,
                        _ => Wanted::Blocks(dir.blocks()),
                    }
                }
                Kind::File { size } => {
                    let blocks = file_blocks(size);
                    let same = before.is_some_and(|old| {
                        file_blocks(old.size.get()) == blocks
                            && same_runs(tree, node, self.earlier, old)
                    });
                    match tree.data_runs(node) {
                        _ if same => Wanted::Same,
                        None => Wanted::Blocks(blocks),
                        Some(runs) => Wanted::Runs(
                            runs.iter()
                                .map(|run| (run.start, run.end.min(blocks)))
                                .collect(),
                        ),
                    }
                }
                Kind::Symlink => {
                    let slow = is_slow_symlink(tree, &self.content.numbers, Item(node.0));
                    match before {
                        Some(old) if (old.pieces.len.get() > 0) == slow => Wanted::Same,
                        _ => Wanted::Blocks(u32::from(slow)),
                    }
                }
                _ => Wanted::Same,
            };
            match (before, now) {
                (Some(old), Wanted::Same) => of_item[node.index()] = old.pieces.into(),
                (None, Wanted::Same | Wanted::Blocks(0)) => {}
                (_, now) => wanted.push((Owner::Item(Item(node.0)), old, now)),
            }
        }
        self.changes.dirs.resize(dirs.len(), false);
        // What shrinks or is taken apart gives its blocks back before anything takes some.
        let mut growing = Vec::new();
        for (owner, old, now) in wanted {
            let before = old.map(|old| Span::from(nodes[old as usize].pieces));
            if let Some(old) = old {
                self.give_up_tree((0, old));
            }
            match self.shrink(before, &now) {
                Some(span) => set(&mut of_item, owner, span),
                None => growing.push((owner, before, now)),
            }
        }
        for block in &mut of_xattr_block {
            if *block == 0 {
                *block = self.space.take(1)?[0].start;
            }
        }
        for (owner, before, now) in growing {
            let span = self.grow(before, &now)?;
            set(&mut of_item, owner, span);
        }
        let mut of_value = Vec::with_capacity(xattrs.values.len());
        for (value, old) in xattrs.values.iter().zip(&values.old_of) {
            of_value.push(match old {
                Some(old) => self.earlier.values()[*old].pieces.into(),
                None => {
                    let blocks = value.bytes.len().div_ceil(4096) as u32;
                    self.grow(None, &Wanted::Blocks(blocks))?
                }
            });
        }
        let head = self.earlier.head();
        let (lost_found, journal) = (head.lost_found.into(), head.journal.into());
        let trees = self.place_trees(&of_item, &of_value, values, lost_found, journal)?;
        self.find_changes(&of_item, &of_xattr_block, &trees);
        Ok(Placement::of(
            std::mem::take(&mut self.pieces),
            of_item,
            (lost_found, journal),
            of_value,
            of_xattr_block,
            trees,
            std::mem::take(&mut self.space).into_runs(),
        ))
    }

    fn give_up(&mut self, span: Span) {
        for piece in &self.pieces[span.range()] {
            if piece.blocks > 0 {
                self.space.release(Run {
                    start: piece.block,
                    end: piece.block + u64::from(piece.blocks),
                });
            }
        }
    }

    fn give_up_tree(&mut self, owner: (u32, u32)) {
        if let Some(span) = self.trees.remove(&owner) {
            self.give_up(span);
        }
    }

    /// An inode that must be written, or is no more.
    fn dirty(&mut self, ino: InodeNo) {
        let first = (ino.0 - 1) / INODES_PER_BLOCK * INODES_PER_BLOCK + 1;
        self.changes.inodes.push(InodeNo(first));
    }

    /// Where blocks of xattrs are; 0 for those that are new. Gives up those that are no more.
    fn xattr_blocks(&mut self) -> Vec<u64> {
        let names = self.content.xattrs.block_names(&self.sets);
        let earlier = self.earlier.xattr_blocks();
        if names.is_empty() && earlier.is_empty() {
            return Vec::new();
        }
        let mut known: HashMap<([u8; 32], u32), u64> = earlier
            .iter()
            .map(|block| ((block.set, block.ordinal.get()), block.block.get()))
            .collect();
        let blocks = names
            .iter()
            .map(|name| known.remove(name).unwrap_or(0))
            .collect();
        for block in known.into_values() {
            self.space.release(Run {
                start: block,
                end: block + 1,
            });
        }
        blocks
    }

    /// The place of something that needs no more blocks than it has, after giving back what it does not need. `None`:
    /// it needs some, and keeps what [`Nearby::grow`] will go on from.
    fn shrink(&mut self, before: Option<Span>, now: &Wanted) -> Option<Span> {
        let before = before?;
        match now {
            Wanted::Same => Some(before),
            Wanted::Runs(_) => {
                self.give_up(before);
                None
            }
            Wanted::Blocks(blocks) => {
                if !self.is_dense(before) {
                    self.give_up(before);
                    return None;
                }
                let mut left = *blocks;
                let start = self.pieces.len() as u32;
                let old: Vec<Piece> = self.pieces[before.range()].to_vec();
                if old.iter().map(|piece| piece.blocks).sum::<u32>() < left {
                    return None;
                }
                for piece in old {
                    let here = piece.blocks.min(left);
                    left -= here;
                    if here > 0 {
                        self.pieces.push(Piece {
                            blocks: here,
                            ..piece
                        });
                    }
                    if here < piece.blocks {
                        self.space.release(Run {
                            start: piece.block + u64::from(here),
                            end: piece.block + u64::from(piece.blocks),
                        });
                    }
                }
                Some(Span {
                    start,
                    len: self.pieces.len() as u32 - start,
                })
            }
        }
    }

    /// Whether pieces have no hole before or between them.
    fn is_dense(&self, span: Span) -> bool {
        let mut next = 0;
        self.pieces[span.range()].iter().all(|piece| {
            let here = next;
            next = piece.logical + piece.blocks;
            piece.logical == here
        })
    }

    /// The place of something that needs new blocks. What was dense keeps those that it has.
    fn grow(&mut self, before: Option<Span>, now: &Wanted) -> Result<Span, NoRoom> {
        let start = self.pieces.len() as u32;
        match now {
            Wanted::Same => {}
            Wanted::Runs(runs) => {
                for &(logical, end) in runs {
                    self.fill(start, logical, end)?;
                }
            }
            Wanted::Blocks(blocks) => {
                let mut reached = 0;
                if let Some(before) = before
                    && self.is_dense(before)
                {
                    let old: Vec<Piece> = self.pieces[before.range()].to_vec();
                    reached = old.iter().map(|piece| piece.blocks).sum();
                    self.pieces.extend(old);
                }
                self.fill(start, reached, *blocks)?;
            }
        }
        Ok(Span {
            start,
            len: self.pieces.len() as u32 - start,
        })
    }

    /// New blocks for the blocks `logical..end` of something whose pieces begin at `start`.
    fn fill(&mut self, start: u32, mut logical: u32, end: u32) -> Result<(), NoRoom> {
        for run in self.space.take(u64::from(end - logical))? {
            let blocks = run.len() as u32;
            match self.pieces[start as usize..].last_mut() {
                Some(last)
                    if last.logical + last.blocks == logical
                        && last.block + u64::from(last.blocks) == run.start =>
                {
                    last.blocks += blocks;
                }
                _ => self.pieces.push(Piece {
                    block: run.start,
                    logical,
                    blocks,
                }),
            }
            logical += blocks;
        }
        Ok(())
    }

    /// Takes over the extent trees of what did not move, and makes room for the others.
    fn place_trees(
        &mut self,
        of_item: &[Span],
        of_value: &[Span],
        values: &Values,
        lost_found: Span,
        journal: Span,
    ) -> Result<HashMap<Owner, Span>, NoRoom> {
        let mut trees = HashMap::new();
        let items = self.tree.nodes().map(|node| {
            let old = self.matched.old(node).map(|old| (0, old));
            (Owner::Item(Item(node.0)), old, of_item[node.index()])
        });
        let others = [(Owner::LostFound, lost_found), (Owner::Journal, journal)];
        let others = others.map(|(owner, span)| (owner, Some(number_of(owner)), span));
        let of_values = (0..)
            .zip(of_value)
            .zip(&values.old_of)
            .map(|((i, span), old)| {
                let old = old.map(|old| (2, old as u32));
                (Owner::Value(i), old, *span)
            });
        let all: Vec<_> = items
            .chain(others)
            .chain(of_values)
            .filter(|(_, _, span)| {
                // Few pieces of few blocks need no tree: most files are known to by that alone.
                let pieces = &self.pieces[span.range()];
                pieces.len() > 4 || extents::tree_blocks(extents::count(pieces)) > 0
            })
            .collect();
        for (owner, old, span) in all {
            let blocks = extents::tree_blocks(extents::count(&self.pieces[span.range()])) as u32;
            if blocks == 0 {
                continue;
            }
            // Of what moved it was given up.
            let place = match old.and_then(|old| self.trees.remove(&old)) {
                Some(kept) => kept,
                None => self.grow(None, &Wanted::Blocks(blocks))?,
            };
            trees.insert(owner, place);
        }
        Ok(trees)
    }

    /// Finds the inodes and contents that are not as before.
    fn find_changes(
        &mut self,
        of_item: &[Span],
        of_xattr_block: &[u64],
        trees: &HashMap<Owner, Span>,
    ) {
        let nodes = self.earlier.nodes();
        let old_sets = self.earlier.sets();
        let old_trees: HashMap<(u32, u32), PSpan> = self
            .earlier
            .trees()
            .iter()
            .map(|tree| ((tree.sort.get(), tree.number.get()), tree.pieces))
            .collect();
        let Content {
            numbers,
            xattrs,
            dirs,
            ..
        } = self.content;
        let tree = self.tree;
        let mut dir_plans = dirs.iter();
        let old_blocks = self.earlier.xattr_blocks();
        let mut dirty = Vec::new();
        for node in tree.nodes() {
            let item = Item(node.0);
            let dir = match tree.kind(node) {
                Kind::Directory => dir_plans.next(),
                _ => None,
            };
            let span = of_item[node.index()];
            let same = self.matched.old(node).is_some_and(|number| {
                let old = &nodes[number as usize];
                let moved = PSpan::from(span) != old.pieces;
                let content = match tree.kind(node) {
                    Kind::File { .. } => {
                        let id = (self.contents)(node);
                        // What was made here and has no source is empty.
                        let known = id.is_some() && id == content_of(old);
                        // The same time and size belong to what stands for the content.
                        let same = same_time(tree, node, old)
                            && kind_of(tree.kind(node)).1 == old.size.get();
                        known && same && !moved || file_is_empty(tree, node)
                    }
                    Kind::Symlink => tree.target(node) == self.earlier.bytes(old.body) && !moved,
                    _ => true,
                };
                self.changes.contents[node.index()] = !content;
                let tree_span = trees.get(&Owner::Item(item)).map(|span| PSpan::from(*span));
                let block = xattrs
                    .block_of(item)
                    .map(|block| of_xattr_block[block as usize]);
                let old_block = old.xattr_block.get().checked_sub(1);
                let old_block = old_block.map(|block| old_blocks[block as usize].block.get());
                !moved
                    && same_meta(tree, node, old)
                    && dir.is_none_or(|dir| {
                        dir.subdirs == old.subdirs.get() && dir.shape() == old.shape()
                    })
                    && (tree.kind(node) != Kind::Symlink || content)
                    && self.sets.get(tree.xattr_set(node) as usize)
                        == old_sets.get(old.set.get() as usize)
                    && block == old_block
                    && tree_span == old_trees.get(&(0, number)).copied()
            });
            if self.matched.old(node).is_none() {
                self.changes.contents[node.index()] =
                    matches!(tree.kind(node), Kind::File { .. } | Kind::Symlink);
            }
            if !same {
                dirty.push(numbers.of_item(item));
            }
        }
        // Their inodes count who uses them; and what fsck puts things into has the root's time.
        dirty.extend((0..xattrs.values.len() as u32).map(|value| numbers.of_value(value)));
        if numbers.makes_lost_found() && !same_time(tree, NodeId::ROOT, &nodes[0]) {
            dirty.push(InodeNo::FIRST);
        }
        for ino in dirty {
            self.dirty(ino);
        }
        self.changes.inodes.sort_unstable();
        self.changes.inodes.dedup();
    }
}

fn set(of_item: &mut [Span], owner: Owner, span: Span) {
    if let Owner::Item(item) = owner {
        of_item[item.index()] = span;
    }
}

fn file_is_empty(tree: &Tree, node: NodeId) -> bool {
    tree.kind(node) == Kind::File { size: 0 }
}

fn same_time(tree: &Tree, node: NodeId, old: &PNode) -> bool {
    let mtime = tree.meta(node).mtime;
    (mtime.secs as u64, mtime.nanos) == (old.secs.get(), old.nanos.get())
}

/// Whether everything that an inode says of a node without looking elsewhere is as before.
fn same_meta(tree: &Tree, node: NodeId, old: &PNode) -> bool {
    let meta = tree.meta(node);
    let (kind, size) = kind_of(tree.kind(node));
    let (mode, uid, gid) = (old.mode.get(), old.uid.get(), old.gid.get());
    (kind, size) == (old.kind, old.size.get())
        && (meta.mode, meta.uid, meta.gid) == (mode, uid, gid)
        && same_time(tree, node, old)
        && tree.names(node) == old.names.get()
}
