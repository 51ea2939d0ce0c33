//! The crate against a kernel: namespaces, veth pairs and bridges of the tests' own, looked at with `ip` and `tc`.
//!
//! All of it needs root and iproute2, and says so where it is skipped.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests: they fail by a panic and say what was skipped"
)]

mod attaching;
mod bench;
mod ear;
mod frames;
mod judge;
mod odd;
mod own;
mod packets;
mod random;
mod sockets;
mod spoofing;
mod state;
mod strangers;
mod tap;
mod unfinished;
mod world;
