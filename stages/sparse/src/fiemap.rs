//! FS_IOC_FIEMAP: a file's extents, in the kernel's own structures (`linux/fiemap.h`).
#![allow(unsafe_code, reason = "the call has no safe wrapper")]

use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// A part of a file that has blocks.
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    /// It holds data. Else it is reserved, and reads as zeros.
    pub(super) written: bool,
    /// No more follow.
    pub(super) last: bool,
}

/// As many as are asked for at once.
const BATCH: usize = 64;

/// `FIEMAP_FLAG_SYNC`: what is in the page cache alone is written first, since it has no extent before.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`, `FIEMAP_EXTENT_UNWRITTEN`.
const LAST: u32 = 1;
const UNWRITTEN: u32 = 0x800;

/// `struct fiemap`, without the array at its end.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_more: [u32; 3],
}

#[repr(C)]
struct Query {
    header: Header,
    extents: [RawExtent; BATCH],
}

// SAFETY: the kernel takes a `struct fiemap` that is followed by `count` extents, and writes to no more than that.
unsafe impl Ioctl for &mut Query {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Header>(b'f', 11)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<Query>(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, query: *mut c_void) -> Result<usize, Errno> {
        // SAFETY: it is what `as_ptr` gave.
        let query = unsafe { &*query.cast::<Query>() };
        Ok((query.header.mapped as usize).min(BATCH))
    }
}

/// The first extents of a range of a file, in order.
pub(super) fn extents(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Extent>, Errno> {
    let mut query = Query {
        header: Header {
            start: range.start,
            length: range.end.saturating_sub(range.start),
            flags: SYNC,
            count: BATCH as u32,
            ..Header::default()
        },
        extents: [RawExtent::default(); BATCH],
    };
    // SAFETY: the query lives through the call, and is all that the kernel is told of.
    let mapped = unsafe { rustix::ioctl::ioctl(file, &mut query) }?;
    let extent = |raw: &RawExtent| Extent {
        range: raw.logical..raw.logical.saturating_add(raw.length),
        written: raw.flags & UNWRITTEN == 0,
        last: raw.flags & LAST != 0,
    };
    Ok(query.extents[..mapped].iter().map(extent).collect())
}
