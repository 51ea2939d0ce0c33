//! Writes an imprint.

use fcpipe_tree::memory::with_room;
use fcpipe_tree::{ContentId, DataRun, Kind, NodeId};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::encode::Decided;
use crate::numbers::Item;

/// Writes down an image. `contents` says of each file what stands for its content.
pub(crate) fn write(
    decided: &Decided<'_>,
    contents: &(dyn Fn(NodeId) -> Option<ContentId> + Sync),
) -> Vec<u8> {
    let content = decided.content;
    let numbers = &content.numbers;
    let sets = hashes_of_sets(content.tree);
    let all = Nodes::of(decided, contents);
    let placement = decided.placement;
    let pieces: Vec<PPiece> = placement
        .all_pieces()
        .iter()
        .map(|piece| PPiece {
            block: piece.block.into(),
            logical: piece.logical.into(),
            blocks: piece.blocks.into(),
        })
        .collect();
    let free: Vec<PRun> = placement
        .free
        .iter()
        .map(|run| PRun {
            start: run.start.into(),
            end: run.end.into(),
        })
        .collect();
    let trees: Vec<PTree> = placement
        .trees()
        .into_iter()
        .map(|owner| {
            let (sort, number) = number_of(owner);
            PTree {
                sort: sort.into(),
                number: number.into(),
                pieces: placement.tree_span(owner).into(),
            }
        })
        .collect();
    let xattr_blocks: Vec<PXattrBlock> = content
        .xattrs
        .block_names(&sets)
        .into_iter()
        .zip(&placement.of_xattr_block)
        .map(|((set, ordinal), block)| PXattrBlock {
            set,
            ordinal: ordinal.into(),
            unused: 0.into(),
            block: (*block).into(),
        })
        .collect();
    let values: Vec<PValue> = (0..)
        .zip(&content.xattrs.values)
        .map(|(number, value)| PValue {
            hash: *blake3::hash(&value.bytes).as_bytes(),
            ino: numbers.of_value(number).0.into(),
            unused: 0.into(),
            pieces: placement.span(Owner::Value(number)).into(),
        })
        .collect();

    let tables: [&[u8]; TABLES] = [
        all.nodes.as_bytes(),
        all.entries.as_bytes(),
        &all.bytes,
        all.runs.as_bytes(),
        sets.as_bytes(),
        pieces.as_bytes(),
        free.as_bytes(),
        trees.as_bytes(),
        xattr_blocks.as_bytes(),
        values.as_bytes(),
    ];
    let mut head = head(decided);
    for ((count, table), size) in head.counts.iter_mut().zip(tables).zip(SIZES) {
        *count = ((table.len() / size) as u64).into();
    }
    let mut out = with_room(size_of::<Head>() + tables.iter().map(|t| t.len()).sum::<usize>());
    out.extend_from_slice(head.as_bytes());
    for table in tables {
        out.extend_from_slice(table);
    }
    let at = std::mem::offset_of!(Head, checksum);
    let checksum = crc32c::crc32c(&out[at + 4..]);
    out[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// The tables that the tree's nodes fill.
#[derive(Default)]
struct Nodes {
    nodes: Vec<PNode>,
    entries: Vec<PEntry>,
    /// Names and targets.
    bytes: Vec<u8>,
    runs: Vec<PDataRun>,
}

impl Nodes {
    fn of(decided: &Decided<'_>, contents: &(dyn Fn(NodeId) -> Option<ContentId> + Sync)) -> Nodes {
        let content = decided.content;
        let (tree, numbers) = (content.tree, &content.numbers);
        let mut all = Nodes {
            nodes: with_room(tree.len()),
            entries: with_room(tree.len()),
            ..Nodes::default()
        };
        let mut dirs = content.dirs.iter();
        let span = |start: usize, end: usize| PSpan {
            start: (start as u32).into(),
            len: ((end - start) as u32).into(),
        };
        for node in tree.nodes() {
            let meta = tree.meta(node);
            let item = Item(node.0);
            let (kind, size) = kind_of(tree.kind(node));
            let mut out = PNode::new_zeroed();
            out.mode = meta.mode.into();
            out.kind = kind;
            out.ino = numbers.of_item(item).0.into();
            out.uid = meta.uid.into();
            out.gid = meta.gid.into();
            out.secs = (meta.mtime.secs as u64).into();
            out.nanos = meta.mtime.nanos.into();
            out.names = tree.names(node).into();
            out.size = size.into();
            out.set = tree.xattr_set(node).into();
            out.xattr_block = content
                .xattrs
                .block_of(item)
                .map_or(0, |block| block + 1)
                .into();
            out.pieces = decided.placement.span(Owner::Item(item)).into();
            match tree.kind(node) {
                Kind::Directory => {
                    let start = all.entries.len();
                    for entry in tree.entries(node) {
                        let at = all.bytes.len();
                        all.bytes.extend_from_slice(entry.name);
                        all.entries.push(PEntry {
                            name: span(at, all.bytes.len()),
                            node: entry.node.0.into(),
                        });
                    }
                    out.body = span(start, all.entries.len());
                    // In the order of the nodes, all of them.
                    if let Some(dir) = dirs.next() {
                        let shape = dir.shape();
                        out.blocks = shape.blocks.into();
                        out.subdirs = dir.subdirs.into();
                        out.flags |= if shape.indexed { INDEXED } else { 0 };
                        out.flags |= if shape.large { LARGE } else { 0 };
                    }
                }
                Kind::Symlink => {
                    let start = all.bytes.len();
                    all.bytes.extend_from_slice(tree.target(node));
                    out.body = span(start, all.bytes.len());
                }
                Kind::File { .. } => {
                    if let Some(data) = tree.data_runs(node) {
                        let start = all.runs.len();
                        all.runs
                            .extend(data.iter().map(|&DataRun { start, end }| PDataRun {
                                start: start.into(),
                                end: end.into(),
                            }));
                        out.body = span(start, all.runs.len());
                        out.flags |= SPARSE;
                    }
                    if let Some(id) = contents(node) {
                        out.content_sort = id.sort.into();
                        out.content = id.words.map(Into::into);
                    }
                }
                _ => {}
            }
            all.nodes.push(out);
        }
        all
    }
}

/// All but the numbers of the tables, and the checksum.
fn head(decided: &Decided<'_>) -> Head {
    let (content, placement) = (decided.content, decided.placement);
    let mut head = Head::new_zeroed();
    head.magic = MAGIC;
    head.version = VERSION.into();
    head.format = FORMAT_VERSION.into();
    head.lost_found_sort = content.numbers.lost_found_sort().into();
    head.disk_blocks = decided.disk_blocks.into();
    head.blocks = decided.geometry.blocks.into();
    head.inodes_per_group = decided.geometry.inodes_per_group.into();
    head.journal_blocks = decided.journal_blocks.into();
    head.last_inode = decided.last_inode.into();
    let (asked, asked_size) = asked(decided.options);
    head.asked = asked.into();
    head.asked_size = asked_size.into();
    head.label = *decided.options.label.as_bytes();
    head.uuid = decided.uuid;
    head.journal = placement.span(Owner::Journal).into();
    head.lost_found = placement.span(Owner::LostFound).into();
    if let Some(made) = content.dirs.last().filter(|dir| dir.node.is_none()) {
        head.lost_found_blocks = made.blocks().into();
    }
    head
}
