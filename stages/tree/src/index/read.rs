//! Reading an index: whatever is not whole, or not about this source, is as if it were not there.

use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::format::{Head, Header, MAGIC, Place, Row, flag};
use crate::memory::with_room;
use crate::model::{DataRun, Xattr};
use crate::scan::{ScanWarning, Set};

/// An index whose header and tail were found whole; its blocks are checked when they are read.
///
/// It is read and not mapped: a mapped file that somebody cuts short, or whose disk fails, ends the
/// process with SIGBUS, and a cache must never do that. One pread a directory, into memory that is in the
/// processor's cache when it is hashed and compared, costs no more than the page faults would.
#[derive(Debug)]
pub(crate) struct Index {
    file: File,
    header: Header,
    places: Vec<Place>,
    pub(crate) sets: Vec<Set>,
    pub(crate) warnings: Vec<ScanWarning>,
}

impl Index {
    /// `None` for anything but a whole index of what `identity` stands for.
    pub(super) fn read(file: File, identity: &blake3::Hash) -> Option<Index> {
        let size = file.metadata().ok()?.len();
        let mut header = Header::new_zeroed();
        file.read_exact_at(header.as_mut_bytes(), 0).ok()?;
        if header.magic != MAGIC
            || header.hash != header.own_hash()
            || header.identity != *identity.as_bytes()
        {
            return None;
        }
        let (at, len) = (header.tail_at.get(), header.tail_len.get());
        if at.checked_add(len)? != size {
            return None;
        }
        let mut tail = vec![0; usize::try_from(len).ok()?];
        file.read_exact_at(&mut tail, at).ok()?;
        if *blake3::hash(&tail).as_bytes() != header.tail {
            return None;
        }
        let dirs = header.dirs.get() as usize;
        let places = tail.get(..dirs.checked_mul(size_of::<Place>())?)?;
        let mut text = Text(&tail[places.len()..]);
        let places = <[Place]>::ref_from_bytes(places).ok()?.to_vec();
        let sets = text.many(Text::set)?;
        let warnings = text.many(Text::warning)?;
        Some(Index {
            file,
            header,
            places,
            sets,
            warnings,
        })
    }

    pub(crate) fn tree_digest(&self) -> blake3::Hash {
        self.header.tree.into()
    }

    pub(crate) fn stamps_digest(&self) -> blake3::Hash {
        self.header.stamps.into()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.header.entries.get()
    }

    /// Of all regular files.
    pub(crate) fn bytes(&self) -> u64 {
        self.header.bytes.get()
    }

    /// Not less than the bytes of names and targets.
    pub(crate) fn text(&self) -> u64 {
        let rows = self.entries() * size_of::<Row>() as u64;
        self.header.tail_at.get().saturating_sub(rows)
    }

    pub(crate) fn dirs(&self) -> usize {
        self.places.len()
    }

    /// Stands for everything that is in it.
    pub(crate) fn whole(&self) -> [u8; 32] {
        self.header.tail
    }

    /// Where a directory is in the file.
    fn place(&self, dir: u32) -> Option<(Range<u64>, [u8; 32])> {
        let place = self.places.get(dir as usize)?;
        let at = place.at.get();
        let end = at.checked_add(place.len.get().into())?;
        (end <= self.header.tail_at.get()).then_some((at..end, place.hash))
    }

    /// A directory by its number; `None` where it is damaged.
    pub(crate) fn block(&self, dir: u32) -> Option<Block> {
        let (place, hash) = self.place(dir)?;
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.file.read_exact_at(&mut bytes, place.start).ok()?;
        let range = 0..bytes.len();
        let mut block = Block::new(Arc::new(bytes), range, hash).filter(Block::is_whole)?;
        if block.rows > DENSE {
            block.listed = block.rows().iter().map(|row| row.listed.get()).collect();
        }
        Some(block)
    }

    /// All directories, read by so many threads. One by one they cost twice as much.
    pub(crate) fn all(&self, threads: usize) -> Option<Blocks<'_>> {
        let share = self.places.len().div_ceil(threads).max(SHARE);
        let read = |places: &[Place]| {
            let begin = places.first()?.at.get();
            let last = places.last()?;
            let end = last.at.get().checked_add(last.len.get().into())?;
            // It begins where the header ends, and what it has is in the file: no more is asked for than there is.
            let end = end.min(self.header.tail_at.get());
            let mut bytes = with_room(usize::try_from(end.checked_sub(begin)?).ok()?);
            while (bytes.len() as u64) < end - begin {
                let at = begin + bytes.len() as u64;
                match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                    Ok(0) => return None,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => return None,
                }
            }
            Some((begin, Arc::new(bytes)))
        };
        let read = &read;
        let parts = std::thread::scope(|scope| {
            let mut shares = self.places.chunks(share);
            let mine = shares.next()?;
            let others: Vec<_> = shares
                .map(|share| scope.spawn(move || read(share)))
                .collect();
            let others = others
                .into_iter()
                .map(|thread| thread.join().ok().flatten());
            std::iter::once(read(mine))
                .chain(others)
                .collect::<Option<_>>()
        })?;
        Some(Blocks { index: self, parts })
    }
}

/// Fewer directories than this are not worth a thread.
const SHARE: usize = 200;

/// All directories of an index.
pub(crate) struct Blocks<'a> {
    index: &'a Index,
    /// In their order, each with where it is in the file.
    parts: Vec<(u64, Arc<Vec<u8>>)>,
}

impl Blocks<'_> {
    /// Whether all are as they were written. It takes as long as to put them together, and can be done at the same time.
    pub(crate) fn are_whole(&self) -> bool {
        let whole = |dir| self.block(dir).is_some_and(|block| block.is_whole());
        (0..self.index.places.len() as u32).all(whole)
    }

    /// A directory by its number, as far as can be seen without its hash.
    pub(crate) fn block(&self, dir: u32) -> Option<Block> {
        let (place, hash) = self.index.place(dir)?;
        let part = self
            .parts
            .partition_point(|(begin, _)| *begin <= place.start);
        let (begin, bytes) = self.parts.get(part.checked_sub(1)?)?;
        let at = usize::try_from(place.start - begin).ok()?;
        let end = at.checked_add((place.end - place.start) as usize)?;
        Block::new(Arc::clone(bytes), at..end, hash)
    }
}

/// What an index has of one directory.
#[derive(Debug)]
pub(crate) struct Block {
    /// Its own, or all of the index's.
    all: Arc<Vec<u8>>,
    range: Range<usize>,
    rows: usize,
    /// Of a large directory, which is looked at in pieces, the rows' inode numbers side by side: a search
    /// among the rows themselves would wait for memory at every step.
    listed: Vec<u64>,
    hash: [u8; 32],
}

/// More rows than this are a large directory.
const DENSE: usize = 1000;

impl Block {
    /// `None` where it can't be a block.
    fn new(all: Arc<Vec<u8>>, range: Range<usize>, hash: [u8; 32]) -> Option<Block> {
        let bytes = all.get(range.clone())?;
        let (head, rest) = Head::ref_from_prefix(bytes).ok()?;
        let rows = head.rows.get() as usize;
        if rest.len() < rows.checked_mul(size_of::<Row>())? {
            return None;
        }
        Some(Block {
            all,
            range,
            rows,
            listed: Vec::new(),
            hash,
        })
    }

    fn bytes(&self) -> &[u8] {
        &self.all[self.range.clone()]
    }

    fn is_whole(&self) -> bool {
        *blake3::hash(self.bytes()).as_bytes() == self.hash
    }

    pub(crate) fn head(&self) -> &Head {
        let (head, _) = Head::ref_from_prefix(self.bytes()).expect("checked when it was read");
        head
    }

    pub(crate) fn rows(&self) -> &[Row] {
        let rest = &self.bytes()[size_of::<Head>()..];
        let (rows, _) =
            <[Row]>::ref_from_prefix_with_elems(rest, self.rows).expect("checked when it was read");
        rows
    }

    /// All of it, as it is in the file, and the hash of that.
    pub(super) fn whole(&self) -> (&[u8], [u8; 32]) {
        (self.bytes(), self.hash)
    }

    /// Changes numbers in it, so that it is not the index's any more.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Head, &mut [Row])) {
        let mut bytes = self.bytes().to_vec();
        let checked = "checked when it was read";
        let (head, rest) = Head::mut_from_prefix(&mut bytes).expect(checked);
        let (rows, _) = <[Row]>::mut_from_prefix_with_elems(rest, self.rows).expect(checked);
        change(head, rows);
        self.hash = *blake3::hash(&bytes).as_bytes();
        self.range = 0..bytes.len();
        self.all = Arc::new(bytes);
    }

    /// The numbers of its rows in the order of names, in which their names were written down.
    pub(crate) fn by_name(&self) -> Vec<u32> {
        let rows = self.rows();
        let mut order: Vec<(u32, u32)> = (0..)
            .zip(rows)
            .map(|(number, row)| (row.name_at.get(), number))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, number)| number).collect()
    }

    fn text(&self) -> &[u8] {
        &self.bytes()[size_of::<Head>() + self.rows * size_of::<Row>()..]
    }

    pub(crate) fn name(&self, row: &Row) -> &[u8] {
        let at = row.name_at.get() as usize;
        let end = at + usize::from(row.name_len.get());
        self.text().get(at..end).unwrap_or_default()
    }

    /// What a regular file holds, if it was read.
    pub(crate) fn content(&self, row: &Row) -> Option<[u8; 32]> {
        let hashed = row.is(flag::HASHED);
        self.body(row).last_chunk().filter(|_| hashed).copied()
    }

    /// A symlink's target.
    pub(crate) fn body(&self, row: &Row) -> &[u8] {
        let at = row.body_at.get() as usize;
        let end = at + row.body_len.get() as usize;
        self.text().get(at..end).unwrap_or_default()
    }

    /// A sparse file's data.
    pub(crate) fn runs(&self, row: &Row) -> Vec<DataRun> {
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        let body = self.body(row);
        let hash = if row.is(flag::HASHED) { 32 } else { 0 };
        body[..body.len().saturating_sub(hash)]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|run| DataRun {
                start: word(&run[..4]),
                end: word(&run[4..]),
            })
            .collect()
    }

    /// The row of `name`, which the listing gives the inode number `listed`. `hint`: where to look
    /// first; left behind what was found.
    #[inline]
    pub(crate) fn find(&self, hint: &mut usize, listed: u64, name: &[u8]) -> Option<usize> {
        let rows = self.rows();
        if let Some(row) = rows.get(*hint)
            && row.listed.get() == listed
            && self.name(row) == name
        {
            *hint += 1;
            return Some(*hint - 1);
        }
        let found = if self.listed.is_empty() {
            rows.binary_search_by(|row| (row.listed.get(), self.name(row)).cmp(&(listed, name)))
                .ok()?
        } else {
            let first = self.listed.partition_point(|&other| other < listed);
            let same = rows[first..]
                .partition_point(|row| row.listed.get() == listed && self.name(row) < name);
            let row = rows.get(first + same)?;
            (row.listed.get() == listed && self.name(row) == name).then_some(first + same)?
        };
        *hint = found + 1;
        Some(found)
    }
}

/// What is left to read of the tail.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = self.number()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn many<T>(&mut self, one: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.number()?).map(|_| one(self)).collect()
    }

    fn xattr(&mut self) -> Option<Xattr> {
        Some(Xattr {
            name: self.bytes()?,
            value: self.bytes()?,
        })
    }

    fn set(&mut self) -> Option<Set> {
        Some(Set {
            xattrs: self.many(Self::xattr)?,
            foreign: self.many(Self::bytes)?,
        })
    }

    fn warning(&mut self) -> Option<ScanWarning> {
        Some(ScanWarning::ForeignAttribute {
            name: self.bytes()?,
            path: PathBuf::from(std::ffi::OsString::from_vec(self.bytes()?)),
            count: self.number()?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use fcpipe_spec::Content;

    use super::*;
    use crate::index::{IndexDir, identity};
    use crate::scan::ScanOptions;

    #[test]
    fn all_at_once_is_the_same_as_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        for number in 0..450 {
            let name = format!("{number}/{}", "x".repeat(number % 200 + 1));
            std::fs::create_dir_all(source.join(name)).unwrap();
        }
        let indexes = IndexDir::new(dir.path().join("indexes"));
        let (content, options) = (Content::default(), ScanOptions::default());
        drop(crate::look(&source, &content, &options, Some(&indexes)).unwrap());
        let index = indexes
            .read(&identity(&source, &content, &options))
            .unwrap();
        assert_eq!(index.dirs(), 901);
        for threads in [1, 2, 7] {
            let all = index.all(threads).unwrap();
            assert_eq!(all.parts.len(), threads.min(901_usize.div_ceil(SHARE)));
            for number in 0..901 {
                let (one, other) = (index.block(number).unwrap(), all.block(number).unwrap());
                assert!(one.bytes() == other.bytes(), "{number}");
            }
            assert!(all.block(901).is_none());
        }
    }
}
