//! Shares the blocks of large files with the image, where one reflink file system holds both.
//!
//! Only runs of [`LEAST`] blocks and more: a file system clones an image extent by extent (1.4 s for
//! 100,000 of them, measured), so an image that will be cloned must have few. What is left over, such
//! as a file's last partial block, is copied afterwards.
//!
//! One thread does it, before the copying: cloning holds the image's lock, so more threads would wait
//! for each other.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::plan::Done;
use super::source::{Reader, Sources};
use super::{CopyError, Moved, Progress, sys};
use crate::map::{BLOCK_SIZE, ImageMap, MapExtent, Origin};

/// The shortest run worth an extent of its own, in blocks: 1 MiB.
pub(super) const LEAST: u32 = 256;

/// What need not be copied any more.
#[derive(Debug, Default)]
pub(super) struct Cloned {
    /// In the map's order.
    pub(super) ranges: Vec<Done>,
    pub(super) blocks: u64,
    pub(super) files: u64,
}

/// Clones what can be cloned of `map`'s large extents. That a file system can't is no error.
pub(super) fn clone_large<S: Sources>(
    map: &ImageMap,
    sources: &S,
    target: &File,
    progress: &dyn Progress,
) -> Result<Cloned, CopyError> {
    let mut cloned = Cloned::default();
    let Some(unit) = unit(target)? else {
        return Ok(cloned);
    };
    let mut reader = sources.reader();
    // Devices that share no blocks with the target's file system.
    let mut elsewhere = HashSet::new();
    for (number, extent) in map.extents.iter().enumerate() {
        let Origin::File { node, offset } = extent.origin else {
            continue;
        };
        let Some((from, to)) = aligned(extent, offset, sources.size(node), unit) else {
            continue;
        };
        if progress.cancelled() {
            return Err(CopyError::Cancelled);
        }
        let file = reader.open(node)?;
        reader.check(&file)?;
        let read = |source| CopyError::Read {
            path: sources.path(node),
            source,
        };
        let device = rustix::fs::fstat(&file).map_err(|e| read(e.into()))?.st_dev;
        if elsewhere.contains(&device) {
            continue;
        }
        let start = offset + u64::from(from) * BLOCK_SIZE;
        let len = u64::from(to - from) * BLOCK_SIZE;
        // Cloning writes dirty pages back in any case.
        sys::write_back(&file, start, len).map_err(read)?;
        let at = (extent.block + u64::from(from)) * BLOCK_SIZE;
        match sys::clone_range(&file, start, len, target.as_fd(), at) {
            Ok(()) => {}
            Err(Errno::XDEV) => {
                elsewhere.insert(device);
                continue;
            }
            // The target's file system has no such thing.
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => return Ok(cloned),
            // This file can't: swap file, no checksums where the image has them, other alignment.
            Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => continue,
            Err(Errno::NOSPC | Errno::DQUOT) => {
                return Err(CopyError::NoSpace {
                    needed: len,
                    available: crate::allocate::available(target).unwrap_or(0),
                });
            }
            Err(source) => return Err(read(source.into())),
        }
        reader.check(&file)?;
        cloned.ranges.push(Done {
            extent: number,
            from,
            to,
        });
        cloned.blocks += u64::from(to - from);
        cloned.files += 1;
        progress.add(Moved {
            files: 1,
            read: 0,
            written: len,
        });
    }
    Ok(cloned)
}

/// Blocks that might be cloned: all that the map's shape and the target's file system allow.
pub(crate) fn at_most(map: &ImageMap, target: &File) -> Result<u64, CopyError> {
    let Some(unit) = unit(target)? else {
        return Ok(0);
    };
    let blocks = |extent: &MapExtent| match extent.origin {
        Origin::File { offset, .. } => aligned(extent, offset, u64::MAX, unit),
        Origin::Metadata { .. } => None,
    };
    let ranges = map.extents.iter().filter_map(blocks);
    Ok(ranges.map(|(from, to)| u64::from(to - from)).sum())
}

/// The blocks of an extent that can be cloned by a file system with blocks of `unit` bytes: whole ones
/// of it, in file and image alike, before the file's end. `None` if that is not worth it.
fn aligned(extent: &MapExtent, offset: u64, size: u64, unit: u64) -> Option<(u32, u32)> {
    let whole = size.saturating_sub(offset) / BLOCK_SIZE;
    let end = u64::from(extent.blocks).min(whole);
    let unit = (unit / BLOCK_SIZE).max(1);
    let block = extent.block;
    let shift = (block * BLOCK_SIZE).abs_diff(offset);
    if !shift.is_multiple_of(unit * BLOCK_SIZE) {
        return None;
    }
    let from = block.next_multiple_of(unit) - block;
    let to = ((block + end) / unit * unit).checked_sub(block)?;
    (to >= from + u64::from(LEAST)).then_some((from as u32, to as u32))
}

/// Bytes in a block of the target's file system; `None` if it is one that is known to clone nothing,
/// so that no large file is opened twice for nothing.
fn unit(target: &File) -> Result<Option<u64>, CopyError> {
    const EXT4: i64 = 0xef53;
    const TMPFS: i64 = 0x0102_1994;
    let fs = rustix::fs::fstatfs(target).map_err(|source| CopyError::Target {
        doing: "ask its file system",
        source: source.into(),
    })?;
    if matches!(fs.f_type, EXT4 | TMPFS) {
        return Ok(None);
    }
    Ok(Some((fs.f_bsize as u64).max(BLOCK_SIZE)))
}
