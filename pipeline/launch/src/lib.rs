//! The graph of one launch: which steps there are, what each depends on, and in which order they go.
//!
//! ```text
//! scan:/ scan:/mnt/code …  ─► layout ─► image (allocate, copy, seal) ─► disk ─┐
//!                  kernel ─► writes ─┬─────────────────────────────────┘     │
//!                                    └─► initrd ─► machine ─────────────────┴─► boot ─► process
//!                                 netns ─► tap ─────┘
//! ```
//!
//! The stage crates do the work and know nothing of the engine; the engine knows nothing of ext4 or of
//! machines. The adapters between them live here: what enters a step's key, what a record keeps of it,
//! what the journal must know to undo it.
//!
//! Architecture invariant: a step's key names everything its output depends on and nothing else. Paths,
//! ids and times of a launch are in no key, or nothing would ever be reused.
//!
//! Architecture invariant: whatever outlives a step on the host is an effect, of `cgroup`, `disk`, `machine` or `network`,
//! and [`undo_table`] can take it away without the launch that made it.
//!
//! Where to begin reading: [`run()`] and [`build()`] in `launch.rs`, then the step of interest in `scan`,
//! `plan`, `near`, `image`, `output`, `kernel`, `disk`, `network` or `machine`.

mod cgroup;
mod disk;
mod group;
mod guest;
mod image;
mod kernel;
mod keys;
mod launch;
mod machine;
mod near;
mod network;
mod output;
mod plan;
mod scan;
mod seccomp;
mod stock;
mod stored;
mod tuning;
mod words;

pub use disk::Writes;
pub use group::Grouping;
pub use guest::process_of;
pub use launch::{
    BuildRequest, Built, Host, Launched, Live, PROCESS, Planned, RunRequest, build, plan, run,
};
pub use machine::{Guest, Streams, undo_table};
pub use output::BuiltFile;
pub use plan::Builder;
pub use stock::{StockRequest, stock};
pub use words::civil_date;
