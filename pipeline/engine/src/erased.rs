//! The three sorts of steps behind one private trait, and what each does with keys, records and the journal.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cx::Cx;
use crate::digest::{Digest, Key};
use crate::event::Outcome;
use crate::failure::{Failure, FailureKind};
use crate::journal::undo_entry;
use crate::key::{KeyWriter, Keyed, Manifest, Sort};
use crate::run::CacheMode;
use crate::step::{Effect, Probe, Stage};
use crate::store::{KeptRecord, Record};
use crate::value::{Identity, Output};

pub(crate) type Value = Arc<dyn Any + Send + Sync>;

/// How a step ended well.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// None for effects.
    pub(crate) identity: Option<Identity>,
    /// None for a value that is made again when somebody needs it.
    pub(crate) value: Option<Value>,
    /// The inputs that this node had last time, if that is known.
    pub(crate) before: Option<Manifest>,
}

/// A step whose type is forgotten.
pub(crate) trait Step: Send + Sync {
    fn sort(&self) -> Sort;
    fn name(&self) -> &'static str;
    fn version(&self) -> u32;
    fn inputs(&self, k: &mut KeyWriter<'_>);
    fn phases(&self) -> &'static [&'static str] {
        &[]
    }
    fn waits(&self) -> bool {
        false
    }
    /// Does what the step does; `None` when the run is a plan and this step would have to do something.
    fn execute(&self, cx: &Cx, keyed: &Keyed) -> Result<Option<Done>, Failure>;
    /// Makes the value of a stage that was a hit.
    fn again(&self, cx: &Cx) -> Result<(Value, Identity), Failure>;
}

/// What is noted of a node, to tell next time what changed.
#[derive(Serialize, Deserialize)]
struct Note {
    key: Key,
    inputs: Manifest,
    /// Probes only: what was seen.
    seen: Option<Identity>,
}

/// Where the note of a node is. `scope` keeps two specs apart whose nodes have the same ids.
fn note_key(scope: &str, id: &str) -> Key {
    Key::new(Digest::of(
        "fcpipe engine 1: note",
        &[scope.as_bytes(), id.as_bytes()],
    ))
}

fn read_note(cx: &Cx) -> Option<Note> {
    (cx.shared.cache != CacheMode::Off)
        .then(|| cx.store().note(&note_key(&cx.shared.scope, &cx.id)))?
}

/// The inputs that this node had the last time, if that is known.
pub(crate) fn inputs_before(cx: &Cx) -> Option<Manifest> {
    read_note(cx).map(|note| note.inputs)
}

fn write_note(cx: &Cx, keyed: &Keyed, seen: Option<Identity>) {
    if cx.shared.cache == CacheMode::Off || cx.shared.plan {
        return;
    }
    let note = Note {
        key: keyed.key,
        inputs: keyed.manifest.clone(),
        seen,
    };
    if let Err(error) = cx
        .store()
        .put_note(&note_key(&cx.shared.scope, &cx.id), &note)
    {
        // Nothing depends on a note but what `explain` and the outcome of a probe say next time.
        tracing::warn!(node = %cx.id, %error, "a note was not written");
    }
}

pub(crate) struct ProbeStep<P>(pub(crate) P);

impl<P: Probe> Step for ProbeStep<P> {
    fn sort(&self) -> Sort {
        Sort::Probe
    }
    fn name(&self) -> &'static str {
        P::NAME
    }
    fn version(&self) -> u32 {
        P::VERSION
    }
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        self.0.inputs(k);
    }

    fn execute(&self, cx: &Cx, keyed: &Keyed) -> Result<Option<Done>, Failure> {
        let output = self.0.run(cx)?;
        let identity = output.identity();
        let note = read_note(cx);
        let same = note
            .as_ref()
            .is_some_and(|n| n.key == keyed.key && n.seen.as_ref() == Some(&identity));
        if !same {
            write_note(cx, keyed, Some(identity.clone()));
        }
        Ok(Some(Done {
            outcome: if same { Outcome::Hit } else { Outcome::Ran },
            identity: Some(identity),
            value: Some(Arc::new(output)),
            before: note.map(|n| n.inputs),
        }))
    }

    fn again(&self, cx: &Cx) -> Result<(Value, Identity), Failure> {
        Err(cx.fail(
            FailureKind::Internal,
            "a probe's value",
            "it is not there, and is never made again",
        ))
    }
}

pub(crate) struct StageStep<S>(pub(crate) S);

impl<S: Stage> StageStep<S> {
    /// The answer of a record, if there is one.
    fn look_up(&self, cx: &Cx, keyed: &Keyed) -> Option<Done> {
        let record = if cx.shared.plan {
            cx.store().record(&keyed.key)?
        } else {
            cx.store().use_record(&keyed.key)?
        };
        let value = match &record.kept {
            Some(kept) => Some(Arc::new(S::Output::recall(cx.store().kept(kept)?)?) as Value),
            None => None,
        };
        Some(Done {
            outcome: Outcome::Hit,
            identity: Some(record.identity),
            value,
            before: None,
        })
    }

    /// A hit, and noted as the latest of its node.
    fn hit(&self, cx: &Cx, keyed: &Keyed) -> Option<Done> {
        let done = self.look_up(cx, keyed)?;
        let note = read_note(cx);
        if note.as_ref().is_none_or(|n| n.key != keyed.key) {
            write_note(cx, keyed, None);
        }
        Some(Done {
            before: note.map(|n| n.inputs),
            ..done
        })
    }

    fn make(&self, cx: &Cx) -> Result<Done, Failure> {
        let output = self.0.run(cx)?;
        let identity = output.identity();
        Ok(Done {
            outcome: Outcome::Ran,
            identity: Some(identity),
            value: Some(Arc::new(output)),
            before: None,
        })
    }

    /// Runs the stage as the only one in the world to make this key, and records what it made.
    fn make_and_record(&self, cx: &Cx, keyed: &Keyed) -> Result<Done, Failure> {
        let fail = |e| cx.store_failure("the store", e);
        let flight = cx
            .store()
            .flight(&keyed.key, &cx.shared.cancel)
            .map_err(fail)?;
        let Some(_flight) = flight else {
            return Err(cx.cancelled_failure());
        };
        // Somebody else may have made it while this one waited.
        if let Some(done) = self.hit(cx, keyed) {
            return Ok(done);
        }
        // Without a valid record, what lies under the key is a dead or failed maker's.
        cx.store().sweep(&keyed.key).map_err(fail)?;
        let made = self.run_and_record(cx, keyed);
        if made.is_err() {
            // The first failure is the one to tell.
            let _ = cx.store().sweep(&keyed.key);
        }
        made
    }

    fn run_and_record(&self, cx: &Cx, keyed: &Keyed) -> Result<Done, Failure> {
        let start = Instant::now();
        let before = read_note(cx).map(|n| n.inputs);
        let output = self.0.run(cx)?;
        let identity = output.identity();
        let kept = output.keep().map(|kept| KeptRecord {
            body: kept.body,
            objects: kept
                .objects
                .into_iter()
                .map(|object| (object.id, object.size))
                .collect(),
            contents: BTreeMap::new(),
        });
        let mut record = Record {
            key: keyed.key,
            stage: S::NAME.to_owned(),
            version: S::VERSION,
            node: cx.id.to_string(),
            inputs: keyed.manifest.clone(),
            identity: identity.clone(),
            kept,
            wall_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            made: 0,
            boot_id: String::new(),
            synced: false,
        };
        cx.store()
            .put_record(&mut record)
            .map_err(|e| cx.store_failure("the record", e))?;
        write_note(cx, keyed, None);
        Ok(Done {
            outcome: Outcome::Ran,
            identity: Some(identity),
            value: Some(Arc::new(output)),
            before,
        })
    }

    /// What `--cache require` says of a stage without a record.
    fn not_cached(cx: &Cx, keyed: &Keyed) -> Failure {
        let changed: Vec<_> = match read_note(cx) {
            Some(note) => keyed
                .manifest
                .changes_since(&note.inputs)
                .into_iter()
                .map(|c| c.label)
                .collect(),
            None => Vec::new(),
        };
        let why = if changed.is_empty() {
            String::new()
        } else {
            format!(" (changed: {})", changed.join(", "))
        };
        cx.fail(
            FailureKind::NotCached,
            "not in the cache, and would have to run",
            format!("key {}{why}", keyed.key),
        )
        .hint("run it once without `--cache require`")
    }
}

impl<S: Stage> Step for StageStep<S> {
    fn sort(&self) -> Sort {
        Sort::Stage
    }
    fn name(&self) -> &'static str {
        S::NAME
    }
    fn version(&self) -> u32 {
        S::VERSION
    }
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        self.0.inputs(k);
    }
    fn phases(&self) -> &'static [&'static str] {
        S::PHASES
    }

    fn execute(&self, cx: &Cx, keyed: &Keyed) -> Result<Option<Done>, Failure> {
        if cx.shared.cache == CacheMode::Off {
            return if cx.shared.plan {
                Ok(None)
            } else {
                self.make(cx).map(Some)
            };
        }
        cx.store()
            .hold()
            .map_err(|e| cx.store_failure("the store", e))?;
        if let Some(done) = self.hit(cx, keyed) {
            return Ok(Some(done));
        }
        match cx.shared.cache {
            _ if cx.shared.plan => Ok(None),
            CacheMode::Require => Err(Self::not_cached(cx, keyed)),
            CacheMode::Auto | CacheMode::Off => self.make_and_record(cx, keyed).map(Some),
        }
    }

    fn again(&self, cx: &Cx) -> Result<(Value, Identity), Failure> {
        let output = self.0.run(cx)?;
        let identity = output.identity();
        Ok((Arc::new(output), identity))
    }
}

pub(crate) struct EffectStep<E>(pub(crate) E);

impl<E: Effect> Step for EffectStep<E> {
    fn sort(&self) -> Sort {
        Sort::Effect
    }
    fn name(&self) -> &'static str {
        E::NAME
    }
    fn version(&self) -> u32 {
        0
    }
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        self.0.inputs(k);
    }
    fn waits(&self) -> bool {
        E::WAITS
    }

    fn execute(&self, cx: &Cx, _: &Keyed) -> Result<Option<Done>, Failure> {
        if cx.shared.plan {
            return Ok(None);
        }
        let entry = self.0.intend(cx)?;
        cx.check()?;
        cx.shared
            .journal_made(cx, E::NAME, &entry, undo_entry::<E>)?;
        let output = self.0.make(&entry, cx)?;
        Ok(Some(Done {
            outcome: Outcome::Ran,
            identity: None,
            value: Some(Arc::new(output)),
            before: None,
        }))
    }

    fn again(&self, cx: &Cx) -> Result<(Value, Identity), Failure> {
        Err(cx.fail(
            FailureKind::Internal,
            "an effect's value",
            "it is not there, and is never made again",
        ))
    }
}
