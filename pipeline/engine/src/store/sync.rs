//! What is done behind a launch, so that nothing waits for it: bringing objects to the disk, and looking once at
//! what they hold.

use std::fs::File;

use rustix::fs::{Mode, OFlags};

use super::content::Content;
use super::{Object, ObjectId, Record, Store, StoreError, lock};
use crate::digest::{Digest, Key};

impl Store {
    /// Brings to the disk what records of this process (and records it used) name, then marks those records as
    /// synced. Slow: for the end of a command or a thread of its own. Returns how many records it marked.
    ///
    /// Until this ran, a record is good for this boot only. Records that somebody is working on are left for the next time.
    pub fn sync_pending(&self) -> Result<usize, StoreError> {
        let mut marked = 0;
        for key in self.pending_keys()? {
            marked += usize::from(self.sync_record(&key)?);
        }
        Ok(marked)
    }

    /// [`sync_pending`](Self::sync_pending), then [`prove_pending`](Self::prove_pending) until `cancelled`. For a
    /// thread of its own: it becomes the last to be given a processor.
    pub fn settle(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(), StoreError> {
        // Without the right to, it works all the same. On Linux this is about the calling thread alone.
        let _ = rustix::process::setpriority_process(None, 19);
        self.sync_pending()?;
        self.prove_pending(1, cancelled)?;
        Ok(())
    }

    /// Notes in the same records what their objects hold, for `verify`: see [`content`](super::content). Reads every
    /// byte, so it stops when `cancelled` answers true; whoever uses such a record next takes it up again. Returns how
    /// many records it completed.
    pub fn prove_pending(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<usize, StoreError> {
        let mut proven = 0;
        for key in self.pending_keys()? {
            let Some(record) = self.record(&key) else {
                continue;
            };
            proven += usize::from(!record.proven() && self.prove(record, threads, cancelled)?);
        }
        Ok(proven)
    }

    fn pending_keys(&self) -> Result<Vec<Key>, StoreError> {
        let keys: Vec<Key> = lock(&self.pending).iter().copied().collect();
        if !keys.is_empty() {
            // The launch may have let go of the store; from here on a collector is to keep out again.
            self.hold()?;
        }
        Ok(keys)
    }

    fn sync_record(&self, key: &Key) -> Result<bool, StoreError> {
        // The lock keeps others from replacing the record between this look at it and the writing.
        let Some(_flight) = self.try_flight(key)? else {
            return Ok(false);
        };
        let Some(mut record) = self.record(key) else {
            lock(&self.pending).remove(key);
            return Ok(false);
        };
        if record.synced {
            self.settled(&record);
            return Ok(false);
        }
        for (id, size) in record.objects() {
            let lost = || StoreError::Lost { id: id.clone() };
            let object = self.find_object(id, size).ok_or_else(lost)?;
            let io = |e| self.io(&object.path, e);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file: File = rustix::fs::open(&object.path, flags, Mode::empty())
                .map_err(|e| io(e.into()))?
                .into();
            file.sync_all().map_err(io)?;
            // The object's name, and the name of the directory it is in.
            let dir = self.key_dir(&id.key(), false).map_err(|e| io(e.into()))?;
            rustix::fs::fsync(&dir).map_err(|e| io(e.into()))?;
        }
        let io = |name: &str| {
            let path = self.root.join(name);
            move |e: rustix::io::Errno| self.io(&path, e.into())
        };
        rustix::fs::fsync(&self.objects).map_err(io("objects"))?;
        record.synced = true;
        self.put_again(&record, true)?;
        rustix::fs::fsync(&self.records).map_err(io("records"))?;
        self.settled(&record);
        Ok(true)
    }

    /// Forgets a record's key when there is nothing left to do for it.
    fn settled(&self, record: &Record) {
        if record.synced && record.proven() {
            lock(&self.pending).remove(&record.key);
        }
    }

    /// Adds to a record what its objects hold; false if cancelled, or if the record was replaced meanwhile.
    pub(super) fn prove(
        &self,
        record: Record,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool, StoreError> {
        let key = record.key;
        let mut found = Vec::new();
        for (id, size) in record.own_objects() {
            match self.content(id, size, threads, cancelled)? {
                Some(content) => found.push((id.clone(), content.digest)),
                None => return Ok(false),
            }
        }
        self.add_contents(&key, found)
    }

    /// The same with contents that are known already.
    pub(super) fn add_contents(
        &self,
        key: &Key,
        found: Vec<(ObjectId, Digest)>,
    ) -> Result<bool, StoreError> {
        // Not held while reading: whoever makes the key anew needs it.
        let Some(_flight) = self.try_flight(key)? else {
            return Ok(false);
        };
        let Some(mut record) = self.record(key) else {
            return Ok(false);
        };
        let Some(kept) = &mut record.kept else {
            return Ok(false);
        };
        for (id, digest) in found {
            if kept.objects.iter().any(|(named, _)| *named == id) {
                kept.contents.insert(id, digest);
            }
        }
        let proven = record.proven();
        self.put_again(&record, record.synced)?;
        self.settled(&record);
        Ok(proven)
    }

    /// What an object holds; it is leased while it is read. `None` if cancelled.
    pub(super) fn content(
        &self,
        id: &ObjectId,
        size: u64,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Content>, StoreError> {
        let object: Object = self
            .find_object(id, size)
            .ok_or_else(|| StoreError::Lost { id: id.clone() })?;
        let lease = self.lease(&object)?;
        Content::of(&lease.file, threads, cancelled).map_err(|e| self.io(&object.path, e))
    }
}
