//! What one thread of a walk does.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, RawDir, Statx};
use rustix::io::Errno;

use super::{
    Facts, Finds, Item, Job, Kept, Listed, Listing, Names, Open, Outcome, Part, Shared, TELL, What,
};
use crate::index::{Seen, flag};
use crate::model::DataRun;
use crate::scan::route::Route;
use crate::scan::xattrs::{Sets, Unreadable};
use crate::scan::{Difference, ScanChange, ScanError};
use crate::sys;

/// How many names of one directory are looked at in one go.
const BATCH: usize = 2048;
/// Bytes given to getdents: some hundred names a call.
const DENTS: usize = 32 * 1024;

pub(super) struct Worker<'a> {
    pub(super) shared: &'a Shared<'a>,
    number: usize,
    call_others: Option<&'a dyn Fn()>,
    jobs: Vec<Job>,
    /// The directory whose subdirectories were pushed last: they are opened relative to it.
    anchor: Option<Arc<Open>>,
    sets: Sets,
    pub(super) holes: Vec<Vec<DataRun>>,
    pub(super) contents: Vec<[u8; 32]>,
    pub(super) buffer: Vec<u8>,
    outcomes: Vec<(u32, Outcome)>,
    batches: Vec<(u32, Part)>,
    changes: Vec<ScanChange>,
    dents: Vec<MaybeUninit<u8>>,
}

/// What a worker leaves behind, with the numbers of the directories.
pub(super) struct Worked {
    pub(super) outcomes: Vec<(u32, Outcome)>,
    pub(super) batches: Vec<(u32, Part)>,
    pub(super) finds: Finds,
    pub(super) changes: Vec<ScanChange>,
}

/// What became of a name.
enum Found {
    /// It is gone or excluded.
    Nothing,
    /// It is as the index has it.
    Kept(Kept),
    Read(What),
}

impl Found {
    fn kept(row: Option<usize>, number: u32) -> Found {
        row.map_or(Found::Nothing, |row| {
            Found::Kept(Kept {
                row: row as u32,
                number,
            })
        })
    }
}

/// Else the others would wait for a job from a worker that is no more.
struct StopOnPanic<'a>(&'a Shared<'a>);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

impl<'a> Worker<'a> {
    /// `call_others` starts the other workers, when there is work for them.
    pub(super) fn new(
        shared: &'a Shared<'a>,
        number: usize,
        call_others: Option<&'a dyn Fn()>,
    ) -> Self {
        Worker {
            shared,
            number,
            call_others,
            jobs: Vec::new(),
            anchor: None,
            sets: Sets::new(),
            holes: Vec::new(),
            contents: Vec::new(),
            buffer: Vec::new(),
            outcomes: Vec::new(),
            batches: Vec::new(),
            changes: Vec::new(),
            dents: vec![MaybeUninit::uninit(); DENTS],
        }
    }

    pub(super) fn push(&mut self, job: Job) {
        self.jobs.push(job);
    }

    pub(super) fn run(mut self) -> Worked {
        let _guard = StopOnPanic(self.shared);
        while let Some(job) = self.next() {
            if let Err(error) = self.do_job(job) {
                self.shared.fail(error);
                break;
            }
            if self.jobs.len() > 1 {
                self.call_others();
                if self.shared.is_hungry() {
                    // The oldest are nearest to the source: they have the most below them.
                    let half = self.jobs.len() / 2;
                    self.shared.give(self.jobs.drain(..half));
                }
            }
        }
        Worked {
            outcomes: self.outcomes,
            batches: self.batches,
            finds: Finds {
                sets: self.sets.sets,
                holes: self.holes,
                contents: self.contents,
            },
            changes: self.changes,
        }
    }

    /// Its own newest job, or one that somebody gave; `None` at the end.
    fn next(&mut self) -> Option<Job> {
        if self.shared.stopped() {
            return None;
        }
        self.jobs.pop().or_else(|| self.shared.take())
    }

    fn call_others(&mut self) {
        if let Some(call) = self.call_others.take() {
            call();
        }
    }

    fn do_job(&mut self, job: Job) -> Result<(), ScanError> {
        match job {
            Job::Look { dir, names } => {
                let part = self.look(&dir, names)?;
                self.batches.push((dir.number, part));
            }
            Job::Enter {
                number,
                parent,
                known,
                route,
            } => {
                let outcome = self.enter(number, parent, known, route)?;
                self.outcomes.push((number, outcome));
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        number: u32,
        parent: u32,
        known: Option<u32>,
        route: Arc<Route>,
    ) -> Result<Outcome, ScanError> {
        let cross = self.shared.request.options.cross_mounts;
        let fd = match self.open(number, parent, &route) {
            Ok(fd) => fd,
            Err(Errno::NOENT) if number != 0 => return Ok(Outcome::Absent),
            Err(Errno::XDEV) if !cross => {
                self.shared.covered.store(true, Ordering::Relaxed);
                return Ok(Outcome::Covered);
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(self.changed(&route, b""));
            }
            Err(errno) => return Err(self.io(&route, b"", "open the directory", errno)),
        };
        let (stat, settled) = self
            .shared
            .clock
            .stat(fd.as_fd(), c"")
            .map_err(|errno| self.io(&route, b"", "look at it", errno))?;
        let mount = sys::mount_of(&stat);
        if mount != self.shared.top_mount && !cross {
            self.shared.covered.store(true, Ordering::Relaxed);
            return Ok(Outcome::Covered);
        }
        if self.is_own(&stat) {
            return Ok(Outcome::Own);
        }
        let seen = Seen::new(&stat);
        let index = self.shared.index;
        let block = index.and_then(|index| index.block(known?));
        let head = block.as_ref().map(|block| block.head());
        let same = head.filter(|h| h.seen == seen && h.flags.get() & flag::UNSETTLED == 0);
        let facts = match same {
            Some(head) => Facts {
                seen,
                xattrs: self.known_set(head.xattrs.get()),
                worker: self.number as u32,
                settled: true,
            },
            None => {
                if let Some(head) = head {
                    let mut told = head.seen.differences(&seen);
                    // These change wherever names come and go, which is told of the names.
                    let implied = ["size", "mtime", "links", "blocks"];
                    told.retain(|field| !implied.contains(&field.name));
                    if !told.is_empty() && self.changes.len() < TELL {
                        self.changes.push(ScanChange {
                            path: route.path(Path::new(""), b""),
                            what: Difference::Changed(told),
                        });
                    }
                }
                let xattrs = self.sets.read(fd.as_fd(), c"", mount);
                Facts {
                    seen,
                    xattrs: xattrs.map_err(|e| self.attribute(&route, b"", e))?,
                    worker: self.number as u32,
                    settled,
                }
            }
        };
        let dir = Arc::new(Open {
            fd,
            number,
            mount,
            route,
            block,
        });
        let (parts, shared) = self.list(&dir)?;
        let mut listing = Listing {
            facts,
            parts,
            known: known.map(|known| (known, dir)),
        };
        if !shared && let Some(same) = listing.same() {
            return Ok(same);
        }
        if let Some((_, dir)) = &mut listing.known
            && dir.block.is_none()
        {
            listing.known = None;
        }
        Ok(Outcome::Listed(listing))
    }

    /// This worker's number for a set of the index.
    fn known_set(&mut self, number: u32) -> u32 {
        let set = self.shared.index.filter(|_| number != 0);
        match set.and_then(|index| index.sets.get(number as usize)) {
            Some(set) => self.sets.intern(set.clone()),
            None => 0,
        }
    }

    fn open(&self, number: u32, parent: u32, route: &Route) -> Result<OwnedFd, Errno> {
        let top = self.shared.top;
        if number == 0 {
            return sys::open_directory(top, c".");
        }
        if let Some(anchor) = &self.anchor
            && anchor.number == parent
        {
            return sys::open_directory(anchor.fd.as_fd(), route.name());
        }
        let names = route.names();
        let cross = self.shared.request.options.cross_mounts;
        match sys::open_below(top, &names, cross) {
            // Gone is the name, or a directory above it that was listed before: the latter would
            // leave a hole in what was seen.
            Err(Errno::NOENT) => match sys::open_below(top, &names[..names.len() - 1], cross) {
                Ok(_) => Err(Errno::NOENT),
                Err(Errno::NOENT) => Err(Errno::NOTDIR),
                Err(errno) => Err(errno),
            },
            other => other,
        }
    }

    /// Looks at all names of a directory; also whether others were given some of them.
    fn list(&mut self, dir: &Arc<Open>) -> Result<(Vec<Part>, bool), ScanError> {
        let mut parts = Vec::new();
        let mut shared = false;
        let mut names = Names::default();
        let mut dents = std::mem::take(&mut self.dents);
        let mut raw = RawDir::new(dir.fd.as_fd(), &mut dents);
        while let Some(entry) = raw.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                // The directory itself was removed: it has no names any more.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(self.io(&dir.route, b"", "list the directory", errno)),
            };
            let name = entry.file_name().to_bytes_with_nul();
            if name == b".\0" || name == b"..\0" {
                continue;
            }
            names.list.push(Listed {
                ino: entry.ino(),
                at: names.bytes.len() as u32,
                len: (name.len() - 1) as u16,
                directory: match entry.file_type() {
                    FileType::Unknown => None,
                    kind => Some(kind == FileType::Directory),
                },
            });
            names.bytes.extend_from_slice(name);
            if names.list.len() == BATCH {
                let names = std::mem::take(&mut names);
                self.call_others();
                if self.shared.is_hungry() {
                    let dir = Arc::clone(dir);
                    self.shared.give([Job::Look { dir, names }]);
                    shared = true;
                } else {
                    parts.push(self.look(dir, names)?);
                }
            }
        }
        self.dents = dents;
        parts.push(self.look(dir, names)?);
        Ok((parts, shared))
    }

    /// Looks at names of an open directory.
    fn look(&mut self, dir: &Arc<Open>, names: Names) -> Result<Part, ScanError> {
        let Names { bytes, mut list } = names;
        self.shared.count(list.len() as u64)?;
        // In the order of inodes a disk that is not cached is read once, from front to back.
        list.sort_unstable_by_key(|listed| listed.ino);
        let mut kept = Vec::new();
        let mut items = Vec::new();
        match &dir.block {
            Some(_) => kept.reserve_exact(list.len()),
            None => items.reserve_exact(list.len()),
        }
        let mut targets = Vec::new();
        let waiting = self.jobs.len();
        let mut hint = dir.block.as_ref().map_or(0, |block| {
            let first = list.first().map_or(0, |listed| listed.ino);
            block.rows().partition_point(|row| row.listed.get() < first)
        });
        for listed in &list {
            let at = listed.at as usize;
            let end = at + usize::from(listed.len);
            // getdents gives names that end in their only NUL.
            let Ok(name) = CStr::from_bytes_with_nul(&bytes[at..=end]) else {
                continue;
            };
            let row = dir
                .block
                .as_ref()
                .and_then(|block| block.find(&mut hint, listed.ino, name.to_bytes()));
            match self.look_at(dir, name, listed.directory, row, &mut targets)? {
                Found::Nothing => {}
                Found::Kept(row) => kept.push(row),
                Found::Read(what) => items.push(Item {
                    name: listed.at,
                    name_len: listed.len,
                    listed: listed.ino,
                    what,
                }),
            }
        }
        if self.jobs.len() > waiting {
            self.anchor = Some(Arc::clone(dir));
        }
        let names = if items.is_empty() { Vec::new() } else { bytes };
        let mut part = Part {
            worker: self.number,
            names: names.into_boxed_slice(),
            targets: targets.into_boxed_slice(),
            items: Vec::new(),
            kept,
        };
        items.sort_unstable_by(|a, b| part.name(a).cmp(part.name(b)));
        items.shrink_to_fit();
        part.items = items;
        Ok(part)
    }

    /// Looks at one name. `directory`: what the listing says, if it does. `row`: where the index has it.
    fn look_at(
        &mut self,
        dir: &Arc<Open>,
        name: &CStr,
        directory: Option<bool>,
        row: Option<usize>,
        targets: &mut Vec<u8>,
    ) -> Result<Found, ScanError> {
        let excludes = |directory| {
            self.shared
                .exclude
                .excludes(&dir.route, name.to_bytes(), directory)
        };
        let known = row.and_then(|row| dir.block.as_ref()?.rows().get(row));
        if directory == Some(true) {
            if let Some(known) = known
                && known.is(flag::DIRECTORY)
            {
                let number = self.found_directory(dir, name, Some(known.body_at.get()));
                return Ok(Found::kept(row, number));
            }
            if excludes(true) {
                return Ok(Found::Nothing);
            }
            self.differs(dir, name, || Difference::New);
            let number = self.found_directory(dir, name, None);
            return Ok(Found::Read(What::Directory(number)));
        }
        // A name that the index has was not excluded: the patterns are part of what it is known by.
        if known.is_none() && directory.is_some_and(excludes) {
            return Ok(Found::Nothing);
        }
        let mut stat = match sys::stat(dir.fd.as_fd(), name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(self.io(&dir.route, name.to_bytes(), "look at it", errno)),
        };
        let cross = self.shared.request.options.cross_mounts;
        if let Some(known) = known
            && known.seen == Seen::new(&stat)
            && !known.is(flag::UNSETTLED | flag::DIRECTORY)
            && self.shared.request.manner.fields.may_remember()
            && (cross || sys::mount_of(&stat) == dir.mount)
            && !self.is_own(&stat)
        {
            return Ok(Found::kept(row, 0));
        }
        let is_directory = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::Directory;
        match (directory, is_directory) {
            (Some(_), true) => return Err(self.changed(&dir.route, name.to_bytes())),
            (None, _) if excludes(is_directory) => return Ok(Found::Nothing),
            (None, true) => {
                let below = known.filter(|known| known.is(flag::DIRECTORY));
                let number = self.found_directory(dir, name, below.map(|row| row.body_at.get()));
                return Ok(match below {
                    Some(_) => Found::kept(row, number),
                    None => Found::Read(What::Directory(number)),
                });
            }
            _ if known.is_some() && excludes(false) => return Ok(Found::Nothing),
            _ => {}
        }
        if self.is_own(&stat) {
            return Ok(Found::Read(What::Own));
        }
        let mount = sys::mount_of(&stat);
        if mount != dir.mount && !cross {
            self.shared.covered.store(true, Ordering::Relaxed);
            return Ok(Found::Read(What::Covered));
        }
        let settled = match self.shared.clock.settle(dir.fd.as_fd(), name, &mut stat) {
            Ok(settled) => settled,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(self.io(&dir.route, name.to_bytes(), "look at it", errno)),
        };
        let Some(leaf) = self.leaf(dir, name, &stat, targets)? else {
            return Ok(Found::Nothing);
        };
        let xattrs = match self.sets.read(dir.fd.as_fd(), name, mount) {
            Ok(xattrs) => xattrs,
            Err(e) if e.errno == Errno::NOENT => return Ok(Found::Nothing),
            Err(e) => return Err(self.attribute(&dir.route, name.to_bytes(), e)),
        };
        let seen = Seen::new(&stat);
        match known {
            Some(known) if known.seen == seen => {}
            Some(known) => self.differs(dir, name, || {
                Difference::Changed(known.seen.differences(&seen))
            }),
            None => self.differs(dir, name, || Difference::New),
        }
        let facts = Facts {
            seen,
            xattrs,
            worker: self.number as u32,
            settled,
        };
        Ok(Found::Read(What::Leaf(facts, leaf)))
    }

    /// Notes that something is not as the index has it, if there is one.
    fn differs(&mut self, dir: &Open, name: &CStr, what: impl FnOnce() -> Difference) {
        if dir.block.is_some() && self.changes.len() < TELL {
            self.changes.push(ScanChange {
                path: dir.route.path(Path::new(""), name.to_bytes()),
                what: what(),
            });
        }
    }

    /// `known`: its number in the index. Gives its number in this walk.
    fn found_directory(&mut self, dir: &Open, name: &CStr, known: Option<u32>) -> u32 {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.jobs.push(Job::Enter {
            number,
            parent: dir.number,
            known,
            route: Route::below(&dir.route, name.to_owned()),
        });
        number
    }

    fn is_own(&self, stat: &Statx) -> bool {
        let own = &self.shared.request.own;
        !own.is_empty() && own.contains(&(sys::device(stat), stat.stx_ino))
    }

    pub(super) fn path(&self, route: &Route, name: &[u8]) -> PathBuf {
        route.path(self.shared.request.source, name)
    }

    pub(super) fn io(
        &self,
        route: &Route,
        name: &[u8],
        action: &'static str,
        errno: Errno,
    ) -> ScanError {
        ScanError::io(self.path(route, name), action, errno)
    }

    pub(super) fn changed(&self, route: &Route, name: &[u8]) -> ScanError {
        ScanError::Changed {
            path: self.path(route, name),
        }
    }

    fn attribute(&self, route: &Route, name: &[u8], unreadable: Unreadable) -> ScanError {
        unreadable.of(self.path(route, name))
    }
}
