//! Listing a directory tree from several threads.
//!
//! A thread works on its own stack of waiting directories, newest first, and gives the older half away
//! when another thread has nothing to do. A very large directory is cut into batches of names, so that
//! it is shared as well. `worker` says what is done with one directory.

mod worker;

use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::exclude::Exclude;
use super::route::Route;
use super::settle::Clock;
use super::xattrs::Set;
use super::{Difference, Request, ScanChange, ScanError};
use crate::index::{Block, Index, Row, Seen, flag};
use crate::model::DataRun;
use crate::sys;

use worker::Worker;

/// Everything that was found, not yet in any order.
pub(super) struct Walked {
    /// By directory number; the source is 0. `None` never outlives the walk.
    pub(super) dirs: Vec<Option<Outcome>>,
    /// By worker.
    pub(super) finds: Vec<Finds>,
    /// Something was met that another mount covers, and `rbind` was not asked for.
    pub(super) covered: bool,
    /// What is not as the index has it, in no order; not more than some.
    pub(super) changes: Vec<ScanChange>,
}

/// What one worker has read beside names: items refer to it by numbers.
pub(super) struct Finds {
    pub(super) sets: Vec<Set>,
    pub(super) holes: Vec<Vec<DataRun>>,
    /// Hashes of contents.
    pub(super) contents: Vec<[u8; 32]>,
}

/// How many changes one worker tells of.
const TELL: usize = 64;

/// What became of a directory that was listed in its parent.
pub(super) enum Outcome {
    Listed(Listing),
    /// All of it is as the index has it.
    Same {
        /// Its number in the index.
        dir: u32,
        /// Rows that are directories, and the numbers they have in this walk; `None`: those of the index.
        children: Option<Vec<Kept>>,
    },
    /// Gone before it was opened.
    Absent,
    /// fcpipe's own.
    Own,
    /// Another mount covers it.
    Covered,
}

pub(super) struct Listing {
    pub(super) facts: Facts,
    /// One, but for large directories.
    pub(super) parts: Vec<Part>,
    /// What the index has of it, and the directory's number there.
    pub(super) known: Option<(u32, Arc<Open>)>,
}

/// Some names of a directory, sorted, as one worker has looked at them.
pub(super) struct Part {
    pub(super) worker: usize,
    names: Box<[u8]>,
    targets: Box<[u8]>,
    pub(super) items: Vec<Item>,
    /// Rows of the index that hold still.
    pub(super) kept: Vec<Kept>,
}

/// A row of a directory's block, by its number; for a directory also its number in this walk.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) row: u32,
    pub(super) number: u32,
}

pub(super) struct Item {
    name: u32,
    name_len: u16,
    /// As the directory lists it.
    pub(super) listed: u64,
    pub(super) what: What,
}

pub(super) enum What {
    /// Its number.
    Directory(u32),
    /// Anything else.
    Leaf(Facts, Leaf),
    /// fcpipe's own.
    Own,
    /// A file that another mount covers.
    Covered,
}

/// What is known of any inode.
pub(super) struct Facts {
    pub(super) seen: Seen,
    /// The number of its set among the worker's.
    pub(super) xattrs: u32,
    pub(super) worker: u32,
    /// A later change will show in its times.
    pub(super) settled: bool,
}

pub(super) enum Leaf {
    /// The numbers of its hole map and of the hash of its content among the worker's.
    File {
        holes: Option<u32>,
        content: Option<u32>,
    },
    /// Where its target stands in the part's targets.
    Symlink {
        at: u32,
        len: u16,
    },
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Part {
    pub(super) fn name(&self, item: &Item) -> &[u8] {
        let at = item.name as usize;
        &self.names[at..at + usize::from(item.name_len)]
    }

    /// How many bytes of names and targets there are.
    pub(super) fn bytes(&self) -> usize {
        self.names.len() + self.targets.len()
    }

    /// A symlink's target.
    pub(super) fn target(&self, at: u32, len: u16) -> &[u8] {
        &self.targets[at as usize..at as usize + usize::from(len)]
    }
}

impl Part {
    /// Rows of an index as if they had been looked at by `worker`, whose finds get their hole maps.
    pub(super) fn from_rows(
        block: &Block,
        kept: impl ExactSizeIterator<Item = Kept>,
        worker: usize,
        finds: &mut Finds,
    ) -> Part {
        let mut names = Vec::new();
        let mut targets = Vec::new();
        let mut items = Vec::with_capacity(kept.len());
        let rows = block.rows();
        for Kept { row, number } in kept {
            let row = &rows[row as usize];
            let name = block.name(row);
            items.push(Item {
                name: names.len() as u32,
                name_len: name.len() as u16,
                listed: row.listed.get(),
                what: if row.is(flag::DIRECTORY) {
                    What::Directory(number)
                } else {
                    What::from_row(block, row, worker, &mut targets, finds)
                },
            });
            names.extend_from_slice(name);
        }
        let mut part = Part {
            worker,
            names: names.into_boxed_slice(),
            targets: targets.into_boxed_slice(),
            items: Vec::new(),
            kept: Vec::new(),
        };
        items.sort_unstable_by(|a, b| part.name(a).cmp(part.name(b)));
        part.items = items;
        part
    }
}

impl What {
    fn from_row(
        block: &Block,
        row: &Row,
        worker: usize,
        targets: &mut Vec<u8>,
        finds: &mut Finds,
    ) -> What {
        use rustix::fs::FileType;
        let leaf = match FileType::from_raw_mode(row.seen.mode()) {
            FileType::Symlink => {
                let target = block.body(row);
                let at = targets.len() as u32;
                targets.extend_from_slice(target);
                Leaf::Symlink {
                    at,
                    len: target.len() as u16,
                }
            }
            FileType::CharacterDevice => Leaf::CharDevice,
            FileType::BlockDevice => Leaf::BlockDevice,
            FileType::Fifo => Leaf::Fifo,
            FileType::Socket => Leaf::Socket,
            _ => Leaf::File {
                holes: row.is(flag::SPARSE).then(|| {
                    finds.holes.push(block.runs(row));
                    (finds.holes.len() - 1) as u32
                }),
                content: block.content(row).map(|content| {
                    finds.contents.push(content);
                    (finds.contents.len() - 1) as u32
                }),
            },
        };
        let facts = Facts {
            seen: row.seen,
            xattrs: row.xattrs.get(),
            worker: worker as u32,
            settled: !row.is(flag::UNSETTLED),
        };
        What::Leaf(facts, leaf)
    }
}

/// A directory that is open, so that its names can be looked at.
pub(super) struct Open {
    fd: OwnedFd,
    number: u32,
    mount: u64,
    route: Arc<Route>,
    /// What the index has of it.
    pub(super) block: Option<Block>,
}

enum Job {
    /// A directory to open.
    Enter {
        number: u32,
        /// Its parent's number.
        parent: u32,
        /// Its number in the index.
        known: Option<u32>,
        route: Arc<Route>,
    },
    /// Names of a large directory to look at.
    Look { dir: Arc<Open>, names: Names },
}

/// Names as getdents gave them.
#[derive(Default)]
struct Names {
    /// Each with its NUL.
    bytes: Vec<u8>,
    list: Vec<Listed>,
}

struct Listed {
    ino: u64,
    at: u32,
    /// Without the NUL.
    len: u16,
    directory: Option<bool>,
}

/// What the workers of one walk share.
struct Shared<'a> {
    request: &'a Request<'a>,
    index: Option<&'a Index>,
    clock: Clock,
    exclude: Exclude,
    top: BorrowedFd<'a>,
    top_mount: u64,
    threads: usize,
    state: Mutex<State>,
    wake: Condvar,
    /// How many workers wait for a job that nobody has offered yet.
    hungry: AtomicUsize,
    stop: AtomicBool,
    next: AtomicU32,
    entries: AtomicU64,
    covered: AtomicBool,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    workers: usize,
    idle: usize,
    error: Option<ScanError>,
}

/// Walks the directory `top`, which is the source.
/// `index`: what the last scan has seen.
pub(super) fn directory(
    request: &Request<'_>,
    top: BorrowedFd<'_>,
    index: Option<&Index>,
) -> Result<Walked, ScanError> {
    let stat = sys::stat(top, c"")
        .map_err(|errno| ScanError::io(request.source.to_path_buf(), "look at it", errno))?;
    let shared = Shared {
        request,
        index,
        clock: Clock::new(request.started, request.manner.skew),
        exclude: Exclude::new(request.content)?,
        top,
        top_mount: sys::mount_of(&stat),
        threads: threads(request.options.threads),
        state: Mutex::default(),
        wake: Condvar::new(),
        hungry: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        next: AtomicU32::new(1),
        entries: AtomicU64::new(0),
        covered: AtomicBool::new(false),
    };
    shared.lock().workers = 1;

    let done = std::thread::scope(|scope| {
        let others = Mutex::new(Vec::new());
        // This thread works too. It calls the others when there is something to share, so that a
        // small source costs no thread at all.
        let call_others = || {
            for number in 1..shared.threads {
                shared.lock().workers += 1;
                let shared = &shared;
                let spawned = std::thread::Builder::new()
                    .name(format!("scan-{number}"))
                    .spawn_scoped(scope, move || Worker::new(shared, number, None).run());
                match spawned {
                    Ok(thread) => lock(&others).push(thread),
                    // Fewer threads are slower, not wrong.
                    Err(_) => {
                        shared.lock().workers -= 1;
                        break;
                    }
                }
            }
        };
        let mut first = Worker::new(&shared, 0, Some(&call_others));
        first.push(Job::Enter {
            number: 0,
            parent: 0,
            known: index.map(|_| 0),
            route: Route::root(),
        });
        let mut done = vec![first.run()];
        let others = std::mem::take(&mut *lock(&others));
        for thread in others {
            match thread.join() {
                Ok(worked) => done.push(worked),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    if let Some(error) = shared.lock().error.take() {
        return Err(error);
    }
    Ok(merge(
        done,
        shared.next.into_inner() as usize,
        shared.covered.into_inner(),
    ))
}

fn merge(done: Vec<worker::Worked>, dirs: usize, covered: bool) -> Walked {
    let mut walked = Walked {
        dirs: Vec::with_capacity(dirs),
        finds: Vec::with_capacity(done.len()),
        covered,
        changes: Vec::new(),
    };
    walked.dirs.resize_with(dirs, || None);
    let mut batches = Vec::new();
    for worked in done {
        for (number, outcome) in worked.outcomes {
            walked.dirs[number as usize] = Some(outcome);
        }
        batches.extend(worked.batches);
        walked.finds.push(worked.finds);
        walked.changes.extend(worked.changes);
    }
    for (number, part) in batches {
        if let Some(Outcome::Listed(listing)) = &mut walked.dirs[number as usize] {
            listing.parts.push(part);
        }
    }
    for outcome in walked.dirs.iter_mut().flatten() {
        if let Outcome::Listed(listing) = outcome {
            match listing.same() {
                Some(same) => *outcome = same,
                None => listing.gone(&mut walked.changes),
            }
        }
    }
    walked
}

/// What a walk finds where everything is as the index has it.
pub(super) fn remembered(index: &Index) -> Walked {
    let same = |dir| {
        Some(Outcome::Same {
            dir,
            children: None,
        })
    };
    Walked {
        dirs: (0..index.dirs() as u32).map(same).collect(),
        finds: Vec::new(),
        covered: false,
        changes: Vec::new(),
    }
}

impl Walked {
    /// Whether everything is as the index has it.
    pub(super) fn is_same(&self) -> bool {
        self.dirs
            .iter()
            .all(|outcome| matches!(outcome, Some(Outcome::Same { .. })))
    }
}

impl Listing {
    /// What it is if all of it is as the index has it.
    fn same(&self) -> Option<Outcome> {
        let (dir, open) = self.known.as_ref()?;
        let block = open.block.as_ref()?;
        let head = block.head();
        let kept: usize = self.parts.iter().map(|part| part.kept.len()).sum();
        let same = head.seen == self.facts.seen
            && head.flags.get() & flag::UNSETTLED == 0
            && kept == block.rows().len()
            && self.parts.iter().all(|part| part.items.is_empty());
        same.then(|| {
            let all = self.parts.iter().flat_map(|part| &part.kept).copied();
            let rows = block.rows();
            let children = all.filter(|kept| rows[kept.row as usize].is(flag::DIRECTORY));
            Outcome::Same {
                dir: *dir,
                children: Some(children.collect()),
            }
        })
    }

    /// Tells of names that the index has and the directory has not.
    fn gone(&self, changes: &mut Vec<ScanChange>) {
        let Some((_, open)) = &self.known else { return };
        let Some(block) = &open.block else { return };
        let mut there = vec![false; block.rows().len()];
        for part in &self.parts {
            for kept in &part.kept {
                there[kept.row as usize] = true;
            }
            for item in &part.items {
                if let Some(row) = block.find(&mut 0, item.listed, part.name(item)) {
                    there[row] = true;
                }
            }
        }
        let names = |name: &[u8]| {
            self.parts.iter().any(|part| {
                let known = part
                    .items
                    .binary_search_by(|item| part.name(item).cmp(name));
                known.is_ok()
            })
        };
        for (row, _) in block.rows().iter().zip(there).filter(|(_, there)| !there) {
            let name = block.name(row);
            if changes.len() < TELL && !names(name) {
                changes.push(ScanChange {
                    path: open.route.path(Path::new(""), name),
                    what: Difference::Gone,
                });
            }
        }
    }
}

/// Each worker may have four descriptors open; half of what is allowed is left to others.
fn threads(wanted: Option<NonZeroUsize>) -> usize {
    let wanted = wanted
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    wanted
        .min(usize::try_from(allowed / 8).unwrap_or(usize::MAX))
        .max(1)
}

/// A worker that panicked ends the walk anyhow, when it is joined.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for a job; `None` when all is done or the walk was stopped.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(job) = state.jobs.pop() {
                return Some(job);
            }
            if state.idle + 1 >= state.workers {
                // The last one awake, and nothing waits: nobody can make new jobs.
                self.stop.store(true, Ordering::Relaxed);
                self.wake.notify_all();
                return None;
            }
            state.idle += 1;
            self.hungry.fetch_add(1, Ordering::Relaxed);
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Whether somebody waits who was not given anything yet.
    fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed) > 0
    }

    fn give(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut state = self.lock();
        state.jobs.extend(jobs);
        // Whoever still waits after this says so again.
        self.hungry.store(0, Ordering::Relaxed);
        drop(state);
        self.wake.notify_all();
    }

    fn fail(&self, error: ScanError) {
        self.lock().error.get_or_insert(error);
        self.stop();
    }

    fn stop(&self) {
        // Under the lock, so that nobody goes to sleep between asking and the call.
        let state = self.lock();
        self.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.wake.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts entries, tells of them, and asks whether to go on.
    fn count(&self, entries: u64) -> Result<(), ScanError> {
        const OFTEN: u64 = 1000;
        let before = self.entries.fetch_add(entries, Ordering::Relaxed);
        let after = before + entries;
        if after > crate::model::writer::MOST as u64 {
            return Err(ScanError::TooMany {
                path: self.request.source.to_path_buf(),
            });
        }
        let options = self.request.options;
        if options.cancel.is_some_and(|cancelled| cancelled()) {
            return Err(ScanError::Cancelled);
        }
        if let Some(progress) = options.progress
            && before / OFTEN != after / OFTEN
        {
            progress(after);
        }
        Ok(())
    }
}
