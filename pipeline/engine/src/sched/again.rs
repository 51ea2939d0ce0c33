//! Values of nodes that are done, and the making again of those that no record keeps.

use std::sync::Arc;
use std::time::Instant;

use crate::erased::Value;
use crate::failure::{Failure, FailureKind};
use crate::graph::Node;
use crate::key::Sort;
use crate::run::Shared;
use crate::store::Keep;

impl Shared {
    /// The value of a node that is done.
    pub(crate) fn typed_value<T: Send + Sync + 'static>(
        self: &Arc<Self>,
        node: &Node<T>,
    ) -> Result<Arc<T>, Failure> {
        let index = self.own(node.id());
        let value = self.value(index)?;
        value.downcast().map_err(|_| {
            Failure::new(
                self.name_at(index),
                FailureKind::Internal,
                "the value has another type",
                None,
            )
        })
    }

    /// Drops the values of probes and stages that are done.
    pub(crate) fn forget_values(&self) {
        let mut state = self.state();
        let forgotten: Vec<Option<Value>> = state
            .nodes
            .iter_mut()
            .filter(|entry| entry.step.sort() != Sort::Effect && entry.status.is_over())
            .map(|entry| entry.value.take())
            .collect();
        drop(state);
        // Not under the lock: a large tree takes its time.
        drop(forgotten);
    }

    fn value(self: &Arc<Self>, index: usize) -> Result<Value, Failure> {
        let mut state = self.state();
        loop {
            let entry = &mut state.nodes[index];
            if let Some(value) = &entry.value {
                return Ok(Arc::clone(value));
            }
            if !entry.making {
                entry.making = true;
                break;
            }
            state = self.wait_changed(state);
        }
        drop(state);
        let result = self.make_again(index);
        let mut state = self.state();
        let entry = &mut state.nodes[index];
        entry.making = false;
        if let Ok(value) = &result {
            entry.value = Some(Arc::clone(value));
        }
        self.sched.done.notify_all();
        result
    }

    /// Runs a stage that was a hit, because a consumer needs what its record doesn't keep.
    fn make_again(self: &Arc<Self>, index: usize) -> Result<Value, Failure> {
        let state = self.state();
        let entry = &state.nodes[index];
        let (step, rows, key, expected) = (
            Arc::clone(&entry.step),
            Arc::clone(&entry.rows),
            entry.key,
            entry.identity.clone(),
        );
        drop(state);
        let wrong =
            |subject: &str| Failure::new(self.name_at(index), FailureKind::Internal, subject, None);
        let (Some(key), Some(expected)) = (key, expected) else {
            return Err(wrong("there is no value"));
        };
        let start = Instant::now();
        let cx = self.cx(index, key, Keep::Scratch, true);
        let (value, identity) = self.guarded(index, || step.again(&cx))?;
        rows.made_again(start.elapsed(), &self.events);
        if identity != expected {
            // The record can't be right for this program: whatever follows from it would be wrong too.
            let _ = self.store.forget(&key);
            return Err(wrong("it came out otherwise than its record says")
                .hint("the record was removed, so the next run is right; please report this"));
        }
        Ok(value)
    }
}
