//! Tests of the crate's face against real directories. Names tell the row of the list of faults that
//! a test covers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do, and say why they skip"
)]

mod common;
mod composing;
mod edits;
mod indexing;
mod kernel;
mod limits;
mod opening;
mod scanning;
mod sources;
mod trusting;
