//! The digest of a whole image file, for `--digest`.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

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
    let holes = Holes::new(file);
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
    file: &'a File,
    /// The data that was found last.
    start: u64,
    end: u64,
}

impl<'a> Holes<'a> {
    fn new(file: &'a File) -> Self {
        Holes {
            file,
            start: 0,
            end: 0,
        }
    }

    /// Whether `len` bytes from `at` are all in a hole. Asked with growing `at`.
    fn contains(&mut self, at: u64, len: u64) -> io::Result<bool> {
        if self.end <= at {
            use rustix::fs::SeekFrom;
            use rustix::io::Errno;
            match rustix::fs::seek(self.file, SeekFrom::Data(at)) {
                Ok(start) => {
                    self.start = start;
                    self.end = rustix::fs::seek(self.file, SeekFrom::Hole(start))?;
                }
                Err(Errno::NXIO) => (self.start, self.end) = (u64::MAX, u64::MAX),
                // It can't say: all of it may be data.
                Err(Errno::INVAL) => (self.start, self.end) = (0, u64::MAX),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.start >= at.saturating_add(len))
    }
}
