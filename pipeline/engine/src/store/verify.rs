//! Reading everything in the store and dropping what is not as it should be.
//!
//! A record proves itself. An object is compared with the digest that its record has of it. An object that nobody has looked
//! at since it was made can't be told from a damaged one, so its record is dropped too: that costs a build, and
//! believing it could cost more.

use std::path::Path;
use std::time::Duration;

use rustix::fs::AtFlags;

use super::record::{Absent, Touch, Unusable};
use super::survey::Usage;
use super::{ObjectId, Record, Store, StoreError};
use crate::digest::Key;

/// What is wrong with a file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A record that is no hit.
    Record {
        /// Its name.
        key: Key,
        /// Why.
        why: Unusable,
    },
    /// An object does not hold what it held.
    Object {
        /// Which.
        id: ObjectId,
        /// The node that it was made for.
        node: String,
    },
    /// Nobody has looked at an object since it was made, so nothing can be said of it.
    Unproven {
        /// Which.
        id: ObjectId,
        /// The node that it was made for.
        node: String,
    },
    /// An object that another record is in charge of, which has been dropped.
    Borrowed {
        /// Which.
        id: ObjectId,
        /// The node that borrows it.
        node: String,
    },
    /// A note fails its own check.
    Note {
        /// Its file name.
        name: String,
    },
}

impl Finding {
    /// Whether something was damaged, rather than left over or never looked at.
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Record { why, .. } => !matches!(why, Unusable::OtherBoot),
            Self::Object { .. } | Self::Note { .. } => true,
            Self::Unproven { .. } | Self::Borrowed { .. } => false,
        }
    }
}

/// What was looked at, and what was found and dropped.
#[derive(Debug, Default)]
pub struct Verified {
    /// Records.
    pub records: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Their lengths, holes included.
    pub bytes: u64,
    /// Objects that no record names, and how much they are. They harm nobody; the collector takes them.
    pub orphans: Usage,
    /// What was wrong. All of it has been dropped.
    pub findings: Vec<Finding>,
}

impl Store {
    /// Checks every record, note and object. What is wrong is dropped, so that it is made again.
    ///
    /// `None` if cancelled; what was found until then has been dropped.
    pub fn verify(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Verified>, StoreError> {
        self.hold()?;
        let mut verified = Verified::default();
        let mut dropped = Vec::new();
        for name in self.names(&self.records, "records")? {
            let Some(Ok(key)) = name.to_str().map(str::parse::<Key>) else {
                continue;
            };
            let findings = match self.judge(&key, Touch::Not) {
                Err(Absent) => continue,
                Ok(Err(why)) => vec![Finding::Record { key, why }],
                Ok(Ok(record)) => {
                    match self.check_objects(&record, &mut verified, threads, cancelled)? {
                        Some(findings) => findings,
                        None => return Ok(None),
                    }
                }
            };
            verified.records += 1;
            if !findings.is_empty() && self.drop_record(&key)? {
                dropped.push(key);
                verified.findings.extend(findings);
            }
        }
        self.drop_borrowers(&mut dropped, &mut verified)?;
        for name in self.names(&self.notes, "notes")? {
            if let Some(name) = name.to_str().filter(|name| !self.note_is_whole(name)) {
                let _ = rustix::fs::unlinkat(&self.notes, Path::new(name), AtFlags::empty());
                verified.findings.push(Finding::Note {
                    name: name.to_owned(),
                });
            }
        }
        self.sweep_dropped(&dropped)?;
        for orphan in &self.survey()?.orphans {
            verified.orphans += orphan.usage;
        }
        Ok(Some(verified))
    }

    /// Drops what names objects of dropped records, and what names objects of that. Those objects are not believed any more, even if they
    /// are there until the collector comes.
    fn drop_borrowers(
        &self,
        dropped: &mut Vec<Key>,
        verified: &mut Verified,
    ) -> Result<(), StoreError> {
        let mut before = 0;
        while dropped.len() > before {
            before = dropped.len();
            for name in self.names(&self.records, "records")? {
                let Some(Ok(key)) = name.to_str().map(str::parse::<Key>) else {
                    continue;
                };
                let Ok(Ok(record)) = self.judge(&key, Touch::Not) else {
                    continue;
                };
                let mut borrowed = record.borrowed_objects();
                if let Some(id) = borrowed.find(|id| dropped.contains(&id.key()))
                    && self.drop_record(&key)?
                {
                    verified.findings.push(Finding::Borrowed {
                        id: id.clone(),
                        node: record.node.clone(),
                    });
                    dropped.push(key);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with a record's objects; `None` if cancelled.
    fn check_objects(
        &self,
        record: &Record,
        verified: &mut Verified,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<Finding>>, StoreError> {
        let mut findings = Vec::new();
        for (id, size) in record.own_objects() {
            let known = record.kept.as_ref().and_then(|kept| kept.contents.get(id));
            let (id, node) = (id.clone(), record.node.clone());
            let Some(known) = known else {
                findings.push(Finding::Unproven { id, node });
                continue;
            };
            match self.content(&id, size, threads, cancelled) {
                Ok(None) => return Ok(None),
                Ok(Some(content)) => {
                    verified.objects += 1;
                    verified.bytes += content.size;
                    if content.digest != *known {
                        findings.push(Finding::Object { id, node });
                    }
                }
                // Gone since the record was read, or it can't be read: both are damage.
                Err(StoreError::Lost { .. } | StoreError::Io { .. }) => {
                    findings.push(Finding::Object { id, node });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(findings))
    }

    /// Removes a record, unless somebody is making the key anew.
    fn drop_record(&self, key: &Key) -> Result<bool, StoreError> {
        let Some(_flight) = self.try_flight(key)? else {
            return Ok(false);
        };
        self.remove_record(key)?;
        Ok(true)
    }

    /// Removes the objects of dropped records, if nobody else uses the store: a launch may have read such a record
    /// and be about to open them. Otherwise they wait for the collector.
    fn sweep_dropped(&self, dropped: &[Key]) -> Result<(), StoreError> {
        if dropped.is_empty() {
            return Ok(());
        }
        let swept = self.alone(Duration::ZERO, |_| {
            for key in dropped {
                // Somebody may have made it anew in between.
                if self.record(key).is_none() {
                    self.sweep(key)?;
                }
            }
            Ok(())
        });
        match swept {
            Err(StoreError::InUse { .. }) => Ok(()),
            swept => swept,
        }
    }
}
