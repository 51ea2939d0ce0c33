//! End to end: the real program, real virtual machines, real images. One binary, one module a subject.
//!
//! What needs root, QEMU or a kernel says so in its name and prints why it was skipped; with `CI=true` a
//! missing one is a failure.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests: they fail by a panic and say what was skipped"
)]

mod bombs;
mod build;
mod cache;
mod cleanup;
mod disks;
mod firecracker;
mod fuse;
mod hooks;
mod life;
mod mounts;
mod network;
mod oci;
mod probe;
mod process;
mod report;
mod settings;
mod spec;
mod streams;
mod terminal;
mod told;
mod world;
