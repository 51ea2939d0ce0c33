//! Writes the changes of an image near an earlier one: what comes out the same as in that is left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use fcpipe_tree::Composed;

use super::composition::Composition;
use super::cow::Cow;
use super::source::Sources;
use super::target::{Sink, Target};
use super::{CopyError, CopyOptions, CopyReport, Progress, clone, move_all, plan};
use crate::map::{BLOCK_SIZE, ImageMap};

/// What came of writing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patched {
    /// `bytes_written` counts what was looked at.
    pub report: CopyReport,
    /// Blocks that were written: those that differ.
    pub blocks: u64,
}

/// Writes `changes` to `target`, which is a clone of `base`, and shares blocks of large files where it can.
///
/// # Errors
/// See [`CopyError`]. The target is then of no use; the base is never written to.
pub fn patch_image(
    changes: &ImageMap,
    composed: &Composed,
    base: &File,
    target: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Patched, CopyError> {
    patch_from(
        changes,
        &Composition(composed),
        base,
        target,
        options,
        progress,
    )
}

pub(crate) fn patch_from<S: Sources>(
    changes: &ImageMap,
    sources: &S,
    base: &File,
    file: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Patched, CopyError> {
    plan::validate(changes)?;
    let cloned = match options.clone {
        true => clone::clone_large(changes, sources, file, progress)?,
        false => clone::Cloned::default(),
    };
    let target = Target::new(file, options.direct)?;
    let sink = Differing::new(base, &target);
    let report = move_all(changes, sources, &sink, &cloned, options, progress)?;
    Ok(Patched {
        report,
        blocks: sink.blocks.into_inner() + cloned.blocks,
    })
}

/// Writes `changes` to `target`, an empty file, as a disk that device mapper's snapshot joins with `base`: its
/// persistent form, whose tables say that these blocks were written already. Its length is that of its content.
///
/// # Errors
/// As [`patch_image`].
pub fn write_cow(
    changes: &ImageMap,
    composed: &Composed,
    base: &File,
    target: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Patched, CopyError> {
    cow_from(
        changes,
        &Composition(composed),
        base,
        target,
        options,
        progress,
    )
}

pub(crate) fn cow_from<S: Sources>(
    changes: &ImageMap,
    sources: &S,
    base: &File,
    file: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Patched, CopyError> {
    plan::validate(changes)?;
    let cow = Cow::new(file);
    let sink = Differing::new(base, &cow);
    let nothing = clone::Cloned::default();
    let report = move_all(changes, sources, &sink, &nothing, options, progress)?;
    let blocks = sink.blocks.into_inner();
    cow.finish()?;
    Ok(Patched { report, blocks })
}

/// Passes on what differs from the base.
struct Differing<'a> {
    base: &'a File,
    sink: &'a dyn Sink,
    blocks: AtomicU64,
}

impl<'a> Differing<'a> {
    fn new(base: &'a File, sink: &'a dyn Sink) -> Self {
        Differing {
            base,
            sink,
            blocks: AtomicU64::new(0),
        }
    }
}

impl Sink for Differing<'_> {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), CopyError> {
        const BLOCK: usize = BLOCK_SIZE as usize;
        let mut before = vec![0; bytes.len()];
        read(self.base, &mut before, offset).map_err(|source| CopyError::Target {
            doing: "read the image that it is near to",
            source,
        })?;
        let mut pairs = bytes.chunks(BLOCK).zip(before.chunks(BLOCK));
        let differs = |(now, before): (&[u8], &[u8])| now != before;
        let mut at = 0;
        while let Some(first) = pairs.position(differs) {
            let start = at + first * BLOCK;
            let more = pairs.clone().take_while(|pair| differs(*pair)).count();
            let end = (start + (1 + more) * BLOCK).min(bytes.len());
            self.sink.write(&bytes[start..end], offset + start as u64)?;
            self.blocks.fetch_add(1 + more as u64, Ordering::Relaxed);
            if more > 0 {
                pairs.nth(more - 1);
            }
            at = end;
        }
        Ok(())
    }
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}
