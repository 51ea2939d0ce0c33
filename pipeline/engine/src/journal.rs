//! The journal of one launch: what was made on the host, written down before it is made.
//!
//! JSON lines, one write(2) each. A line says that an effect is about to be made, or that it was undone. There is no
//! fsync: the journal must outlive the process, not the host, whose TAPs and processes end with it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fsutil;
use crate::launchdir::{JOURNAL, LaunchDir, LaunchDirError};
use crate::step::{Effect, UndoError};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Made(Made),
    Undone(u64),
}

/// An effect that was about to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) seq: u64,
    pub(crate) node: String,
    pub(crate) effect: String,
    pub(crate) entry: serde_json::Value,
}

type Undo = fn(&serde_json::Value) -> Result<(), UndoError>;

/// Every effect that this program can undo, by name.
#[derive(Debug, Clone, Default)]
pub struct UndoTable(BTreeMap<&'static str, Undo>);

impl UndoTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one effect more.
    #[must_use]
    pub fn with<E: Effect>(mut self) -> Self {
        self.0.insert(E::NAME, undo_entry::<E>);
        self
    }
}

/// An effect's undo, given the entry as it stands in the journal.
pub(crate) fn undo_entry<E: Effect>(entry: &serde_json::Value) -> Result<(), UndoError> {
    let entry = E::Entry::deserialize(entry)?;
    // A panic here must not keep what was made before it from being undone.
    catch_unwind(AssertUnwindSafe(|| E::undo(&entry)))
        .unwrap_or_else(|_| Err("the undo panicked".into()))
}

/// The open journal of a launch that is alive.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<Open>);

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    next: u64,
}

impl Journal {
    /// Opens a launch's journal, behind the last whole line in it.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let bytes = std::fs::read(&path)?;
        let len = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at as u64 + 1);
        file.set_len(len)?;
        Ok(Self(Mutex::new(Open { file, len, next: 0 })))
    }

    /// Writes down that an effect is about to be made, and gives its number.
    pub(crate) fn made(
        &self,
        node: &str,
        effect: &str,
        entry: serde_json::Value,
    ) -> io::Result<Made> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = Made {
            seq: open.next,
            node: node.to_owned(),
            effect: effect.to_owned(),
            entry,
        };
        open.append(&Line::Made(made.clone()))?;
        open.next += 1;
        Ok(made)
    }

    /// Writes down that an effect was undone.
    pub(crate) fn undone(&self, seq: u64) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&Line::Undone(seq))
    }
}

impl Open {
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        match self.file.write(&bytes) {
            Ok(written) if written == bytes.len() => {
                self.len += written as u64;
                Ok(())
            }
            // A full disk can take part of a line: away with it, or the next line would be lost too.
            result => {
                self.file.set_len(self.len)?;
                Err(result.err().unwrap_or_else(|| {
                    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
                }))
            }
        }
    }
}

/// What stands in a journal.
struct Read {
    /// Made and not undone, in the order of making.
    open: Vec<Made>,
    /// Whole lines that can't be understood.
    strange: Vec<String>,
}

/// Whether a launch's journal names anything that was not undone, or can't be read.
pub(crate) fn has_open_entries(dir: &Path) -> bool {
    read(&dir.join(JOURNAL)).map_or(true, |read| {
        !read.open.is_empty() || !read.strange.is_empty()
    })
}

fn read(path: &Path) -> io::Result<Read> {
    let bytes = match fsutil::read_file(path, u64::MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes?,
    };
    let mut read = Read {
        open: Vec::new(),
        strange: Vec::new(),
    };
    // A line without its end was being written when its writer died; what it announces was not begun.
    for line in bytes
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.ends_with(b"\n"))
    {
        match serde_json::from_slice(line) {
            Ok(Line::Made(made)) => read.open.push(made),
            Ok(Line::Undone(seq)) => read.open.retain(|made| made.seq != seq),
            Err(_) => read
                .strange
                .push(line.trim_ascii().escape_ascii().to_string()),
        }
    }
    Ok(read)
}

/// Something that was not undone. It stays in the journal, and the next `recover` tries again.
#[derive(Debug)]
pub struct NotUndone {
    /// The launch.
    pub launch: String,
    /// The node that made it, as receipts call it.
    pub node: String,
    /// The effect's name.
    pub effect: String,
    /// Why not.
    pub why: UndoError,
}

/// In one line, with why.
impl std::fmt::Display for NotUndone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "launch {}: ", self.launch)?;
        if !self.effect.is_empty() {
            write!(f, "{} ", self.effect)?;
        }
        let why = crate::failure::chain(&*self.why);
        write!(
            f,
            "could not be undone: {why} (the next command tries again)"
        )
    }
}

/// What `recover` did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Dead launches of which nothing is left on the host.
    pub launches: Vec<String>,
    /// How many effects were undone.
    pub undone: usize,
    /// What is left.
    pub left: Vec<NotUndone>,
}

/// Undoes what dead launches left, the last thing first, and removes their directories.
///
/// Any number of processes may do this at the same time: each dead launch is taken by one of them. Launches that
/// are alive are not touched. An effect that `table` doesn't know, or whose undo fails, is reported and kept.
/// Trouble with one launch does not keep the others from being recovered.
pub fn recover(state_root: &Path, table: &UndoTable) -> Result<Recovered, LaunchDirError> {
    recover_but(state_root, table, &|_| (), &|_| false)
}

/// The same, but directories of which `keep` says so stay, with everything undone: of launches whose end somebody
/// still wants to see. `keep` is asked about each dead launch, at every call. `taken` is told of all of them first: to undo them
/// takes a while, in which they are locked and look alive.
pub fn recover_but(
    state_root: &Path,
    table: &UndoTable,
    taken: &dyn Fn(&Path),
    keep: &dyn Fn(&Path) -> bool,
) -> Result<Recovered, LaunchDirError> {
    let mut recovered = Recovered::default();
    let (dead, trouble) = LaunchDir::take_dead(state_root)?;
    let unreadable = |launch: String, why: LaunchDirError| NotUndone {
        launch,
        node: String::new(),
        effect: String::new(),
        why: why.into(),
    };
    recovered
        .left
        .extend(trouble.into_iter().map(|(id, why)| unreadable(id, why)));
    dead.iter().for_each(|dir| taken(dir.path()));
    for dir in dead {
        let id = dir.id().to_owned();
        if let Err(why) = recover_one(dir, table, keep, &mut recovered) {
            recovered.left.push(unreadable(id, why));
        }
    }
    Ok(recovered)
}

fn recover_one(
    dir: LaunchDir,
    table: &UndoTable,
    keep: &dyn Fn(&Path) -> bool,
    recovered: &mut Recovered,
) -> Result<(), LaunchDirError> {
    let path = dir.path().join(JOURNAL);
    let io_error = |source| LaunchDirError::Io {
        path: path.clone(),
        source,
    };
    let id = dir.id().to_owned();
    let left_before = recovered.left.len();
    let not_undone = |node: &str, effect: &str, why: UndoError| NotUndone {
        launch: id.clone(),
        node: node.to_owned(),
        effect: effect.to_owned(),
        why,
    };
    let read = read(&path).map_err(io_error)?;
    for line in &read.strange {
        recovered.left.push(not_undone(
            "",
            "",
            // Nobody can know what it stands for, but perhaps a person.
            format!(
                "not a line of a journal: {line}: look at it, and remove {}",
                dir.path().display()
            )
            .into(),
        ));
    }
    if !read.open.is_empty() {
        let journal = Journal::open(dir.path()).map_err(io_error)?;
        for made in read.open.iter().rev() {
            let result = match table.0.get(made.effect.as_str()) {
                Some(undo) => undo(&made.entry),
                None => Err("this program doesn't know the effect".into()),
            };
            match result {
                Ok(()) => {
                    recovered.undone += 1;
                    // If this can't be written, the effect is undone once more some day: that does no harm.
                    let _ = journal.undone(made.seq);
                }
                Err(why) => recovered
                    .left
                    .push(not_undone(&made.node, &made.effect, why)),
            }
        }
    }
    if recovered.left.len() == left_before {
        if !keep(dir.path()) {
            dir.remove()?;
            recovered.launches.push(id);
        } else if !read.open.is_empty() {
            recovered.launches.push(id);
        }
    }
    Ok(())
}
