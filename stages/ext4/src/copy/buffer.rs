//! Page-aligned memory, which direct I/O asks for.
#![allow(unsafe_code, reason = "page-aligned memory comes from mmap")]

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// A private anonymous mapping of a fixed size, zero at first; given back when dropped.
pub(super) struct Buffer {
    at: NonNull<u8>,
    len: usize,
}

impl Buffer {
    /// `len` is a number of bytes above 0.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping where the kernel likes it changes nothing of ours.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffer = Buffer { at, len };
        fcpipe_tree::memory::prefer_huge_pages(&mut buffer);
        Ok(buffer)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `at` maps `len` initialised bytes until the drop, and nobody else knows them.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more. It can't fail for a range
        // that is mapped.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
