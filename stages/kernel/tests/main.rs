//! The crate through its public face: files in, kernels and initrds out. Inputs are made here, byte
//! by byte ([`make`]); `debian` uses a real package.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy.toml allows both in tests, but not in the functions that tests share"
)]

mod debian;
mod hostile;
mod images;
mod initrd;
mod make;
mod modules;
mod packages;
mod store;
