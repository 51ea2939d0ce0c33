//! What a step is given while it runs: its inputs' values, the store, and ways to report, fail and stop.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::CancelToken;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::{Digest, Key};
use crate::event::{Amount, Event};
use crate::failure::{Failure, FailureKind};
use crate::graph::{Node, NodeId};
use crate::key::Change;
use crate::rows::Rows;
use crate::run::{CacheMode, Shared};
use crate::store::{Keep, Lease, Object, ObjectWriter, Store, StoreError};
use crate::value::Kept;

/// The context of one step. Shared freely between the threads that the step starts.
pub struct Cx {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: Arc<str>,
    pub(crate) deps: Arc<[NodeId]>,
    pub(crate) rows: Arc<Rows>,
    pub(crate) key: Key,
    /// Where objects of this step go.
    pub(crate) keep: Keep,
    /// The value is made again for a consumer: its node has been reported already.
    pub(crate) again: bool,
}

impl Cx {
    /// The node's id, as receipts show it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key of this step.
    pub const fn key(&self) -> Key {
        self.key
    }

    /// The value of an input. An input whose record keeps no value is made now, on this thread.
    ///
    /// Fails (`Internal`) for a node that `inputs` did not declare.
    pub fn get<T: Send + Sync + 'static>(&self, node: &Node<T>) -> Result<Arc<T>, Failure> {
        if !self.deps.contains(&node.id()) {
            let name = self.shared.name_of(node.id());
            return Err(self.fail(
                FailureKind::Internal,
                name,
                "it is not among the declared inputs",
            ));
        }
        self.shared.typed_value(node)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Begins an object of this stage's output. `name` is lower case letters, digits, `-`, `_` and `.`.
    pub fn object(&self, name: &str) -> Result<ObjectWriter<'_>, Failure> {
        self.store()
            .object_writer(self.key, name, self.keep)
            .map_err(|e| self.store_failure(name, e))
    }

    /// Publishes an object: see [`ObjectWriter::publish`].
    pub fn publish(&self, writer: ObjectWriter<'_>) -> Result<Object, Failure> {
        writer
            .publish()
            .map_err(|e| self.store_failure("publishing an object", e))
    }

    /// Opens an object and keeps it from being collected: see [`Store::lease`].
    pub fn lease(&self, object: &Object) -> Result<Lease, Failure> {
        self.store()
            .lease(object)
            .map_err(|e| self.store_failure(object.path.display(), e))
    }

    /// What was last left under this name for the same spec: see [`leave_hint`](Self::leave_hint).
    pub fn hint<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        (self.shared.cache != CacheMode::Off)
            .then(|| self.store().note(&self.hint_key(name)))
            .flatten()
    }

    /// Leaves something for later launches of the same spec that helps them and that nothing may depend on: it can be lost
    /// at any time, and whoever finds it checks it.
    pub fn leave_hint<T: Serialize>(&self, name: &str, hint: &T) {
        if self.shared.cache != CacheMode::Auto || self.shared.plan {
            return;
        }
        if let Err(error) = self.store().put_note(&self.hint_key(name), hint) {
            tracing::warn!(node = %self.id, %error, "a hint was not written");
        }
    }

    fn hint_key(&self, name: &str) -> Key {
        Key::new(Digest::of(
            "fcpipe engine 1: hint",
            &[self.shared.scope.as_bytes(), name.as_bytes()],
        ))
    }

    /// What another stage has kept under a key, and when it was made (in seconds since 1970), if that can be used now. Counts
    /// as use, so that it is not the next to be collected.
    pub fn earlier(&self, key: &Key) -> Option<(Kept, u64)> {
        let store = self.store();
        let record = if self.shared.plan {
            store.record(key)?
        } else {
            store.use_record(key)?
        };
        Some((store.kept(record.kept.as_ref()?)?, record.made))
    }

    pub(crate) fn store_failure(&self, subject: impl fmt::Display, error: StoreError) -> Failure {
        self.fail(FailureKind::Store, subject, error)
    }

    /// What to do with what earlier runs have kept, and with what later ones could use.
    pub fn cache(&self) -> CacheMode {
        self.shared.cache
    }

    /// Whether this is a plan: it finds out what would happen, and leaves nothing behind.
    pub fn is_plan(&self) -> bool {
        self.shared.plan
    }

    /// The launch's directory in the state directory, for sockets and the like. It goes when the launch does.
    pub fn launch_dir(&self) -> Option<&Path> {
        self.shared.launch_path.as_deref()
    }

    /// How many threads a step that is parallel within itself should use.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Does one of the stage's phases. Phases come in the declared order; all may be left out.
    pub fn phase<R>(&self, name: &'static str, work: impl FnOnce() -> R) -> R {
        if !self.again {
            let entered = self.rows.enter(name, Some(self.key), &self.shared.events);
            assert!(
                entered.is_some(),
                "{name} is not a declared phase, or comes out of order"
            );
        }
        work()
    }

    /// Counts work done since the last call, for the receipt and for progress. A few atomic additions.
    pub fn progress(&self, amount: Amount) {
        self.rows.add(amount, &self.shared.events);
    }

    /// Says how much there is to do, so that progress can be shown as a share.
    pub fn total(&self, total: Amount) {
        self.rows.set_total(total);
    }

    /// Tells the user something that stops nothing.
    pub fn warn(&self, message: impl fmt::Display) {
        self.shared.events.send(Event::Warning {
            node: self.id.clone(),
            message: message.to_string(),
        });
    }

    /// For a probe: says in the user's words what is not as it was the last time, such as a file and its size.
    /// `plan` and `explain` show it; nothing else depends on it.
    pub fn notice(&self, change: Change) {
        self.rows.notice(change);
    }

    /// The token that ends the run: for waits that poll descriptors.
    pub fn cancel_token(&self) -> &CancelToken {
        &self.shared.cancel
    }

    /// Whether the run is to end. One atomic load.
    pub fn cancelled(&self) -> bool {
        self.shared.cancel.cancelled()
    }

    /// Fails (`Cancelled`) if the run is to end.
    pub fn check(&self) -> Result<(), Failure> {
        if self.cancelled() {
            Err(self.cancelled_failure())
        } else {
            Ok(())
        }
    }

    /// Sleeps, and fails (`Cancelled`) as soon as the run is to end.
    pub fn sleep(&self, time: Duration) -> Result<(), Failure> {
        if self.shared.cancel.wait_timeout(time) {
            Err(self.cancelled_failure())
        } else {
            Ok(())
        }
    }

    pub(crate) fn cancelled_failure(&self) -> Failure {
        Failure::cancelled(self.id.clone(), "cancelled")
    }

    /// A failure of this step: what it is about, and the cause (an error or a text). `.hint(…)` adds advice.
    pub fn fail(
        &self,
        kind: FailureKind,
        subject: impl fmt::Display,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Failure {
        Failure::new(self.id.clone(), kind, subject, Some(cause.into()))
    }
}
