//! Durability without waiting for the disk on the way to a launch.

use std::fs::File;

use rustix::fs::{Mode, OFlags};

use super::{Store, StoreError, lock};
use crate::digest::Key;

impl Store {
    /// Brings to the disk what records of this process (and records it used) name, then marks those records as
    /// synced. Slow: for the end of a command or a thread of its own. Returns how many records it marked.
    ///
    /// Until this ran, a record is good for this boot only. Records that somebody is working on are left for the next time.
    pub fn sync_pending(&self) -> Result<usize, StoreError> {
        let keys = std::mem::take(&mut *lock(&self.unsynced));
        let mut marked = 0;
        for key in keys {
            match self.sync_record(&key) {
                Ok(done) => marked += usize::from(done),
                Err(error) => {
                    lock(&self.unsynced).insert(key);
                    return Err(error);
                }
            }
        }
        Ok(marked)
    }

    fn sync_record(&self, key: &Key) -> Result<bool, StoreError> {
        // The lock keeps others from replacing the record between this look at it and the writing.
        let Some(_flight) = self.try_flight(key)? else {
            return Ok(false);
        };
        let Some(mut record) = self.record(key) else {
            return Ok(false);
        };
        if record.synced {
            return Ok(false);
        }
        for (id, size) in record.kept.iter().flat_map(|kept| &kept.objects) {
            let lost = || StoreError::Lost { id: id.clone() };
            let object = self.find_object(id, *size).ok_or_else(lost)?;
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
        self.put_synced_record(&record)?;
        rustix::fs::fsync(&self.records).map_err(io("records"))?;
        lock(&self.unsynced).remove(key);
        Ok(true)
    }
}
