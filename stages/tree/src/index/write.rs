//! Writing an index, directory by directory, as the assembly of a scan goes through them.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::format::{Head, Header, MAGIC, Place, Row, Seen, flag};
use super::read::Block;
use crate::memory::with_room;
use crate::model::DataRun;
use crate::scan::{Scan, ScanWarning, Set};

/// An index in the making.
pub(crate) struct Encoder {
    out: Vec<u8>,
    places: Vec<Place>,
    /// By directory: its block is one of the old index as it is, so its hash is known.
    kept: Vec<bool>,
    sets: Vec<Set>,
    known: HashMap<Set, u32>,
    /// Of the open directory.
    head: Option<Head>,
    rows: Vec<Row>,
    text: Vec<u8>,
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
    pub(super) bytes: Vec<u8>,
    /// Equal for indexes that say the same.
    pub(super) whole: [u8; 32],
}

impl Encoder {
    /// `room`: how many entries to expect.
    pub(crate) fn new(room: usize) -> Self {
        let mut out = with_room(size_of::<Header>() + room * (size_of::<Row>() + 24));
        out.resize(size_of::<Header>(), 0);
        let none = Set::default();
        Encoder {
            out,
            places: Vec::new(),
            kept: Vec::new(),
            sets: vec![none.clone()],
            known: HashMap::from([(none, 0)]),
            head: None,
            rows: Vec::new(),
            text: Vec::new(),
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

    /// The next directory is one of the old index. What it refers to by numbers is put right by the other `recalled_…`.
    pub(crate) fn begin_recalled(&mut self, block: &Block, xattrs: u32) {
        self.end();
        let (bytes, hash) = block.whole();
        let at = self.out.len();
        self.out.extend_from_slice(bytes);
        self.places.push(Place {
            at: (at as u64).into(),
            len: (bytes.len() as u32).into(),
            hash,
        });
        self.kept.push(true);
        if block.head().xattrs.get() != xattrs {
            self.renumber(|head, _| head.xattrs = xattrs.into());
        }
    }

    /// The set of a row of a directory that was begun so.
    pub(crate) fn recalled_set(&mut self, row: u32, old: u32, xattrs: u32) {
        if old != xattrs {
            self.renumber(|_, rows| rows[row as usize].xattrs = xattrs.into());
        }
    }

    /// The number of the directory that a row of it is.
    pub(crate) fn recalled_directory(&mut self, row: u32, old: u32, number: u32) {
        if old != number {
            self.renumber(|_, rows| rows[row as usize].body_at = number.into());
        }
    }

    /// Changes the last directory's block, so that it is not the old index's any more.
    fn renumber(&mut self, change: impl FnOnce(&mut Head, &mut [Row])) {
        let (Some(place), Some(kept)) = (self.places.last(), self.kept.last_mut()) else {
            return;
        };
        let block = &mut self.out[place.at.get() as usize..];
        let Ok((head, rest)) = Head::mut_from_prefix(block) else {
            return;
        };
        let count = head.rows.get() as usize;
        if let Ok((rows, _)) = <[Row]>::mut_from_prefix_with_elems(rest, count) {
            change(head, rows);
            *kept = false;
        }
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
        let at = self.out.len();
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(self.rows.as_bytes());
        self.out.extend_from_slice(&self.text);
        self.places.push(Place {
            at: (at as u64).into(),
            len: ((self.out.len() - at) as u32).into(),
            // When all is there, behind the launch.
            hash: [0; 32],
        });
        self.kept.push(false);
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
        for (place, kept) in self.places.iter_mut().zip(&self.kept) {
            if *kept {
                continue;
            }
            let at = place.at.get() as usize;
            let block = &self.out[at..at + place.len.get() as usize];
            place.hash = *blake3::hash(block).as_bytes();
        }
        let tail_at = self.out.len();
        self.out.extend_from_slice(self.places.as_bytes());
        let out = &mut self.out;
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
        header.dirs = u32::try_from(self.places.len()).ok()?.into();
        header.tail_at = (tail_at as u64).into();
        header.tail_len = ((self.out.len() - tail_at) as u64).into();
        header.tail = *blake3::hash(&self.out[tail_at..]).as_bytes();
        header.hash = header.own_hash();
        self.out[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        Some(Encoded {
            bytes: self.out,
            whole: header.tail,
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
