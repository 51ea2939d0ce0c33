//! One maker per key, among the threads of this process and among all processes.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation};

use super::{Store, StoreError};
use crate::cancel::CancelToken;
use crate::digest::Key;
use crate::fsutil;

/// The right to make a key's output. The kernel gives it back when the holder dies, however it dies.
#[derive(Debug)]
pub(crate) struct Flight<'s> {
    store: &'s Store,
    name: String,
    _lock: File,
}

impl Store {
    /// Waits until nobody else makes `key`. `None` when cancelled meanwhile. Look for a record again afterwards: the other
    /// one may have made it.
    pub(crate) fn flight(
        &self,
        key: &Key,
        cancel: &CancelToken,
    ) -> Result<Option<Flight<'_>>, StoreError> {
        let name = key.to_string();
        let io = |e| self.io(&self.root.join("locks").join(&name), e);
        let mut pause = Duration::from_millis(1);
        loop {
            let file = fsutil::open_lock(&self.locks, name.as_str()).map_err(io)?;
            // A blocking flock could not be cancelled, so this looks again and again, soon at first.
            while !fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io)? {
                if cancel.wait_timeout(pause) {
                    return Ok(None);
                }
                pause = (pause * 2).min(Duration::from_millis(16));
            }
            // The one before removed the file when it was done: then this is a lock on nothing.
            if !fsutil::is_unlinked(&file).map_err(io)? {
                return Ok(Some(Flight {
                    store: self,
                    name,
                    _lock: file,
                }));
            }
        }
    }

    /// The same without waiting; `None` if somebody has it.
    pub(super) fn try_flight(&self, key: &Key) -> Result<Option<Flight<'_>>, StoreError> {
        let name = key.to_string();
        let io = |e| self.io(&self.root.join("locks").join(&name), e);
        loop {
            let file = fsutil::open_lock(&self.locks, name.as_str()).map_err(io)?;
            if !fsutil::try_flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io)? {
                return Ok(None);
            }
            if !fsutil::is_unlinked(&file).map_err(io)? {
                return Ok(Some(Flight {
                    store: self,
                    name,
                    _lock: file,
                }));
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // While still locked: whoever locks the file after this sees that it has no name.
        let _ = rustix::fs::unlinkat(&self.store.locks, self.name.as_str(), AtFlags::empty());
    }
}
