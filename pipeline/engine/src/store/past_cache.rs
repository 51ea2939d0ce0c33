//! Reading a whole file once, past the page cache.
//!
//! What is looked at behind a launch are images of gigabytes, which nobody may read again. Through the page cache each would push out what others
//! use, and take the memory that the host has at hand: the next launch gets memory that must be fetched first, and cleared
//! (docs/performance.md). Where a file system does not read so, it goes through the cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What direct reads are aligned to: no less than any disk's sector and file system's block that Linux reads directly on
/// x86.
const ALIGNMENT: usize = 4096;

/// A file, for any number of threads.
pub(super) struct PastCache<'f> {
    file: &'f File,
    /// The same file opened again: whether reads are direct belongs to the open file, and the caller's stays as it is.
    direct: Option<File>,
    /// Falls for good at the first read that the file system refuses to do so.
    use_direct: AtomicBool,
}

/// Memory to read into.
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// For reads of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Buffer(vec![0; most.next_multiple_of(ALIGNMENT) + ALIGNMENT])
    }

    /// Aligned, and a multiple of the alignment long.
    fn aligned(&mut self, len: usize) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[skip..skip + len.next_multiple_of(ALIGNMENT)]
    }
}

impl<'f> PastCache<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = rustix::fs::open(path, flags, Mode::empty());
        let direct = direct.ok().map(File::from);
        PastCache {
            file,
            use_direct: AtomicBool::new(direct.is_some()),
            direct,
        }
    }

    /// The `len` bytes from `offset`, which is a multiple of the alignment. Fails if the file ends before.
    pub(super) fn read<'b>(
        &self,
        buffer: &'b mut Buffer,
        len: usize,
        offset: u64,
    ) -> io::Result<&'b [u8]> {
        let bytes = buffer.aligned(len);
        let mut done = 0;
        // The file's last read is cut short by its end, and by nothing else where all is well.
        while done < len && done % ALIGNMENT == 0 {
            match self.read_directly(&mut bytes[done..], offset + done as u64)? {
                Some(0) | None => break,
                Some(more) => done += more,
            }
        }
        let bytes = &mut bytes[..len];
        if done < len {
            let rest = offset + done as u64;
            self.file.read_exact_at(&mut bytes[done..], rest)?;
        }
        Ok(bytes)
    }

    /// `None` where that can't be done.
    fn read_directly(&self, bytes: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let Some(direct) = &self.direct else {
            return Ok(None);
        };
        if !self.use_direct.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match rustix::io::retry_on_intr(|| rustix::io::pread(direct, &mut *bytes, offset)) {
            Ok(done) => Ok(Some(done)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.use_direct.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::content::Content;

    /// What was read at each offset must be what was written there, whichever way it went.
    fn check(past: &PastCache<'_>, bytes: &[u8]) {
        let mut buffer = Buffer::new(3 * ALIGNMENT);
        for offset in (0..bytes.len()).step_by(ALIGNMENT) {
            for len in [1, 511, ALIGNMENT, ALIGNMENT + 1, 3 * ALIGNMENT] {
                let read = past.read(&mut buffer, len, offset as u64);
                match bytes.get(offset..offset + len) {
                    Some(there) => assert_eq!(read.unwrap(), there),
                    None => assert_eq!(
                        read.unwrap_err().kind(),
                        io::ErrorKind::UnexpectedEof,
                        "{offset} {len}"
                    ),
                }
            }
        }
    }

    #[test]
    fn bytes_are_the_same_on_every_way() {
        let bytes: Vec<u8> = (0..ALIGNMENT * 5 + 77).map(|at| (at / 3) as u8).collect();
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(file) = tempfile::tempfile_in(&dir) else {
                println!("skipped: no files in {}", dir.display());
                continue;
            };
            file.write_all_at(&bytes, 0).unwrap();
            check(&PastCache::new(&file), &bytes);
            let through = PastCache {
                direct: None,
                ..PastCache::new(&file)
            };
            check(&through, &bytes);
        }
    }

    /// How many pages of a file are in the page cache, as util-linux tells; `None` without it.
    fn cached(file: &std::path::Path) -> Option<u64> {
        let output = std::process::Command::new("fincore")
            .args(["--noheadings", "--output", "PAGES"])
            .arg(file)
            .output()
            .ok()?;
        let pages = String::from_utf8(output.stdout).ok()?;
        pages.trim().parse().ok()
    }

    #[test]
    fn what_is_looked_at_once_does_not_stay_in_memory() {
        const LEN: usize = 8 << 20;
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = named.as_file();
        file.write_all_at(&vec![7; LEN], 0).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let pages = || cached(named.path());
        let before = match pages() {
            Some(before) if before < (LEN / ALIGNMENT) as u64 / 2 => before,
            _ => {
                println!("skipped: fincore is not there, or this file system is its own cache");
                return;
            }
        };
        if PastCache::new(file).direct.is_none() {
            println!("skipped: this file system reads through the cache");
            return;
        }
        let content = Content::of(file, 2, &|| false).unwrap().unwrap();
        assert_eq!(content.bytes(), LEN as u64);
        assert_eq!(pages(), Some(before));
    }
}
