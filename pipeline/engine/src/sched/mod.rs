//! The scheduler: which nodes can start, who works on them, and what their ends lead to.
//!
//! One mutex guards the vectors; it is never held while a step works. Small integers name the nodes.

mod again;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::cx::Cx;
use crate::digest::Key;
use crate::erased::{Done, Step, Value, inputs_before};
use crate::event::Outcome;
use crate::failure::{Failure, FailureKind};
use crate::graph::NodeId;
use crate::key::{KeyWriter, Keyed, Manifest, Sort};
use crate::receipt::Row;
use crate::rows::Rows;
use crate::run::{CacheMode, Explained, Shared, lock};
use crate::store::Keep;
use crate::value::Identity;

/// The graph's state and who waits for it to change.
pub(crate) struct Sched {
    run: u32,
    state: Mutex<State>,
    /// A node became ready, or the end came.
    work: Condvar,
    /// A node ended, or a value came to be.
    done: Condvar,
}

#[derive(Default)]
struct State {
    nodes: Vec<Entry>,
    row_ids: BTreeSet<String>,
    ready: VecDeque<usize>,
    unfinished: usize,
    idle: usize,
    workers: Vec<JoinHandle<()>>,
    waiters: Vec<JoinHandle<()>>,
    stopping: bool,
    failure: Option<Failure>,
}

struct Entry {
    id: Arc<str>,
    step: Arc<dyn Step>,
    deps: Arc<[NodeId]>,
    dependents: Vec<usize>,
    missing: usize,
    status: Status,
    rows: Arc<Rows>,
    key: Option<Key>,
    inputs: Manifest,
    before: Option<Manifest>,
    identity: Option<Identity>,
    value: Option<Value>,
    /// Somebody makes the value again.
    making: bool,
    failure: Option<Failure>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Ready,
    Running,
    Done(Outcome),
    /// A plan's "this would have to be done".
    Planned,
}

/// When a node that can start gets a worker.
#[derive(Clone, Copy)]
enum Turn {
    /// In the order of adding.
    Last,
    /// What others led to goes on: a way through the graph that was begun is not held up by one that could begin as well.
    Next,
}

impl Status {
    const fn is_over(self) -> bool {
        matches!(self, Self::Done(_) | Self::Planned)
    }
    const fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            _ => Outcome::Skipped,
        }
    }
}

impl Sched {
    pub(crate) fn new(run: u32) -> Self {
        Self {
            run,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        }
    }
}

impl State {
    /// A row id that no other row has. Ids come from specs, which may name a thing twice.
    fn unique(&mut self, id: String) -> Arc<str> {
        let mut unique = id.clone();
        let mut n = 2;
        while !self.row_ids.insert(unique.clone()) {
            unique = format!("{id}#{n}");
            n += 1;
        }
        unique.into()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.sched.state)
    }

    fn wait_changed<'g>(&self, guard: MutexGuard<'g, State>) -> MutexGuard<'g, State> {
        self.sched
            .done
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a node; starts it if it can.
    pub(crate) fn add(self: &Arc<Self>, id: String, step: Arc<dyn Step>) -> NodeId {
        let deps = KeyWriter::edges(step.sort(), |k| step.inputs(k));
        for dep in &deps {
            self.own(*dep);
        }
        let mut state = self.state();
        let index = state.nodes.len();
        let (row_ids, id) = match step.phases() {
            [] => {
                let id = state.unique(id);
                (vec![id.clone()], id)
            }
            phases => {
                // `image:/mnt/code` has the phases `copy:/mnt/code` and so on.
                let subject = id
                    .split_once(':')
                    .map(|(_, subject)| format!(":{subject}"))
                    .unwrap_or_default();
                let rows = phases
                    .iter()
                    .map(|phase| state.unique(format!("{phase}{subject}")))
                    .collect();
                (rows, state.unique(id))
            }
        };
        let mut missing = 0;
        for dep in &deps {
            let dep = &mut state.nodes[dep.at()];
            if !dep.status.is_over() {
                dep.dependents.push(index);
                missing += 1;
            }
        }
        let rows = Arc::new(Rows::new(self.epoch, step.phases(), row_ids));
        state.nodes.push(Entry {
            id,
            step,
            deps: deps.into(),
            dependents: Vec::new(),
            missing,
            status: Status::Waiting,
            rows,
            key: None,
            inputs: Manifest::default(),
            before: None,
            identity: None,
            value: None,
            making: false,
            failure: None,
        });
        state.unfinished += 1;
        if self.cancel.cancelled() {
            let id = state.nodes[index].id.clone();
            state
                .failure
                .get_or_insert_with(|| Failure::cancelled(id, "cancelled"));
            self.skip(&mut state, index);
        } else if missing == 0 {
            self.dispatch(&mut state, index, Turn::Last);
        }
        NodeId {
            run: self.sched.run,
            index: u32::try_from(index).unwrap_or(u32::MAX),
        }
    }

    /// Gives a node whose inputs are done to a worker, or a thread of its own.
    fn dispatch(self: &Arc<Self>, state: &mut State, index: usize, turn: Turn) {
        let entry = &mut state.nodes[index];
        let spawned = if entry.step.waits() && !self.plan {
            entry.status = Status::Running;
            let shared = Arc::clone(self);
            let thread = spawn(&entry.id, move || shared.work_on(index));
            thread.map(|thread| state.waiters.push(thread))
        } else {
            entry.status = Status::Ready;
            match turn {
                Turn::Last => state.ready.push_back(index),
                Turn::Next => state.ready.push_front(index),
            }
            self.sched.work.notify_one();
            self.ensure_worker(state)
        };
        if let Err(error) = spawned {
            let id = state.nodes[index].id.clone();
            state.ready.retain(|ready| *ready != index);
            let subject = "no thread can be started";
            let failure = Failure::new(id, FailureKind::Host, subject, Some(error.into()));
            self.end(state, index, Err(failure));
        }
    }

    /// Starts another worker if there is more to do than workers to do it.
    fn ensure_worker(self: &Arc<Self>, state: &mut State) -> std::io::Result<()> {
        if state.idle >= state.ready.len() || state.workers.len() >= self.threads {
            return Ok(());
        }
        let shared = Arc::clone(self);
        match spawn(&format!("work-{}", state.workers.len()), move || {
            shared.worker()
        }) {
            Ok(worker) => state.workers.push(worker),
            // Fewer workers do as well.
            Err(_) if !state.workers.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn worker(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            if let Some(index) = state.ready.pop_front() {
                state.nodes[index].status = Status::Running;
                drop(state);
                self.work_on(index);
                state = self.state();
            } else if state.stopping {
                return;
            } else {
                state.idle += 1;
                state = self
                    .sched
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Does a node from start to end.
    fn work_on(self: &Arc<Self>, index: usize) {
        let state = self.state();
        let entry = &state.nodes[index];
        let (step, rows) = (Arc::clone(&entry.step), Arc::clone(&entry.rows));
        let known: BTreeMap<NodeId, Option<Identity>> = entry
            .deps
            .iter()
            .map(|dep| (*dep, state.nodes[dep.at()].identity.clone()))
            .collect();
        let unknown = self.plan
            && entry
                .deps
                .iter()
                .any(|dep| state.nodes[dep.at()].status == Status::Planned);
        drop(state);
        rows.start(&self.events);
        let mut before = None;
        let result = if unknown {
            Ok(None)
        } else if self.cancel.cancelled() {
            Err(Failure::cancelled(self.name_at(index), "cancelled"))
        } else {
            self.keyed(index, &*step, &known).and_then(|keyed| {
                let cx = self.cx(index, keyed.key, self.keep_for(&*step), false);
                let result = self.guarded(index, || step.execute(&cx, &keyed));
                if matches!(result, Ok(None)) {
                    before = inputs_before(&cx);
                }
                result
            })
        };
        let mut state = self.state();
        state.nodes[index].before = before;
        self.end(&mut state, index, result);
    }

    fn keep_for(&self, step: &dyn Step) -> Keep {
        let stored = step.sort() == Sort::Stage && self.cache == CacheMode::Auto;
        if stored { Keep::Stored } else { Keep::Scratch }
    }

    /// Makes a node's key and remembers it.
    fn keyed(
        &self,
        index: usize,
        step: &dyn Step,
        known: &BTreeMap<NodeId, Option<Identity>>,
    ) -> Result<Keyed, Failure> {
        let names = |id: NodeId| self.name_of(id).to_string();
        let declare = || {
            KeyWriter::key(
                step.sort(),
                step.name(),
                step.version(),
                known,
                &names,
                |k| step.inputs(k),
            )
        };
        let keyed = self.guarded(index, || {
            declare().map_err(|wrong| {
                Failure::new(
                    self.name_at(index),
                    FailureKind::Internal,
                    "declared inputs",
                    Some(wrong.into()),
                )
            })
        })?;
        let mut state = self.state();
        state.nodes[index].key = Some(keyed.key);
        state.nodes[index].inputs.clone_from(&keyed.manifest);
        Ok(keyed)
    }

    /// Runs a step's code; a panic in it becomes a failure of its node.
    fn guarded<T>(
        &self,
        index: usize,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Failure::new(
                self.name_at(index),
                FailureKind::Internal,
                "panic",
                Some(text.into()),
            ))
        })
    }

    fn cx(self: &Arc<Self>, index: usize, key: Key, keep: Keep, again: bool) -> Cx {
        let state = self.state();
        let entry = &state.nodes[index];
        Cx {
            shared: Arc::clone(self),
            id: entry.id.clone(),
            deps: entry.deps.clone(),
            rows: entry.rows.clone(),
            key,
            keep,
            again,
        }
    }

    /// A node ended. `Ok(None)` is a plan's "would have to be done".
    fn end(
        self: &Arc<Self>,
        state: &mut State,
        index: usize,
        result: Result<Option<Done>, Failure>,
    ) {
        let entry = &mut state.nodes[index];
        let status = match result {
            Ok(Some(done)) => {
                (entry.identity, entry.value, entry.before) =
                    (done.identity, done.value, done.before);
                Status::Done(done.outcome)
            }
            Ok(None) => Status::Planned,
            Err(failure) => {
                let gave_up = failure.kind == FailureKind::Cancelled && self.cancel.cancelled();
                entry.failure = Some(failure.clone());
                state.failure.get_or_insert(failure);
                Status::Done(if gave_up {
                    Outcome::Skipped
                } else {
                    Outcome::Failed
                })
            }
        };
        let entry = &mut state.nodes[index];
        entry.status = status;
        entry.rows.end(status.outcome(), entry.key, &self.events);
        state.unfinished -= 1;
        if state.failure.is_some() {
            self.skip_rest(state);
        } else {
            for dependent in std::mem::take(&mut state.nodes[index].dependents) {
                state.nodes[dependent].missing -= 1;
                if state.nodes[dependent].missing == 0 {
                    self.dispatch(state, dependent, Turn::Next);
                }
            }
        }
        self.sched.done.notify_all();
    }

    /// Nothing more starts.
    fn skip_rest(&self, state: &mut State) {
        self.cancel.cancel();
        state.ready.clear();
        for index in 0..state.nodes.len() {
            if matches!(state.nodes[index].status, Status::Waiting | Status::Ready) {
                self.skip(state, index);
            }
        }
        self.sched.done.notify_all();
    }

    fn skip(&self, state: &mut State, index: usize) {
        let entry = &mut state.nodes[index];
        entry.status = Status::Done(Outcome::Skipped);
        entry.rows.end(Outcome::Skipped, entry.key, &self.events);
        state.unfinished -= 1;
    }

    /// Fails the run as a whole.
    pub(crate) fn fail_run(&self, failure: Failure) {
        let mut state = self.state();
        state.failure.get_or_insert(failure);
        self.skip_rest(&mut state);
    }

    /// The run's first failure. A run that was cancelled by its token fails too.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.state().failure.clone()
    }

    pub(crate) fn all_done(&self) -> bool {
        self.state().unfinished == 0
    }

    pub(crate) fn wait_all(&self) {
        let mut state = self.state();
        while state.unfinished > 0 {
            state = self.wait_changed(state);
        }
    }

    /// Waits for a node.
    pub(crate) fn wait_done(&self, id: NodeId) -> Result<Option<Identity>, Failure> {
        let index = self.own(id);
        let mut state = self.state();
        while !state.nodes[index].status.is_over() {
            state = self.wait_changed(state);
        }
        let entry = &state.nodes[index];
        match entry.status {
            Status::Done(Outcome::Ran | Outcome::Hit) => Ok(entry.identity.clone()),
            Status::Planned => Err(Failure::cancelled(entry.id.clone(), "a plan makes nothing")),
            _ => {
                let why = entry.failure.clone().or_else(|| state.failure.clone());
                Err(why.unwrap_or_else(|| Failure::cancelled(entry.id.clone(), "cancelled")))
            }
        }
    }

    pub(crate) fn name_of(&self, id: NodeId) -> Arc<str> {
        self.name_at(self.own(id))
    }

    fn name_at(&self, index: usize) -> Arc<str> {
        self.state().nodes[index].id.clone()
    }

    /// Ends the workers. Every node must be over.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        let threads = std::mem::take(&mut state.workers);
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        self.sched.work.notify_all();
        for thread in threads.into_iter().chain(waiters) {
            // Steps' panics were caught; nothing else in a worker panics.
            let _ = thread.join();
        }
    }

    pub(crate) fn receipt_rows(&self) -> Vec<Row> {
        let state = self.state();
        let deps = |entry: &Entry| {
            entry
                .deps
                .iter()
                .map(|d| state.nodes[d.at()].rows.last_id().to_owned())
                .collect()
        };
        let rows = |entry: &Entry| {
            entry
                .rows
                .rows(entry.status.outcome(), entry.key, deps(entry))
        };
        state.nodes.iter().flat_map(rows).collect()
    }

    pub(crate) fn explained(&self) -> Vec<Explained> {
        let state = self.state();
        let explain = |entry: &Entry| Explained {
            id: entry.id.to_string(),
            rows: entry.rows.ids(),
            step: entry.step.name(),
            outcome: entry.status.outcome(),
            key: entry.key,
            inputs: entry.inputs.clone(),
            sort: entry.step.sort(),
            deps: entry
                .deps
                .iter()
                .map(|dep| state.nodes[dep.at()].id.to_string())
                .collect(),
            changed: entry.before.as_ref().map(|before| {
                let mut changes = entry.inputs.changes_since(before);
                changes.extend(entry.rows.noticed());
                changes
            }),
        };
        state.nodes.iter().map(explain).collect()
    }
}

/// Starts a thread of the engine. Node ids come from specs: a NUL in a thread's name would be a panic.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let name = format!("fc-{}", name.replace('\0', "?"));
    std::thread::Builder::new().name(name).spawn(work)
}
