//! The engine from outside. Modules are by subject; `kit` has the steps they use.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]
#![allow(clippy::print_stdout, reason = "seeds and skipped tests are told")]

mod archives;
mod failures;
mod graph;
mod journal;
mod kit;
mod model;
mod processes;
mod store;
mod upkeep;
