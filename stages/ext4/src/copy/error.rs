//! Why there is no image.

use std::io;
use std::path::PathBuf;

use fcpipe_tree::OpenError;

/// A copy ends at the first of these; the target then holds no image.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file could not be opened, or it is not the file that the scan saw.
    #[error(transparent)]
    Source(#[from] OpenError),
    #[error("{path:?}: cannot be read: {source}")]
    Read {
        /// On the host.
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path:?}: became shorter while it was read: {found} bytes of {size}")]
    Shrank {
        /// On the host.
        path: PathBuf,
        /// Bytes, as scanned.
        size: u64,
        /// Where the file ended.
        found: u64,
    },
    #[error("the image cannot be written at byte {offset}: {source}")]
    Write { offset: u64, source: io::Error },
    #[error("the image's file system has {available} bytes left and the image needs {needed}")]
    NoSpace {
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that the file system says are free.
        available: u64,
    },
    #[error("the image's file: could not {doing}: {source}")]
    Target {
        doing: &'static str,
        source: io::Error,
    },
    #[error("no memory for a buffer: {source}")]
    Memory { source: io::Error },
    /// A map that no layout makes.
    #[error("the image map is wrong at block {block}")]
    Map { block: u64 },
    #[error("cancelled")]
    Cancelled,
}
