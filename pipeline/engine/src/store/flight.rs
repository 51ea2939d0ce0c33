//! One maker per key, among the threads of this process and among all processes.

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::cancel::CancelToken;
use crate::digest::Key;
use crate::fsutil;

/// What the system says where something that is no file is opened as one.
const NO_FILE: [Option<i32>; 3] = [
    Some(Errno::ISDIR.raw_os_error()),
    Some(Errno::LOOP.raw_os_error()),
    Some(Errno::NXIO.raw_os_error()),
];

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
            let file = self.lock_of(&name).map_err(io)?;
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

    fn lock_of(&self, name: &str) -> io::Result<File> {
        let open = || fsutil::open_lock(&self.locks, name);
        match open() {
            // A directory, a symlink, a socket: no lock of anybody's.
            Err(e) if NO_FILE.contains(&e.raw_os_error()) => {
                self.put_aside(&self.locks, &name);
                open()
            }
            file => file,
        }
    }

    /// The same without waiting; `None` if somebody has it.
    pub(super) fn try_flight(&self, key: &Key) -> Result<Option<Flight<'_>>, StoreError> {
        let name = key.to_string();
        let io = |e| self.io(&self.root.join("locks").join(&name), e);
        loop {
            let file = self.lock_of(&name).map_err(io)?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::digest::Digest;

    #[test]
    fn row_35_nobody_shares_a_flight_while_locks_are_made_removed_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Key::new(Digest::of("test", &[]));
        let (flying, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let cancel = CancelToken::new().unwrap();
                        for _ in 0..300 {
                            let flight = store.flight(&key, &cancel).unwrap().unwrap();
                            assert_eq!(flying.fetch_add(1, SeqCst), 0, "two at once");
                            std::thread::yield_now();
                            flying.fetch_sub(1, SeqCst);
                            drop(flight);
                        }
                    })
                })
                .collect();
            // What every opening of the store does.
            let sweeper = scope.spawn(|| {
                while !stop.load(SeqCst) {
                    store.remove_dead(&store.locks, "locks").unwrap();
                }
            });
            let results: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
            stop.store(true, SeqCst);
            sweeper.join().unwrap();
            assert!(results.iter().all(Result::is_ok));
        });
        assert_eq!(
            std::fs::read_dir(store.root().join("locks"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a_wait_for_another_maker_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Key::new(Digest::of("test", &[]));
        let cancel = CancelToken::new().unwrap();
        let flight = store.flight(&key, &cancel).unwrap();
        assert!(flight.is_some() && store.try_flight(&key).unwrap().is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| store.flight(&key, &cancel).unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
            cancel.cancel();
            assert!(waiter.join().unwrap());
        });
    }
}
