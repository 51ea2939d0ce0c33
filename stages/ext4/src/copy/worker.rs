//! One thread of a copy: takes a piece, gathers its bytes in its buffer, writes them, takes the next.

use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use fcpipe_tree::NodeId;
use rustix::io::Errno;

use super::buffer::Buffer;
use super::source::{Reader, Sources};
use super::{CopyError, Moved, Shared, sys};
use crate::map::{BLOCK_SIZE, MapExtent, Origin};

/// Works until nothing is left or something failed.
pub(super) fn run<S: Sources>(shared: &Shared<'_, S>) {
    if let Err(error) = pieces(shared) {
        shared.fail(error);
    }
}

fn pieces<S: Sources>(shared: &Shared<'_, S>) -> Result<(), CopyError> {
    let mut buffer = Buffer::new(shared.piece * BLOCK_SIZE as usize)
        .map_err(|source| CopyError::Memory { source })?;
    let mut reader = shared.sources.reader();
    let mut piece = Vec::new();
    while shared.goes_on() {
        shared
            .cursor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next(&mut piece);
        if piece.is_empty() {
            break;
        }
        let gathered = gather(shared, &mut reader, &piece, &mut buffer)?;
        let written = write(shared, &piece, &buffer)?;
        shared.written.fetch_add(written, Ordering::Relaxed);
        shared.progress.add(Moved {
            written,
            ..gathered
        });
    }
    Ok(())
}

/// Fills the buffer with the piece's bytes, extent after extent. Gives what was opened and read.
fn gather<'a, S: Sources>(
    shared: &Shared<'_, S>,
    reader: &mut S::Reader<'a>,
    piece: &[MapExtent],
    buffer: &mut [u8],
) -> Result<Moved, CopyError> {
    let mut open: Option<Open<<S::Reader<'a> as Reader>::File>> = None;
    let mut rest = buffer;
    let mut files = 0;
    let mut read = 0;
    for extent in piece {
        let len = extent.blocks as usize * BLOCK_SIZE as usize;
        let (bytes, after) = rest.split_at_mut(len);
        rest = after;
        match extent.origin {
            Origin::Metadata { offset } => {
                bytes.copy_from_slice(&shared.map.metadata[offset as usize..][..len]);
            }
            Origin::File { node, offset } => {
                // The extents of a file with holes follow each other: it is opened once for them.
                let file = match open.take() {
                    Some(file) if file.node == node => file,
                    before => {
                        if let Some(before) = before {
                            reader.check(&before.file)?;
                        }
                        files += 1;
                        Open {
                            node,
                            size: shared.sources.size(node),
                            file: reader.open(node)?,
                        }
                    }
                };
                match file.read(shared.sources, offset, bytes) {
                    Ok(more) => read += more,
                    // That it is not the file any more says more than what came of reading it.
                    Err(error) => {
                        reader.check(&file.file)?;
                        return Err(error);
                    }
                }
                open = Some(file);
            }
        }
    }
    if let Some(last) = open {
        reader.check(&last.file)?;
    }
    shared.files.fetch_add(files, Ordering::Relaxed);
    shared.read.fetch_add(read, Ordering::Relaxed);
    Ok(Moved {
        files,
        read,
        written: 0,
    })
}

struct Open<F> {
    node: NodeId,
    size: u64,
    file: F,
}

impl<F: AsFd> Open<F> {
    /// Fills `bytes` from a place in the file; zeros after its end. Gives the bytes read.
    ///
    /// Every byte up to the size that was scanned must be there. That there are no more is what the
    /// check afterwards says.
    fn read(
        &self,
        sources: &impl Sources,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<u64, CopyError> {
        let len = self.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (content, padding) = bytes.split_at_mut(len);
        padding.fill(0);
        if len == 0 {
            return Ok(0);
        }
        let failed = |source| CopyError::Read {
            path: sources.path(self.node),
            source,
        };
        sys::write_back(&self.file, offset, len as u64).map_err(failed)?;
        let mut done = 0;
        while done < len {
            match rustix::io::pread(&self.file, &mut content[done..], offset + done as u64) {
                Ok(0) => {
                    return Err(CopyError::Shrank {
                        path: sources.path(self.node),
                        size: self.size,
                        found: offset + done as u64,
                    });
                }
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(source) => return Err(failed(source.into())),
            }
        }
        Ok(len as u64)
    }
}

/// Writes the gathered bytes: one write for everything that is together on the disk.
fn write<S>(shared: &Shared<'_, S>, piece: &[MapExtent], buffer: &[u8]) -> Result<u64, CopyError> {
    let mut start = 0;
    let mut len = 0;
    let mut first = piece.first().map_or(0, |extent| extent.block);
    let mut next = first;
    for extent in piece {
        if extent.block != next {
            shared
                .sink
                .write(&buffer[start..start + len], first * BLOCK_SIZE)?;
            start += len;
            len = 0;
            first = extent.block;
        }
        len += extent.blocks as usize * BLOCK_SIZE as usize;
        next = extent.block + u64::from(extent.blocks);
    }
    shared
        .sink
        .write(&buffer[start..start + len], first * BLOCK_SIZE)?;
    Ok((start + len) as u64)
}
