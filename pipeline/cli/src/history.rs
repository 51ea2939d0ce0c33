//! What past launches did: the last few of each spec, for `report`.
//!
//! A file a launch in `DATA/history/SPEC/`, SPEC being a digest of the spec's path. Nothing depends on it
//! but what `report` shows; it may be deleted at any time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fcpipe_engine::{Digest, Explained, Receipt};
use serde::{Deserialize, Serialize};

use crate::directories::make_private;
use crate::why;

/// Launches kept of a spec.
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
        let ended = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
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
            ended_ms: u64::try_from(ended.as_millis()).unwrap_or(u64::MAX),
            result,
            why,
            receipt,
        }
    }

    /// Keeps it, and lets the oldest go.
    pub(crate) fn keep(&self, data: &Path) -> io::Result<()> {
        let history = data.join("history");
        let dir = history.join(of_spec(&self.spec));
        let new = !dir.is_dir();
        if new {
            fs::create_dir_all(data)?;
            make_private(&history)?;
            make_private(&dir)?;
        }
        let name = format!("{:013}-{}.json", self.ended_ms, self.receipt.id);
        let scratch = dir.join(format!(".{name}"));
        fs::write(&scratch, serde_json::to_vec(self)?)?;
        fs::rename(&scratch, dir.join(name))?;
        for old in oldest(names(&dir)?, PER_SPEC) {
            fs::remove_file(dir.join(old))?;
        }
        if new {
            for old in oldest(by_age(&history)?, SPECS) {
                fs::remove_dir_all(history.join(old))?;
            }
        }
        Ok(())
    }
}

/// All but the last `keep`.
fn oldest(mut names: Vec<String>, keep: usize) -> Vec<String> {
    names.truncate(names.len().saturating_sub(keep));
    names
}

fn of_spec(spec: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = Digest::of("fcpipe history 1", &[spec.as_os_str().as_bytes()]);
    digest.to_string()[..16].to_owned()
}

/// Names in a directory, in order. Files begin with their time, so that is the order of the launches.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort();
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
    pub(crate) fn find(&self, id: Option<&str>) -> io::Result<Option<Past>> {
        let mut found: Option<(String, PathBuf)> = None;
        for spec in self.specs()? {
            for name in names(&spec)? {
                let matches = id.is_none_or(|id| {
                    name.split_once('-')
                        .is_some_and(|(_, rest)| rest.starts_with(id))
                });
                if matches && found.as_ref().is_none_or(|(latest, _)| *latest < name) {
                    found = Some((name.clone(), spec.join(name)));
                }
            }
        }
        found.map(|(_, path)| read(&path)).transpose()
    }

    /// The launch of the same spec before this one.
    pub(crate) fn before(&self, past: &Past) -> io::Result<Option<Past>> {
        let dir = self.0.join(of_spec(&past.spec));
        let mut earlier = names(&dir)?;
        earlier.retain(|name| {
            name.split_once('-')
                .and_then(|(ms, _)| ms.parse::<u64>().ok())
                .is_some_and(|ms| ms < past.ended_ms)
        });
        // Launches and builds have other stages: they are not compared.
        for name in earlier.iter().rev() {
            let before = read(&dir.join(name))?;
            if before.command == past.command {
                return Ok(Some(before));
            }
        }
        Ok(None)
    }

    /// The launches that are kept of a spec, the oldest first.
    pub(crate) fn of_spec(&self, spec: &Path) -> io::Result<Vec<Past>> {
        let dir = self.0.join(of_spec(spec));
        match names(&dir) {
            Ok(names) => names.iter().map(|name| read(&dir.join(name))).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn specs(&self) -> io::Result<Vec<PathBuf>> {
        match names(&self.0) {
            Ok(names) => Ok(names.iter().map(|name| self.0.join(name)).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn read(path: &Path) -> io::Result<Past> {
    let about = |e: serde_json::Error| io::Error::other(format!("{}: {e}", path.display()));
    serde_json::from_slice(&fs::read(path)?).map_err(about)
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
        for n in 0..40u64 {
            past("/a", &format!("a{n}"), 1000 + n)
                .keep(dir.path())
                .unwrap();
        }
        past("/b", "b0", 1001).keep(dir.path()).unwrap();
        assert_eq!(history.of_spec("/a".as_ref()).unwrap().len(), PER_SPEC);
        let latest = history.find(None).unwrap().unwrap();
        assert_eq!(latest.receipt.id, "a39");
        let before = history.before(&latest).unwrap().unwrap();
        assert_eq!(before.receipt.id, "a38");
        let other = history.find(Some("b")).unwrap().unwrap();
        assert_eq!(other.receipt.id, "b0");
        assert!(history.before(&other).unwrap().is_none());
        assert!(history.find(Some("a0")).unwrap().is_none(), "it has gone");
    }
}
