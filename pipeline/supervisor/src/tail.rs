//! Reading what a launch writes while it writes it: its log and its events.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Whole lines of a file that grows and may be rotated (`FILE`, `FILE.1`, …), the oldest first.
pub(crate) struct Lines {
    path: PathBuf,
    /// Older files that are still to be read, the next one last.
    older: Vec<File>,
    file: Option<File>,
    buffer: Vec<u8>,
    /// How much of the buffer has been given.
    given: usize,
}

/// As much as is read at once.
const CHUNK: usize = 64 << 10;

impl Lines {
    pub(crate) fn open(path: PathBuf) -> Self {
        let mut older = Vec::new();
        // The current one first: one that is rotated meanwhile is then read twice rather than not at all, and twice is
        // seen below.
        let file = File::open(&path).ok();
        for number in 1.. {
            match File::open(path.with_extension(number.to_string())) {
                Ok(old) => older.push(old),
                Err(_) => break,
            }
        }
        let same = |a: &File, b: &File| match (a.metadata(), b.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if let (Some(current), Some(newest)) = (&file, older.first())
            && same(current, newest)
        {
            older.remove(0);
        }
        // A stack: the oldest is read first.
        if let Some(current) = file {
            older.insert(0, current);
        }
        let file = older.pop();
        Lines {
            path,
            older,
            file,
            buffer: Vec::new(),
            given: 0,
        }
    }

    /// The next line with its end; `None` where there is none yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let rest = &self.buffer[self.given..];
            if let Some(at) = rest.iter().position(|b| *b == b'\n') {
                let (start, end) = (self.given, self.given + at + 1);
                self.given = end;
                return Ok(Some(&self.buffer[start..end]));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads on; `false` where there is no more.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.given);
        self.given = 0;
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let begun = self.buffer.len();
        self.buffer.resize(begun + CHUNK, 0);
        let got = file.read(&mut self.buffer[begun..])?;
        self.buffer.truncate(begun + got);
        if got > 0 {
            return Ok(true);
        }
        if let Some(next) = self.older.pop() {
            self.file = Some(next);
            return Ok(true);
        }
        // Rotated away: what was written to it is read, so the next is the new one.
        let now = std::fs::metadata(&self.path)
            .ok()
            .map(|m| (m.dev(), m.ino()));
        let here = file.metadata()?;
        if now.is_some_and(|now| now != (here.dev(), here.ino())) {
            self.file = None;
            return Ok(true);
        }
        // Emptied, where a log is only one file.
        use std::io::Seek as _;
        if here.len() < file.stream_position()? {
            file.rewind()?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// RFC 3339.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What was written, with the end of the line where there was one.
    pub text: Vec<u8>,
}

/// The entries of a launch's log, in the order of writing.
pub struct Entries(Lines);

impl Entries {
    /// Of the launch with this directory.
    pub fn open(dir: &Path) -> Self {
        Entries(Lines::open(dir.join(crate::log::FILE)))
    }

    /// The next one; `None` where there is none yet. Lines that are no entries are left out.
    #[allow(
        clippy::should_implement_trait,
        reason = "after None there may be more, and it can fail"
    )]
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        while let Some(line) = self.0.next()? {
            if let Some(entry) = parse(line) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let text = |part: Option<&[u8]>| String::from_utf8(part?.to_vec()).ok();
    let (time, stream, tag) = (
        text(parts.next())?,
        text(parts.next())?,
        text(parts.next())?,
    );
    let rest = parts.next()?;
    let rest = match tag.as_str() {
        "F" => rest,
        "P" => rest.strip_suffix(b"\n")?,
        _ => return None,
    };
    Some(Entry {
        time,
        stream,
        text: rest.to_vec(),
    })
}

/// The events of a launch, each a JSON object in a line.
pub struct EventLines(Lines);

impl EventLines {
    /// Of the launch with this directory.
    pub fn open(dir: &Path) -> Self {
        EventLines(Lines::open(dir.join(crate::events::FILE)))
    }

    /// The next one, with its end of line; `None` where there is none yet.
    #[allow(
        clippy::should_implement_trait,
        reason = "after None there may be more, and it can fail"
    )]
    pub fn next(&mut self) -> io::Result<Option<String>> {
        Ok(self.0.next()?.map(|line| bstr::BStr::new(line).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_reader_follows_a_file_that_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut lines = Lines::open(path.clone());
        assert!(lines.next().unwrap().is_none());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), b"one\n");
        assert!(lines.next().unwrap().is_none());
        file.write_all(b"o\nthree\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        std::fs::write(&path, "four\n").unwrap();
        for line in ["two\n", "three\n", "four\n"] {
            assert_eq!(lines.next().unwrap().unwrap(), line.as_bytes());
        }
        assert!(lines.next().unwrap().is_none());
        let mut again = Lines::open(path);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            assert_eq!(again.next().unwrap().unwrap(), line.as_bytes());
        }
    }
}
