//! The disk that holds an image's changes, in the persistent form of device mapper's snapshots.
//!
//! Chunks are blocks of ext4. Chunk 0 is the header. Then come areas of a table's chunk and as many chunks of data as the
//! table has entries; an entry says which chunk of the origin is in which chunk of this disk. The first entry of
//! zeros ends them all, so the area behind the last full table must be there, and zero.
//!
//! Source: drivers/md/dm-snap-persistent.c of the Linux kernel; Documentation/admin-guide/device-mapper/snapshot.rst.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::CopyError;
use super::target::Sink;
use crate::map::BLOCK_SIZE;

/// `SNAP_MAGIC`.
const MAGIC: u32 = 0x7041_6e53;
/// `SNAPSHOT_DISK_VERSION`.
const VERSION: u32 = 1;
/// Entries of a table.
const TABLE: u64 = BLOCK_SIZE / size_of::<Exception>() as u64;
/// From one table to the next, in chunks.
const STRIDE: u64 = 1 + TABLE;
/// The chunk of the first table.
const FIRST: u64 = 1;

/// `struct disk_header`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: U32,
    valid: U32,
    version: U32,
    /// In sectors.
    chunk_size: U32,
}

/// `struct disk_exception`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Exception {
    old_chunk: U64,
    new_chunk: U64,
}

/// The least length of such a disk on which each block of an image of so many can be written once.
pub fn cow_size(blocks: u64) -> u64 {
    (FIRST + (blocks / TABLE + 1) * STRIDE) * BLOCK_SIZE
}

/// Writes what such a disk says over `target`, which holds its origin of `size` bytes.
///
/// # Errors
/// When either can't be read or written, or the disk is not in its form.
pub fn apply_cow(cow: &File, target: &File, size: u64) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "it is no snapshot's disk");
    let mut header = Header::new_zeroed();
    cow.read_exact_at(header.as_mut_bytes(), 0)?;
    let good = header.magic == MAGIC
        && header.valid == 1
        && header.version == VERSION
        && u64::from(header.chunk_size.get()) * 512 == BLOCK_SIZE;
    if !good {
        return Err(bad());
    }
    let mut table = vec![Exception::new_zeroed(); TABLE as usize];
    let mut chunk = vec![0; BLOCK_SIZE as usize];
    for area in 0.. {
        cow.read_exact_at(table.as_mut_bytes(), (FIRST + area * STRIDE) * BLOCK_SIZE)?;
        for exception in &table {
            let (old, new) = (exception.old_chunk.get(), exception.new_chunk.get());
            if new == 0 {
                return Ok(());
            }
            if old >= size / BLOCK_SIZE || new > u64::MAX / BLOCK_SIZE {
                return Err(bad());
            }
            cow.read_exact_at(&mut chunk, new * BLOCK_SIZE)?;
            target.write_all_at(&chunk, old * BLOCK_SIZE)?;
        }
    }
    Ok(())
}

/// Such a disk being written.
pub(super) struct Cow<'a> {
    file: &'a File,
    state: Mutex<State>,
}

struct State {
    /// The next chunk of data.
    next: u64,
    exceptions: Vec<(u64, u64)>,
}

impl<'a> Cow<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Cow {
            file,
            state: Mutex::new(State {
                next: FIRST + 1,
                exceptions: Vec::new(),
            }),
        }
    }

    /// Writes header and tables.
    pub(super) fn finish(self) -> Result<(), CopyError> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut exceptions = state.exceptions;
        exceptions.sort_unstable();
        let tables = exceptions.len() as u64 / TABLE + 1;
        let end = state.next.max(FIRST + (tables - 1) * STRIDE + 1);
        set_len(self.file, end * BLOCK_SIZE)?;
        let header = Header {
            magic: MAGIC.into(),
            valid: 1.into(),
            version: VERSION.into(),
            chunk_size: (BLOCK_SIZE as u32 / 512).into(),
        };
        put(self.file, header.as_bytes(), 0)?;
        for (area, part) in (0..).zip(exceptions.chunks(TABLE as usize)) {
            let table: Vec<Exception> = part
                .iter()
                .map(|&(old, new)| Exception {
                    old_chunk: old.into(),
                    new_chunk: new.into(),
                })
                .collect();
            put(
                self.file,
                table.as_bytes(),
                (FIRST + area * STRIDE) * BLOCK_SIZE,
            )?;
        }
        Ok(())
    }
}

impl Sink for Cow<'_> {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), CopyError> {
        let mut old = offset / BLOCK_SIZE;
        let mut rest = bytes;
        while !rest.is_empty() {
            let blocks = (rest.len() as u64).div_ceil(BLOCK_SIZE);
            let (new, here) = self.assign(old, blocks);
            let (now, after) = rest.split_at(rest.len().min((here * BLOCK_SIZE) as usize));
            put(self.file, now, new * BLOCK_SIZE)?;
            old += here;
            rest = after;
        }
        Ok(())
    }
}

impl Cow<'_> {
    /// Gives the next chunks, `blocks` at most: the first, and how many before the next table.
    fn assign(&self, old: u64, blocks: u64) -> (u64, u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if (state.next - FIRST).is_multiple_of(STRIDE) {
            state.next += 1;
        }
        let new = state.next;
        let left = STRIDE - (new - FIRST) % STRIDE;
        let here = blocks.min(left);
        state.next += here;
        state
            .exceptions
            .extend((0..here).map(|i| (old + i, new + i)));
        (new, here)
    }
}

fn set_len(file: &File, len: u64) -> Result<(), CopyError> {
    file.set_len(len).map_err(|source| CopyError::Target {
        doing: "set its length",
        source,
    })
}

fn put(file: &File, bytes: &[u8], offset: u64) -> Result<(), CopyError> {
    file.write_all_at(bytes, offset)
        .map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => CopyError::NoSpace {
                needed: bytes.len() as u64,
                available: crate::allocate::available(file).unwrap_or(0),
            },
            _ => CopyError::Write { offset, source },
        })
}
