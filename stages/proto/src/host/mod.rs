//! The host's end: what a launcher uses.
//!
//! [`Doorbell`] waits until the agent listens; [`dial`] reaches it through a VMM's vsock socket;
//! [`Session`] is one connection to it;
//! [`RunningProcess`] is one process of the guest. Every wait has a deadline or ends with the
//! connection, and a connection whose agent falls silent ends by itself.

mod dial;
mod doorbell;
mod process;
mod reader;
mod session;
mod state;
mod unix_path;

pub use dial::dial;
pub use doorbell::Doorbell;
pub use process::{OutputError, RunningProcess, Stdio};
pub use session::Session;
pub use unix_path::short_path;
