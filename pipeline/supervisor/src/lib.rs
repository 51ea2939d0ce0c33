//! The supervisor: one process per launch, which owns everything that the launch makes on the host.
//!
//! ```text
//! client: fcpipe run SPEC ──fork──► supervisor ── graph, machine, guest, process
//!    ▲  events, result                 │  ▲
//!    └───────── socket pair ───────────┘  │ STATE/ID/control
//!                            other clients: start, exec, kill, wait, …
//! ```
//!
//! A client that starts a launch splits in two ([`start`]): the copy becomes the supervisor, in a session of its own. It
//! tells the client what happens, and outlives it or ends with it ([`Bond`]). Others reach it by the launch's control socket
//! ([`connect`]). What it knows it writes to the launch's directory, and what it makes stands in the launch's journal, so that
//! [`clean_up`] can undo it when the supervisor is killed.
//!
//! Where to begin reading: `supervise.rs` (the course of a launch), `life.rs` (what may be asked for when), `message.rs` (what is
//! said on the socket), `record.rs` (what is told of a launch that nobody can be asked about).
//!
//! Architecture invariant: the truth about whether a launch lives is the lock of its directory, which the kernel takes from
//! a process that dies. No file is believed against it.
//!
//! Architecture invariant: nothing here waits for a client. One that does not read holds up its own connection alone.
//!
//! Architecture invariant: this crate prints nothing.

mod catalogue;
mod client;
mod clock;
mod console;
mod events;
mod fork;
mod hooks;
mod life;
mod log;
mod message;
mod output;
mod record;
mod server;
mod signals;
mod stats;
mod supervise;
mod tail;
mod wire;

pub use catalogue::{clean_up, delete};
pub use client::{Connection, Line, connect, start};
pub use clock::rfc3339;
pub use console::Console;
pub use fcpipe_launch::process_of;
pub use fork::{Herald, in_background};
pub use hooks::{Hook, HookError};
pub use log::LogLimits;
pub use message::{ExecProcess, Failed, Reply, Request};
pub use record::{LookError, Record, Status, look, look_at_all};
pub use stats::{HostStats, Stats, prometheus_types};
pub use supervise::{Bond, Ended, OpenHost, Order};
pub use tail::{Entries, Entry, EventLines};

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    /// Waits for what another thread or process does; `what` is said where it does not come.
    pub(crate) fn until(what: &str, mut ready: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !ready() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
