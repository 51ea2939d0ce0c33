//! What is made on the host is gone in the end, whoever has to see to it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::atomic::{AtomicBool, Ordering};

use fcpipe_engine::{DirError, LaunchDir, LaunchDirError, UndoTable, recover};

use rustix::fs::XattrFlags;

use crate::kit::{Place, Touch, log_of, nobody_begins, root};

fn table() -> UndoTable {
    UndoTable::new().with::<Touch>()
}

/// A dead launch's directory with this journal.
fn dead(place: &Place, id: &str, journal: &str) {
    let dir = place.state().join(id);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("lock"), "").unwrap();
    fs::write(dir.join("journal"), journal).unwrap();
}

fn line(place: &Place, seq: u64, effect: &str, file: &str) -> String {
    let path = place.dir.path().join(file);
    format!(
        r#"{{"made":{{"seq":{seq},"node":"n:{file}","effect":"{effect}","entry":{{"path":{path:?}}}}}}}"#
    ) + "\n"
}

#[test]
fn recover_undoes_in_reverse_what_was_not_undone() {
    let place = Place::new();
    let made = [
        line(&place, 0, "touch", "a"),
        line(&place, 1, "touch", "b"),
        line(&place, 2, "touch", "c"),
    ];
    fs::write(place.dir.path().join("a"), "").unwrap();
    dead(
        &place,
        "d1",
        &format!("{}{}{}{{\"undone\":1}}\n", made[0], made[1], made[2]),
    );
    let recovered = recover(&place.state(), &table()).unwrap();
    assert_eq!(
        (recovered.launches, recovered.undone, recovered.left.len()),
        (vec!["d1".to_owned()], 2, 0)
    );
    assert_eq!(
        fs::read_to_string(log_of(&place.dir.path().join("a"))).unwrap(),
        "c\na\n"
    );
    assert!(!place.dir.path().join("a").exists());
    assert!(!place.state().join("d1").exists());
}

#[test]
fn row_33_a_journal_may_end_anywhere() {
    let place = Place::new();
    let whole = line(&place, 0, "touch", "a");
    let second = line(&place, 1, "touch", "b");
    for cut in 0..second.len() {
        let _ = fs::remove_file(place.dir.path().join("log"));
        dead(&place, "d", &format!("{whole}{}", &second[..cut]));
        let recovered = recover(&place.state(), &table()).unwrap();
        assert_eq!(
            (recovered.undone, recovered.left.len()),
            (1, 0),
            "cut at {cut}"
        );
        assert!(!place.state().join("d").exists());
    }
}

#[test]
fn what_can_not_be_undone_is_told_and_tried_again() {
    let place = Place::new();
    // Who tries again finds the lock of who tried before free.
    let _alone = nobody_begins();
    let stuck = place.dir.path().join("b.stuck");
    fs::write(&stuck, "").unwrap();
    let journal = [
        line(&place, 0, "touch", "a"),
        line(&place, 1, "levitate", "x"),
        line(&place, 2, "touch", "b"),
    ];
    // The last line has no end: what is appended must not run into it.
    dead(&place, "d", &format!("{}{{\"made\":", journal.concat()));
    let recovered = recover(&place.state(), &table()).unwrap();
    assert_eq!((recovered.launches.len(), recovered.undone), (0, 1));
    let left: Vec<_> = recovered
        .left
        .iter()
        .map(|l| (l.effect.as_str(), l.node.as_str()))
        .collect();
    assert_eq!(left, [("touch", "n:b"), ("levitate", "n:x")]);

    fs::remove_file(&stuck).unwrap();
    let recovered = recover(&place.state(), &table()).unwrap();
    assert_eq!(
        (
            recovered.launches.len(),
            recovered.undone,
            recovered.left.len()
        ),
        (0, 1, 1)
    );
    // An undo that a newer program knows.
    let journal = fs::read_to_string(place.state().join("d/journal"))
        .unwrap()
        .replace("levitate", "touch");
    fs::write(place.state().join("d/journal"), journal).unwrap();
    let recovered = recover(&place.state(), &table()).unwrap();
    assert_eq!(
        (
            recovered.launches.len(),
            recovered.undone,
            recovered.left.len()
        ),
        (1, 1, 0)
    );
    assert_eq!(
        fs::read_to_string(place.dir.path().join("log")).unwrap(),
        "a\nb\nx\n"
    );
}

#[test]
fn a_failed_undo_at_the_end_is_told_and_keeps_the_directory() {
    let place = Place::new();
    let file = place.dir.path().join("f");
    fs::write(file.with_extension("stuck"), "").unwrap();
    let run = place.run();
    let touch = run.effect("touch", Touch::at(&file));
    run.wait(&touch).unwrap();
    let finished = run.finish();
    finished.result.unwrap();
    assert_eq!(finished.not_undone.len(), 1);
    assert_eq!(finished.not_undone[0].why.to_string(), "stuck");
    assert!(matches!(
        finished.launch.unwrap().remove(),
        Err(LaunchDirError::NotUndone { .. })
    ));
    assert!(place.state().join("l0/journal").exists() && file.exists());
}

#[test]
fn a_run_that_is_dropped_undoes_and_removes_its_directory() {
    let place = Place::new();
    let file = place.dir.path().join("f");
    let run = place.run();
    let touch = run.effect("touch", Touch::at(&file));
    run.wait(&touch).unwrap();
    assert!(file.exists());
    drop(run);
    assert!(!file.exists() && !place.state().join("l0").exists());
}

#[test]
fn a_launch_that_lives_is_left_alone() {
    let place = Place::new();
    let file = place.dir.path().join("f");
    let run = place.run();
    let touch = run.effect("touch", Touch::at(&file));
    run.wait(&touch).unwrap();
    let recovered = recover(&place.state(), &table()).unwrap();
    assert_eq!(
        (
            recovered.launches.len(),
            recovered.undone,
            recovered.left.len()
        ),
        (0, 0, 0)
    );
    assert!(file.exists());
    run.finish().result.unwrap();
}

#[test]
fn many_recoverers_undo_everything_once() {
    let place = Place::new();
    for launch in 0..40 {
        let lines: String = (0..5)
            .map(|i| line(&place, i, "touch", &format!("f{launch}.{i}")))
            .collect();
        dead(&place, &format!("d{launch}"), &lines);
    }
    let (state, table) = (place.state(), table());
    let undone: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| recover(&state, &table).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let recovered = thread.join().unwrap();
                assert!(recovered.left.is_empty(), "{:?}", recovered.left);
                recovered.undone
            })
            .sum()
    });
    assert_eq!(undone, 200);
    assert_eq!(
        fs::read_to_string(place.dir.path().join("log"))
            .unwrap()
            .lines()
            .count(),
        200
    );
    assert_eq!(
        fs::read_dir(&state).unwrap().count(),
        1,
        "only the lock of the state directory is left"
    );
}

#[test]
fn a_claim_is_never_taken_for_dead() {
    let place = Place::new();
    let (state, table) = (place.state(), table());
    fs::create_dir(&state).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let recoverers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let recovered = recover(&state, &table).unwrap();
                        assert!(recovered.left.is_empty(), "{:?}", recovered.left);
                    }
                })
            })
            .collect();
        let claimers: Vec<_> = ["one", "two"]
            .map(|id| {
                let state = &state;
                scope.spawn(move || {
                    for _ in 0..150 {
                        // The id is free again as soon as `remove` has returned.
                        let launch = LaunchDir::claim(state, id).unwrap();
                        std::thread::yield_now();
                        let by_path = fs::metadata(launch.path().join("lock")).unwrap();
                        let held = rustix::fs::fstat(launch.lock_fd()).unwrap();
                        assert_eq!(by_path.ino(), held.st_ino);
                        launch.remove().unwrap();
                    }
                })
            })
            .into();
        let results: Vec<_> = claimers.into_iter().map(|claimer| claimer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        recoverers
            .into_iter()
            .for_each(|recoverer| recoverer.join().unwrap());
        results.into_iter().for_each(|result| result.unwrap());
    });
}

#[test]
fn a_state_directory_that_others_can_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    dead(&place, "d", &line(&place, 0, "touch", "a"));
    let mode = |mode| fs::set_permissions(place.state(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    assert!(matches!(
        recover(&place.state(), &table()),
        Err(LaunchDirError::Dir(_))
    ));
    assert!(matches!(
        LaunchDir::claim(&place.state(), "x"),
        Err(LaunchDirError::Dir(_))
    ));
    assert!(!place.dir.path().join("log").exists());
    mode(0o755);
    assert_eq!(recover(&place.state(), &table()).unwrap().undone, 1);
    assert!(
        recover(&place.dir.path().join("none"), &table())
            .unwrap()
            .launches
            .is_empty()
    );
}

/// In a directory where others can put a journal or a record, they could have root delete and run what they like.
#[test]
fn row_37_what_others_could_have_written_is_not_undone_needs_root() {
    if !root() {
        return;
    }
    const OTHER: Option<u32> = Some(12345);
    let place = Place::new();
    let victim = place.dir.path().join("a");
    fs::write(&victim, "").unwrap();
    dead(&place, "d", &line(&place, 0, "touch", "a"));
    // What belongs to whom, and may be written by whom.
    let cases = [
        (place.dir.path().to_owned(), OTHER, None, 0o700),
        (place.dir.path().to_owned(), None, OTHER, 0o770),
        (place.dir.path().to_owned(), None, None, 0o777),
        (place.state(), OTHER, None, 0o700),
        (place.state(), None, OTHER, 0o770),
        (place.state(), None, None, 0o1777),
        (place.state().join("d"), OTHER, None, 0o700),
        (place.state().join("d"), None, None, 0o777),
    ];
    for (dir, user, group, mode) in cases {
        chown(&dir, user, group).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        let case = format!("{} {user:?} {group:?} {mode:o}", dir.display());
        let is_refused = |error: &LaunchDirError| matches!(error, LaunchDirError::Dir(DirError::Refused { path, .. }) if *path == dir);
        // A directory that is not the launch's own hides no other; any other is not used at all.
        match recover(&place.state(), &table()) {
            Ok(recovered) => {
                assert_eq!(recovered.undone, 0, "{case}");
                assert_eq!(recovered.left.len(), 1, "{case}");
                assert_eq!(recovered.left[0].launch, "d", "{case}");
            }
            Err(error) => assert!(is_refused(&error), "{case}: {error:?}"),
        }
        let looked = LaunchDir::is_alive(&place.state(), "d");
        assert!(looked.as_ref().is_err_and(is_refused), "{case}: {looked:?}");
        assert!(victim.exists(), "{case}");
        chown(&dir, Some(0), Some(0)).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    }
    // A list that lets somebody write shows as a right of the group, which is this user's own.
    let list = |mask: u8| {
        let entry = |tag: u8, rights: u8, id: [u8; 4]| [[tag, 0, rights, 0], id].concat();
        let none = [0xff; 4];
        let entries = [
            vec![2, 0, 0, 0],
            entry(1, 7, none),
            entry(2, 7, 12345u32.to_le_bytes()),
            entry(4, 0, none),
            entry(16, mask, none),
            entry(32, 0, none),
        ];
        let (name, flags) = ("system.posix_acl_access", XattrFlags::empty());
        rustix::fs::setxattr(place.state(), name, &entries.concat(), flags)
    };
    if list(7).is_ok() {
        let refused = recover(&place.state(), &table());
        assert!(
            matches!(refused, Err(LaunchDirError::Dir(_))),
            "{refused:?}"
        );
        assert!(victim.exists());
        list(5).unwrap();
    }
    assert_eq!(recover(&place.state(), &table()).unwrap().undone, 1);
    assert!(!victim.exists());
}
