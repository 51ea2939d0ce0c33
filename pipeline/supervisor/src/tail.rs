//! Reading what a launch writes while it writes it: its log and its events.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Whole lines of a file that grows and may be rotated (`FILE`, `FILE.1`, …), the oldest first.
pub(crate) struct Lines {
    path: PathBuf,
    /// Newer files than `file`, which are still to be read, the next one last.
    newer: Vec<File>,
    /// The one that is read; `None`: none has been found yet.
    file: Option<File>,
    buffer: Vec<u8>,
    /// How much of the buffer has been given.
    given: usize,
}

/// As much as is read at once.
const CHUNK: usize = 64 << 10;

impl Lines {
    pub(crate) fn open(path: PathBuf) -> Self {
        Lines {
            path,
            newer: Vec::new(),
            file: None,
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
        let Some(file) = &mut self.file else {
            self.newer = files(&self.path)?;
            self.file = self.newer.pop();
            return Ok(self.file.is_some());
        };
        let begun = self.buffer.len();
        self.buffer.resize(begun + CHUNK, 0);
        let got = file.read(&mut self.buffer[begun..]);
        self.buffer
            .truncate(begun + got.as_ref().copied().unwrap_or(0));
        if got? > 0 {
            return Ok(true);
        }
        if let Some(next) = self.newer.pop() {
            self.file = Some(next);
            return Ok(true);
        }
        let here = Place::of(&file.metadata()?);
        if place(&self.path)?.is_some_and(|now| now != here) {
            // Rotated away, perhaps more than once. What was written to it between the look at its end and that is read first.
            self.newer = files(&self.path)?;
            for (at, newer) in self.newer.iter().enumerate() {
                if Place::of(&newer.metadata()?) == here {
                    self.newer.truncate(at);
                    break;
                }
            }
            return Ok(!self.newer.is_empty());
        }
        // Emptied, where a log is only one file.
        use std::io::Seek as _;
        if file.metadata()?.len() < file.stream_position()? {
            file.rewind()?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Which file it is, whatever its name.
#[derive(PartialEq, Eq)]
struct Place(u64, u64);

impl Place {
    fn of(meta: &Metadata) -> Self {
        Place(meta.dev(), meta.ino())
    }
}

/// Of the file of this name; `None`: there is none.
fn place(path: &Path) -> io::Result<Option<Place>> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        meta => Ok(Some(Place::of(&meta?))),
    }
}

/// How often the files are looked at while they change their names under the look.
const LOOKS: usize = 10;

/// The files there are, the newest first.
fn files(path: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for _ in 0..LOOKS {
        let newest = place(path)?;
        files = files_once(path)?;
        let first = files.first().map(File::metadata).transpose()?;
        if first.as_ref().map(Place::of) == newest && place(path)? == newest {
            break;
        }
    }
    Ok(files)
}

/// The same, right if no rotation begins meanwhile. One renames the oldest file first: so a file may be met twice, and one name may be missing
/// among the others.
fn files_once(path: &Path) -> io::Result<Vec<File>> {
    let mut files: Vec<File> = Vec::new();
    let (mut last, mut missing) = (None, false);
    for number in 0.. {
        let opened = match number {
            0 => File::open(path),
            number => File::open(path.with_extension(number.to_string())),
        };
        match opened {
            Ok(file) => {
                missing = false;
                let place = Some(Place::of(&file.metadata()?));
                if place != last {
                    files.push(file);
                    last = place;
                }
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) if missing => break,
            Err(_) => missing = true,
        }
    }
    Ok(files)
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

    /// As the log does it.
    fn rotate(path: &Path, text: &str) {
        for number in (0..3).rev() {
            let name = |number: u32| match number {
                0 => path.to_path_buf(),
                number => path.with_extension(number.to_string()),
            };
            let _ = std::fs::rename(name(number), name(number + 1));
        }
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_reader_misses_nothing_that_is_there_however_often_files_are_rotated_between_two_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\n").unwrap();
        let mut lines = Lines::open(path.clone());
        assert_eq!(lines.next().unwrap().unwrap(), b"one\n");
        assert!(lines.next().unwrap().is_none());
        std::fs::write(&path, "one\ntwo\n").unwrap();
        rotate(&path, "three\n");
        rotate(&path, "four\n");
        for line in ["two\n", "three\n", "four\n"] {
            assert_eq!(lines.next().unwrap().unwrap(), line.as_bytes());
        }
        assert!(lines.next().unwrap().is_none());
        // The one that was read last is gone: all that are left are newer.
        for text in ["five\n", "six\n", "seven\n", "eight\n", "nine\n"] {
            rotate(&path, text);
        }
        for line in ["six\n", "seven\n", "eight\n", "nine\n"] {
            assert_eq!(lines.next().unwrap().unwrap(), line.as_bytes());
        }
        assert!(lines.next().unwrap().is_none());
        // In the middle of a rotation a name is missing.
        std::fs::rename(path.with_extension("1"), path.with_extension("2")).unwrap();
        let mut again = Lines::open(path);
        for line in ["six\n", "eight\n", "nine\n"] {
            assert_eq!(again.next().unwrap().unwrap(), line.as_bytes());
        }
        assert!(again.next().unwrap().is_none());
    }

    #[test]
    fn a_reader_beside_a_writer_that_rotates_all_the_time_sees_lines_in_order_and_misses_none_that_stay()
     {
        const LINES: usize = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let limits = crate::log::LogLimits {
            size: 2_000,
            files: 1_000,
        };
        let log = crate::log::Log::start(dir.path(), limits).unwrap();
        let mut entries = Entries::open(dir.path());
        let writer = std::thread::spawn(move || {
            let mut stdout = log.stream("stdout");
            for number in 0..LINES {
                writeln!(stdout, "{number}").unwrap();
            }
            drop(stdout);
            assert_eq!(log.finish(), 0);
        });
        let mut expected = 0;
        loop {
            let over = writer.is_finished();
            while let Some(entry) = entries.next().unwrap() {
                assert_eq!(entry.text, format!("{expected}\n").into_bytes());
                expected += 1;
            }
            if over {
                break;
            }
        }
        writer.join().unwrap();
        assert_eq!(expected, LINES);
    }
}
