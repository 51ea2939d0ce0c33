//! The files of a [`Composed`], as the mover wants them.

use std::path::PathBuf;

use fcpipe_tree::{Composed, Kind, NodeId, Opener, SourceFile};

use super::CopyError;
use super::source::{Reader, Sources};

pub(super) struct Composition<'a>(pub(super) &'a Composed);

impl Sources for Composition<'_> {
    type Reader<'b>
        = Opener
    where
        Self: 'b;

    fn reader(&self) -> Opener {
        self.0.opener()
    }

    fn size(&self, node: NodeId) -> u64 {
        match self.0.tree().kind(node) {
            Kind::File { size } => size,
            _ => 0,
        }
    }

    fn path(&self, node: NodeId) -> PathBuf {
        self.0.source_path(node)
    }
}

impl Reader for Opener {
    type File = SourceFile;

    fn open(&mut self, node: NodeId) -> Result<SourceFile, CopyError> {
        Ok(self.open_unchecked(node)?)
    }

    fn check(&self, file: &SourceFile) -> Result<(), CopyError> {
        Ok(file.check()?)
    }
}
