//! A hash of what a file holds.
#![allow(unsafe_code, reason = "sync_file_range has no safe wrapper")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// Hashes a whole file. Pages that are mapped for writing are written back first: by that they become
/// read-only, and a later store changes the file's times.
pub(crate) fn hash(mut file: &File, buffer: &mut Vec<u8>) -> io::Result<[u8; 32]> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes a descriptor, which is open, and numbers. Where a file system has no such thing, its
    // files have no dirty pages either, or the limit is documented.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    buffer.resize(PIECE, 0);
    let mut h = blake3::Hasher::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(*h.finalize().as_bytes()),
            Ok(n) => {
                h.update(&buffer[..n]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
