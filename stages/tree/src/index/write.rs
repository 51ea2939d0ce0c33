//! Writing an index, directory by directory, as the assembly of a scan goes through them.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::format::{Head, Header, MAGIC, Place, Row, Seen, flag};
use super::read::Block;
use crate::memory::with_room;
use crate::model::DataRun;
use crate::scan::{Scan, ScanWarning, Set};

/// An index in the making.
pub(crate) struct Encoder {
    /// By number.
    dirs: Vec<Dir>,
    /// The blocks that are new.
    new: Vec<u8>,
    sets: Vec<Set>,
    known: HashMap<Set, u32>,
    /// Of the open directory.
    head: Option<Head>,
    rows: Vec<Row>,
    text: Vec<u8>,
    /// What is to be put right in the open directory, if it is one of the old index.
    changes: Vec<Change>,
}

/// One directory's block.
enum Dir {
    /// Among the new ones.
    New(Range<usize>),
    /// One of the old index.
    Old(Block),
}

/// A number in a block of the old index that is another in this one.
enum Change {
    OwnSet(u32),
    Set { row: u32, number: u32 },
    Directory { row: u32, number: u32 },
}

/// What is particular to a kind.
pub(crate) enum Body<'a> {
    /// The number of the directory: they are begun in the order of their numbers.
    Directory(u32),
    Symlink(&'a [u8]),
    File {
        /// The hole map of a sparse file.
        runs: Option<&'a [DataRun]>,
        /// The hash of what it holds, if it was read.
        content: Option<&'a [u8; 32]>,
    },
    Other,
}

/// A whole index that was not written yet.
pub(crate) struct Encoded {
    header: Header,
    dirs: Vec<Dir>,
    new: Vec<u8>,
    tail: Vec<u8>,
}

impl Encoded {
    /// Stands for everything in it: equal for indexes that say the same.
    pub(crate) fn whole(&self) -> [u8; 32] {
        self.header.tail
    }

    /// The file's bytes, in pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let blocks = self.dirs.iter().map(|dir| dir.bytes(&self.new));
        std::iter::once(self.header.as_bytes())
            .chain(blocks)
            .chain(std::iter::once(&self.tail[..]))
    }
}

impl Dir {
    fn bytes<'a>(&'a self, new: &'a [u8]) -> &'a [u8] {
        match self {
            Dir::New(range) => &new[range.clone()],
            Dir::Old(block) => block.whole().0,
        }
    }

    fn hash(&self, new: &[u8]) -> [u8; 32] {
        match self {
            Dir::New(_) => *blake3::hash(self.bytes(new)).as_bytes(),
            Dir::Old(block) => block.whole().1,
        }
    }
}

impl Encoder {
    /// `room`: how many new entries to expect.
    pub(crate) fn new(room: usize) -> Self {
        let none = Set::default();
        Encoder {
            dirs: Vec::new(),
            new: with_room(room * (size_of::<Row>() + 24)),
            sets: vec![none.clone()],
            known: HashMap::from([(none, 0)]),
            head: None,
            rows: Vec::new(),
            text: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// The number for a set of attributes.
    pub(crate) fn set(&mut self, set: &Set) -> u32 {
        if let Some(&number) = self.known.get(set) {
            return number;
        }
        let number = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.known.insert(set.clone(), number);
        number
    }

    /// Opens the next directory; the one before is complete.
    pub(crate) fn begin(&mut self, seen: Seen, xattrs: u32, settled: bool) {
        self.end();
        self.head = Some(Head {
            seen,
            xattrs: xattrs.into(),
            rows: U32::ZERO,
            flags: if settled { 0 } else { flag::UNSETTLED }.into(),
        });
    }

    /// A name in the open directory.
    pub(crate) fn row(
        &mut self,
        name: &[u8],
        listed: u64,
        seen: Seen,
        xattrs: u32,
        settled: bool,
        body: &Body<'_>,
    ) {
        let mut row = Row {
            seen,
            listed: listed.into(),
            name_at: (self.text.len() as u32).into(),
            body_at: U32::ZERO,
            body_len: U32::ZERO,
            xattrs: xattrs.into(),
            name_len: (name.len() as u16).into(),
            flags: U16::ZERO,
        };
        self.text.extend_from_slice(name);
        let body_at = self.text.len() as u32;
        let mut flags = if settled { 0 } else { flag::UNSETTLED };
        match *body {
            Body::Directory(number) => {
                flags |= flag::DIRECTORY;
                row.body_at = number.into();
            }
            Body::Symlink(target) => {
                self.text.extend_from_slice(target);
            }
            Body::File { runs, content } => {
                if let Some(runs) = runs {
                    flags |= flag::SPARSE;
                    for run in runs {
                        self.text.extend_from_slice(&run.start.to_le_bytes());
                        self.text.extend_from_slice(&run.end.to_le_bytes());
                    }
                }
                if let Some(content) = content {
                    flags |= flag::HASHED;
                    self.text.extend_from_slice(content);
                }
            }
            Body::Other => {}
        }
        if !matches!(body, Body::Directory(_)) {
            row.body_at = body_at.into();
            row.body_len = (self.text.len() as u32 - body_at).into();
        }
        row.flags = flags.into();
        self.rows.push(row);
    }

    /// The next directory is one of the old index, and has this set. What it refers to by numbers is put right by the other
    /// `recalled_…`; [`Encoder::keep`] is the last of them.
    pub(crate) fn begin_recalled(&mut self, old: u32, xattrs: u32) {
        self.end();
        if old != xattrs {
            self.changes.push(Change::OwnSet(xattrs));
        }
    }

    /// The set of a row of it.
    pub(crate) fn recalled_set(&mut self, row: u32, old: u32, number: u32) {
        if old != number {
            self.changes.push(Change::Set { row, number });
        }
    }

    /// The number of the directory that a row of it is.
    pub(crate) fn recalled_directory(&mut self, row: u32, old: u32, number: u32) {
        if old != number {
            self.changes.push(Change::Directory { row, number });
        }
    }

    /// Takes its block over.
    pub(crate) fn keep(&mut self, mut block: Block) {
        if !self.changes.is_empty() {
            let changes = &mut self.changes;
            block.change(|head, rows| {
                for change in changes.drain(..) {
                    match change {
                        Change::OwnSet(number) => head.xattrs = number.into(),
                        Change::Set { row, number } => rows[row as usize].xattrs = number.into(),
                        Change::Directory { row, number } => {
                            rows[row as usize].body_at = number.into();
                        }
                    }
                }
            });
        }
        self.dirs.push(Dir::Old(block));
    }

    fn end(&mut self) {
        let Some(mut head) = self.head.take() else {
            return;
        };
        let text = &self.text;
        let name = |row: &Row| {
            let at = row.name_at.get() as usize;
            &text[at..at + usize::from(row.name_len.get())]
        };
        self.rows
            .sort_unstable_by(|a, b| (a.listed.get(), name(a)).cmp(&(b.listed.get(), name(b))));
        head.rows = (self.rows.len() as u32).into();
        let at = self.new.len();
        self.new.extend_from_slice(head.as_bytes());
        self.new.extend_from_slice(self.rows.as_bytes());
        self.new.extend_from_slice(&self.text);
        self.dirs.push(Dir::New(at..self.new.len()));
        self.rows.clear();
        self.text.clear();
    }

    /// The whole index of a scan; `stamps`: their digest. `None` where an index can't say all that the scan does.
    pub(crate) fn finish(
        mut self,
        identity: &blake3::Hash,
        scan: &Scan,
        stamps: blake3::Hash,
    ) -> Option<Encoded> {
        self.end();
        let mut places = Vec::with_capacity(self.dirs.len());
        let mut at = size_of::<Header>() as u64;
        for dir in &self.dirs {
            let len = dir.bytes(&self.new).len();
            places.push(Place {
                at: at.into(),
                len: u32::try_from(len).ok()?.into(),
                hash: dir.hash(&self.new),
            });
            at += len as u64;
        }
        let mut tail = places.as_bytes().to_vec();
        let out = &mut tail;
        number(out, self.sets.len());
        for set in &self.sets {
            number(out, set.xattrs.len());
            for xattr in &set.xattrs {
                text(out, &xattr.name);
                text(out, &xattr.value);
            }
            number(out, set.foreign.len());
            for name in &set.foreign {
                text(out, name);
            }
        }
        // Others than these are about what is looked at in every scan.
        let foreign = scan.warnings.iter().filter_map(|warning| match warning {
            ScanWarning::ForeignAttribute { name, path, count } => Some((name, path, *count)),
            _ => None,
        });
        number(out, foreign.clone().count());
        for (name, path, count) in foreign {
            text(out, name);
            text(out, path.as_os_str().as_bytes());
            number(out, usize::try_from(count).ok()?);
        }
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.identity = *identity.as_bytes();
        header.tree = *scan.tree.digest().as_bytes();
        header.stamps = *stamps.as_bytes();
        header.entries = scan.entries.into();
        header.bytes = scan.bytes.into();
        header.started = scan.started.secs.into();
        header.started_nanos = scan.started.nanos.into();
        header.dirs = u32::try_from(self.dirs.len()).ok()?.into();
        header.tail_at = at.into();
        header.tail_len = (tail.len() as u64).into();
        header.tail = *blake3::hash(&tail).as_bytes();
        header.hash = header.own_hash();
        Some(Encoded {
            header,
            dirs: self.dirs,
            new: self.new,
            tail,
        })
    }
}

fn number(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&(number as u32).to_le_bytes());
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len());
    out.extend_from_slice(bytes);
}
