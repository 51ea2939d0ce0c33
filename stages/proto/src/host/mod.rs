//! The host's end: what a launcher uses.
//!
//! [`Session`] is one connection to the agent, over a stream that somebody else has reached it by;
//! [`RunningProcess`] is one process of the guest. Every wait has a deadline or ends with the
//! connection, and a connection whose agent falls silent ends by itself.

mod drain;
mod process;
mod reader;
mod session;
mod state;
mod unix_path;

pub use process::{OutputError, RunningProcess, Stdio};
pub use session::Session;
pub use unix_path::short_path;
