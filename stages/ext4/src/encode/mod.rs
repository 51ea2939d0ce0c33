//! From a plan to bytes: every block of metadata, each made on its own, so in any order and in parallel.

mod groups;
mod inodes;
mod superblock;

use fcpipe_tree::memory::{prefer_huge_pages, with_room};
use fcpipe_tree::{Kind, NodeId};
use rayon::prelude::*;

use crate::checksum::Seed;
use crate::extents::{self, Piece};
use crate::geometry::{Geometry, INODES_PER_BLOCK};
use crate::ids::{BlockNo, GroupNo, InodeNo};
use crate::map::{BLOCK_SIZE, ImageMap, MapExtent, Origin};
use crate::numbers::Item;
use crate::options::Options;
use crate::placement::{Content, Owner, Placement, is_slow_symlink};
use crate::xattrs;
use groups::Groups;

const BLOCK: usize = BLOCK_SIZE as usize;
/// Blocks of an inode table that are made in one go.
const TABLE_CHUNK: u32 = 64;

/// Everything that is decided about an image.
pub(crate) struct Decided<'a> {
    pub(crate) content: &'a Content<'a>,
    pub(crate) geometry: &'a Geometry,
    pub(crate) placement: &'a Placement,
    pub(crate) options: &'a Options,
    pub(crate) uuid: [u8; 16],
    /// The number of the last inode in use, and how many are.
    pub(crate) last_inode: u32,
    pub(crate) inodes_in_use: u32,
    /// Blocks of the journal, or 0.
    pub(crate) journal_blocks: u32,
    pub(crate) disk_blocks: u64,
    /// What is not as in an earlier image. `None`: there is none, and everything is made.
    pub(crate) changes: Option<&'a Changes>,
}

/// What of an image may differ from an earlier one, beside superblocks, bitmaps, blocks of xattrs and of extents, which are
/// few and always made.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Blocks of inode tables, each by the first inode in it; in order.
    pub(crate) inodes: Vec<InodeNo>,
    /// By place among the directories.
    pub(crate) dirs: Vec<bool>,
    /// By node: its content, which is a file's or a symlink's.
    pub(crate) contents: Vec<bool>,
}

/// Something that makes whole blocks.
#[derive(Debug, Clone, Copy)]
enum Section {
    /// A superblock and the descriptors after it. Made last: it needs the bitmaps' checksums.
    Super(GroupNo),
    BlockBitmap(GroupNo),
    InodeBitmap(GroupNo),
    /// Inodes from that one on.
    Inodes(InodeNo),
    Dir(u32),
    Symlink(Item),
    XattrBlock(u32),
    /// One block of an xattr's value.
    Value(u32, u32),
    Journal,
    Tree(Owner),
}

/// Blocks that a section makes; a section in several parts has them one after the other.
struct Part {
    block: u64,
    blocks: u32,
    section: u32,
}

/// A section and where its blocks go.
struct Job<'b> {
    section: Section,
    out: Out<'b>,
}

enum Out<'b> {
    None,
    One(&'b mut [u8]),
    /// They are not in one piece on the disk, or not in this order.
    Many(Vec<&'b mut [u8]>),
}

impl<'b> Out<'b> {
    fn push(&mut self, part: &'b mut [u8]) {
        *self = match std::mem::replace(self, Out::None) {
            Out::None => Out::One(part),
            Out::One(first) => Out::Many(vec![first, part]),
            Out::Many(mut parts) => {
                parts.push(part);
                Out::Many(parts)
            }
        };
    }

    /// Lets `make` fill the blocks as if they were in one piece.
    fn fill(&mut self, make: impl FnOnce(&mut [u8])) {
        match self {
            Out::None => {}
            Out::One(all) => make(all),
            Out::Many(parts) => {
                let mut all = vec![0; parts.iter().map(|part| part.len()).sum()];
                make(&mut all);
                let mut rest = all.as_slice();
                for part in parts {
                    let (here, after) = rest.split_at(part.len());
                    part.copy_from_slice(here);
                    rest = after;
                }
            }
        }
    }
}

/// The image's map, with all of its metadata.
pub(crate) fn encode(decided: &Decided<'_>) -> ImageMap {
    let mut groups = Groups::new(decided);
    let (sections, parts) = list(decided, &groups);
    let mut on_disk: Vec<usize> = (0..parts.len()).collect();
    on_disk.sort_unstable_by_key(|&at| parts[at].block);
    let (extents, size) = metadata_extents(on_disk.iter().map(|&at| &parts[at]));

    let mut metadata = vec![0; size as usize];
    prefer_huge_pages(&mut metadata);
    let mut jobs = jobs(sections, parts, on_disk, &mut metadata);
    jobs.par_iter_mut().with_min_len(8).for_each(|job| {
        let section = job.section;
        job.out.fill(|out| decided.make(section, &groups, out));
    });

    // Descriptors have the bitmaps' checksums in them, and are in every copy of the superblock.
    for job in &jobs {
        if let Out::One(bitmap) = &job.out {
            match job.section {
                Section::BlockBitmap(group) => groups.note_block_bitmap(group, bitmap),
                Section::InodeBitmap(group) => groups.note_inode_bitmap(group, bitmap),
                _ => {}
            }
        }
    }
    let descriptors = groups.encode(decided);
    for job in &mut jobs {
        if let Section::Super(group) = job.section {
            job.out
                .fill(|out| superblock::encode(decided, &groups, group, &descriptors, out));
        }
    }
    drop(jobs);

    ImageMap {
        extents: merge(extents, file_extents(decided)),
        metadata,
        blocks: decided.disk_blocks,
    }
}

/// Where the parts go, which come in the disk's order, and how many bytes they have.
fn metadata_extents<'p>(parts: impl Iterator<Item = &'p Part>) -> (Vec<MapExtent>, u64) {
    let mut extents: Vec<MapExtent> = Vec::new();
    let mut size = 0;
    for part in parts {
        match extents.last_mut() {
            Some(last) if last.block + u64::from(last.blocks) == part.block => {
                last.blocks += part.blocks;
            }
            _ => extents.push(MapExtent {
                block: part.block,
                blocks: part.blocks,
                origin: Origin::Metadata { offset: size },
            }),
        }
        size += u64::from(part.blocks) * BLOCK_SIZE;
    }
    (extents, size)
}

/// Gives each section its blocks of `metadata`, in which they are in the disk's order.
fn jobs(
    sections: Vec<Section>,
    parts: Vec<Part>,
    on_disk: Vec<usize>,
    metadata: &mut [u8],
) -> Vec<Job<'_>> {
    let job = |section| Job {
        section,
        out: Out::None,
    };
    let mut jobs: Vec<Job<'_>> = sections.into_iter().map(job).collect();
    let mut places: Vec<&mut [u8]> = parts.iter().map(|_| Default::default()).collect();
    let mut rest = metadata;
    for at in on_disk {
        (places[at], rest) = rest.split_at_mut(parts[at].blocks as usize * BLOCK);
    }
    // In the section's order and not in the disk's: what grew near an earlier image may have its last blocks before its first.
    for (part, place) in parts.iter().zip(places) {
        jobs[part.section as usize].out.push(place);
    }
    jobs
}

/// All sections, and the parts of each in its order.
fn list(decided: &Decided<'_>, groups: &Groups) -> (Vec<Section>, Vec<Part>) {
    let Decided {
        content,
        geometry,
        placement,
        ..
    } = decided;
    let mut lists = Lists::default();
    for group in geometry.all_groups() {
        let copies = geometry.super_blocks(group);
        if copies > 0 {
            lists.add(
                Section::Super(group),
                geometry.group_start(group),
                copies as u32,
            );
        }
        let tables = &geometry.tables[group.index()];
        // What was zero before need not be so on a disk that is not empty.
        let zero = decided.changes.is_none() && groups.block_bitmap_is_zero(group);
        if groups.has_block_bitmap(group) && !zero {
            lists.add(Section::BlockBitmap(group), tables.block_bitmap, 1);
        }
        if groups.inodes_reached(group) > 0 {
            lists.add(Section::InodeBitmap(group), tables.inode_bitmap, 1);
        }
    }
    for (first, blocks) in tables(decided, groups) {
        let (group, at) = first.place(geometry.inodes_per_group);
        let table = geometry.tables[group.index()].inode_table;
        let block = table + u64::from(at / INODES_PER_BLOCK);
        lists.add(Section::Inodes(first), block, blocks);
    }
    for (i, dir) in (0..).zip(&content.dirs) {
        if !decided.makes_dir(i as usize) {
            continue;
        }
        let owner = dir
            .node
            .map_or(Owner::LostFound, |node| Owner::Item(Item(node.0)));
        lists.add_pieces(Section::Dir(i), placement.pieces(owner));
    }
    for item in content.numbers.all_items() {
        if decided.makes_content(content.numbers.node(item))
            && is_slow_symlink(content.tree, &content.numbers, item)
        {
            lists.add_pieces(Section::Symlink(item), placement.pieces(Owner::Item(item)));
        }
    }
    for (i, &block) in (0..).zip(&placement.of_xattr_block) {
        lists.add(Section::XattrBlock(i), block, 1);
    }
    for (i, value) in (0..).zip(&content.xattrs.values) {
        let pieces = placement.pieces(Owner::Value(i));
        for (n, bytes) in (0..).zip(value.bytes.chunks(BLOCK)) {
            // A block of zeros is there without being written, on a disk that was empty.
            if decided.changes.is_some() || bytes.iter().any(|&byte| byte != 0) {
                lists.add(
                    Section::Value(i, n),
                    extents::nth_block(pieces, n as usize),
                    1,
                );
            }
        }
    }
    if decided.changes.is_none()
        && let Some(first) = placement.pieces(Owner::Journal).first()
    {
        lists.add(Section::Journal, first.block, 1);
    }
    for owner in placement.trees() {
        lists.add_pieces(Section::Tree(owner), placement.tree(owner));
    }
    (lists.sections, lists.parts)
}

/// The blocks of inode tables that are made: the first inode in each run of them, and how many there are.
fn tables(decided: &Decided<'_>, groups: &Groups) -> Vec<(InodeNo, u32)> {
    if let Some(changes) = decided.changes {
        return changes.inodes.iter().map(|&first| (first, 1)).collect();
    }
    let mut tables = Vec::new();
    for group in decided.geometry.all_groups() {
        let blocks = groups.inodes_reached(group).div_ceil(INODES_PER_BLOCK);
        let before = group.0 * decided.geometry.inodes_per_group;
        for at in (0..blocks).step_by(TABLE_CHUNK as usize) {
            let first = InodeNo(before + at * INODES_PER_BLOCK + 1);
            tables.push((first, (blocks - at).min(TABLE_CHUNK)));
        }
    }
    tables
}

#[derive(Default)]
struct Lists {
    sections: Vec<Section>,
    parts: Vec<Part>,
}

impl Lists {
    fn add(&mut self, section: Section, block: u64, blocks: u32) {
        self.add_all(section, [(block, blocks)]);
    }

    fn add_pieces(&mut self, section: Section, pieces: &[Piece]) {
        self.add_all(
            section,
            pieces.iter().map(|piece| (piece.block, piece.blocks)),
        );
    }

    fn add_all(&mut self, made: Section, parts: impl IntoIterator<Item = (u64, u32)>) {
        let section = self.sections.len() as u32;
        self.sections.push(made);
        let part = |(block, blocks)| Part {
            block,
            blocks,
            section,
        };
        self.parts.extend(parts.into_iter().map(part));
    }
}

impl Decided<'_> {
    /// Whether the blocks of a directory are made, by its place among the directories.
    fn makes_dir(&self, dir: usize) -> bool {
        self.changes.is_none_or(|changes| changes.dirs[dir])
    }

    /// Whether a node's content is written: a file's, or a symlink's.
    fn makes_content(&self, node: NodeId) -> bool {
        let written = |changes: &Changes| changes.contents[node.index()];
        self.changes.is_none_or(written)
    }

    /// Fills the blocks of a section, which are zero.
    fn make(&self, section: Section, groups: &Groups, out: &mut [u8]) {
        let Decided {
            content, placement, ..
        } = self;
        match section {
            // Last, and not here.
            Section::Super(_) => {}
            Section::BlockBitmap(group) => groups.block_bitmap(self, group, out),
            Section::InodeBitmap(group) => groups.inode_bitmap(self, group, out),
            Section::Inodes(first) => inodes::encode_table(self, first, out),
            Section::Dir(i) => content.dirs[i as usize].encode(content.tree, &content.numbers, out),
            Section::Symlink(item) => {
                let target = content.tree.target(content.numbers.node(item));
                out[..target.len()].copy_from_slice(target);
            }
            Section::XattrBlock(i) => xattrs::encode_block(
                &content.xattrs,
                &content.numbers,
                content.xattrs.blocks[i as usize],
                BlockNo(placement.of_xattr_block[i as usize]),
                out,
            ),
            Section::Value(i, n) => {
                let mut all = content.xattrs.values[i as usize].bytes.chunks(BLOCK);
                if let Some(bytes) = all.nth(n as usize) {
                    out[..bytes.len()].copy_from_slice(bytes);
                }
            }
            Section::Journal => superblock::encode_journal(self.journal_blocks, out),
            Section::Tree(owner) => extents::encode_tree(
                Seed::of_inode(self.ino(owner)),
                placement.pieces(owner),
                placement.tree(owner),
                out,
            ),
        }
    }

    fn ino(&self, owner: Owner) -> InodeNo {
        match owner {
            Owner::Item(item) => self.content.numbers.of_item(item),
            Owner::LostFound => InodeNo::FIRST,
            Owner::Value(value) => self.content.numbers.of_value(value),
            Owner::Journal => InodeNo::JOURNAL,
        }
    }
}

/// Where the content of files goes, in the order of the disk.
fn file_extents(decided: &Decided<'_>) -> Vec<MapExtent> {
    let Decided {
        content, placement, ..
    } = decided;
    let mut extents = with_room(content.tree.len());
    for item in content.numbers.all_items() {
        let node = content.numbers.node(item);
        if !matches!(content.tree.kind(node), Kind::File { .. }) || !decided.makes_content(node) {
            continue;
        }
        for piece in placement.pieces(Owner::Item(item)) {
            extents.push(MapExtent {
                block: piece.block,
                blocks: piece.blocks,
                origin: Origin::File {
                    node,
                    offset: u64::from(piece.logical) * BLOCK_SIZE,
                },
            });
        }
    }
    // Where everything was placed in order, so is this.
    extents.sort_by_key(|extent| extent.block);
    extents
}

/// Two lists in the order of the disk as one.
fn merge(metadata: Vec<MapExtent>, files: Vec<MapExtent>) -> Vec<MapExtent> {
    let mut all = with_room(metadata.len() + files.len());
    let mut files = files.into_iter().peekable();
    for extent in metadata {
        while let Some(file) = files.next_if(|file| file.block < extent.block) {
            all.push(file);
        }
        all.push(extent);
    }
    all.extend(files);
    all
}
