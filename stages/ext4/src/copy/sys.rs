//! The two system calls that rustix has no face for.
#![allow(
    unsafe_code,
    reason = "sync_file_range and FICLONERANGE have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Writes back what is dirty in a range of a file, without waiting for the disk.
///
/// Pages that are mapped for writing become read-only by it, so that a later store through the mapping
/// changes the file's times. Waiting for write-back that is under way is part of that: pages it has
/// in hand would be passed over.
///
/// Costs well under a microsecond where nothing is dirty. Length 0 is to the end of the file.
pub(super) fn write_back(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::OVERFLOW.into());
    };
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    let fd = file.as_fd().as_raw_fd();
    // The C library's own function is a cancellation point, which costs as much as the call itself.
    // Its arguments are split up on machines of 32 bits, and stand elsewhere on others.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: takes a descriptor, which is open, and numbers.
    let done = unsafe { libc::syscall(libc::SYS_sync_file_range, fd, offset, len, flags) };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    // SAFETY: as above.
    let done = unsafe { libc::sync_file_range(fd, offset, len, flags) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // No such call under some sandboxes, no dirty pages on some file systems.
        Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE) => Ok(()),
        _ => Err(error),
    }
}

/// Lets `len` bytes of `target` share the blocks of `source`. Everything in whole blocks of the file
/// system.
pub(super) fn clone_range(
    source: impl AsFd,
    from: u64,
    len: u64,
    target: impl AsFd,
    to: u64,
) -> rustix::io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_fd().as_raw_fd().into(),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: FICLONERANGE reads a file_clone_range, as the kernel's ioctl_ficlonerange(2) says, and
    // `source` stays open meanwhile.
    unsafe {
        let request = rustix::ioctl::Setter::<
            { libc::FICLONERANGE as rustix::ioctl::Opcode },
            libc::file_clone_range,
        >::new(range);
        rustix::ioctl::ioctl(target, request)
    }
}
