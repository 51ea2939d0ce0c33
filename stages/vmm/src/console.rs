//! What a machine's processes write, read at once and kept within bounds.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bstr::ByteSlice;
use rustix::pipe::PipeFlags;

use crate::error::VmmError;

/// How many bytes of a stream's end are kept in memory.
pub const CONSOLE_KEPT: usize = 64 << 10;

/// How many bytes of a stream's beginning go to its log file.
pub const LOG_LIMIT: usize = 1 << 20;

/// The kernel's panic(), kernel/panic.c. The same words in every kernel since 2.6.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// A line of the console longer than this is not looked at beyond.
const LINE: usize = 1024;

/// The reader of one stream. Clones share it.
#[derive(Clone)]
pub(crate) struct Capture {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    kept: VecDeque<u8>,
    line: Vec<u8>,
    panic: Option<String>,
    ended: bool,
}

impl Capture {
    /// Reads `stream` in a thread until it ends, which it does when the last process that has it ends.
    pub(crate) fn start(thread: &str, stream: OwnedFd, log: Option<&Path>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let mut log = log.map(LogFile::create).transpose()?;
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name(thread.to_owned())
            .spawn(move || {
                let mut stream = File::from(stream);
                let mut buffer = [0; 8192];
                loop {
                    let got = match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(got) => got,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => break,
                    };
                    reader.lock().take(&buffer[..got]);
                    if let Some(log) = &mut log {
                        log.append(&buffer[..got]);
                    }
                }
                reader.lock().ended = true;
                reader.ended.notify_all();
            })?;
        Ok(Self { shared })
    }

    /// A pipe that is read from now on; the other end is for a child. What comes goes to the file `log` of `dir`, too.
    pub(crate) fn pipe(dir: &Path, thread: &str, log: &str) -> Result<(Self, OwnedFd), VmmError> {
        let path = dir.join(log);
        let make = || -> io::Result<(Self, OwnedFd)> {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            Ok((Self::start(thread, read, Some(&path))?, write))
        };
        make().map_err(|source| VmmError::Io {
            what: "cannot write a log",
            path: path.clone(),
            source,
        })
    }

    /// The last [`CONSOLE_KEPT`] bytes.
    pub(crate) fn tail(&self) -> Vec<u8> {
        self.shared.lock().kept.iter().copied().collect()
    }

    /// The line with which the guest's kernel gave up, if it did.
    pub(crate) fn panic(&self) -> Option<String> {
        self.shared.lock().panic.clone()
    }

    /// Waits until everything was read. For when the writer has ended: its last words are often the ones that count.
    pub(crate) fn wait_end(&self, timeout: Duration) {
        let guard = self.shared.lock();
        drop(
            self.shared
                .ended
                .wait_timeout_while(guard, timeout, |state| !state.ended),
        );
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panicking holder could leave behind is a shorter log, nothing worse.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        let fresh = &bytes[bytes.len().saturating_sub(CONSOLE_KEPT)..];
        let excess = (self.kept.len() + fresh.len()).saturating_sub(CONSOLE_KEPT);
        self.kept.drain(..excess);
        self.kept.extend(fresh);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.panic.is_none()
            && let Some(at) = self.line.find(PANIC)
        {
            let text = self.line[at..].trim();
            self.panic = Some(
                text.iter()
                    .map(|&byte| match byte {
                        b' '..=b'~' => char::from(byte),
                        _ => '?',
                    })
                    .collect(),
            );
        }
        self.line.clear();
    }
}

/// A log file that stops growing at [`LOG_LIMIT`].
struct LogFile {
    file: Option<File>,
    room: usize,
}

impl LogFile {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)?;
        Ok(Self {
            file: Some(file),
            room: LOG_LIMIT,
        })
    }

    /// A disk that is full ends the log, never the reading.
    fn append(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        let take = bytes.len().min(self.room);
        self.room -= take;
        let mut written = file.write_all(&bytes[..take]);
        if self.room == 0 {
            written = written
                .and_then(|()| file.write_all(b"\n[the log is full; the rest was not kept]\n"));
        }
        if written.is_err() || self.room == 0 {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(log: Option<&Path>) -> (File, Capture) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let capture = Capture::start("test", read, log).unwrap();
        (File::from(write), capture)
    }

    #[test]
    fn row_61_a_flood_is_read_to_its_end_and_kept_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut write, capture) = capture(Some(&path));
        // So that no read ends where the limit is.
        write.write_all(b"odd").unwrap();
        for _ in 0..100 {
            write.write_all(&vec![b'a'; 64 << 10]).unwrap();
        }
        write.write_all(b"the end").unwrap();
        drop(write);
        capture.wait_end(Duration::from_secs(10));
        let tail = capture.tail();
        assert_eq!(tail.len(), CONSOLE_KEPT);
        assert!(tail.ends_with(b"the end"));
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        assert!(size > LOG_LIMIT && size < LOG_LIMIT + 100, "{size}");
    }

    #[test]
    fn row_45_a_panic_is_seen_though_it_comes_in_pieces() {
        let (mut write, capture) = capture(None);
        for piece in [
            "[    1.2] Kernel pan",
            "ic - not sync",
            "ing: No working init found.\x1b\r\n",
            "more\n",
        ] {
            write.write_all(piece.as_bytes()).unwrap();
            write.flush().unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        drop(write);
        capture.wait_end(Duration::from_secs(10));
        assert_eq!(
            capture.panic().as_deref(),
            Some("Kernel panic - not syncing: No working init found.?")
        );
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut state = State::default();
        for _ in 0..1000 {
            state.take(&[b'x'; 1000]);
        }
        assert_eq!(state.line.len(), LINE);
        state.take(b"\nKernel panic - not syncing: x\n");
        assert!(state.panic.is_some());
    }

    #[test]
    fn a_log_that_is_a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(Capture::start("test", read, Some(&path)).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
