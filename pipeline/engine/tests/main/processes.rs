//! Several processes on one store, and processes that are killed. The children are tests of this binary too: they do
//! nothing unless a directory to work in is given.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fcpipe_engine::{
    Cx, Failure, FailureKind, KeyWriter, LaunchDir, Run, Settings, Stage, Store, UndoTable, recover,
};

use crate::kit::{Hang, Place, Text, Touch, begin};

const DIR: &str = "FCPIPE_ENGINE_TEST_DIR";

/// The directory that a child was given, or `None` for an ordinary test run.
fn given() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

fn child(test: &str, dir: &Path) -> Killed {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", &format!("processes::{test}"), "--nocapture"])
        .env(DIR, dir);
    Killed(begin(command.stdout(Stdio::null())))
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{} did not come",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A file of some hundred KiB, written slowly. Says in `dir/ran` that it was.
struct Slow {
    dir: PathBuf,
    number: u8,
    /// Publishes, then never ends.
    hangs: bool,
}

impl Stage for Slow {
    const NAME: &'static str = "slow";
    const VERSION: u32 = 1;
    type Output = Text;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("number", &self.number);
    }
    fn run(&self, cx: &Cx) -> Result<Text, Failure> {
        append(&self.dir.join("ran"), &self.number.to_string());
        let writer = cx.object("slow")?;
        for _ in 0..20 {
            writer
                .file()
                .write_all(&[self.number; 10_000])
                .map_err(|e| cx.fail(FailureKind::Store, "slow", e))?;
            cx.sleep(Duration::from_millis(1))?;
        }
        let text = Text(cx.publish(writer)?);
        if self.hangs {
            append(&self.dir.join("hangs"), "");
            cx.sleep(Duration::from_secs(600))?;
        }
        Ok(text)
    }
}

fn slow_run(dir: &Path, numbers: u8, hangs: bool) -> Vec<fcpipe_engine::Outcome> {
    let store = Arc::new(Store::open(&dir.join("cache")).unwrap());
    let run = Run::start(Settings::new("slow", store).unwrap()).unwrap();
    let nodes: Vec<_> = (0..numbers)
        .map(|number| {
            run.stage(
                format!("slow:{number}"),
                Slow {
                    dir: dir.to_owned(),
                    number,
                    hangs,
                },
            )
        })
        .collect();
    for (node, number) in nodes.iter().zip(0..) {
        assert_eq!(
            fs::read(&run.wait(node).unwrap().0.path).unwrap(),
            [number; 200_000]
        );
    }
    let finished = run.finish();
    finished.result.unwrap();
    finished
        .receipt
        .stages
        .iter()
        .map(|row| row.outcome)
        .collect()
}

#[test]
fn child_builds() {
    if let Some(dir) = given() {
        let outcomes = slow_run(&dir, 1, false);
        append(&dir.join("outcomes"), &format!("{:?}", outcomes[0]));
    }
}

#[test]
fn row_35_of_twenty_builders_one_builds() {
    let place = Place::new();
    let mut children: Vec<_> = (0..20)
        .map(|_| child("child_builds", place.dir.path()))
        .collect();
    for child in &mut children {
        assert!(child.0.wait().unwrap().success());
    }
    let outcomes = fs::read_to_string(place.dir.path().join("outcomes")).unwrap();
    assert_eq!(outcomes.lines().filter(|line| *line == "Ran").count(), 1);
    assert_eq!(outcomes.lines().filter(|line| *line == "Hit").count(), 19);
    assert_eq!(
        fs::read_to_string(place.dir.path().join("ran")).unwrap(),
        "0\n"
    );
    assert_eq!(place.count("locks"), 0);
}

#[test]
fn child_builds_and_hangs() {
    if let Some(dir) = given() {
        slow_run(&dir, 1, true);
    }
}

#[test]
fn row_35_a_killed_builder_blocks_nobody_and_leaves_nothing() {
    let place = Place::new();
    let mut builder = child("child_builds_and_hangs", place.dir.path());
    wait_for(&place.dir.path().join("hangs"));
    assert_eq!(place.count("objects"), 1);
    let dir = place.dir.path().to_owned();
    let waiter = std::thread::spawn(move || slow_run(&dir, 1, false));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiter.is_finished(), "it waits for the one who builds");
    builder.kill();
    assert_eq!(waiter.join().unwrap(), [fcpipe_engine::Outcome::Ran]);
    assert_eq!(
        fs::read_to_string(place.dir.path().join("ran")).unwrap(),
        "0\n0\n"
    );
    assert_whole(&place, 1);
}

/// Every object has a record, and nothing else is about.
fn assert_whole(place: &Place, records: usize) {
    let names = |part: &str| -> BTreeSet<_> {
        let dir = fs::read_dir(place.cache().join("v1").join(part)).unwrap();
        dir.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names("records").len(), records);
    assert_eq!(names("objects"), names("records"));
    for key in names("objects") {
        assert_eq!(
            fs::read_dir(place.cache().join("v1/objects").join(key))
                .unwrap()
                .count(),
            1
        );
    }
    assert_eq!((place.count("tmp"), place.count("locks")), (0, 0));
}

#[test]
fn child_builds_five() {
    if let Some(dir) = given() {
        slow_run(&dir, 5, false);
    }
}

#[test]
fn row_33_killed_at_any_moment_the_next_run_is_right() {
    let place = Place::new();
    let random = RandomState::new();
    for round in 0..25u32 {
        let mut builder = child("child_builds_five", place.dir.path());
        std::thread::sleep(Duration::from_micros(random.hash_one(round) % 60_000));
        builder.kill();
        if round % 5 == 4 {
            // What it comes to is checked inside.
            slow_run(place.dir.path(), 5, false);
            assert_whole(&place, 5);
            fs::remove_dir_all(place.cache()).unwrap();
        }
    }
}

#[test]
fn child_launches_and_hangs() {
    if let Some(dir) = given() {
        let store = Arc::new(Store::open(&dir.join("cache")).unwrap());
        let mut settings = Settings::new("killed", store).unwrap();
        settings.launch = Some(LaunchDir::claim(&dir.join("state"), "killed").unwrap());
        let run = Run::start(settings).unwrap();
        let mut last = None;
        for file in ["a", "b", "c"] {
            last = Some(run.effect(
                file,
                Touch {
                    path: dir.join(file),
                    after: last,
                },
            ));
        }
        run.wait(&last.unwrap()).unwrap();
        let hang = run.effect(
            "hang",
            Hang {
                go: Arc::default(),
                threads: Arc::default(),
            },
        );
        fs::write(dir.join("launched"), "").unwrap();
        let _ = run.wait(&hang);
    }
}

#[test]
fn row_50_a_killed_launch_is_undone_by_the_next_command() {
    let place = Place::new();
    let dir = place.dir.path();
    let mut launch = child("child_launches_and_hangs", dir);
    wait_for(&dir.join("launched"));
    let table = UndoTable::new().with::<Touch>().with::<Hang>();
    let alive = recover(&place.state(), &table).unwrap();
    assert!(alive.launches.is_empty() && alive.undone == 0 && dir.join("c").exists());
    launch.kill();
    let recovered = recover(&place.state(), &table).unwrap();
    assert_eq!(recovered.launches, ["killed"]);
    assert!(recovered.undone >= 3 && recovered.left.is_empty());
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "c\nb\na\n");
    assert!(!place.state().join("killed").exists());
    assert!(["a", "b", "c"].iter().all(|file| !dir.join(file).exists()));
}
