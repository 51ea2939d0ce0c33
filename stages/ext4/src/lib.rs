//! A compiler from a [`fcpipe_tree::Tree`] to an ext4 file system.
//!
//! [`layout()`] gives every inode and every block its place from metadata alone, as a linker does with
//! symbols. What comes out, a [`Layout`], holds all of the file system's own blocks ready to be written,
//! and an [`ImageMap`] that says for each block of the disk which file it comes from. Writing, lazy
//! serving and comparing need nothing else. `docs/ext4.md` says what is written and why.
//!
//! Architecture invariant: `layout` reads no file, no clock and no environment. The same Tree and
//! [`Options`] give the same bytes on any host, with any number of threads. If the bytes change,
//! [`FORMAT_VERSION`] changes; `tests/golden.rs` fails otherwise.
//!
//! Architecture invariant: every structure of the disk is declared once, in `ondisk`, with the kernel's
//! names. No other module computes an offset into one.
//!
//! Where to begin reading: `layout.rs` is the whole way in one page. On it stand
//! - `numbers`: which inode is what;
//! - `dirs`, `xattrs`: what a directory or a set of attributes will look like, and its bytes;
//! - `geometry`: block groups and their fixed metadata;
//! - `placement`: the place of every block of content; `extents`: how an inode finds them;
//! - `encode`: all of it as bytes, in parallel.

mod allocate;
mod checksum;
mod copy;
mod dirs;
mod encode;
mod error;
mod extents;
mod geometry;
mod hash;
mod ids;
mod layout;
mod map;
mod mke2fs;
mod near;
mod numbers;
mod ondisk;
mod options;
mod placement;
mod times;
mod xattrs;

pub(crate) use ids::InodeNo;

pub use allocate::{Durability, OutputError, OutputFile, allocate};
pub use copy::{
    CopyError, CopyOptions, CopyReport, Moved, Patched, Progress, Silent, apply_cow, cow_size,
    digest_file, patch_image, write_cow, write_image,
};
pub use error::{LayoutError, LayoutWarning, XattrProblem};

pub use layout::{Layout, layout};
pub use map::*;
pub use mke2fs::{Mke2fsError, Sizing, build as mke2fs};
pub use near::{
    BadImprint, Change, Contents, Far, Imprint, Near, layout_near, layout_with_imprint,
};
pub use options::{FORMAT_VERSION, Label, Options};
