//! The driver against programs that stand for QEMU and its vsock device and misbehave (`fakes/`). The test itself
//! serves the socket that a real device would.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may unwrap as tests may, and say what is skipped"
)]

mod bench;
mod faults;
mod firecracker;
mod host;
mod marks;
mod processes;
mod sockets;
