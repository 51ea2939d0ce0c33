//! The digest of a whole image file, for `--digest`.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use fcpipe_sparse::Data;

use super::buffer::Buffer;

/// How much is read and then hashed by all threads at once, bytes.
const PIECE: usize = 8 << 20;

/// blake3 of a file's bytes, holes read as the zeros they are, by up to `threads` threads (`None`: one
/// for each processor). The same as `b3sum` gives.
///
/// # Errors
/// When the file can't be read, or is shorter at the end than it was at the beginning.
pub fn digest_file(file: &File, threads: Option<NonZeroUsize>) -> io::Result<blake3::Hash> {
    let len = file.metadata()?.len();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.map_or(0, NonZeroUsize::get))
        .thread_name(|number| format!("digest-{number}"))
        .build()
        .map_err(io::Error::other)?;
    let holes = Holes::new(file, len)?;
    pool.install(|| hash(file, len, holes))
}

/// Reads one piece while the one before is being hashed.
fn hash(file: &File, len: u64, mut holes: Holes<'_>) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let zeros = vec![0u8; PIECE];
    let mut now = Buffer::new(PIECE)?;
    let mut next = Buffer::new(PIECE)?;
    let piece = |at: u64| (len - at).min(PIECE as u64) as usize;
    let mut read = |buffer: &mut [u8], at: u64| -> io::Result<bool> {
        if holes.contains(at, buffer.len() as u64)? {
            return Ok(false);
        }
        file.read_exact_at(buffer, at)?;
        Ok(true)
    };
    let mut at = 0;
    let mut data = read(&mut now[..piece(0)], 0)?;
    while at < len {
        let current = piece(at);
        let after = at + current as u64;
        let bytes = if data {
            &now[..current]
        } else {
            &zeros[..current]
        };
        let ahead = match after < len {
            true => &mut next[..piece(after)],
            false => &mut [],
        };
        let (_, read_next) = rayon::join(
            || {
                hasher.update_rayon(bytes);
            },
            || read(ahead, after),
        );
        data = read_next?;
        std::mem::swap(&mut now, &mut next);
        at = after;
    }
    Ok(hasher.finalize())
}

/// Where a file has no data, found as the reading goes on.
struct Holes<'a> {
    data: Data<'a>,
    /// The data that was found last; at the end, none.
    found: Option<Range<u64>>,
}

impl<'a> Holes<'a> {
    fn new(file: &'a File, len: u64) -> io::Result<Self> {
        let mut data = Data::of(file.as_fd(), len)?;
        let found = data.next().transpose()?;
        Ok(Holes { data, found })
    }

    /// Whether `len` bytes from `at` are all in a hole. Asked with growing `at`.
    fn contains(&mut self, at: u64, len: u64) -> io::Result<bool> {
        while let Some(found) = &self.found
            && found.end <= at
        {
            self.found = self.data.next().transpose()?;
        }
        let found = self.found.as_ref();
        Ok(found.is_none_or(|found| found.start >= at.saturating_add(len)))
    }
}
