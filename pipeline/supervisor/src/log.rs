//! The output of a process that nobody is attached to: `STATE/ID/log`, with rotation.
//!
//! The form is that of Kubernetes' container runtimes (CRI): `TIME STREAM F LINE`, one line of the output a line, where
//! `P` instead of `F` marks a piece that has no end of line after it. It keeps every byte, and much reads it already.
//!
//! One thread owns the file; what it can't keep up with holds up the process, and nothing is lost but what is rotated
//! away, or has no room on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock::{now, rfc3339};

/// The file in a launch's directory; older ones are `log.1`, `log.2` and so on.
pub(crate) const FILE: &str = "log";
/// A line longer than this is kept in pieces.
const PIECE: usize = 16 << 10;
/// Chunks that may wait for the disk.
const BACKLOG: usize = 16;

/// How much of a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes after which a file is rotated.
    pub size: u64,
    /// How many files there are at most, the current one with them.
    pub files: u32,
}

impl Default for LogLimits {
    /// 10 MiB, three times.
    fn default() -> Self {
        LogLimits {
            size: 10 << 20,
            files: 3,
        }
    }
}

/// The log's thread. Ends when both streams have ended.
pub(crate) struct Log {
    lines: Sender<Vec<u8>>,
    thread: JoinHandle<u64>,
}

impl Log {
    pub(crate) fn start(dir: &Path, limits: LogLimits) -> io::Result<Self> {
        let mut file = Rotated::open(dir.join(FILE), limits)?;
        let (lines, received): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = bounded(BACKLOG);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                let mut lost = 0;
                for chunk in received {
                    if file.append(&chunk).is_err() {
                        lost += chunk.len() as u64;
                    }
                }
                lost
            })?;
        Ok(Log { lines, thread })
    }

    /// A stream's end of the log.
    pub(crate) fn stream(&self, name: &'static str) -> LogStream {
        LogStream {
            name,
            begun: Vec::new(),
            lines: self.lines.clone(),
        }
    }

    /// Waits until all is written, once the streams have ended: how many bytes found no room.
    pub(crate) fn finish(self) -> u64 {
        drop(self.lines);
        self.thread.join().unwrap_or(0)
    }
}

/// One stream of a process, written to its log.
pub(crate) struct LogStream {
    name: &'static str,
    /// What has no end of line yet.
    begun: Vec<u8>,
    lines: Sender<Vec<u8>>,
}

impl Write for LogStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stamp = rfc3339(now());
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.begun.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                entry(&mut out, &stamp, self.name, b'F', &self.begun);
                self.begun.clear();
            }
            while self.begun.len() >= PIECE {
                let rest = self.begun.split_off(PIECE);
                self.begun.push(b'\n');
                entry(&mut out, &stamp, self.name, b'P', &self.begun);
                self.begun = rest;
            }
        }
        if !out.is_empty() && self.lines.send(out).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(bytes.len())
    }

    /// A line that is not complete waits for its end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            let mut out = Vec::new();
            self.begun.push(b'\n');
            entry(&mut out, &rfc3339(now()), self.name, b'P', &self.begun);
            // Only fails where the thread is gone.
            let _ = self.lines.send(out);
        }
    }
}

fn entry(out: &mut Vec<u8>, stamp: &str, stream: &str, tag: u8, line: &[u8]) {
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(line);
}

/// A file that makes room for itself.
struct Rotated {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    len: u64,
}

impl Rotated {
    fn open(path: PathBuf, limits: LogLimits) -> io::Result<Self> {
        let file = new_file(&path)?;
        let len = file.metadata()?.len();
        Ok(Rotated {
            path,
            limits,
            file,
            len,
        })
    }

    /// Whole lines, in one write.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.len > 0 && self.len + lines.len() as u64 > self.limits.size {
            self.rotate()?;
        }
        match self.file.write_all(lines) {
            Ok(()) => self.len += lines.len() as u64,
            Err(error) => {
                // Half a line would be taken for one.
                self.file.set_len(self.len)?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let name = |number: u32| match number {
            0 => self.path.clone(),
            number => self.path.with_extension(number.to_string()),
        };
        let files = self.limits.files.max(1);
        for number in (0..files - 1).rev() {
            match std::fs::rename(name(number), name(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if files == 1 {
            self.file.set_len(0)?;
        } else {
            self.file = new_file(&self.path)?;
        }
        self.len = 0;
        Ok(())
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::{Entries, Entry};

    fn written(limits: LogLimits, write: impl FnOnce(&Log)) -> (tempfile::TempDir, Vec<Entry>) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(dir.path(), limits).unwrap();
        write(&log);
        assert_eq!(log.finish(), 0);
        let mut entries = Entries::open(dir.path());
        let mut all = Vec::new();
        while let Some(entry) = entries.next().unwrap() {
            all.push(entry);
        }
        (dir, all)
    }

    #[test]
    fn every_byte_comes_back() {
        let mut out = b"one\n\ntwo\xff\x00\n".to_vec();
        out.extend(std::iter::repeat_n(b'x', 3 * PIECE + 7));
        out.extend_from_slice(b"\nno end");
        let (_dir, entries) = written(LogLimits::default(), |log| {
            let (mut stdout, mut stderr) = (log.stream("stdout"), log.stream("stderr"));
            for piece in out.chunks(1000) {
                stdout.write_all(piece).unwrap();
            }
            stderr.write_all(b"oops\n").unwrap();
        });
        let bytes = |stream: &str| -> Vec<u8> {
            entries
                .iter()
                .filter(|e| e.stream == stream)
                .flat_map(|e| e.text.clone())
                .collect()
        };
        assert!(bytes("stdout") == out);
        assert_eq!(bytes("stderr"), b"oops\n");
    }

    #[test]
    fn row_61_a_flood_fills_no_more_than_the_limit() {
        let limits = LogLimits {
            size: 10_000,
            files: 3,
        };
        let (dir, entries) = written(limits, |log| {
            let mut stdout = log.stream("stdout");
            for number in 0..5000 {
                writeln!(stdout, "line {number}").unwrap();
            }
        });
        let files: Vec<u64> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|len| *len <= 10_000), "{files:?}");
        assert_eq!(entries.last().unwrap().text, b"line 4999\n");
        // What is left is without a gap.
        let first = String::from_utf8(entries[0].text.clone()).unwrap();
        let first: usize = first.trim().rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(entries.len(), 5000 - first);
    }
}
