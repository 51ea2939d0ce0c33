//! The engine of fcpipe: a graph of steps that grows while it runs.
//!
//! Three sorts of steps make a graph. A [`Probe`] looks at the world and always runs. A [`Stage`] is pure: it has a key, made
//! from its declared inputs, and what it makes is recorded under that key and not made twice. An [`Effect`] makes something on the
//! host; it is written to the launch's journal before it is done and undone at the end, by another process if
//! need be.
//!
//! ```text
//! Run::start ── probe / stage / effect ──► Node<T> ── wait ──► Arc<T> ── finish ──► Receipt
//!                     │
//!     inputs(KeyWriter): dependency edges, the key, and the words of `explain`, from one declaration
//! ```
//!
//! Architecture invariant: this crate knows no ext4, no VM and no network, and depends on no crate of `stages/`. It
//! prints nothing: what happens goes out as [`Event`]s, what went wrong as a [`Failure`].
//!
//! Architecture invariant: deleting or damaging anything in the store costs time, nothing else.
//!
//! Architecture invariant: no lock of the scheduler is held while a step works, and no event waits for its reader.
//!
//! Where to begin reading: `step.rs` (what a step is), `key.rs` (how inputs are declared), `erased.rs` (what hit, miss and
//! effect come to), `sched/mod.rs` (who works on what), `store/mod.rs` and `journal.rs` (what outlives the process).
//! `docs/cache.md` says the same in prose.

mod cancel;
mod cx;
mod digest;
mod erased;
mod event;
mod failure;
mod fsutil;
mod graph;
pub mod journal;
mod key;
mod launchdir;
mod receipt;
mod rows;
mod run;
mod sched;
mod step;
pub mod store;
mod value;

pub use cancel::CancelToken;
pub use cx::Cx;
pub use digest::{BadDigest, Digest, Key};
pub use event::{Amount, Event, EventSender, Outcome, event_channel};
pub use failure::{Failure, FailureKind, chain};
pub use fsutil::{DirError, read_file, secure_path, write_file};
pub use graph::Node;
pub use journal::{NotUndone, Recovered, UndoTable, recover, recover_but};
pub use key::{Change, KeyValue, KeyWriter, Manifest, Sort, ValueWriter};
pub use launchdir::{LaunchDir, LaunchDirError};
pub use receipt::{OutputFile, RECEIPT_SCHEMA, Receipt, Row, receipt_schema};
pub use run::{CacheMode, Explained, Finished, Run, Settings};
pub use step::{Effect, Probe, Stage, UndoError};
pub use store::{Lease, Object, ObjectWriter, Store, StoreError};
pub use value::{Identity, Kept, Output};
