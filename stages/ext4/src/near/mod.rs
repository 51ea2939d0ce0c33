//! An image near an earlier one: what did not change keeps its inode and its blocks, and the map holds only what may
//! differ.
//!
//! A file that changed keeps its blocks as far as it needs them, and inode and directory blocks stay where they are, so
//! most of what is written again is the same as before and is left out when it is compared with the
//! earlier image. Nothing is written into that image: the changes go to a clone of it ([`crate::patch_image`]), or
//! to a disk of their own ([`crate::write_cow`]).
//!
//! What comes out is equal to [`layout()`](crate::layout()) in all that a reader of the file system sees, and not in its
//! bytes. It keeps the earlier image's UUID and size.
//!
//! Begin reading at [`layout_near`]; `matching` says which node is which, `place` where it goes, `imprint` is the
//! form in which an image is remembered, `space` what is free.

mod imprint;
mod matching;
mod place;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use fcpipe_tree::memory::with_room;
use fcpipe_tree::{ContentId, Kind, NodeId, Tree};
use rayon::prelude::*;

use crate::dirs::DirPlan;
use crate::encode::Decided;
use crate::error::LayoutError;
use crate::geometry::Geometry;
use crate::ids::InodeNo;
use crate::layout::{Layout, check_nodes, layout_and};
use crate::numbers::{Item, Numbers, Table};
use crate::options::Options;
use crate::placement::{Content, Owner};
use crate::xattrs::Xattrs;
pub use imprint::{BadImprint, Imprint};
use matching::Matched;
use place::Nearby;

/// Says what stands for the content of each file; `None`: nothing does, and it counts as changed.
pub type Contents<'a> = &'a (dyn Fn(NodeId) -> Option<ContentId> + Sync);

/// Free blocks and inodes that must be left, in percent of those in use, where the size was left to us.
const SPARE_PERCENT: u64 = 10;

/// [`layout()`](crate::layout()), and what the image leaves behind for those near it.
///
/// # Errors
/// As [`layout()`](crate::layout()).
pub fn layout_with_imprint(
    tree: &Tree,
    options: &Options,
    contents: Contents<'_>,
) -> Result<(Layout, Vec<u8>), LayoutError> {
    layout_and(tree, options, |decided| imprint::write(decided, contents))
}

/// What came of looking for a place near an earlier image.
#[derive(Debug)]
pub enum Near {
    Changed(Box<Change>),
    /// There is none: lay it out anew.
    Far(Far),
}

/// Why an image can't be laid out near an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    /// That was made by other options.
    Options,
    /// Something that both would have to agree on, and that is too rare to be worth it: what is at `lost+found`, files with
    /// more names than an inode can have.
    Shape,
    /// There is too little room left on it.
    Room,
}

/// An image near an earlier one.
#[derive(Debug)]
pub struct Change {
    /// Its map holds what may differ from the earlier image; what that has elsewhere stays.
    pub layout: Layout,
    /// Files whose content is written.
    pub files: u64,
    /// Blocks of them, those that turn out the same included.
    pub file_blocks: u64,
    /// Runs of free blocks, beyond those that an empty image of this size has: a measure of how scattered it is.
    pub holes: u64,
    /// What it leaves behind itself, if that was asked for.
    pub imprint: Option<Vec<u8>>,
}

/// Lays out a tree near an earlier image. Reads no file.
///
/// `remember`: also make the [`Imprint`] of what comes out.
///
/// # Errors
/// What [`layout()`](crate::layout()) fails with because of the tree.
pub fn layout_near(
    tree: &Tree,
    options: &Options,
    earlier: &Imprint,
    contents: Contents<'_>,
    remember: bool,
) -> Result<Near, LayoutError> {
    if !earlier.is_by(options) {
        return Ok(Near::Far(Far::Options));
    }
    let mut warnings = check_nodes(tree)?;
    let mut numbers = Numbers::new(tree, &mut warnings);
    let head = earlier.head();
    let geometry = Geometry::known(head.blocks.get(), head.inodes_per_group.get());
    let alike = numbers.lost_found_sort() == head.lost_found_sort.get() && !numbers.splits_links();
    let (true, Some(geometry)) = (alike, geometry) else {
        return Ok(Near::Far(Far::Shape));
    };
    let xattrs = Xattrs::new(tree, &numbers)?;
    let matched = Matched::new(tree, earlier, contents);
    let values = Values::new(&xattrs, earlier);
    let Some(table) = number(tree, &numbers, earlier, &matched, &values, &geometry) else {
        return Ok(Near::Far(Far::Room));
    };
    numbers.use_table(table);
    let content = Content {
        tree,
        dirs: plan_dirs(tree, &numbers, earlier, &matched)?,
        numbers,
        xattrs,
    };
    let mut near = Nearby::new(tree, &content, earlier, &matched, contents);
    let Ok(placement) = near.place(&values) else {
        return Ok(Near::Far(Far::Room));
    };
    let changes = near.into_changes();
    let value_count = content.xattrs.values.len() as u32;
    let decided = Decided {
        content: &content,
        geometry: &geometry,
        placement: &placement,
        options,
        uuid: head.uuid,
        last_inode: content.numbers.last(value_count),
        inodes_in_use: content.numbers.in_use(value_count),
        journal_blocks: head.journal_blocks.get(),
        disk_blocks: head.disk_blocks.get(),
        changes: Some(&changes),
    };
    if options.size.is_none() && is_crowded(&decided) {
        return Ok(Near::Far(Far::Room));
    }
    let remembered = remember.then(|| imprint::write(&decided, contents));
    let layout = Layout::of(&decided, warnings);
    let (mut files, mut blocks) = (0, 0);
    for node in tree.nodes().filter(|node| changes.contents[node.index()]) {
        if matches!(tree.kind(node), Kind::File { .. }) {
            let pieces = placement.pieces(Owner::Item(Item(node.0)));
            blocks += pieces
                .iter()
                .map(|piece| u64::from(piece.blocks))
                .sum::<u64>();
            files += 1;
        }
    }
    Ok(Near::Changed(Box::new(Change {
        layout,
        files,
        file_blocks: blocks,
        holes: (placement.free.len() as u64).saturating_sub(geometry.free.len() as u64),
        imprint: remembered,
    })))
}

/// Whether less is left than a guest may count on.
fn is_crowded(decided: &Decided<'_>) -> bool {
    let free: u64 = decided.placement.free.iter().map(|run| run.len()).sum();
    let used = decided.geometry.blocks - free;
    let (inodes, in_use) = (decided.geometry.inodes(), decided.inodes_in_use);
    free * 100 < used * SPARE_PERCENT
        || u64::from(inodes - in_use) * 100 < u64::from(in_use) * SPARE_PERCENT
}

/// Values of xattrs that have an inode, and the earlier ones of the same content.
struct Values {
    /// By value: the number of the earlier one.
    old_of: Vec<Option<usize>>,
    gone: Vec<usize>,
}

impl Values {
    fn new(xattrs: &Xattrs<'_>, earlier: &Imprint) -> Values {
        let mut known: HashMap<[u8; 32], usize> = earlier
            .values()
            .iter()
            .enumerate()
            .map(|(number, value)| (value.hash, number))
            .collect();
        // Equal values are there once, so each is found once at most.
        let old_of = xattrs
            .values
            .iter()
            .map(|value| known.remove(blake3::hash(&value.bytes).as_bytes()))
            .collect();
        let mut gone: Vec<usize> = known.into_values().collect();
        gone.sort_unstable();
        Values { old_of, gone }
    }
}

/// Gives every node the inode of its counterpart, or a free one. `None` if there are too few.
fn number(
    tree: &Tree,
    numbers: &Numbers,
    earlier: &Imprint,
    matched: &Matched,
    values: &Values,
    geometry: &Geometry,
) -> Option<Table> {
    let nodes = earlier.nodes();
    let last = earlier.head().last_inode.get();
    let mut in_use = vec![false; last as usize + 1];
    let kept = |node: NodeId| matched.old(node).map(|old| nodes[old as usize].ino.get());
    let kept_value = |old: usize| earlier.values()[old].ino.get();
    for ino in tree.nodes().filter_map(kept) {
        *in_use.get_mut(ino as usize)? = true;
    }
    for old in values.old_of.iter().flatten() {
        *in_use.get_mut(kept_value(*old) as usize)? = true;
    }
    let first = InodeNo::FIRST.0 + u32::from(numbers.makes_lost_found());
    let mut free = (first..=last)
        .filter(|ino| !in_use[*ino as usize])
        .chain(last + 1..=geometry.inodes());
    let mut of_node = with_room(tree.len());
    for node in tree.nodes() {
        of_node.push(InodeNo(kept(node).or_else(|| free.next())?));
    }
    let mut of_value = Vec::with_capacity(values.old_of.len());
    for old in &values.old_of {
        of_value.push(InodeNo(old.map(kept_value).or_else(|| free.next())?));
    }
    Some(Table::new(of_node, of_value, numbers.makes_lost_found()))
}

/// Plans the directories that must be written, and takes over what is known of the others.
fn plan_dirs<'t>(
    tree: &'t Tree,
    numbers: &Numbers,
    earlier: &Imprint,
    matched: &Matched,
) -> Result<Vec<DirPlan<'t>>, LayoutError> {
    let nodes = earlier.nodes();
    let all: Vec<NodeId> = tree
        .nodes()
        .filter(|&node| tree.kind(node) == Kind::Directory)
        .collect();
    let planned: Vec<Result<DirPlan<'t>, LayoutError>> = all
        .par_iter()
        .with_min_len(64)
        .map(|&node| match matched.old(node) {
            Some(old) if !matched.renamed[node.index()] => {
                let old = &nodes[old as usize];
                Ok(DirPlan::kept(Some(node), old.subdirs.get(), old.shape()))
            }
            _ => DirPlan::new(tree, numbers, node),
        })
        .collect();
    let mut dirs = Vec::with_capacity(planned.len() + 1);
    for dir in planned {
        dirs.push(dir?);
    }
    if numbers.makes_lost_found() {
        dirs.push(DirPlan::lost_found());
    }
    Ok(dirs)
}
