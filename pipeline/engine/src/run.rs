//! A running graph: nodes are added to it while others work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cancel::CancelToken;
use crate::cx::Cx;
use crate::digest::Key;
use crate::erased::{EffectStep, ProbeStep, StageStep, Step};
use crate::event::{EventSender, Outcome};
use crate::failure::{Failure, FailureKind};
use crate::graph::{Node, NodeId};
use crate::journal::{Journal, Made, NotUndone};
use crate::key::{Change, Manifest, Sort};
use crate::launchdir::LaunchDir;
use crate::receipt::{OutputFile, RECEIPT_SCHEMA, Receipt, critical_path};
use crate::sched::Sched;
use crate::step::{Effect, Probe, Stage, UndoError};
use crate::store::Store;
use crate::value::Identity;

/// What a run does with records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Uses what there is, and records what it makes.
    #[default]
    Auto,
    /// A stage that would have to run fails and is named. (Making a value again whose record is there is no such case.)
    Require,
    /// Neither reads nor writes records. Objects are kept until the [`Store`] is closed.
    Off,
}

/// What a run is told at its start.
#[derive(Debug)]
pub struct Settings {
    /// The launch's id, for the receipt.
    pub id: String,
    /// What the node ids are about (a spec's path): keeps one spec's "what changed" apart from another's.
    pub scope: String,
    /// How many steps may work at once; at least 1.
    pub threads: usize,
    /// What to do with records.
    pub cache: CacheMode,
    /// Only find out what would happen: probes run, records are read, nothing is made.
    pub plan: bool,
    /// Where outputs are.
    pub store: Arc<Store>,
    /// Where effects are journalled. A run without it can't have effects.
    pub launch: Option<LaunchDir>,
    /// Who is told what happens.
    pub events: EventSender,
    /// What ends the run early.
    pub cancel: CancelToken,
}

impl Settings {
    /// The usual: as many threads as there are processors, the cache in use, nobody listening.
    pub fn new(id: impl Into<String>, store: Arc<Store>) -> std::io::Result<Self> {
        Ok(Self {
            id: id.into(),
            scope: String::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cache: CacheMode::Auto,
            plan: false,
            store,
            launch: None,
            events: EventSender::none(),
            cancel: CancelToken::new()?,
        })
    }
}

/// What every step of a run can reach.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) cache: CacheMode,
    pub(crate) plan: bool,
    pub(crate) scope: String,
    pub(crate) threads: usize,
    pub(crate) launch_path: Option<PathBuf>,
    pub(crate) events: EventSender,
    pub(crate) cancel: CancelToken,
    pub(crate) epoch: Instant,
    pub(crate) sched: Sched,
    journal: Option<Journal>,
    made: Mutex<Vec<(Made, Undo)>>,
    run: u32,
}

type Undo = fn(&serde_json::Value) -> Result<(), UndoError>;

/// What a node did and why, beyond the receipt: for `plan` and `explain`.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The node's id.
    pub id: String,
    /// The rows it has in receipts (its id, or its phases').
    pub rows: Vec<String>,
    /// The step's name.
    pub step: &'static str,
    /// How it ended; `Skipped` in a plan for what would have to be done.
    pub outcome: Outcome,
    /// Its key; `None` if an input was not known.
    pub key: Option<Key>,
    /// What entered the key.
    pub inputs: Manifest,
    /// Which sort of step it is.
    pub sort: Sort,
    /// The ids of the nodes it depends on.
    pub deps: Vec<String>,
    /// What is not as it was the last time; `None` if there was no last time. For a probe: also what it noticed.
    pub changed: Option<Vec<Change>>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// The account.
    pub receipt: Receipt,
    /// The first failure.
    pub result: Result<(), Failure>,
    /// What could not be undone; it stays in the journal.
    pub not_undone: Vec<NotUndone>,
    /// Every node, in the order of adding.
    pub explained: Vec<Explained>,
    /// The launch's directory, still claimed. [`LaunchDir::remove`] it when nobody needs it; dropped, it is left to
    /// [`recover`](crate::journal::recover).
    pub launch: Option<LaunchDir>,
}

/// A running graph.
///
/// Dropped without [`Run::finish`], it cancels what works, waits for it and undoes.
pub struct Run {
    shared: Arc<Shared>,
    id: String,
    launch: Option<LaunchDir>,
    outputs: Mutex<BTreeMap<String, OutputFile>>,
    finished: bool,
}

impl Run {
    /// Starts with an empty graph. Fails if the journal can't be opened.
    pub fn start(settings: Settings) -> Result<Self, Failure> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let launch_path = settings
            .launch
            .as_ref()
            .map(|launch| launch.path().to_owned());
        let journal = match launch_path.as_deref().map(Journal::open).transpose() {
            Ok(journal) => journal,
            Err(error) => {
                // Nothing was made, so nothing stays; if it does, the next command sees to it.
                let _ = settings.launch.map(LaunchDir::remove);
                let subject = journal_in(launch_path.as_deref());
                let error = Some(error.into());
                return Err(Failure::new("", FailureKind::Host, subject, error));
            }
        };
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            store: settings.store,
            cache: settings.cache,
            plan: settings.plan,
            scope: settings.scope,
            threads: settings.threads.max(1),
            launch_path,
            events: settings.events,
            cancel: settings.cancel,
            epoch: Instant::now(),
            sched: Sched::new(run),
            journal,
            made: Mutex::default(),
            run,
        });
        Ok(Self {
            shared,
            id: settings.id,
            launch: settings.launch,
            outputs: Mutex::default(),
            finished: false,
        })
    }

    /// Adds a probe. It starts at once, or when its inputs are done.
    pub fn probe<P: Probe>(&self, id: impl Into<String>, probe: P) -> Node<P::Output> {
        Node::new(self.add(id.into(), Arc::new(ProbeStep(probe))))
    }

    /// Adds a stage.
    pub fn stage<S: Stage>(&self, id: impl Into<String>, stage: S) -> Node<S::Output> {
        Node::new(self.add(id.into(), Arc::new(StageStep(stage))))
    }

    /// Adds an effect.
    pub fn effect<E: Effect>(&self, id: impl Into<String>, effect: E) -> Node<E::Output> {
        Node::new(self.add(id.into(), Arc::new(EffectStep(effect))))
    }

    fn add(&self, id: String, step: Arc<dyn Step>) -> NodeId {
        self.shared.add(id, step)
    }

    /// Waits for a node and gives its value, made again if need be. On failure gives the node's own, or the one that
    /// kept it from starting.
    pub fn wait<T: Send + Sync + 'static>(&self, node: &Node<T>) -> Result<Arc<T>, Failure> {
        self.shared.wait_done(node.id())?;
        self.shared.typed_value(node)
    }

    /// Waits for a probe or stage and gives its identity. Makes no value.
    pub fn identity<T>(&self, node: &Node<T>) -> Result<Option<Identity>, Failure> {
        self.shared.wait_done(node.id())
    }

    /// Ends the run early: what works gives up, what waits is skipped. `why` becomes the failure's subject.
    pub fn cancel(&self, why: &str) {
        self.shared.fail_run(Failure::cancelled("", why));
    }

    /// The token of this run. Cancelling it is like [`Run::cancel`] without a reason.
    pub fn cancel_token(&self) -> &CancelToken {
        &self.shared.cancel
    }

    /// Lets go of the store's shared lock: see [`Store::release`].
    pub fn release_store(&self) {
        self.shared.store.release();
    }

    /// Forgets what probes and stages came to, once nobody asks for it any more: the tree of a large source is many
    /// megabytes, and a machine may run for months. What effects made is kept.
    pub fn forget_values(&self) {
        self.shared.forget_values();
    }

    /// Names a file that came out, for the receipt.
    pub fn output(&self, name: &str, file: OutputFile) {
        lock(&self.outputs).insert(name.to_owned(), file);
    }

    /// Ends the run: cancels what still works, waits for it, and undoes the effects, the last first. What can't be undone is
    /// returned, and tried again when this is called again.
    pub fn undo(&self) -> Vec<NotUndone> {
        if !self.shared.all_done() {
            self.cancel("the launch ends");
        }
        self.shared.wait_all();
        self.shared.undo(&self.id)
    }

    /// Waits for every node, undoes the effects in reverse, and gives the account.
    pub fn finish(mut self) -> Finished {
        self.shared.wait_all();
        let not_undone = self.shared.undo(&self.id);
        self.finished = true;
        let rows = self.shared.receipt_rows();
        let receipt = Receipt {
            schema: RECEIPT_SCHEMA.to_owned(),
            id: self.id.clone(),
            total_us: micros(self.shared.epoch.elapsed()),
            critical_path: critical_path(&rows),
            stages: rows,
            outputs: std::mem::take(&mut lock(&self.outputs)),
        };
        Finished {
            receipt,
            result: self.shared.failure().map_or(Ok(()), Err),
            not_undone,
            explained: self.shared.explained(),
            launch: self.launch.take(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.undo();
        }
        // After undoing: what was spawned to die with a worker's thread has been ended in an orderly way by now.
        self.shared.stop();
        if let Some(launch) = self.launch.take() {
            // Refused if something is left to undo; `recover` sees to it.
            let _ = launch.remove();
        }
    }
}

impl Shared {
    /// Writes an effect's entry to the journal.
    pub(crate) fn journal_made<T: Serialize>(
        &self,
        cx: &Cx,
        effect: &'static str,
        entry: &T,
        undo: Undo,
    ) -> Result<(), Failure> {
        let Some(journal) = &self.journal else {
            return Err(cx.fail(
                FailureKind::Internal,
                effect,
                "the run has no launch directory to journal it in",
            ));
        };
        let subject = || journal_in(self.launch_path.as_deref());
        let fail = |e: std::io::Error| cx.fail(FailureKind::Host, subject(), e);
        let entry = serde_json::to_value(entry).map_err(|e| fail(e.into()))?;
        // Both under one lock: the order in memory is the journal's.
        let mut made = lock(&self.made);
        made.push((journal.made(&cx.id, effect, entry).map_err(fail)?, undo));
        Ok(())
    }

    /// Undoes everything that was made, the last first.
    fn undo(&self, launch: &str) -> Vec<NotUndone> {
        let mut made = std::mem::take(&mut *lock(&self.made));
        let (mut left, mut reports) = (Vec::new(), Vec::new());
        while let Some((entry, undo)) = made.pop() {
            match undo(&entry.entry) {
                Ok(()) => {
                    // If this can't be written, the effect is undone once more some day: that does no harm.
                    let _ = self
                        .journal
                        .as_ref()
                        .map(|journal| journal.undone(entry.seq));
                }
                Err(why) => {
                    reports.push(NotUndone {
                        launch: launch.to_owned(),
                        node: entry.node.clone(),
                        effect: entry.effect.clone(),
                        why,
                    });
                    left.push((entry, undo));
                }
            }
        }
        left.reverse();
        *lock(&self.made) = left;
        reports
    }

    /// Panics for a handle of another run: a mistake in the program.
    pub(crate) fn own(&self, id: NodeId) -> usize {
        assert_eq!(id.run, self.run, "a node of another run");
        id.at()
    }
}

/// The journal, for errors.
fn journal_in(launch: Option<&Path>) -> String {
    let launch = launch.unwrap_or(Path::new(""));
    format!("the launch's journal in {}", launch.display())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
