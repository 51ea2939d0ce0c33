//! What an image leaves behind for those that will be laid out near it: its tree, and the place of everything.
//!
//! All of it could be read out of the image. It is written beside it because one file of flat tables is read ten times
//! faster than inode tables and directories are, and because an image does not hold what tells whether a
//! file's content is still the same ([`ContentId`]).
//!
//! The form is private to one version of this program: a header, then tables one after the other, a CRC32C over them.
//! It is read into memory, not mapped: whoever cuts a mapped file short ends the process.

mod write;

use std::ops::Range;

use fcpipe_tree::{Kind, NodeId, Tree};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) use write::write;

use crate::dirs::DirShape;
use crate::ids::{Run, Span};
use crate::options::{FORMAT_VERSION, Options};
use crate::placement::Owner;

const MAGIC: U64 = U64::from_bytes(*b"fcimprnt");
const VERSION: u32 = 1;

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(super) struct PSpan {
    pub(super) start: U32,
    pub(super) len: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    magic: U64,
    version: U32,
    format: U32,
    /// CRC32C of everything behind this field.
    checksum: U32,
    pub(super) lost_found_sort: U32,
    pub(super) disk_blocks: U64,
    pub(super) blocks: U64,
    pub(super) inodes_per_group: U32,
    pub(super) journal_blocks: U32,
    pub(super) last_inode: U32,
    asked: U32,
    asked_size: U64,
    label: [u8; 16],
    pub(super) uuid: [u8; 16],
    pub(super) journal: PSpan,
    pub(super) lost_found: PSpan,
    pub(super) lost_found_blocks: U32,
    unused: U32,
    counts: [U64; TABLES],
}

/// A node of the tree, and where it is.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PNode {
    pub(super) mode: U16,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) ino: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) secs: U64,
    pub(super) nanos: U32,
    pub(super) names: U32,
    /// A file's bytes, a device's numbers.
    pub(super) size: U64,
    /// A directory's entries, a symlink's target, a sparse file's runs.
    pub(super) body: PSpan,
    pub(super) pieces: PSpan,
    pub(super) set: U32,
    /// One more than the number of its block of xattrs, or 0.
    pub(super) xattr_block: U32,
    /// Of a directory.
    pub(super) blocks: U32,
    pub(super) subdirs: U32,
    /// Of a file. `sort` 0: nothing is known.
    pub(super) content_sort: U32,
    pub(super) unused: U32,
    pub(super) content: [U64; 4],
}

pub(super) const SPARSE: u8 = 1;
pub(super) const INDEXED: u8 = 2;
pub(super) const LARGE: u8 = 4;

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PEntry {
    pub(super) name: PSpan,
    pub(super) node: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PPiece {
    pub(super) block: U64,
    pub(super) logical: U32,
    pub(super) blocks: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PRun {
    pub(super) start: U64,
    pub(super) end: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PDataRun {
    pub(super) start: U32,
    pub(super) end: U32,
}

/// The blocks of an extent tree, and whose it is.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PTree {
    pub(super) sort: U32,
    pub(super) number: U32,
    pub(super) pieces: PSpan,
}

/// A block of xattrs, known by its set and by how many blocks of the same set came before it.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PXattrBlock {
    pub(super) set: [u8; 32],
    pub(super) ordinal: U32,
    pub(super) unused: U32,
    pub(super) block: U64,
}

/// A value with an inode of its own, known by its content.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PValue {
    pub(super) hash: [u8; 32],
    pub(super) ino: U32,
    pub(super) unused: U32,
    pub(super) pieces: PSpan,
}

const TABLES: usize = 10;

/// An earlier image, as its imprint tells.
#[derive(Debug)]
pub struct Imprint {
    bytes: Vec<u8>,
    head: Head,
    tables: [Range<usize>; TABLES],
}

/// Bytes that are no imprint, or not of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an imprint that this version reads, or damaged")]
pub struct BadImprint;

impl Imprint {
    /// Reads what [`crate::layout_with_imprint`] gave.
    ///
    /// # Errors
    /// When anything is wrong with it: then nothing is near it.
    pub fn new(bytes: Vec<u8>) -> Result<Imprint, BadImprint> {
        let (head, rest) = Head::read_from_prefix(&bytes).map_err(|_| BadImprint)?;
        let begin = bytes.len() - rest.len();
        let covered = std::mem::offset_of!(Head, checksum) + size_of::<U32>();
        let good = head.magic == MAGIC
            && head.version == VERSION
            && head.format == FORMAT_VERSION
            && head.checksum == crc32c::crc32c(&bytes[covered..]);
        if !good {
            return Err(BadImprint);
        }
        let mut tables: [Range<usize>; TABLES] = Default::default();
        let mut at = begin;
        for ((table, count), size) in tables.iter_mut().zip(&head.counts).zip(SIZES) {
            let len = usize::try_from(count.get()).ok();
            let len = len.and_then(|len| len.checked_mul(size));
            let end = len.and_then(|len| at.checked_add(len)).ok_or(BadImprint)?;
            if end > bytes.len() {
                return Err(BadImprint);
            }
            *table = at..end;
            at = end;
        }
        if at != bytes.len() {
            return Err(BadImprint);
        }
        Ok(Imprint {
            bytes,
            head,
            tables,
        })
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes of the whole disk.
    pub fn size(&self) -> u64 {
        self.head.disk_blocks.get() * crate::map::BLOCK_SIZE
    }

    /// Whether it was laid out by these options.
    pub(super) fn is_by(&self, options: &Options) -> bool {
        let (asked, size) = asked(options);
        self.head.asked == asked
            && self.head.asked_size == size
            && self.head.label == *options.label.as_bytes()
    }

    fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self, number: usize) -> &[T] {
        // Its length is a multiple of the size: `new` has made it so.
        <[T]>::ref_from_bytes(&self.bytes[self.tables[number].clone()]).unwrap_or_default()
    }

    pub(super) fn nodes(&self) -> &[PNode] {
        self.table(0)
    }

    pub(super) fn entries(&self, dir: &PNode) -> &[PEntry] {
        &self.table(1)[range(dir.body)]
    }

    pub(super) fn bytes(&self, span: PSpan) -> &[u8] {
        &self.bytes[self.tables[2].clone()][range(span)]
    }

    pub(super) fn runs(&self, file: &PNode) -> &[PDataRun] {
        &self.table(3)[range(file.body)]
    }

    pub(super) fn sets(&self) -> &[[u8; 32]] {
        self.table(4)
    }

    pub(super) fn pieces(&self) -> &[PPiece] {
        self.table(5)
    }

    pub(super) fn free(&self) -> &[PRun] {
        self.table(6)
    }

    pub(super) fn trees(&self) -> &[PTree] {
        self.table(7)
    }

    pub(super) fn xattr_blocks(&self) -> &[PXattrBlock] {
        self.table(8)
    }

    pub(super) fn values(&self) -> &[PValue] {
        self.table(9)
    }
}

const SIZES: [usize; TABLES] = [
    size_of::<PNode>(),
    size_of::<PEntry>(),
    1,
    size_of::<PDataRun>(),
    32,
    size_of::<PPiece>(),
    size_of::<PRun>(),
    size_of::<PTree>(),
    size_of::<PXattrBlock>(),
    size_of::<PValue>(),
];

fn range(span: PSpan) -> Range<usize> {
    span.start.get() as usize..span.start.get() as usize + span.len.get() as usize
}

fn asked(options: &Options) -> (u32, u64) {
    let asked = u32::from(options.size.is_some()) | u32::from(options.journal) << 1;
    (asked, options.size.unwrap_or(0))
}

impl From<Span> for PSpan {
    fn from(span: Span) -> PSpan {
        PSpan {
            start: span.start.into(),
            len: span.len.into(),
        }
    }
}

impl From<PSpan> for Span {
    fn from(span: PSpan) -> Span {
        Span {
            start: span.start.get(),
            len: span.len.get(),
        }
    }
}

impl From<&PRun> for Run {
    fn from(run: &PRun) -> Run {
        Run {
            start: run.start.get(),
            end: run.end.get(),
        }
    }
}

impl PNode {
    pub(super) fn shape(&self) -> DirShape {
        DirShape {
            blocks: self.blocks.get(),
            indexed: self.flags & INDEXED != 0,
            large: self.flags & LARGE != 0,
        }
    }
}

/// A node's type as one byte, and what it says beside that.
pub(super) fn kind_of(kind: Kind) -> (u8, u64) {
    let device = |major: u32, minor: u32| u64::from(major) << 32 | u64::from(minor);
    match kind {
        Kind::Directory => (0, 0),
        Kind::File { size } => (1, size),
        Kind::Symlink => (2, 0),
        Kind::CharDevice { major, minor } => (3, device(major, minor)),
        Kind::BlockDevice { major, minor } => (4, device(major, minor)),
        Kind::Fifo => (5, 0),
        Kind::Socket => (6, 0),
    }
}

/// What stands for one set of xattrs; the number says which of the tree's sets it is.
pub(super) fn hash_of_set(tree: &Tree, node: NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("fcpipe ext4 xattr set 1");
    for xattr in tree.xattrs(node) {
        for part in [&xattr.name, &xattr.value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    *hasher.finalize().as_bytes()
}

/// By the tree's number of the set; 0, the empty one, has zeros.
pub(super) fn hashes_of_sets(tree: &Tree) -> Vec<[u8; 32]> {
    let mut hashes: Vec<[u8; 32]> = vec![[0; 32]];
    for node in tree.nodes() {
        let set = tree.xattr_set(node) as usize;
        if hashes.len() <= set {
            hashes.resize(set + 1, [0; 32]);
        }
        if set > 0 && hashes[set] == [0; 32] {
            hashes[set] = hash_of_set(tree, node);
        }
    }
    hashes
}

/// An owner as two numbers.
pub(super) fn number_of(owner: Owner) -> (u32, u32) {
    match owner {
        Owner::Item(item) => (0, item.0),
        Owner::LostFound => (1, 0),
        Owner::Value(value) => (2, value),
        Owner::Journal => (3, 0),
    }
}
