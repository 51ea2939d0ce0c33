//! The program inside the VM: its init, its agent, and the first moments of every process.
//!
//! One static program has three lives:
//! - as **init** ([`boot`]) it loads modules, moves to a root of its own and listens on vsock;
//! - as the **agent** ([`serve`], [`agent`]) it does what the host asks over `fcpipe-proto`:
//!   mounts the container's root, starts processes, passes bytes, signals and exits on, and at the
//!   end writes everything back and resets the machine;
//! - as a **container process** ([`container`]), run again by the agent in new namespaces, it sets
//!   the container up from inside and then becomes the program that was asked for.
//!
//! Where to begin reading: `main.rs` tells the three apart; [`agent`] has the requests.
//!
//! Architecture invariant: the agent outlives the workload. It is in other namespaces, in another
//! cgroup, has the least OOM score, serves each process with its own threads, and never waits for
//! a process or for a stream on the thread that reads requests.
//!
//! Architecture invariant: nothing the agent opens or mounts on behalf of the container is looked
//! up through the container's symlinks but with `RESOLVE_IN_ROOT` ([`container::resolve`]).
//!
//! Architecture invariant: `unsafe` is in [`sys`] alone.

pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod console;
pub mod container;
mod handoff;
mod keys;
mod mapper;
mod net;
mod oom;
mod processes;
pub mod root;
pub mod serve;
mod spawn;
mod stats;
pub mod sys;
pub mod vsock;
