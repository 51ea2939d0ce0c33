//! A parallel walk: what it costs to look at every file of a tree, and nothing else.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::Result;

/// Directories that wait, and how many are being read.
struct Queue {
    paths: Vec<CString>,
    busy: usize,
}

/// Threads for every measured program of ours.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get())
}

/// Calls `visit` with a per-thread state, a directory, and each name in it that is not a directory.
/// Gives back the states.
pub(crate) fn each<S: Send>(
    root: &Path,
    threads: usize,
    state: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, &OwnedFd, &std::ffi::CStr, FileType) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let root = rustix::fs::open(
        root,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let queue = Mutex::new(Queue {
        paths: vec![CString::from(c".")],
        busy: 0,
    });
    let more = Condvar::new();
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let work = &|| -> Result<S> {
        let mut state = state();
        loop {
            let path = {
                let mut queue = lock();
                loop {
                    if let Some(path) = queue.paths.pop() {
                        queue.busy += 1;
                        break path;
                    }
                    if queue.busy == 0 {
                        return Ok(state);
                    }
                    queue = more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let done = directory(&root, &path, &mut state, &visit);
            let mut queue = lock();
            queue.busy -= 1;
            let failed = done.is_err();
            if let Ok(found) = done.as_ref() {
                queue.paths.extend_from_slice(found);
            }
            drop(queue);
            more.notify_all();
            if failed {
                return done.map(|_| state);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "a thread panicked")?)
            .collect()
    })
}

fn directory<S>(
    root: &OwnedFd,
    path: &CString,
    state: &mut S,
    visit: &impl Fn(&mut S, &OwnedFd, &std::ffi::CStr, FileType) -> Result<()>,
) -> Result<Vec<CString>> {
    let dir = rustix::fs::openat(
        root,
        path.as_c_str(),
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut found = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        match entry.file_type() {
            FileType::Directory if name == c"." || name == c".." => {}
            FileType::Directory => {
                let mut child = path.as_bytes().to_vec();
                child.push(b'/');
                child.extend_from_slice(name.to_bytes());
                found.push(CString::new(child)?);
            }
            kind => visit(state, &dir, name, kind)?,
        }
    }
    Ok(found)
}

/// Stats every name; gives their number.
pub(crate) fn stat(root: &Path) -> Result<u64> {
    let counts = each(
        root,
        threads(),
        || 0u64,
        |count, dir, name, _| {
            rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
            *count += 1;
            Ok(())
        },
    )?;
    Ok(counts.iter().sum())
}
