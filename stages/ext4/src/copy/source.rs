//! Where contents come from: what the mover asks of the tree's files, and nothing more.
//!
//! A trait, so that tests can hand in files that misbehave.

use std::os::fd::AsFd;
use std::path::PathBuf;

use fcpipe_tree::NodeId;

use super::CopyError;

/// All files of an image. Shared by the threads of a copy.
pub(crate) trait Sources: Sync {
    type Reader<'a>: Reader
    where
        Self: 'a;

    /// What one thread opens files with.
    fn reader(&self) -> Self::Reader<'_>;
    /// Bytes in a file, as scanned.
    fn size(&self, node: NodeId) -> u64;
    /// On the host, for errors.
    fn path(&self, node: NodeId) -> PathBuf;
}

/// Opens files for one thread, which may keep the last directory at hand.
pub(crate) trait Reader {
    type File: AsFd;

    /// Opens a file. It may be something else than what was scanned: the check says so.
    fn open(&mut self, node: NodeId) -> Result<Self::File, CopyError>;
    /// Whether what was opened is the file that was scanned, and still as it was.
    fn check(&self, file: &Self::File) -> Result<(), CopyError>;
}
