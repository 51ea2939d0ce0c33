//! Row 50: the next command ends what a dead supervisor's launch left, and nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fcpipe_vmm::{MACHINE_DIR_VARIABLE, ProcessMark, kill_by_mark};
use tempfile::tempdir;

use crate::bench::{Held, LONG};

/// A process that nobody's PDEATHSIG ends, as one of a launch whose spawning thread lives on would be.
struct Stray(Held);

impl Stray {
    fn start(cwd: &Path, marked: Option<&Path>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir(cwd);
        if let Some(dir) = marked {
            command.env(MACHINE_DIR_VARIABLE, dir);
        }
        Self(Held(command.spawn().unwrap()))
    }

    fn ended(&mut self) -> bool {
        self.0.0.try_wait().unwrap().is_some()
    }
}

#[test]
fn row_50_only_the_launchs_own_processes_are_ended() {
    let root = tempdir().unwrap();
    let dir = root.path().join("launch");
    let other = root.path().join("other");
    std::fs::create_dir(&dir).unwrap();
    std::fs::create_dir(&other).unwrap();
    let mut first = Stray::start(&dir, Some(&dir));
    let mut second = Stray::start(&dir, Some(&dir));
    let mut elsewhere = Stray::start(&other, Some(&dir));
    // A user's shell in the directory, and another launch.
    let mut unmarked = Stray::start(&dir, None);
    let mut others = Stray::start(&other, Some(&other));

    assert_eq!(kill_by_mark(&dir).unwrap(), 3);
    assert!(first.ended() && second.ended() && elsewhere.ended());
    assert!(!unmarked.ended() && !others.ended());
    assert_eq!(kill_by_mark(&dir).unwrap(), 0);
}

/// The kernel tells a parent that a program has begun before it has its environment.
#[test]
fn row_50_a_process_that_has_only_just_begun_is_found() {
    let root = tempdir().unwrap();
    for _ in 0..100 {
        let mut stray = Stray::start(root.path(), Some(root.path()));
        assert_eq!(kill_by_mark(root.path()).unwrap(), 1);
        assert!(stray.ended());
    }
}

#[test]
fn row_50_the_directory_may_be_moved_or_gone() {
    let root = tempdir().unwrap();
    let dir = root.path().join("launch");
    let moved = root.path().join("moved");
    std::fs::create_dir(&dir).unwrap();
    let mut stray = Stray::start(&dir, Some(&dir));
    std::fs::rename(&dir, &moved).unwrap();
    assert_eq!(kill_by_mark(&moved).unwrap(), 1);
    assert!(stray.ended());

    let mut stray = Stray::start(&moved, Some(&moved));
    std::fs::remove_dir(&moved).unwrap();
    assert_eq!(kill_by_mark(&moved).unwrap(), 1);
    assert!(stray.ended());
}

#[test]
fn a_mark_of_another_time_kills_nobody() {
    let root = tempdir().unwrap();
    let mut stray = Stray::start(root.path(), None);
    let mark = ProcessMark::of(stray.0.0.id()).unwrap();
    let older = ProcessMark {
        start_time: mark.start_time - 1,
        ..mark
    };
    assert!(!older.kill(Duration::from_secs(1)).unwrap());
    assert!(!stray.ended());
    assert!(mark.kill(LONG).unwrap());
    // Before anybody has waited for it.
    assert!(!mark.is_alive());
    assert!(stray.ended());
}
