//! The image's file: past the page cache if that is possible, through it otherwise.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::copy::CopyError;
use crate::map::BLOCK_SIZE;

/// Takes the bytes of an image, from any thread.
pub(super) trait Sink: Sync {
    /// Writes whole blocks, from page-aligned memory, at a multiple of the block size.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), CopyError>;
}

pub(super) struct Target<'a> {
    file: &'a File,
    /// The same file opened again, for direct I/O.
    direct: Option<OwnedFd>,
    /// Falls for good at the first write that the file system refuses to do directly.
    use_direct: AtomicBool,
}

impl<'a> Target<'a> {
    pub(super) fn new(file: &'a File, direct: bool) -> Result<Self, CopyError> {
        let direct = direct.then(|| reopen(file.as_fd())).flatten();
        Ok(Target {
            file,
            use_direct: AtomicBool::new(direct.is_some()),
            direct,
        })
    }

    pub(super) fn is_direct(&self) -> bool {
        self.use_direct.load(Ordering::Relaxed)
    }

    /// Reserves room for runs of blocks that are about to be written directly.
    ///
    /// Without it every direct write that finds no blocks takes the file's lock alone, so the threads
    /// wait for each other; and here the file system says in one go whether there is room, and gives
    /// blocks that are together. Where it can't reserve, the writes find their blocks themselves.
    pub(super) fn reserve(&self, runs: &[(u64, u64)]) -> Result<(), CopyError> {
        if !self.is_direct() {
            return Ok(());
        }
        for &(first, blocks) in runs {
            let (offset, len) = (first * BLOCK_SIZE, blocks * BLOCK_SIZE);
            loop {
                match rustix::fs::fallocate(self.file, FallocateFlags::empty(), offset, len) {
                    Ok(()) => break,
                    Err(Errno::INTR) => {}
                    Err(source @ (Errno::NOSPC | Errno::DQUOT)) => {
                        return Err(self.failed(offset, len, source));
                    }
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    }

    fn write_all(&self, mut bytes: &[u8], mut offset: u64) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            match self.write_some(bytes, offset) {
                Ok(0) => {
                    return Err(CopyError::Write {
                        offset,
                        source: io::ErrorKind::WriteZero.into(),
                    });
                }
                Ok(done) => {
                    bytes = &bytes[done..];
                    offset += done as u64;
                }
                Err(Errno::INTR) => {}
                Err(source) => return Err(self.failed(offset, bytes.len() as u64, source)),
            }
        }
        Ok(())
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> rustix::io::Result<usize> {
        if let Some(direct) = &self.direct
            && self.is_direct()
        {
            match rustix::io::pwrite(direct, bytes, offset) {
                // Alignment that we don't have, or none that would do.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    self.use_direct.store(false, Ordering::Relaxed);
                }
                // A part was written: what is left may not be aligned any more.
                Ok(done) if done % 4096 != 0 => {
                    self.use_direct.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
                result => return result,
            }
        }
        rustix::io::pwrite(self.file, bytes, offset)
    }

    fn failed(&self, offset: u64, needed: u64, source: Errno) -> CopyError {
        match source {
            Errno::NOSPC | Errno::DQUOT => CopyError::NoSpace {
                needed,
                available: crate::allocate::available(self.file).unwrap_or(0),
            },
            source => CopyError::Write {
                offset,
                source: source.into(),
            },
        }
    }
}

impl Sink for Target<'_> {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), CopyError> {
        self.write_all(bytes, offset)
    }
}

/// Opens the same file a second time, because O_DIRECT belongs to the open file, and the caller's
/// stays as it is. `None` where that can't be done.
fn reopen(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}
