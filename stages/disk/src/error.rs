use std::io;
use std::path::PathBuf;

/// Why a launch has no disk. Nothing is left of what was begun.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: cannot open the image: {source}")]
    Image { path: PathBuf, source: io::Error },
    #[error("{path}: cannot read an image's changes: {source}")]
    Changes { path: PathBuf, source: io::Error },
    #[error("{path}: cannot make the machine's disk: {source}")]
    Disk { path: PathBuf, source: io::Error },
    #[error("{path}: its file system ({file_system}) cannot share blocks with the image: {source}")]
    CannotClone {
        path: PathBuf,
        file_system: String,
        source: io::Error,
    },
    #[error("{path}: the launch was cancelled while its disk was copied")]
    Cancelled { path: PathBuf },
    #[error("{path}: cannot lay out a file system of {size} bytes: {source}")]
    Scratch {
        path: PathBuf,
        size: u64,
        source: fcpipe_ext4::LayoutError,
    },
}
