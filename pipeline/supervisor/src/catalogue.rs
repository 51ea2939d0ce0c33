//! The launches of a state directory, whoever made them: cleaning up after dead ones, and taking away those that ended.

use std::path::Path;
use std::time::Duration;

use fcpipe_engine::{LaunchDir, LaunchDirError, Recovered, recover_but};

use crate::events::Events;
use crate::hooks;
use crate::record::{KILLED, Record, Status};

/// How long somebody may look at a launch that is to be taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// Undoes what launches left whose supervisor is dead. Those that were to stay are stopped then, and stay; what hooks of the
/// others have to say is told.
pub fn clean_up(state: &Path, tell: &mut dyn FnMut(String)) -> Result<Recovered, LaunchDirError> {
    let words = std::cell::RefCell::new(Vec::new());
    let table = fcpipe_launch::undo_table();
    let stays = |dir: &Path| stays(dir, &mut |line| words.borrow_mut().push(line));
    let recovered = recover_but(state, &table, &|dir| drop(ended(dir)), &stays);
    words.into_inner().into_iter().for_each(tell);
    recovered
}

/// The record of a dead launch, brought up to date.
fn ended(dir: &Path) -> Option<Record> {
    let mut record = Record::read(dir).ok()??;
    if record.status != Status::Stopped {
        record.keep &= record.status != Status::Creating;
        record.stop(None, Some(KILLED.to_owned()));
        // What can't be written is said by the lock that nobody holds.
        let _ = record.write(dir);
        if let Ok(mut events) = Events::open(dir, &record.id) {
            events.add("error", serde_json::json!({"message": KILLED}));
            events.add("exit", serde_json::json!({"status": null, "code": null}));
        }
    }
    Some(record)
}

/// Whether a dead launch's directory stays, with all that it made undone.
fn stays(dir: &Path, tell: &mut dyn FnMut(String)) -> bool {
    let Some(record) = ended(dir) else {
        return false;
    };
    if record.keep {
        return true;
    }
    after(&record, tell);
    false
}

/// Runs the hooks of a launch that is gone. One that fails is told, and stops nothing: so says OCI.
fn after(record: &Record, tell: &mut dyn FnMut(String)) {
    for hook in &record.poststop {
        let hook = std::slice::from_ref(hook);
        if let Err(error) = hooks::run("poststop", hook, &record.oci_state(), None) {
            tell(format!("warning: launch {}: {error}", record.id));
        }
    }
}

/// Takes a launch's directory away, whose machine is gone.
pub(crate) fn end(launch: LaunchDir, record: &Record, tell: &mut dyn FnMut(String)) {
    after(record, tell);
    // Refused where something is left to undo: the next command sees to it.
    let _ = launch.remove();
}

/// Takes away a launch that has stopped. `false`: its supervisor lives, or there is no such launch.
pub fn delete(
    state: &Path,
    id: &str,
    tell: &mut dyn FnMut(String),
) -> Result<bool, LaunchDirError> {
    let (record, removed) = match take_away(state, id)? {
        None => return Ok(false),
        // Its supervisor was killed since somebody last cleaned up: it counts as stopped, and what it had made is still there.
        Some((_, Err(LaunchDirError::NotUndone { .. }))) => {
            clean_up(state, tell)?;
            match take_away(state, id)? {
                // It was not one that stays, and has gone with that.
                None => return Ok(true),
                Some(tried) => tried,
            }
        }
        Some(tried) => tried,
    };
    removed?;
    if let Some(record) = record {
        after(&record, tell);
    }
    Ok(true)
}

type TakenAway = (Option<Record>, Result<(), LaunchDirError>);

/// `None`: there is nothing that could be taken.
fn take_away(state: &Path, id: &str) -> Result<Option<TakenAway>, LaunchDirError> {
    let Some(launch) = LaunchDir::take(state, id, PATIENCE)? else {
        return Ok(None);
    };
    let record = Record::read(launch.path()).ok().flatten();
    Ok(Some((record, launch.remove())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_50_a_launch_whose_supervisor_is_killed_while_it_is_being_deleted_goes_with_all_it_made()
    {
        let state = tempfile::tempdir().unwrap();
        let dir = LaunchDir::claim(state.path(), "one").unwrap();
        let mut record = Record::new("one", Path::new("/bundle"), true, true);
        record.status = Status::Running;
        record.write(dir.path()).unwrap();
        let made = state.path().join("made");
        std::fs::write(&made, "").unwrap();
        let entry = serde_json::json!({"seq": 0, "node": "disk", "effect": "disk", "entry": {"path": made}});
        let journal = serde_json::json!({"made": entry}).to_string();
        std::fs::write(dir.path().join("journal"), journal + "\n").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let root = state.path().to_owned();
        std::thread::spawn(move || tell.send(delete(&root, "one", &mut |_| ())));
        let deleted = told.recv_timeout(Duration::from_secs(60));
        let deleted = deleted.expect("it waits for one that lives still");
        assert!(!deleted.unwrap(), "it lives");
        drop(dir);
        let mut told = Vec::new();
        assert!(delete(state.path(), "one", &mut |line| told.push(line)).unwrap());
        assert_eq!((told.len(), made.exists()), (0, false));
        assert!(LaunchDir::list(state.path()).unwrap().is_empty());
    }

    /// Both are taken before anything of either is undone, and each looks at the other in its hook.
    #[test]
    fn row_50_a_launch_that_is_being_cleaned_up_is_stopped_and_not_what_it_was() {
        let state = tempfile::tempdir().unwrap();
        let seen = tempfile::NamedTempFile::new().unwrap();
        let launches = [("one", "two"), ("two", "one")];
        let dirs = launches.map(|(id, other)| {
            let dir = LaunchDir::claim(state.path(), id).unwrap();
            let mut record = Record::new(id, Path::new("/bundle"), false, false);
            record.status = Status::Running;
            record.pid = Some(7);
            let other = state.path().join(other).join("state.json");
            let (other, seen) = (other.display(), seen.path().display());
            // The second finds the first gone.
            let script = format!("[ ! -e {other} ] || cat {other} > {seen}");
            record.poststop.push(hooks::Hook {
                path: "/bin/sh".into(),
                args: vec!["sh".to_owned(), "-c".to_owned(), script],
                env: Vec::new(),
                timeout: None,
            });
            record.write(dir.path()).unwrap();
            dir
        });
        drop(dirs);
        // Hooks of other tests have their locks, too, until they are executed.
        let dead = |id| LaunchDir::is_alive(state.path(), id).unwrap() == Some(false);
        crate::tests::until("they count as alive", || dead("one") && dead("two"));
        let mut told = Vec::new();
        clean_up(state.path(), &mut |line| told.push(line)).unwrap();
        assert!(told.is_empty(), "{told:?}");
        assert!(LaunchDir::list(state.path()).unwrap().is_empty());
        let other: Record = serde_json::from_slice(&std::fs::read(seen).unwrap()).unwrap();
        assert_eq!((other.status, other.pid), (Status::Stopped, None));
    }
}
