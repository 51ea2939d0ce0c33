//! Listing a directory tree from several threads.
//!
//! A thread works on its own stack of waiting directories, newest first, and gives the older half away
//! when another thread has nothing to do. A very large directory is cut into batches of names, so that
//! it is shared as well. `worker` says what is done with one directory.

mod found;
mod leaf;
mod recall;
mod worker;

use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::exclude::Exclude;
use super::route::Route;
use super::settle::Clock;
use super::{Request, ScanError};
use crate::index::{Block, Index};
use crate::sys;

use worker::Worker;

pub(super) use recall::{SHARE, recall};

pub(super) use found::{
    Facts, Finds, Item, Kept, Leaf, Listing, Outcome, Part, Recalled, Walked, What, remembered,
};

/// How many changes one worker tells of.
const TELL: usize = 64;

/// A directory that is open, so that its names can be looked at.
pub(in crate::scan) struct Open {
    fd: OwnedFd,
    number: u32,
    mount: u64,
    route: Arc<Route>,
    /// What the index has of it.
    pub(in crate::scan) block: Option<Block>,
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

/// Each worker may have four descriptors open; half of what is allowed is left to others.
pub(super) fn threads(wanted: Option<NonZeroUsize>) -> usize {
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
