//! The form of an index file. All numbers are little-endian, nothing is aligned.
//!
//! ```text
//! Header | a block for each directory, breadth first | Tail
//! block = Head | Row × n | text (names, targets, hole maps)
//! tail  = Place × directories | text (sets of attributes, warnings)
//! ```
//!
//! The header holds a hash of itself and of the tail, the tail one of every block: so whatever is read
//! was written by one scan, or it is not used at all.

use rustix::fs::Statx;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::model::{Meta, Timestamp};
use crate::scan::Stamp;
use crate::sys;

/// Goes up with every change of the form or of what a scan makes of the same directory.
pub(super) const MAGIC: [u8; 16] = *b"fcpipe-index\0\0\0\x02";

/// What statx says of an inode, all that a scan goes by. Equal is unchanged.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct Seen {
    ino: U64,
    dev: U64,
    size: U64,
    /// Of 512 bytes.
    blocks: U64,
    mtime: I64,
    ctime: I64,
    mtime_nanos: U32,
    ctime_nanos: U32,
    uid: U32,
    gid: U32,
    links: U32,
    rdev_major: U32,
    rdev_minor: U32,
    /// With the file type.
    mode: U16,
    zero: U16,
}

impl Seen {
    #[inline]
    pub(crate) fn new(stat: &Statx) -> Self {
        Seen {
            ino: stat.stx_ino.into(),
            dev: sys::device(stat).into(),
            size: stat.stx_size.into(),
            blocks: stat.stx_blocks.into(),
            mtime: stat.stx_mtime.tv_sec.into(),
            ctime: stat.stx_ctime.tv_sec.into(),
            mtime_nanos: stat.stx_mtime.tv_nsec.into(),
            ctime_nanos: stat.stx_ctime.tv_nsec.into(),
            uid: stat.stx_uid.into(),
            gid: stat.stx_gid.into(),
            links: stat.stx_nlink.into(),
            rdev_major: stat.stx_rdev_major.into(),
            rdev_minor: stat.stx_rdev_minor.into(),
            mode: stat.stx_mode.into(),
            zero: U16::ZERO,
        }
    }

    /// Where there is nothing to say.
    pub(crate) fn none() -> Self {
        Seen::new_zeroed()
    }

    pub(crate) fn mode(&self) -> u32 {
        self.mode.get().into()
    }

    pub(crate) fn links(&self) -> u32 {
        self.links.get()
    }

    /// In bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.get()
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta {
            mode: self.mode.get() & 0o7777,
            uid: self.uid.get(),
            gid: self.gid.get(),
            mtime: self.mtime(),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            dev: self.dev.get(),
            ino: self.ino.get(),
            size: self.size.get(),
            mtime: self.mtime(),
            ctime: self.ctime(),
        }
    }

    fn mtime(&self) -> Timestamp {
        Timestamp {
            secs: self.mtime.get(),
            nanos: self.mtime_nanos.get(),
        }
    }

    pub(crate) fn ctime(&self) -> Timestamp {
        Timestamp {
            secs: self.ctime.get(),
            nanos: self.ctime_nanos.get(),
        }
    }

    /// Major and minor number of a device node.
    pub(crate) fn device(&self) -> (u32, u32) {
        (self.rdev_major.get(), self.rdev_minor.get())
    }

    /// What differs, as it was and as it is: first of all what a user sees of a file, and the rest where that is
    /// the same.
    pub(crate) fn differences(&self, now: &Seen) -> Vec<FieldChange> {
        use FieldValue::{Kind, Mode, Number, Time};
        let fields = |seen: &Seen| {
            let mode = seen.mode.get();
            [
                ("kind", Kind(sys::kind_in_words(mode.into()))),
                ("size", Number(seen.size.get())),
                ("mtime", Time(seen.mtime())),
                ("mode", Mode(mode & 0o7777)),
                ("uid", Number(seen.uid.get().into())),
                ("gid", Number(seen.gid.get().into())),
                ("inode", Number(seen.ino.get())),
                ("device", Number(seen.dev.get())),
                ("links", Number(seen.links.get().into())),
                ("ctime", Time(seen.ctime())),
                ("blocks", Number(seen.blocks.get())),
            ]
        };
        /// How many of them are what a user sees.
        const SEEN: usize = 6;
        let pairs = fields(self).into_iter().zip(fields(now));
        let all = pairs.map(|((name, was), (_, is))| FieldChange { name, was, is });
        let differs = |change: &FieldChange| change.was != change.is;
        let seen: Vec<FieldChange> = all.clone().take(SEEN).filter(differs).collect();
        if seen.is_empty() {
            all.skip(SEEN).filter(differs).collect()
        } else {
            seen
        }
    }
}

/// One thing about a file that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldChange {
    /// In a word: `size`, `mtime`.
    pub name: &'static str,
    pub was: FieldValue,
    pub is: FieldValue,
}

/// What [`FieldChange`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldValue {
    Number(u64),
    /// Permission bits.
    Mode(u16),
    Time(Timestamp),
    /// `file`, `symlink`.
    Kind(&'static str),
}

/// The begin of a directory's block: the directory itself.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) seen: Seen,
    pub(crate) xattrs: U32,
    pub(crate) rows: U32,
    pub(crate) flags: U16,
}

/// One name in a directory. Rows are sorted by `listed`, then by name.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Row {
    /// Zeros for a directory: what it is stands in its own block.
    pub(crate) seen: Seen,
    /// The inode number that the listing of the directory gives.
    pub(crate) listed: U64,
    /// In the block's text.
    pub(crate) name_at: U32,
    /// A symlink's target or a file's hole map in the block's text; a directory's number.
    pub(crate) body_at: U32,
    /// Bytes.
    pub(crate) body_len: U32,
    /// The number of its set of attributes.
    pub(crate) xattrs: U32,
    pub(crate) name_len: U16,
    pub(crate) flags: U16,
}

/// Flags of [`Row`] and [`Head`].
pub(crate) mod flag {
    /// A directory.
    pub(crate) const DIRECTORY: u16 = 1;
    /// A file with a hole map.
    pub(crate) const SPARSE: u16 = 2;
    /// A regular file whose hash stands at the end of its body.
    pub(crate) const HASHED: u16 = 8;
    /// It may have changed after it was looked at without a trace in its times.
    pub(crate) const UNSETTLED: u16 = 4;
}

impl Row {
    pub(crate) fn is(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }
}

/// Where a directory's block is.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Place {
    pub(super) at: U64,
    pub(super) len: U32,
    pub(super) hash: [u8; 32],
}

/// The first bytes of the file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 16],
    /// What was scanned, and how.
    pub(super) identity: [u8; 32],
    pub(super) tree: [u8; 32],
    pub(super) stamps: [u8; 32],
    pub(super) entries: U64,
    pub(super) bytes: U64,
    pub(super) started: I64,
    pub(super) started_nanos: U32,
    pub(super) dirs: U32,
    pub(super) tail_at: U64,
    pub(super) tail_len: U64,
    pub(super) tail: [u8; 32],
    /// Of the header up to here.
    pub(super) hash: [u8; 32],
}

impl Header {
    pub(super) fn own_hash(&self) -> [u8; 32] {
        let bytes = self.as_bytes();
        *blake3::hash(&bytes[..bytes.len() - 32]).as_bytes()
    }
}
