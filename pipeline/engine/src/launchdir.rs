//! A launch's directory in the state directory, and who owns it.
//!
//! `STATE/ID/lock` is held (flock) by the launch as long as it lives; a directory whose lock can be taken belongs to a
//! dead one. Making a directory and taking its lock are two steps, and so are removing the lock and the directory:
//! each pair happens under `STATE/.lock`, so that nobody ever judges a directory between the two.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::fsutil::{self, DirError};
use crate::journal::has_open_entries;

/// The file in the state directory that guards claiming and removing.
const ROOT_LOCK: &str = ".lock";
/// The file in a launch's directory that its owner holds.
const LOCK: &str = "lock";
/// What the lock says: a directory without these words is somebody else's, whoever named it as the state directory, and what is in it is not removed.
const WORDS: &[u8] = b"the directory of a launch of fcpipe\n";
/// The file in a launch's directory that effects are written to before they are made.
pub(crate) const JOURNAL: &str = "journal";

/// Longest id: a component of paths, and of socket paths.
const ID_MAX: usize = 128;

/// Why a launch can't have a directory.
#[derive(Debug, thiserror::Error)]
pub enum LaunchDirError {
    /// The id can't be one.
    #[error(
        "not an id: {id:?} (letters, digits, `_`, `+`, `-` and `.`, not first; {ID_MAX} at most)"
    )]
    BadId {
        /// The id.
        id: String,
    },
    /// Another launch has this id.
    #[error("id {id:?} is in use")]
    InUse {
        /// The id.
        id: String,
    },
    /// What is there under its name is no launch's.
    #[error("{} is there already, and is not a launch's: take another id, or another state directory", path.display())]
    Foreign {
        /// It.
        path: PathBuf,
    },
    /// Something in the journal was not undone.
    #[error("{} is kept: not everything in its journal was undone", path.display())]
    NotUndone {
        /// The launch's directory.
        path: PathBuf,
    },
    /// The state directory can't be used.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Something else went wrong with a file.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LaunchDirError {
    let path = path.to_owned();
    move |source| LaunchDirError::Io { path, source }
}

/// Launches that could not be judged, and why.
pub(crate) type Trouble = Vec<(String, LaunchDirError)>;

/// A claimed directory. Dropped, it lets go of the lock and leaves the directory to `recover`.
#[derive(Debug)]
pub struct LaunchDir {
    root: PathBuf,
    path: PathBuf,
    id: String,
    lock: File,
}

impl LaunchDir {
    /// Makes the directory of a new launch in the state directory `root` (made if missing, 0700).
    pub fn claim(root: &Path, id: &str) -> Result<Self, LaunchDirError> {
        if !is_id(id) {
            return Err(LaunchDirError::BadId { id: id.to_owned() });
        }
        let root = make_root(root)?;
        let path = root.join(id);
        let _guard = root_lock(&root)?;
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(match is_launch(&path)? {
                    true => LaunchDirError::InUse { id: id.to_owned() },
                    false => LaunchDirError::Foreign { path },
                });
            }
            Err(e) => return Err(io_error(&path)(e)),
        }
        let locked = take_lock(&path).and_then(|lock| {
            let held = io::ErrorKind::WouldBlock;
            let mut lock = lock.ok_or_else(|| io_error(&path)(held.into()))?;
            lock.write_all(WORDS).map_err(io_error(&path))?;
            Ok(lock)
        });
        match locked {
            Ok(lock) => Ok(Self {
                root,
                path,
                id: id.to_owned(),
                lock,
            }),
            Err(error) => {
                let _ = std::fs::remove_file(path.join(LOCK));
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// The launch's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock's descriptor. It is closed on exec; a child that inherits it keeps the launch alive in the eyes of `recover`.
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Removes the directory with everything in it, and frees the id. Refused while the journal names something that
    /// was not undone.
    pub fn remove(self) -> Result<(), LaunchDirError> {
        if has_open_entries(&self.path) {
            return Err(LaunchDirError::NotUndone {
                path: self.path.clone(),
            });
        }
        // The lock goes last: while anything is left, the directory is somebody's.
        for entry in std::fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let entry = entry.map_err(io_error(&self.path))?;
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let removed = if is_dir {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(&path)(e)),
                _ => {}
            }
        }
        let _guard = root_lock(&self.root)?;
        let lock = self.path.join(LOCK);
        std::fs::remove_file(&lock).map_err(io_error(&lock))?;
        std::fs::remove_dir(&self.path).map_err(io_error(&self.path))
    }

    /// The launches that have a directory in `root`, dead or alive, by name.
    pub fn list(root: &Path) -> Result<Vec<String>, LaunchDirError> {
        let Some(root) = open_root(root)? else {
            return Ok(Vec::new());
        };
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&root).map_err(io_error(&root))? {
            let entry = entry.map_err(io_error(&root))?;
            if entry.file_type().is_ok_and(|t| t.is_dir())
                && let Ok(id) = entry.file_name().into_string()
                && !id.starts_with('.')
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Whether a launch's owner lives. `None`: there is no such launch.
    pub fn is_alive(root: &Path, id: &str) -> Result<Option<bool>, LaunchDirError> {
        let (true, Some(root)) = (is_id(id), open_root(root)?) else {
            return Ok(None);
        };
        let dir = root.join(id);
        if !is_launch(&dir)? {
            return Ok(None);
        }
        let Some(dir_fd) = open_dir(&dir)? else {
            return Ok(None);
        };
        let path = dir.join(LOCK);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir_fd, LOCK, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(|e| io_error(&path)(e.into()))?,
        };
        // A shared lock, and only for a moment: others that look see no owner in it.
        let free = fsutil::try_flock(&file, FlockOperation::NonBlockingLockShared)
            .map_err(io_error(&path))?;
        Ok(Some(!free))
    }

    /// Takes over the directory of a launch whose owner is dead, waiting a moment for somebody who looks at it.
    /// `None`: its owner lives, or there is no such launch.
    pub fn take(root: &Path, id: &str, patience: Duration) -> Result<Option<Self>, LaunchDirError> {
        let (true, Some(root)) = (is_id(id), open_root(root)?) else {
            return Ok(None);
        };
        let path = root.join(id);
        let end = Instant::now() + patience;
        loop {
            let guard = root_lock(&root)?;
            if !is_launch(&path)? {
                return Ok(None);
            }
            if let Some(lock) = take_lock(&path)? {
                let id = id.to_owned();
                return Ok(Some(Self {
                    root,
                    path,
                    id,
                    lock,
                }));
            }
            drop(guard);
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes over every directory in `root` whose owner is dead. Also gives those that could not be judged.
    pub(crate) fn take_dead(root: &Path) -> Result<(Vec<Self>, Trouble), LaunchDirError> {
        let Some(root) = open_root(root)? else {
            return Ok(Default::default());
        };
        let entries = std::fs::read_dir(&root).map_err(io_error(&root))?;
        let _guard = root_lock(&root)?;
        let (mut dead, mut trouble) = (Vec::new(), Vec::new());
        for entry in entries {
            let entry = entry.map_err(io_error(&root))?;
            // What has no launch's name is none of ours.
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if id.starts_with('.') || !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let path = entry.path();
            let taken = match is_launch(&path) {
                Ok(true) => take_lock(&path),
                other => other.map(|_| None),
            };
            match taken {
                Ok(Some(lock)) => dead.push(Self {
                    root: root.clone(),
                    path,
                    id,
                    lock,
                }),
                Ok(None) => {}
                Err(e) => trouble.push((id, e)),
            }
        }
        Ok((dead, trouble))
    }
}

/// The state directory, absolute, and made where it is missing.
///
/// Journals say what to undo, records which hooks are to run, and both may say so to root: not in a directory where others could
/// put one.
fn make_root(root: &Path) -> Result<PathBuf, LaunchDirError> {
    fsutil::secure_path(root)?;
    let (root, _) = fsutil::own_dir(root)?;
    std::path::absolute(&root).map_err(io_error(&root))
}

/// The same; `None` where there is none.
fn open_root(root: &Path) -> Result<Option<PathBuf>, LaunchDirError> {
    match std::fs::symlink_metadata(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => make_root(root).map(Some),
    }
}

fn is_id(id: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.' | b'+');
    !id.is_empty() && id.len() <= ID_MAX && !id.starts_with('.') && id.bytes().all(fits)
}

/// Whether a directory is a launch's, and not something else that lies in what was named as the state directory. One that is empty, or has an empty
/// lock alone, is of a launch that was killed when it began; with an empty lock and a journal, of an earlier version.
fn is_launch(dir: &Path) -> Result<bool, LaunchDirError> {
    match says_so(dir) {
        // Gone meanwhile, or no directory.
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => {
            Ok(false)
        }
        says => says.map_err(io_error(dir)),
    }
}

fn says_so(dir: &Path) -> io::Result<bool> {
    let is_file = |path: &Path| match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        meta => meta.map(|meta| Some(meta.is_file())),
    };
    let entries = || std::fs::read_dir(dir).map(Iterator::count);
    match is_file(&dir.join(LOCK))? {
        None => Ok(entries()? == 0),
        Some(false) => Ok(false),
        Some(true) => {
            let words = fsutil::read_file(&dir.join(LOCK), WORDS.len() as u64 + 1)?;
            match words.is_empty() {
                true => Ok(is_file(&dir.join(JOURNAL))? == Some(true) || entries()? == 1),
                // A part of them: there was no room, or it was killed in the middle.
                false => Ok(WORDS.starts_with(&words)),
            }
        }
    }
}

/// Held while a launch's directory is made or removed. Never for long.
fn root_lock(root: &Path) -> Result<File, LaunchDirError> {
    let path = root.join(ROOT_LOCK);
    let file = fsutil::open_lock(CWD, &path).map_err(io_error(&path))?;
    fsutil::flock(&file, FlockOperation::LockExclusive).map_err(io_error(&path))?;
    Ok(file)
}

/// A launch's directory; `None` where there is none.
fn open_dir(path: &Path) -> Result<Option<OwnedFd>, DirError> {
    match fsutil::open_own_dir_at(CWD, path, path) {
        Err(DirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Takes a directory's own lock, making the file if it is missing. `None` if it is held, or the directory is gone.
fn take_lock(dir: &Path) -> Result<Option<File>, LaunchDirError> {
    let Some(dir_fd) = open_dir(dir)? else {
        return Ok(None);
    };
    let lock = || {
        let file = fsutil::open_lock(&dir_fd, LOCK)?;
        let free = fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(free.then_some(file))
    };
    lock().map_err(io_error(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_42_ids_that_can_not_be_names_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let long = "x".repeat(ID_MAX + 1);
        for id in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            ".hidden",
            "a b",
            "é",
            "a\n",
            long.as_str(),
        ] {
            let claimed = LaunchDir::claim(root.path(), id);
            assert!(
                matches!(claimed, Err(LaunchDirError::BadId { .. })),
                "{id:?}"
            );
        }
        let claimed = LaunchDir::claim(root.path(), "a-1.B_").unwrap();
        assert!(matches!(
            LaunchDir::claim(root.path(), "a-1.B_"),
            Err(LaunchDirError::InUse { .. })
        ));
        claimed.remove().unwrap();
        LaunchDir::claim(root.path(), "a-1.B_").unwrap();
    }

    #[test]
    fn only_dead_directories_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let alive = LaunchDir::claim(root.path(), "alive").unwrap();
        drop(LaunchDir::claim(root.path(), "dead").unwrap());
        // Killed between mkdir and the lock.
        std::fs::create_dir(root.path().join("young")).unwrap();
        let (mut taken, trouble) = LaunchDir::take_dead(root.path()).unwrap();
        assert!(trouble.is_empty());
        taken.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(
            taken.iter().map(LaunchDir::id).collect::<Vec<_>>(),
            ["dead", "young"]
        );
        assert!(
            LaunchDir::take_dead(root.path()).unwrap().0.is_empty(),
            "taken is taken"
        );
        drop(alive);
    }

    #[test]
    fn what_is_no_launch_s_is_left_alone_wherever_the_state_directory_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // Somebody's home, a package manager's directory, and a file that is called like a launch.
        let foreign = [
            "project/src/main.rs",
            "dpkg/status",
            "dpkg/lock",
            "file",
            "words/lock",
        ];
        for name in foreign {
            write(name, if name == "words/lock" { "mine" } else { "" });
        }
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        std::fs::create_dir_all(root.path().join("odd/lock")).unwrap();
        // Launches that were killed when they began, and one of an earlier version.
        write("begun/lock", "");
        write("half/lock", "the directory of a");
        write("old/lock", "");
        write("old/journal", "");
        std::fs::create_dir(root.path().join("young")).unwrap();
        let (mut taken, trouble) = LaunchDir::take_dead(root.path()).unwrap();
        assert!(trouble.is_empty(), "{trouble:?}");
        taken.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(
            taken.iter().map(LaunchDir::id).collect::<Vec<_>>(),
            ["begun", "half", "old", "young"]
        );
        for name in ["project", "dpkg", "file", "words", "link", "odd", "none"] {
            assert!(
                LaunchDir::is_alive(root.path(), name).unwrap().is_none(),
                "{name}"
            );
            let taken = LaunchDir::take(root.path(), name, Duration::ZERO).unwrap();
            assert!(taken.is_none(), "{name}");
        }
        for launch in taken {
            launch.remove().unwrap();
        }
        for name in foreign {
            assert!(root.path().join(name).exists(), "{name}");
        }
        for name in ["project", "dpkg", "file", "odd", "link"] {
            let claimed = LaunchDir::claim(root.path(), name);
            assert!(
                matches!(claimed, Err(LaunchDirError::Foreign { .. })),
                "{claimed:?}"
            );
        }
    }
}
