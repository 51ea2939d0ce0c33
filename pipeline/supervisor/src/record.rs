//! A launch as the state directory tells of it: `STATE/ID/state.json`, replaced as a whole at every change.
//!
//! Its first fields are OCI's state. What it says of a launch whose supervisor is dead is old: [`look`] gives the truth.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use fcpipe_engine::{LaunchDir, LaunchDirError, chain};
use fcpipe_proto::ExitStatus;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::hooks::Hook;

/// The version of the OCI runtime specification whose state this is.
const OCI_VERSION: &str = "1.2.0";
/// The file in a launch's directory.
const FILE: &str = "state.json";
/// No honest one is longer.
const LONGEST: u64 = 16 << 20;

/// How far a launch is, in OCI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        })
    }
}

/// What is known of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub oci_version: String,
    pub id: String,
    pub status: Status,
    /// A process in the launch's cgroup: its machine's, in the host's numbers. Left out where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where the spec is from.
    pub bundle: PathBuf,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Why it ended, where its process did not just end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It stays, stopped, until it is deleted; others go with their end.
    pub keep: bool,
    /// Its output is in its log, and not its caller's.
    pub logged: bool,
    /// The supervisor's process; 0 where it has not said so yet.
    pub supervisor: u32,
    /// What is to be run when it is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

impl Record {
    /// Of a launch that begins now, under this process.
    pub(crate) fn new(id: &str, bundle: &Path, keep: bool, logged: bool) -> Self {
        Record {
            oci_version: OCI_VERSION.to_owned(),
            id: id.to_owned(),
            status: Status::Creating,
            pid: None,
            // A name that is no text can't be in JSON; it is shown as near as can be.
            bundle: bundle.to_string_lossy().into_owned().into(),
            annotations: BTreeMap::new(),
            created_at: crate::clock::rfc3339(crate::clock::now()),
            finished_at: None,
            exit: None,
            error: None,
            keep,
            logged,
            supervisor: std::process::id(),
            poststop: Vec::new(),
        }
    }

    /// OCI's state, and nothing else: what hooks get.
    pub fn oci_state(&self) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": self.status,
            "bundle": self.bundle,
        });
        if let Some(pid) = self.pid {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }

    /// Marks it stopped.
    pub(crate) fn stop(&mut self, exit: Option<ExitStatus>, error: Option<String>) {
        self.status = Status::Stopped;
        self.pid = None;
        self.exit = exit;
        self.error = error;
        self.finished_at = Some(crate::clock::rfc3339(crate::clock::now()));
    }

    /// Replaces the record in a launch's directory.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(".state.json");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        // No fsync: it need not outlive the host, whose processes end with it. Nor is the old one replaced by a rename, for
        // which ext4 writes the new one's blocks out at once (`auto_da_alloc`): they change places.
        let old = dir.join(FILE);
        match renameat_with(CWD, &new, CWD, &old, RenameFlags::EXCHANGE) {
            Ok(()) => std::fs::remove_file(new),
            // There is none, or the file system can't do it.
            Err(_) => std::fs::rename(new, old),
        }
    }

    /// What stands in a launch's directory; `None` where nothing does yet.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fcpipe_engine::read_file(&dir.join(FILE), LONGEST) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(Some(serde_json::from_slice(&bytes?)?)),
        }
    }
}

/// Why a launch can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Directory(#[from] LaunchDirError),
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// What is known of a launch, now. `None`: there is none of that name.
pub fn look(state: &Path, id: &str) -> Result<Option<Record>, LookError> {
    // Its owner first: one that dies between the two looks has written its last word by then.
    let Some(alive) = LaunchDir::is_alive(state, id)? else {
        return Ok(None);
    };
    let dir = state.join(id);
    let read = Record::read(&dir).map_err(|source| LookError::Read {
        path: dir.join(FILE),
        source,
    })?;
    Ok(match read {
        Some(record) if record.id != id => {
            let source = io::Error::other(format!("it is about launch {:?}", record.id));
            let path = dir.join(FILE);
            return Err(LookError::Read { path, source });
        }
        Some(mut record) => {
            if !alive && record.status != Status::Stopped {
                record.stop(None, Some(KILLED.to_owned()));
            }
            Some(record)
        }
        // It has just begun.
        None if alive => Some(Record {
            supervisor: 0,
            ..Record::new(id, Path::new(""), false, false)
        }),
        None => None,
    })
}

/// What is known of every launch, by name. One that can't be looked at is told, and hides no other.
pub fn look_at_all(
    state: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<Vec<Record>, LaunchDirError> {
    let mut records = Vec::new();
    for id in LaunchDir::list(state)? {
        match look(state, &id) {
            Ok(record) => records.extend(record),
            Err(error) => tell(format!("warning: launch {id}: {}", chain(&error))),
        }
    }
    Ok(records)
}

/// Said of a launch whose supervisor did not live to say how it ended.
pub(crate) const KILLED: &str = "its supervisor was killed";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::until;

    #[test]
    fn row_50_a_launch_whose_supervisor_is_dead_is_stopped_whatever_its_record_says() {
        let state = tempfile::tempdir().unwrap();
        let dir = LaunchDir::claim(state.path(), "one").unwrap();
        let begun = look(state.path(), "one").unwrap().unwrap();
        // Whoever looks is not its supervisor, and is not to be killed for it.
        assert_eq!((begun.status, begun.supervisor), (Status::Creating, 0));
        let mut record = Record::new("one", Path::new("/bundle"), true, true);
        record.status = Status::Running;
        record.pid = Some(7);
        record.write(dir.path()).unwrap();
        let seen = look(state.path(), "one").unwrap().unwrap();
        assert_eq!(seen, record);
        drop(dir);
        // A hook of another test has its lock, too, until it is executed.
        until("it counts as alive", || {
            look(state.path(), "one").unwrap().unwrap().status == Status::Stopped
        });
        let seen = look(state.path(), "one").unwrap().unwrap();
        assert_eq!((seen.status, seen.pid), (Status::Stopped, None));
        assert_eq!(seen.error.as_deref(), Some(KILLED));
        assert!(look(state.path(), "two").unwrap().is_none());
        assert!(look(state.path(), "../one").unwrap().is_none());
        let mut told = Vec::new();
        let all = look_at_all(state.path(), &mut |line| told.push(line)).unwrap();
        assert_eq!((all.len(), told.len()), (1, 0));
    }

    #[test]
    fn a_record_that_can_not_be_read_hides_no_other_launch() {
        let state = tempfile::tempdir().unwrap();
        let launches = ["a", "b", "c", "d"].map(|id| LaunchDir::claim(state.path(), id).unwrap());
        for launch in &launches {
            let record = Record::new(launch.id(), Path::new("/bundle"), true, true);
            record.write(launch.path()).unwrap();
        }
        std::fs::write(launches[0].path().join(FILE), "{\"id\": \"a").unwrap();
        let another = Record::new("../../b", Path::new("/bundle"), true, true);
        another.write(launches[1].path()).unwrap();
        let mut told = Vec::new();
        let all = look_at_all(state.path(), &mut |line| told.push(line)).unwrap();
        let ids: Vec<&str> = all.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["c", "d"]);
        assert!(
            told.len() == 2
                && told[0].contains("launch a")
                && told[1].contains("about launch \"../../b\""),
            "{told:?}"
        );
    }

    #[test]
    fn oci_s_state_has_oci_s_fields() {
        let mut record = Record::new("one", Path::new("/bundle"), true, true);
        record.pid = Some(7);
        record.status = Status::Created;
        let state = record.oci_state();
        assert_eq!(
            state,
            serde_json::json!({"ociVersion": "1.2.0", "id": "one", "status": "created", "bundle": "/bundle", "pid": 7})
        );
    }
}
