//! Taking things out of the store: what nobody can use any more, and what was used longest ago.
//!
//! The collector has the store alone (an exclusive flock) while it decides and removes names; no launch is between
//! finding a record and opening its objects then. What a running machine still uses carries a lock of its own. Files
//! are let go of, which for an image of gigabytes takes time, only after the store is free again.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;

use super::survey::{Entry, ObjectEntry, Usage, open_object, time};
use super::{Store, StoreError};
use crate::digest::Key;
use crate::fsutil;

/// What is to stay.
#[derive(Debug, Clone, Default)]
pub struct Collect {
    /// Remove what was used longest ago until no more than this is left: bytes of the disk.
    pub max_size: Option<u64>,
    /// Remove what was not used for as long as this.
    pub max_age: Option<Duration>,
    /// How long to wait for others to let go of the store.
    pub wait: Duration,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Records that were good and are gone, with their objects.
    pub records: u64,
    /// Records that were no hit any more.
    pub unusable: u64,
    /// Objects that no record named.
    pub orphans: u64,
    /// Notes.
    pub notes: u64,
    /// What scans remembered of a source.
    pub scans: u64,
    /// Locks and unfinished files of the dead.
    pub leftovers: u64,
    /// Bytes of the disk that were freed.
    pub freed: u64,
    /// Bytes of the disk that are still used.
    pub left: u64,
    /// Records that would have gone, but a machine uses their objects.
    pub in_use: u64,
}

/// Files without names; how many are held open at most until the store is free again.
const DOOMED: usize = 32;

impl Store {
    /// Removes what is of no use, then what was used longest ago. For a process that does nothing else with the store.
    ///
    /// Fails (`InUse`) if others still hold the store after `wait`.
    pub fn collect(&self, what: &Collect) -> Result<Collected, StoreError> {
        let now = SystemTime::now();
        self.alone(what.wait, |doomed| {
            let mut collector = Collector {
                store: self,
                doomed,
                gone: Collected::default(),
            };
            collector.garbage()?;
            collector.old(what, now)?;
            collector.empty_dirs()?;
            let mut gone = collector.gone;
            gone.left = self.survey()?.total().disk;
            Ok(gone)
        })
    }

    /// Does something while nobody else uses the store. What `work` puts into the list is closed when others may go on.
    pub(super) fn alone<R>(
        &self,
        wait: Duration,
        work: impl FnOnce(&mut Vec<File>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let path = self.root.join("lock");
        let io = |e| self.io(&path, e);
        let file = fsutil::open_lock(rustix::fs::CWD, &path).map_err(io)?;
        let deadline = Instant::now() + wait;
        self.release();
        let mut pause = Duration::from_millis(1);
        let free = loop {
            match fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(false) if Instant::now() < deadline => std::thread::sleep(pause),
                free => break free,
            }
            // Not a blocking flock: whoever waits in the kernel is passed by every new shared lock.
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let mut doomed = Vec::new();
        let result = match free {
            Ok(true) => work(&mut doomed),
            Ok(false) => Err(StoreError::InUse {
                path: self.root.clone(),
            }),
            Err(error) => Err(io(error)),
        };
        drop(file);
        drop(doomed);
        self.hold()?;
        result
    }
}

struct Collector<'a> {
    store: &'a Store,
    doomed: &'a mut Vec<File>,
    gone: Collected,
}

/// What can go by itself.
enum Item {
    Entry(Box<Entry>),
    Note(OsString, Usage),
    Scan(OsString, Usage),
}

impl Collector<'_> {
    /// What serves nobody, however young.
    fn garbage(&mut self) -> Result<(), StoreError> {
        for (dir, part) in [(&self.store.tmp, "tmp"), (&self.store.locks, "locks")] {
            let before = self.store.files(dir, part)?;
            self.store.remove_dead(dir, part)?;
            let after = self.store.files(dir, part)?;
            let disk = |files: &[(OsString, rustix::fs::Stat)]| -> u64 {
                files.iter().map(|(_, stat)| Usage::of(stat).disk).sum()
            };
            self.gone.leftovers += (before.len() - after.len().min(before.len())) as u64;
            self.gone.freed += disk(&before).saturating_sub(disk(&after));
        }
        let survey = self.store.survey()?;
        for entry in &survey.entries {
            if entry.record.is_err() {
                self.unlink(
                    &self.store.records,
                    "records",
                    entry.key.to_string(),
                    entry.usage,
                )?;
                self.gone.unusable += 1;
            }
        }
        for orphan in &survey.orphans {
            self.gone.orphans += u64::from(self.remove_object(orphan)?);
        }
        for (name, stat) in self.store.files(&self.store.notes, "notes")? {
            if !name
                .to_str()
                .is_some_and(|name| self.store.note_is_whole(name))
            {
                self.unlink(&self.store.notes, "notes", &name, Usage::of(&stat))?;
                self.gone.notes += 1;
            }
        }
        Ok(())
    }

    /// What was used longest ago, as long as there is too much or it is too old.
    fn old(&mut self, what: &Collect, now: SystemTime) -> Result<(), StoreError> {
        let survey = self.store.survey()?;
        let mut left = survey.total().disk;
        // A record that lends objects is used when its borrowers are, and goes after them.
        let mut borrowers: BTreeMap<Key, usize> = BTreeMap::new();
        let mut used_by: BTreeMap<Key, SystemTime> = BTreeMap::new();
        for entry in &survey.entries {
            for lender in &entry.borrows_from {
                *borrowers.entry(*lender).or_default() += 1;
                let used = used_by.entry(*lender).or_insert(entry.used);
                *used = entry.used.max(*used);
            }
        }
        let mut items: Vec<(SystemTime, Item)> = survey
            .entries
            .into_iter()
            .map(|entry| {
                let lent = used_by.get(&entry.key).copied().unwrap_or(entry.used);
                (entry.used.max(lent), Item::Entry(Box::new(entry)))
            })
            .collect();
        for (name, stat) in self.store.files(&self.store.notes, "notes")? {
            items.push((time(&stat), Item::Note(name, Usage::of(&stat))));
        }
        for (name, stat) in self.store.files(&self.store.scans, "scans")? {
            items.push((time(&stat), Item::Scan(name, Usage::of(&stat))));
        }
        items.sort_by_key(|(used, item)| {
            let lends = matches!(item, Item::Entry(entry) if used_by.contains_key(&entry.key));
            (*used, lends)
        });
        let lends = |borrowers: &BTreeMap<Key, usize>, key: &Key| {
            borrowers.get(key).is_some_and(|count| *count > 0)
        };
        for (used, item) in items {
            // A time in the future: used just now, for all that is known.
            let age = now.duration_since(used).unwrap_or_default();
            let too_old = what.max_age.is_some_and(|max| age > max);
            let too_much = what.max_size.is_some_and(|max| left > max);
            if !too_old && !too_much {
                continue;
            }
            let before = self.gone.freed;
            match item {
                Item::Entry(entry) if entry.leased() || lends(&borrowers, &entry.key) => {
                    self.gone.in_use += 1;
                }
                Item::Entry(entry) => {
                    self.remove_entry(&entry)?;
                    for lender in &entry.borrows_from {
                        borrowers.entry(*lender).and_modify(|count| *count -= 1);
                    }
                }
                Item::Note(name, usage) => {
                    self.unlink(&self.store.notes, "notes", &name, usage)?;
                    self.gone.notes += 1;
                }
                Item::Scan(name, usage) => {
                    self.unlink(&self.store.scans, "scans", &name, usage)?;
                    self.gone.scans += 1;
                }
            }
            left -= (self.gone.freed - before).min(left);
        }
        Ok(())
    }

    /// The record first: if this ends between the two, objects are left that nobody names.
    fn remove_entry(&mut self, entry: &Entry) -> Result<(), StoreError> {
        self.unlink(
            &self.store.records,
            "records",
            entry.key.to_string(),
            entry.usage,
        )?;
        for object in &entry.objects {
            self.remove_object(object)?;
        }
        self.gone.records += 1;
        Ok(())
    }

    /// False if somebody uses it.
    fn remove_object(&mut self, object: &ObjectEntry) -> Result<bool, StoreError> {
        let name = object.id.to_string();
        match open_object(&self.store.objects, OsStr::new(&name)) {
            Ok(file) => {
                let free = fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive);
                if matches!(free, Ok(false)) {
                    return Ok(false);
                }
                // Not left to the closing, which comes late.
                let _ = fsutil::try_flock(&file, FlockOperation::Unlock);
                if self.doomed.len() < DOOMED {
                    self.doomed.push(file);
                }
            }
            Err(Errno::NOENT) => return Ok(false),
            // A file that can't be opened can't be in use either.
            Err(_) => {}
        }
        self.unlink(&self.store.objects, "objects", &name, object.usage)?;
        Ok(true)
    }

    fn unlink(
        &mut self,
        dir: &std::os::fd::OwnedFd,
        part: &str,
        name: impl AsRef<OsStr>,
        usage: Usage,
    ) -> Result<(), StoreError> {
        let name = Path::new(name.as_ref());
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => self.gone.freed += usage.disk,
            Err(Errno::NOENT) => {}
            Err(errno) => {
                let path = self.store.root.join(part).join(name);
                return Err(self.store.io(&path, errno.into()));
            }
        }
        Ok(())
    }

    /// Directories of keys without objects. Nobody is about to put one there: the store is ours alone.
    fn empty_dirs(&self) -> Result<(), StoreError> {
        for name in self.store.names(&self.store.objects, "objects")? {
            // Refused unless it is an empty directory.
            let _ = rustix::fs::unlinkat(&self.store.objects, Path::new(&name), AtFlags::REMOVEDIR);
        }
        Ok(())
    }
}
