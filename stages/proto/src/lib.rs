//! What the host and the guest's agent say to each other, and the machinery both ends say it with.
//!
//! One connection carries everything about one VM: a handshake, the guest's configuration, any
//! number of processes with their standard streams, and the end. The page `docs/protocol.md`
//! describes the wire; this crate is the only program text that knows it.
//!
//! Where to begin reading:
//! - [`frame`]: bytes on the wire, and the limits on them;
//! - [`message`]: the control messages, which are JSON in a frame;
//! - [`config`], [`process`], [`confine`] and [`stats`]: what those messages carry;
//! - [`mux`]: one connection's streams, with credit windows; both ends use it;
//! - [`host`]: [`host::Session`], what a launcher uses;
//! - [`guest`]: [`guest::Connection`], what the agent uses.
//!
//! Architecture invariant: the other end is an enemy. Whatever arrives is checked against its
//! limits before it is kept; whatever breaks a rule becomes a [`ProtoError`] and ends the
//! connection. Nothing a peer sends can make this end panic, wait without a deadline where it
//! promised one, or keep more than [`frame::WINDOW`] bytes a stream.
//!
//! Architecture invariant: nothing here starts a process, opens a path of a peer's choosing or
//! knows which VMM lies between the two ends. There is no async; threads are named.

pub mod config;
pub mod confine;
pub mod error;
pub mod frame;
pub mod guest;
pub mod host;
pub mod message;
pub mod mux;
mod network;
mod patience;
pub mod process;
pub mod pump;
pub mod stats;
pub mod stream;

pub use config::{Beside, GuestConfig, GuestMount, RootFs, WallClock, Writes};
pub use confine::{Capabilities, Confinement, Hooks, Seccomp};
pub use error::ProtoError;
pub use network::{GuestAddress, GuestInterface, GuestNetwork, GuestRoute, ResolvConf};
pub use process::{ExitStatus, Failure, FailureKind, Process, ProcessId, Rlimit, WindowSize};
pub use stats::Stats;
pub use stream::Stream;

/// The version of the protocol. Both ends must have the same: the guest program travels with the
/// host's, so there is nothing to negotiate.
pub const PROTOCOL: u32 = 2;

/// The vsock port on which the agent listens. Below 1024, so that no unprivileged process of the
/// guest can take it before the agent does or after it.
pub const AGENT_PORT: u32 = 52;

/// The kernel argument that carries the boot id: `fcpipe.boot=<id>`.
pub const BOOT_ID_ARGUMENT: &str = "fcpipe.boot";
