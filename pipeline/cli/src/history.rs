//! What past launches did: the last few of each spec, for `report`.
//!
//! `DATA/history/SPEC.jsonl`, SPEC being a digest of the spec's path, has a line a launch: a launch waits for it, and a line is added
//! in a tenth of the time that a file takes. Nothing depends on it but what `report` shows; it may be deleted at any time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fcpipe_engine::{Digest, Explained, Receipt};
use serde::{Deserialize, Serialize};

use crate::directories::make_private;
use crate::why;

/// Launches kept of a spec; twice as many before the older half goes.
const PER_SPEC: usize = 32;
/// Specs of which launches are kept.
const SPECS: usize = 256;

/// One launch, or one build, of the past.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Past {
    /// The spec's file.
    pub(crate) spec: PathBuf,
    /// `run` or `build`.
    pub(crate) command: String,
    /// Milliseconds since 1970.
    pub(crate) ended_ms: u64,
    /// How it ended, in words.
    pub(crate) result: String,
    /// Row → why it ran.
    pub(crate) why: BTreeMap<String, String>,
    pub(crate) receipt: Receipt,
}

impl Past {
    pub(crate) fn new(
        spec: &Path,
        command: &str,
        result: String,
        receipt: Receipt,
        steps: &[Explained],
    ) -> Self {
        let why = steps
            .iter()
            .filter_map(|step| {
                let row = step.rows.first()?.clone();
                Some((row, why::reasons(steps, step).first()?.words()))
            })
            .collect();
        Past {
            spec: spec.to_owned(),
            command: command.to_owned(),
            ended_ms: now_ms(),
            result,
            why,
            receipt,
        }
    }

    /// Keeps it, and lets the oldest go now and then.
    pub(crate) fn keep(&self, data: &Path) -> io::Result<()> {
        let history = data.join("history");
        let path = history.join(file_of(&self.spec));
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        let mut file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_private(&history)?;
                for old in oldest(by_age(&history)?, SPECS - 1) {
                    fs::remove_file(history.join(old))?;
                }
                options.create(true).open(&path)?
            }
            file => file?,
        };
        // Two launches of a spec may end at once. The lock ends with the file.
        file.lock()?;
        // The end of a line that was cut off by a kill or a full disk.
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, self)?;
        file.write_all(&line)?;
        // What the newest takes is a guess at what the others do: the file is only looked at where it may be too long.
        if file.metadata()?.len() > (2 * PER_SPEC * line.len()) as u64 {
            shorten(&mut file)?;
        }
        Ok(())
    }
}

/// Milliseconds since 1970, by a clock that may be set.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Leaves the newest launches, where there are twice as many as are kept.
fn shorten(file: &mut fs::File) -> io::Result<()> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let lines: Vec<&[u8]> = lines(&bytes).collect();
    if lines.len() < 2 * PER_SPEC {
        return Ok(());
    }
    file.set_len(0)?;
    let mut kept = Vec::with_capacity(bytes.len());
    for line in &lines[lines.len() - PER_SPEC..] {
        kept.push(b'\n');
        kept.extend_from_slice(line);
    }
    file.write_all(&kept)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

/// All but the last `keep`.
fn oldest(mut names: Vec<String>, keep: usize) -> Vec<String> {
    names.truncate(names.len().saturating_sub(keep));
    names
}

const ENDING: &str = ".jsonl";

fn file_of(spec: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = Digest::of("fcpipe history 1", &[spec.as_os_str().as_bytes()]);
    format!("{}{ENDING}", &digest.to_string()[..16])
}

/// The files, in no order.
fn names(history: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(history) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.retain(|name| name.ends_with(ENDING));
    Ok(names)
}

fn by_age(history: &Path) -> io::Result<Vec<String>> {
    let mut names = names(history)?;
    names.sort_by_key(|name| {
        fs::metadata(history.join(name))
            .and_then(|m| m.modified())
            .ok()
    });
    Ok(names)
}

/// The launches of the past.
pub(crate) struct History(PathBuf);

impl History {
    pub(crate) fn of(data: &Path) -> Self {
        History(data.join("history"))
    }

    /// The launch whose id begins so; the latest of several, and of all where no id is given.
    ///
    /// Of one spec that is the last that was written down. Only between specs the clock decides, and a time that has not come yet is of a clock
    /// that was wrong: such a launch comes after all others.
    pub(crate) fn find(&self, id: Option<&str>) -> io::Result<Option<Past>> {
        let now = now_ms();
        let mut found: Option<Past> = None;
        for name in names(&self.0)? {
            let mut launches = read(&self.0.join(name))?.into_iter();
            let last = launches.rfind(|past| id.is_none_or(|id| past.receipt.id.starts_with(id)));
            let both = last.into_iter().chain(found);
            found = both.max_by_key(|past| (past.ended_ms <= now, past.ended_ms));
        }
        Ok(found)
    }

    /// The launch of the same spec before this one. Launches and builds have other stages: they are not compared.
    pub(crate) fn before(&self, past: &Past) -> io::Result<Option<Past>> {
        let launches = self.of_spec(&past.spec)?;
        let same =
            |other: &Past| (&other.receipt.id, other.ended_ms) == (&past.receipt.id, past.ended_ms);
        let at = launches.iter().rposition(same).unwrap_or(0);
        let mut before = launches.into_iter().take(at);
        Ok(before.rfind(|before| before.command == past.command))
    }

    /// The launches that are kept of a spec, the oldest first.
    pub(crate) fn of_spec(&self, spec: &Path) -> io::Result<Vec<Past>> {
        let mut launches = read(&self.0.join(file_of(spec)))?;
        launches.drain(..launches.len().saturating_sub(PER_SPEC));
        Ok(launches)
    }
}

/// The launches in a file; none where it does not exist. What was cut off is left out.
fn read(path: &Path) -> io::Result<Vec<Past>> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    file.lock_shared()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(lines(&bytes)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(spec: &str, id: &str, ended_ms: u64) -> Past {
        Past {
            spec: spec.into(),
            command: "run".to_owned(),
            ended_ms,
            result: "exit 0".to_owned(),
            why: BTreeMap::new(),
            receipt: Receipt {
                schema: fcpipe_engine::RECEIPT_SCHEMA.to_owned(),
                id: id.to_owned(),
                total_us: 1,
                critical_path: Vec::new(),
                stages: Vec::new(),
                outputs: BTreeMap::new(),
            },
        }
    }

    #[test]
    fn launches_are_found_compared_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::of(dir.path());
        assert!(history.find(None).unwrap().is_none());
        for n in 0..100u64 {
            past("/a", &format!("a{n}"), 1000 + n)
                .keep(dir.path())
                .unwrap();
        }
        past("/b", "b0", 1001).keep(dir.path()).unwrap();
        let kept = history.of_spec("/a".as_ref()).unwrap();
        assert_eq!(kept.len(), PER_SPEC);
        assert_eq!(kept[0].receipt.id, "a68");
        let latest = history.find(None).unwrap().unwrap();
        assert_eq!(latest.receipt.id, "a99");
        let before = history.before(&latest).unwrap().unwrap();
        assert_eq!(before.receipt.id, "a98");
        let other = history.find(Some("b")).unwrap().unwrap();
        assert_eq!(other.receipt.id, "b0");
        assert!(history.before(&other).unwrap().is_none());
        assert!(history.find(Some("a0")).unwrap().is_none(), "it has gone");
        let lines = fs::read(dir.path().join("history").join(file_of("/a".as_ref()))).unwrap();
        assert!(super::lines(&lines).count() < 2 * PER_SPEC);
    }

    #[test]
    fn row_28_the_order_of_launches_is_not_the_clock_s() {
        let dir = tempfile::tempdir().unwrap();
        let keep = |spec, id, ended| past(spec, id, ended).keep(dir.path()).unwrap();
        let history = History::of(dir.path());
        let latest = || history.find(None).unwrap().unwrap();
        // The clock was a day ahead, and was put right.
        let tomorrow = now_ms() + 86_400_000;
        keep("/a", "a0", tomorrow);
        assert_eq!(latest().receipt.id, "a0");
        keep("/b", "b0", 2000);
        assert_eq!(latest().receipt.id, "b0");
        keep("/a", "a1", 3000);
        assert_eq!(latest().receipt.id, "a1");
        let before = history.before(&latest()).unwrap().unwrap();
        assert_eq!(before.receipt.id, "a0");
        assert!(history.before(&before).unwrap().is_none());
    }

    #[test]
    fn a_line_that_was_cut_off_costs_that_launch_alone() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..2u64 {
            past("/a", &format!("a{n}"), n).keep(dir.path()).unwrap();
        }
        let path = dir.path().join("history").join(file_of("/a".as_ref()));
        let length = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length - 5).unwrap();
        past("/a", "a2", 2).keep(dir.path()).unwrap();
        let kept = History::of(dir.path()).of_spec("/a".as_ref()).unwrap();
        let ids: Vec<&str> = kept.iter().map(|past| &*past.receipt.id).collect();
        assert_eq!(ids, ["a0", "a2"]);
    }

    #[test]
    fn launches_that_end_at_once_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let dir = dir.path();
                scope.spawn(move || {
                    for n in 0..50 {
                        // Lines of one length: in whatever order they come, it is clear when the file is shortened.
                        let id = format!("t{thread}-{n:02}");
                        past("/a", &id, 1000 + thread * 100 + n).keep(dir).unwrap();
                    }
                });
            }
        });
        let expected = (0..8 * 50).fold(0, |count, _| match count + 1 {
            count if count > 2 * PER_SPEC => PER_SPEC,
            count => count,
        });
        let path = dir.path().join("history").join(file_of("/a".as_ref()));
        assert_eq!(read(&path).unwrap().len(), expected);
    }
}
