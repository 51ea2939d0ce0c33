//! Directories: one block of entries, or an index over many.
//!
//! A directory of one block has no index. Any larger one gets its whole hash tree at once, which is what
//! keeps a directory of a million names near-linear.

mod htree;
mod linear;

use bstr::{BStr, BString};
use fcpipe_tree::{Kind, NodeId, Tree};
use zerocopy::IntoBytes;

use crate::InodeNo;
use crate::checksum::Seed;
use crate::error::LayoutError;
use crate::numbers::{LOST_FOUND, Numbers};
use crate::ondisk::dir::{self, DirEntry, DirTail};
use htree::Htree;

/// Bytes of a block that entries can have; the checksum takes the rest.
const LEAF_SPACE: usize = 4096 - dir::TAIL_SIZE;
/// What `.` and `..` take together.
const DOTS: usize = 24;
/// Blocks of a `lost+found` that we make: room for fsck without an allocation, as mke2fs gives it.
const LOST_FOUND_BLOCKS: u32 = 4;

/// A name as it will stand in a directory.
#[derive(Debug, Clone, Copy)]
struct Name<'t> {
    name: &'t [u8],
    ino: InodeNo,
    file_type: u8,
}

/// All that is to be known of a directory before it is written.
#[derive(Debug)]
pub(crate) struct DirPlan<'t> {
    /// `None`: the `lost+found` that the tree did not have.
    pub(crate) node: Option<NodeId>,
    /// Directories in it.
    pub(crate) subdirs: u32,
    shape: Shape<'t>,
}

#[derive(Debug)]
enum Shape<'t> {
    Linear {
        blocks: u32,
    },
    Indexed(Box<Htree<'t>>),
    /// It is as in an earlier image, and not written.
    Kept(DirShape),
}

/// What is to be known of a directory that is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirShape {
    pub(crate) blocks: u32,
    pub(crate) indexed: bool,
    pub(crate) large: bool,
}

impl<'t> DirPlan<'t> {
    pub(crate) fn new(
        tree: &'t Tree,
        numbers: &Numbers,
        node: NodeId,
    ) -> Result<DirPlan<'t>, LayoutError> {
        let mut bytes = DOTS;
        let mut subdirs = 0;
        if node == NodeId::ROOT && numbers.makes_lost_found() {
            bytes += dir::rec_len(LOST_FOUND.len());
            subdirs += 1;
        }
        for entry in tree.entries(node) {
            check_name(tree, node, entry.name)?;
            bytes += dir::rec_len(entry.name.len());
            subdirs += u32::from(tree.kind(entry.node) == Kind::Directory);
        }
        let shape = if bytes <= LEAF_SPACE {
            Shape::Linear { blocks: 1 }
        } else {
            let names = names(tree, numbers, node);
            let htree = Htree::new(names).ok_or_else(|| LayoutError::DirectoryTooLarge {
                path: BString::from(tree.path(node)),
            })?;
            Shape::Indexed(Box::new(htree))
        };
        Ok(DirPlan {
            node: Some(node),
            subdirs,
            shape,
        })
    }

    /// The `lost+found` of a tree that has none.
    pub(crate) fn lost_found() -> DirPlan<'static> {
        DirPlan {
            node: None,
            subdirs: 0,
            shape: Shape::Linear {
                blocks: LOST_FOUND_BLOCKS,
            },
        }
    }

    /// A directory with the same names and inodes as in an earlier image.
    pub(crate) fn kept(node: Option<NodeId>, subdirs: u32, shape: DirShape) -> DirPlan<'static> {
        DirPlan {
            node,
            subdirs,
            shape: Shape::Kept(shape),
        }
    }

    pub(crate) fn shape(&self) -> DirShape {
        match &self.shape {
            Shape::Linear { blocks } => DirShape {
                blocks: *blocks,
                indexed: false,
                large: false,
            },
            Shape::Indexed(htree) => DirShape {
                blocks: htree.blocks(),
                indexed: true,
                large: htree.is_large(),
            },
            Shape::Kept(shape) => *shape,
        }
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.shape().blocks
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.shape().indexed
    }

    /// Whether the index needs the feature `large_dir`.
    pub(crate) fn is_large(&self) -> bool {
        self.shape().large
    }

    /// Writes all blocks of the directory.
    pub(crate) fn encode(&self, tree: &Tree, numbers: &Numbers, out: &mut [u8]) {
        let (ino, parent) = match self.node {
            Some(node) => (
                numbers.of_item(crate::numbers::Item(node.0)),
                numbers.of_item(crate::numbers::Item(tree.parent(node).0)),
            ),
            None => (InodeNo::FIRST, InodeNo::ROOT),
        };
        match (&self.shape, self.node) {
            (Shape::Indexed(htree), _) => htree.encode(ino, parent, out),
            (Shape::Linear { .. }, Some(node)) => {
                linear::encode(ino, parent, names(tree, numbers, node), out);
            }
            (Shape::Linear { .. }, None) => linear::encode(ino, parent, [], out),
            (Shape::Kept(_), _) => {}
        }
    }
}

/// The names in a directory, with what they lead to.
fn names<'t>(tree: &'t Tree, numbers: &Numbers, node: NodeId) -> impl Iterator<Item = Name<'t>> {
    let made = (node == NodeId::ROOT && numbers.makes_lost_found()).then_some(Name {
        name: LOST_FOUND,
        ino: InodeNo::FIRST,
        file_type: dir::FT_DIR,
    });
    let own = tree
        .entries(node)
        .enumerate()
        .map(move |(place, entry)| Name {
            name: entry.name,
            ino: numbers.of_entry(node, place as u32, entry.node),
            file_type: file_type(tree.kind(entry.node)),
        });
    made.into_iter().chain(own)
}

fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => dir::FT_DIR,
        Kind::File { .. } => dir::FT_REG_FILE,
        Kind::Symlink => dir::FT_SYMLINK,
        Kind::CharDevice { .. } => dir::FT_CHRDEV,
        Kind::BlockDevice { .. } => dir::FT_BLKDEV,
        Kind::Fifo => dir::FT_FIFO,
        Kind::Socket => dir::FT_SOCK,
    }
}

fn check_name(tree: &Tree, dir: NodeId, name: &BStr) -> Result<(), LayoutError> {
    let good = (1..=255).contains(&name.len())
        && !name.iter().any(|&b| b == b'/' || b == 0)
        && name != "."
        && name != "..";
    if good {
        return Ok(());
    }
    let mut path = tree.path(dir);
    if dir != NodeId::ROOT {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    Err(LayoutError::BadName {
        path: BString::from(path),
    })
}

/// Writes an entry at the beginning of `out`.
fn put_entry(out: &mut [u8], entry: &Name<'_>, rec_len: usize) {
    let head = DirEntry {
        inode: entry.ino.0.into(),
        rec_len: (rec_len as u16).into(),
        name_len: entry.name.len() as u8,
        file_type: entry.file_type,
    };
    let size = size_of::<DirEntry>();
    out[..size].copy_from_slice(head.as_bytes());
    out[size..size + entry.name.len()].copy_from_slice(entry.name);
}

/// Writes `.` and `..`, the latter `rec_len` long.
fn put_dots(out: &mut [u8], ino: InodeNo, parent: InodeNo, rec_len: usize) {
    let dot = |name, ino| Name {
        name,
        ino,
        file_type: dir::FT_DIR,
    };
    put_entry(out, &dot(b".".as_slice(), ino), 12);
    put_entry(&mut out[12..], &dot(b"..".as_slice(), parent), rec_len);
}

/// Writes entries one after the other into a block of entries; the last reaches up to the checksum.
struct Leaf<'b> {
    block: &'b mut [u8],
    /// Where the entry last written begins, and where it could end.
    last: Option<usize>,
    at: usize,
}

impl<'b> Leaf<'b> {
    fn new(block: &'b mut [u8]) -> Leaf<'b> {
        Leaf {
            block,
            last: None,
            at: 0,
        }
    }

    fn push(&mut self, entry: &Name<'_>) {
        let size = dir::rec_len(entry.name.len());
        put_entry(&mut self.block[self.at..], entry, size);
        self.last = Some(self.at);
        self.at += size;
    }

    /// Ends the block and writes its checksum.
    fn finish(self, seed: Seed) {
        let last = self.last.unwrap_or(0);
        // An empty block is one unused entry.
        let rec_len = (LEAF_SPACE - last) as u16;
        self.block[last + 4..last + 6].copy_from_slice(&rec_len.to_le_bytes());
        let tail = DirTail {
            det_reserved_zero1: 0.into(),
            det_rec_len: (dir::TAIL_SIZE as u16).into(),
            det_reserved_zero2: 0,
            det_reserved_ft: dir::FT_DIR_CSUM,
            det_checksum: seed.with(&self.block[..LEAF_SPACE]).0.into(),
        };
        self.block[LEAF_SPACE..].copy_from_slice(tail.as_bytes());
    }
}
