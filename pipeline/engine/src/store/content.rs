//! What a file holds, as one digest that does not depend on how it is stored.
//!
//! An object is named by its key, not by its content, so that a gigabyte is written without being hashed. This
//! digest is made later, once, behind a launch or on demand, and is kept in the object's record. It is what `verify` and archives
//! go by.
//!
//! A file is cut into pieces of 1 MiB. A piece of nothing but zeros does not count, so a hole and written zeros are
//! the same, and a sparse image of a terabyte costs what its data costs. The digest is blake3 over the number and the
//! blake3 of every other piece, in order, and then the file's length.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::past_cache::{Buffer, PastCache};
use crate::digest::Digest;

/// Bytes of a piece; the last one of a file may be shorter.
pub const PIECE: u64 = 1 << 20;
/// [`PIECE`] as a length in memory.
pub(super) const PIECE_LEN: usize = 1 << 20;

const DOMAIN: &str = "fcpipe engine 1: content of an object";

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Of everything.
    pub digest: Digest,
    /// The numbers of the pieces that are not all zeros, as ranges, in order, never empty and never touching.
    pub pieces: Vec<Range<u64>>,
}

impl Content {
    /// Bytes in the pieces that count.
    pub fn bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|run| (run.end * PIECE).min(self.size) - run.start * PIECE)
            .sum()
    }

    /// Reads a file with this many threads. `None` as soon as `cancelled` answers true.
    pub fn of(
        file: &File,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Option<Self>> {
        let size = file.metadata()?.len();
        let numbers = written_pieces(file, size)?;
        let whole = PastCache::new(file);
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<Option<Vec<(u64, blake3::Hash)>>> {
            let (mut buffer, mut found) = (Buffer::new(PIECE_LEN), Vec::new());
            while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                if cancelled() {
                    return Ok(None);
                }
                let len = piece_len(*number, size);
                let piece = whole.read(&mut buffer, len, number * PIECE)?;
                if !is_zero(piece) {
                    found.push((*number, blake3::hash(piece)));
                }
            }
            Ok(Some(found))
        };
        let threads = threads.clamp(1, 16).min(numbers.len().max(1));
        let found = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    std::thread::Builder::new()
                        .name("content".to_owned())
                        .spawn_scoped(scope, work)
                })
                .collect();
            let mut all = work()?;
            for other in others {
                let Ok(found) = other?.join() else {
                    return Err(io::Error::other("a thread that hashed came to grief"));
                };
                all = all.zip(found?).map(|(mut all, found)| {
                    all.extend(found);
                    all
                });
            }
            Ok(all)
        })?;
        let Some(mut found) = found else {
            return Ok(None);
        };
        found.sort_unstable_by_key(|(number, _)| *number);
        let mut hasher = Hasher::new();
        for (number, hash) in &found {
            hasher.add_hash(*number, hash);
        }
        Ok(Some(hasher.finish(size)))
    }
}

/// How long the piece of this number is in a file of `size` bytes.
pub(super) fn piece_len(number: u64, size: u64) -> usize {
    let rest = size.saturating_sub(number.saturating_mul(PIECE));
    usize::try_from(rest).map_or(PIECE_LEN, |rest| rest.min(PIECE_LEN))
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Words at a time where the optimizer does so; most pieces differ in their first bytes.
    bytes.iter().all(|byte| *byte == 0)
}

/// The digest, piece by piece, in order.
pub(super) struct Hasher {
    hasher: blake3::Hasher,
    pieces: Vec<Range<u64>>,
}

impl Hasher {
    pub(super) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key(DOMAIN),
            pieces: Vec::new(),
        }
    }

    /// A piece that is not all zeros. Its number is higher than the last one's.
    pub(super) fn add(&mut self, number: u64, bytes: &[u8]) {
        self.add_hash(number, &blake3::hash(bytes));
    }

    fn add_hash(&mut self, number: u64, hash: &blake3::Hash) {
        self.hasher.update(&number.to_le_bytes());
        self.hasher.update(hash.as_bytes());
        match self.pieces.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => self.pieces.push(number..number + 1),
        }
    }

    pub(super) fn finish(mut self, size: u64) -> Content {
        self.hasher.update(&size.to_le_bytes());
        Content {
            size,
            digest: self.hasher.finalize().into(),
            pieces: self.pieces,
        }
    }
}

/// The numbers of the pieces in which something was written.
fn written_pieces(file: &File, size: u64) -> io::Result<Vec<u64>> {
    let mut pieces: Vec<u64> = Vec::new();
    for run in fcpipe_sparse::Data::of(file.as_fd(), size)? {
        let run = run?;
        let from = (run.start / PIECE).max(pieces.last().map_or(0, |last| last + 1));
        pieces.extend(from..run.end.div_ceil(PIECE));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    fn of(file: &File, threads: usize) -> Content {
        Content::of(file, threads, &|| false).unwrap().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn holes_threads_and_pieces_do_not_matter(
            size in 0..5 * PIECE,
            writes in prop::collection::vec((0..5 * PIECE, 1usize..70_000, 0u8..3), 0..6),
        ) {
            let (sparse, full) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            sparse.set_len(size).unwrap();
            full.write_all_at(&vec![0; usize::try_from(size).unwrap()], 0).unwrap();
            for (at, len, byte) in writes {
                let len = len.min(usize::try_from(size.saturating_sub(at)).unwrap());
                for file in [&sparse, &full] {
                    file.write_all_at(&vec![byte; len], at).unwrap();
                }
            }
            let content = of(&sparse, 1);
            prop_assert_eq!(&content, &of(&full, 3));
            // Piece by piece, as an archive does it.
            let mut hasher = Hasher::new();
            let mut bytes = 0;
            for number in content.pieces.iter().cloned().flatten() {
                let mut piece = vec![0; piece_len(number, size)];
                full.read_exact_at(&mut piece, number * PIECE).unwrap();
                hasher.add(number, &piece);
                bytes += piece.len() as u64;
            }
            prop_assert_eq!(hasher.finish(size), content.clone());
            prop_assert_eq!(content.bytes(), bytes);
            // One bit more or less, anywhere, and one byte more at the end.
            if size > 0 {
                let at = content.digest.as_bytes()[0] as u64 * size / 256;
                let mut byte = [0];
                full.read_exact_at(&mut byte, at).unwrap();
                full.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
                prop_assert_ne!(of(&full, 2).digest, content.digest);
            }
            sparse.set_len(size + 1).unwrap();
            prop_assert_ne!(of(&sparse, 2).digest, content.digest);
        }
    }

    #[test]
    fn a_sparse_terabyte_takes_no_time() {
        let file = tempfile::tempfile().unwrap();
        if file.set_len(1 << 40).is_err() {
            println!("skipped: this file system has no files of that length");
            return;
        }
        file.write_all_at(b"x", 1 << 39).unwrap();
        let content = of(&file, 2);
        assert_eq!(content.pieces, vec![1 << 19..(1 << 19) + 1]);
        assert_eq!(content.bytes(), PIECE);
    }

    #[test]
    fn the_same_piece_in_another_place_is_another_content() {
        let at = |number: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(3 * PIECE).unwrap();
            file.write_all_at(b"x", number * PIECE).unwrap();
            of(&file, 1).digest
        };
        assert!(at(0) != at(1) && at(1) != at(2));
    }

    #[test]
    fn it_can_be_cancelled() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1], 0).unwrap();
        assert_eq!(Content::of(&file, 2, &|| true).unwrap(), None);
    }
}
