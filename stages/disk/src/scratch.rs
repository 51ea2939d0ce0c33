//! A disk for what a machine writes, beside the image that it reads. Both kinds are sparse: they cost a moment,
//! and then what is written to them.

use std::path::Path;

use fcpipe_ext4::{Options, Origin};
use fcpipe_tree::{Meta, Timestamp, TreeBuilder};

use crate::error::DiskError;
use crate::private::{failed, make};

/// The least size of a scratch disk with a file system on it, bytes.
pub const SCRATCH_EXT4_LEAST: u64 = 64 << 20;

/// Makes `disk`, a new file of mode 0600 and `size` bytes, all of them zero.
///
/// For a snapshot `size` is the image's: each of its chunks may change once, and no table is written beside them.
///
/// # Errors
/// When `disk` exists or can't be made.
pub fn scratch(disk: &Path, size: u64) -> Result<(), DiskError> {
    make(disk, |to| {
        rustix::fs::ftruncate(to, size).map_err(|errno| failed(disk, errno))
    })
}

/// Makes `disk`, a new file of mode 0600, a snapshot's scratch disk that begins with `changes`, for an image of `size` bytes each of
/// whose chunks may still change. Gives the bytes copied.
///
/// # Errors
/// As [`copy`](crate::copy()).
pub fn scratch_with(
    changes: &Path,
    disk: &Path,
    size: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<u64, DiskError> {
    let copied = crate::private::copy(changes, disk, cancelled)?;
    let full = fcpipe_ext4::cow_size(size / fcpipe_ext4::BLOCK_SIZE);
    let made = std::fs::File::options()
        .write(true)
        .open(disk)
        .and_then(|file| file.set_len(full));
    made.map_err(|source| {
        // Not ours to report: the error that led here says more.
        let _ = std::fs::remove_file(disk);
        DiskError::Disk {
            path: disk.into(),
            source,
        }
    })?;
    Ok(copied)
}

/// Makes `disk`, a new file of mode 0600, an empty ext4 of `size` bytes, or of the least that is useful.
///
/// # Errors
/// When `disk` exists, can't be made or is full. A file that could not be finished is removed.
pub fn scratch_ext4(disk: &Path, size: u64) -> Result<(), DiskError> {
    let size = size.max(SCRATCH_EXT4_LEAST);
    let root = Meta {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp { secs: 0, nanos: 0 },
    };
    let (tree, _) = TreeBuilder::new(root, Vec::new()).finish();
    let options = Options {
        size: Some(size),
        ..Options::default()
    };
    let layout = fcpipe_ext4::layout(&tree, &options).map_err(|source| DiskError::Scratch {
        path: disk.into(),
        size,
        source,
    })?;
    make(disk, |to| {
        rustix::fs::ftruncate(to, layout.size).map_err(|errno| failed(disk, errno))?;
        for extent in &layout.map.extents {
            // An empty file system has no files that anything could come from.
            let Origin::Metadata { offset } = extent.origin else {
                continue;
            };
            let (from, len) = (
                offset as usize,
                extent.blocks as usize * fcpipe_ext4::BLOCK_SIZE as usize,
            );
            let mut bytes = &layout.map.metadata[from..from + len];
            let mut at = extent.block * fcpipe_ext4::BLOCK_SIZE;
            while !bytes.is_empty() {
                let written =
                    rustix::io::pwrite(to, bytes, at).map_err(|errno| failed(disk, errno))?;
                bytes = &bytes[written..];
                at += written as u64;
            }
        }
        Ok(())
    })
}
