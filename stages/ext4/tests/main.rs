//! The layout against those who know ext4: e2fsck, the kernel, resize2fs, dumpe2fs, and a reader of
//! someone else's.
//!
//! `FCPIPE_SOAK_TREES` says how many random trees (30), `FCPIPE_SEED` which. Tests that need root loop-mount
//! images; they say `skipped` without it, and fail with `CI=true`.

#![allow(
    clippy::print_stderr,
    reason = "tests say what was skipped, and with which seed they ran"
)]

mod golden;
mod host;
mod image;
mod large;
mod limits;
mod random;
mod rows;
mod same;
mod view;
