//! Writes an image: every extent of an [`ImageMap`], from its metadata and from the sources' files.
//!
//! The work goes in the disk's order, in pieces of a few MiB, on several threads. A piece of small
//! files is gathered into one write; a large file is cut into pieces. What the file system can clone
//! is cloned first. Each thread has one buffer, so memory does not grow with the data.
//!
//! Every file is opened against the scan's stamp, read, and compared with the stamp again by each
//! thread that read a piece of it. A file that is not what the scan saw is an error, and an error ends
//! the whole copy: what is in the target then is no image.
//!
//! Begin reading at [`write_image`]; how the mover was chosen is in `docs/performance.md`.

mod buffer;
pub(crate) mod clone;
mod composition;
mod cow;
mod digest;
mod error;
mod patch;
mod plan;
pub(crate) mod source;
mod sys;
mod target;
mod worker;

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fcpipe_tree::Composed;

pub use cow::{apply_cow, cow_size};
pub use digest::digest_file;
pub use error::CopyError;
pub use patch::{Patched, patch_image, write_cow};
#[cfg(test)]
pub(crate) use patch::{cow_from, patch_from};

use crate::allocate::{allocate, check_space};
use crate::map::{BLOCK_SIZE, ImageMap};
use composition::Composition;
use plan::Cursor;
use source::Sources;
use target::{Sink, Target};

/// How an image is written. The default is what is fastest.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Threads that read and write; `None`: [`CopyOptions::threads_on`] the host's processors.
    pub threads: Option<NonZeroUsize>,
    /// Write past the page cache where the file system allows it. Nearly always right: the image's
    /// bytes are not read again here, and a clone of dirty pages would wait for them.
    pub direct: bool,
    /// Share blocks with the sources where the file system allows it.
    pub clone: bool,
}

const THREADS_EACH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

impl CopyOptions {
    /// How many threads keep so many processors busy: three for each, as some wait for the disk while
    /// another reads.
    pub fn threads_on(processors: NonZeroUsize) -> NonZeroUsize {
        processors.saturating_mul(THREADS_EACH)
    }
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions {
            threads: None,
            direct: true,
            clone: true,
        }
    }
}

/// Work that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Files opened; a large file counts once for each thread's piece.
    pub files: u64,
    /// Bytes read from files.
    pub read: u64,
    /// Bytes of the image that are there now, written or shared with a source.
    pub written: u64,
}

/// Hears how far a copy is, from any of its threads.
pub trait Progress: Sync {
    /// So much more.
    fn add(&self, moved: Moved);
    /// Asked between pieces of a few MiB; `true` ends the copy with [`CopyError::Cancelled`].
    fn cancelled(&self) -> bool;
}

/// Hears nothing and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn add(&self, _moved: Moved) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyReport {
    /// Files opened; a large file counts once for each thread's piece.
    pub files: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes written to the target, padding of last blocks included.
    pub bytes_written: u64,
    /// Bytes shared with the sources instead.
    pub bytes_cloned: u64,
    /// Whether the bytes went past the page cache.
    pub direct: bool,
}

/// Writes all of `map` to `target`, which must be empty or hold only zeros, and sets its length.
///
/// Holes of the map stay holes of the target. The bytes are not on stable storage when this returns;
/// that is the caller's choice to make.
///
/// # Errors
/// See [`CopyError`]. The target then holds a part of an image and must be thrown away.
pub fn write_image(
    map: &ImageMap,
    composed: &Composed,
    target: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<CopyReport, CopyError> {
    write_from(map, &Composition(composed), target, options, progress)
}

/// What the threads of one copy share.
struct Shared<'a, S> {
    map: &'a ImageMap,
    /// No piece has more blocks.
    piece: usize,
    sources: &'a S,
    sink: &'a dyn Sink,
    progress: &'a dyn Progress,
    cursor: Mutex<Cursor<'a>>,
    stop: AtomicBool,
    failed: Mutex<Option<CopyError>>,
    files: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl<S> Shared<'_, S> {
    /// Whether the copy goes on. A cancelled one fails here.
    fn goes_on(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        if self.progress.cancelled() {
            self.fail(CopyError::Cancelled);
            return false;
        }
        true
    }

    /// Keeps the first error, and stops everything.
    fn fail(&self, error: CopyError) {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn write_from<S: Sources>(
    map: &ImageMap,
    sources: &S,
    file: &File,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<CopyReport, CopyError> {
    plan::validate(map)?;
    allocate(map, file)?;
    let target = Target::new(file, options.direct)?;
    let cloned = match options.clone {
        true => clone::clone_large(map, sources, file, progress)?,
        false => clone::Cloned::default(),
    };
    check_space(file, map, cloned.blocks)?;
    target.reserve(&Cursor::new(&map.extents, &cloned.ranges).runs())?;
    let report = move_all(map, sources, &target, &cloned, options, progress)?;
    Ok(CopyReport {
        direct: target.is_direct(),
        ..report
    })
}

/// Moves everything of a map that was not cloned, on several threads.
fn move_all<S: Sources>(
    map: &ImageMap,
    sources: &S,
    sink: &dyn Sink,
    cloned: &clone::Cloned,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<CopyReport, CopyError> {
    let blocks: u64 = map.extents.iter().map(|e| u64::from(e.blocks)).sum();
    let threads = threads(options, blocks);
    let shared = Shared {
        // A few blocks are not worth a large page.
        piece: blocks.clamp(1, plan::PIECE.into()) as usize,
        map,
        sources,
        sink,
        progress,
        cursor: Mutex::new(Cursor::new(&map.extents, &cloned.ranges)),
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
        files: AtomicU64::new(cloned.files),
        read: AtomicU64::new(0),
        written: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for number in 1..threads {
            let name = format!("copy-{number}");
            let started = thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, || worker::run(&shared));
            // The threads that are there do the work.
            if started.is_err() {
                break;
            }
        }
        worker::run(&shared);
    });
    if let Some(error) = shared
        .failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(error);
    }
    Ok(CopyReport {
        files: shared.files.into_inner(),
        bytes_read: shared.read.into_inner(),
        bytes_written: shared.written.into_inner(),
        bytes_cloned: cloned.blocks * BLOCK_SIZE,
        direct: false,
    })
}

fn threads(options: &CopyOptions, blocks: u64) -> usize {
    let processors = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let wanted = options
        .threads
        .unwrap_or_else(|| CopyOptions::threads_on(processors()))
        .get();
    // No more of them than pieces, and few enough for 64 open files.
    let pieces = blocks / u64::from(plan::PIECE) + 1;
    wanted.min(8).min(pieces as usize)
}

#[cfg(test)]
mod tests;
