//! What goes into an image, from the host's directories: names and metadata, not contents.
//!
//! Three steps, each a function of this crate:
//!
//! 1. [`scan`] reads the metadata of one source (the root file system, or a bind mount's directory or
//!    file) into a [`Scan`]: a [`Tree`] and, beside it, a [`Stamp`] for every node.
//! 2. [`compose`] mounts scans into each other, in memory, as the kernel would, and gives one
//!    [`Composed`]: a [`Tree`] in which every node knows where it comes from.
//! 3. An [`Opener`] opens a file's content, and makes sure that it is what the scan saw.
//!
//! A [`Tree`] says what an image holds and nothing about the host it was read on: two hosts with the
//! same files have the same [`Tree::digest`]. What tells that a file's content may have changed
//! (device, inode, times) is in the stamps, and in [`Composed::stamps_digest`].
//!
//! Architecture invariant: sources are never written, not even their access times where the kernel
//! permits that. Nothing is opened but directories and regular files, and no symlink is followed below
//! a source. Nothing is printed. A result does not depend on the number of threads.
//!
//! Begin reading at `model.rs`, then `scan.rs` and `compose.rs`.

mod compose;
mod index;
mod look;
pub mod memory;
mod model;
mod opener;
mod scan;
mod sys;

pub use compose::{ComposeError, ComposeWarning, Composed, Layer, Origin, compose, gather};
pub use index::{FieldChange, FieldValue, IndexDir};
pub use look::{Looked, SeenFile, look};
pub use model::*;
pub use opener::{OpenError, Opener, SourceFile};
pub use scan::{
    ContentId, Difference, FILE_NAME, Scan, ScanChange, ScanError, ScanOptions, ScanRoot,
    ScanWarning, Stamp, Trust, scan,
};
