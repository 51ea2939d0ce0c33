//! The engine from outside. Modules are by subject; `kit` has the steps they use.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]

mod graph;
mod kit;
