//! The store when things are wrong: damage, full disks, reboots, foreign directories.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fcpipe_engine::store::StoreOptions;
use fcpipe_engine::{
    Cx, DirError, Failure, FailureKind, KeyWriter, LaunchDir, Outcome, Run, Settings, Stage, Store,
    StoreError,
};

use crate::kit::{Count, Place, Text, Touch, begin, count, root};

/// A file of this many bytes.
struct Fill {
    bytes: usize,
    reserve: bool,
    ran: Count,
}

impl Stage for Fill {
    const NAME: &'static str = "fill";
    const VERSION: u32 = 1;
    type Output = Text;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("bytes", &self.bytes);
    }
    fn run(&self, cx: &Cx) -> Result<Text, Failure> {
        crate::kit::bump(&self.ran);
        let writer = cx.object("fill")?;
        if self.reserve {
            writer
                .reserve(self.bytes as u64)
                .map_err(|e| cx.fail(FailureKind::Store, "fill", e))?;
        }
        writer
            .file()
            .write_all(&vec![7; self.bytes])
            .map_err(|e| cx.fail(FailureKind::Store, "fill", e))?;
        Ok(Text(cx.publish(writer)?))
    }
}

/// One launch of it: its outcome, or why not.
fn fill(store: Store, bytes: usize, reserve: bool) -> (Result<Outcome, Failure>, Arc<Store>) {
    let store = Arc::new(store);
    let run = Run::start(Settings::new("fill", store.clone()).unwrap()).unwrap();
    let ran = Count::default();
    let node = run.stage(
        "fill",
        Fill {
            bytes,
            reserve,
            ran: ran.clone(),
        },
    );
    let result = run.wait(&node).map(|text| {
        assert_eq!(fs::read(&text.0.path).unwrap(), vec![7; bytes]);
        assert_eq!(fs::metadata(&text.0.path).unwrap().mode() & 0o7777, 0o444);
    });
    let outcome = run.finish().receipt.stages[0].outcome;
    assert_eq!(count(&ran), usize::from(outcome != Outcome::Hit));
    (result.map(|()| outcome), store)
}

fn filled(place: &Place, bytes: usize) -> Outcome {
    fill(Store::open(&place.cache()).unwrap(), bytes, false)
        .0
        .unwrap()
}

fn only_file(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let file = files.next().unwrap();
    assert!(files.next().is_none());
    file
}

/// Another test may be starting a child: until its exec the child shares this process's locks.
fn eventually(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn booted(id: &str) -> StoreOptions {
    StoreOptions {
        boot_id: Some(id.to_owned()),
        ..StoreOptions::default()
    }
}

#[test]
fn row_36_damage_costs_time_and_nothing_else() {
    let place = Place::new();
    assert_eq!(filled(&place, 5000), Outcome::Ran);
    let v1 = place.cache().join("v1");
    type Damage = fn(record: &Path, object: &Path);
    let damages: [(&str, Damage); 7] = [
        ("record flipped", |record, _| {
            let mut bytes = fs::read(record).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(record, bytes).unwrap();
        }),
        ("record cut", |record, _| {
            fs::File::options()
                .write(true)
                .open(record)
                .unwrap()
                .set_len(40)
                .unwrap()
        }),
        ("record empty", |record, _| fs::write(record, "").unwrap()),
        ("record gone", |record, _| fs::remove_file(record).unwrap()),
        ("record edited", |record, _| {
            let text = fs::read_to_string(record).unwrap();
            fs::write(record, text.replace("5000", "4999")).unwrap();
        }),
        ("object cut", |_, object| {
            fs::set_permissions(object, fs::Permissions::from_mode(0o600)).unwrap();
            fs::File::options()
                .write(true)
                .open(object)
                .unwrap()
                .set_len(4999)
                .unwrap();
        }),
        ("object gone", |_, object| fs::remove_file(object).unwrap()),
    ];
    for (name, damage) in damages {
        assert_eq!(filled(&place, 5000), Outcome::Hit, "before {name}");
        let record = only_file(&v1.join("records"));
        damage(&record, &only_file(&only_file(&v1.join("objects"))));
        assert_eq!(filled(&place, 5000), Outcome::Ran, "{name}");
        // Also: the damaged object is not left beside the new one.
        only_file(&only_file(&v1.join("objects")));
    }
    assert_eq!(filled(&place, 5000), Outcome::Hit);
}

#[test]
fn row_36_things_of_another_kind_cost_time_and_nothing_else() {
    let place = Place::new();
    filled(&place, 5000);
    let v1 = place.cache().join("v1");
    let key = only_file(&v1.join("records"));
    let key = key.file_name().unwrap();
    let full = |path: &Path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("somebody's"), "").unwrap();
    };
    type Kind<'a> = (&'a str, &'a dyn Fn(&Path));
    let kinds: [Kind<'_>; 6] = [
        ("a directory", &|path| fs::create_dir(path).unwrap()),
        ("a directory with something in it", &full),
        ("a symlink", &|path| {
            std::os::unix::fs::symlink("/nowhere", path).unwrap()
        }),
        ("a symlink to a directory", &|path| {
            std::os::unix::fs::symlink("/", path).unwrap()
        }),
        ("a socket", &|path| {
            let (kind, mode) = (rustix::fs::FileType::Socket, rustix::fs::Mode::RWXU);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        }),
        ("a file", &|path| fs::write(path, "x").unwrap()),
    ];
    for (kind, make) in kinds {
        for part in ["records", "notes", "locks", "objects", "object"] {
            let path = match part {
                "object" => only_file(&only_file(&v1.join("objects"))),
                part => v1.join(part).join(key),
            };
            if fs::remove_file(&path).is_err() {
                let _ = fs::remove_dir_all(&path);
            }
            make(&path);
            let what = format!("{kind} among the {part}");
            let (result, _) = fill(Store::open(&place.cache()).unwrap(), 5000, false);
            assert!(result.is_ok(), "{what}: {result:?}");
            assert_eq!(filled(&place, 5000), Outcome::Hit, "{what}");
            only_file(&only_file(&v1.join("objects")));
        }
    }
}

#[test]
fn row_36_a_record_does_not_answer_for_another_key() {
    let place = Place::new();
    filled(&place, 1);
    let one = only_file(&place.cache().join("v1/records"));
    filled(&place, 2);
    let records = fs::read_dir(place.cache().join("v1/records"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let two = records.into_iter().find(|path| *path != one).unwrap();
    fs::copy(&one, &two).unwrap();
    // What it would hand out otherwise has one byte: the length is checked inside.
    assert_eq!(filled(&place, 2), Outcome::Ran);
}

#[test]
fn row_34_after_a_reboot_only_what_was_synced_is_trusted() {
    let place = Place::new();
    let boot = |id: &str| {
        fill(
            Store::open_with(&place.cache(), &booted(id)).unwrap(),
            5000,
            false,
        )
    };
    assert_eq!(boot("one").0.unwrap(), Outcome::Ran);
    assert_eq!(boot("one").0.unwrap(), Outcome::Hit);
    let (outcome, store) = boot("two");
    assert_eq!(outcome.unwrap(), Outcome::Ran);
    drop(store);
    // Whoever made it died before syncing: one who hits it does so.
    let (outcome, store) = boot("two");
    assert_eq!(outcome.unwrap(), Outcome::Hit);
    assert_eq!(store.sync_pending().unwrap(), 1);
    assert_eq!(store.sync_pending().unwrap(), 0);
    assert_eq!(boot("three").0.unwrap(), Outcome::Hit);
}

#[test]
fn what_is_leased_outlives_its_record() {
    let place = Place::new();
    let (_, store) = fill(
        Store::open_with(&place.cache(), &booted("one")).unwrap(),
        5000,
        false,
    );
    let record = only_file(&place.cache().join("v1/records"));
    let key = record
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let (id, size) = store.record(&key).unwrap().kept.unwrap().objects.remove(0);
    let path = place.cache().join("v1/objects").join(id.to_string());
    let object = fcpipe_engine::Object {
        id,
        path: path.clone(),
        size,
    };
    let lease = store.lease(&object).unwrap();
    // A miss now, which runs under the same key and clears up what is there.
    let again = || {
        fill(
            Store::open_with(&place.cache(), &booted("two")).unwrap(),
            5000,
            false,
        )
        .0
        .unwrap()
    };
    assert_eq!(again(), Outcome::Ran);
    assert!(path.exists());
    drop(lease);
    eventually(|| {
        store.forget(&key).unwrap();
        assert_eq!(again(), Outcome::Ran);
        !path.exists()
    });
    assert!(matches!(store.lease(&object), Err(StoreError::Lost { .. })));
}

#[test]
fn a_collector_waits_for_who_uses_the_store_and_not_for_who_let_go() {
    use rustix::fs::{FlockOperation, flock};
    let place = Place::new();
    let store = Store::open(&place.cache()).unwrap();
    let collector = fs::File::open(place.cache().join("v1/lock")).unwrap();
    let free = || flock(&collector, FlockOperation::NonBlockingLockExclusive).is_ok();
    assert!(!free());
    store.release();
    eventually(free);
    flock(&collector, FlockOperation::Unlock).unwrap();
    // A stage that runs needs it again.
    let (outcome, _store) = fill(store, 10, false);
    assert_eq!(outcome.unwrap(), Outcome::Ran);
    assert!(!free());
}

#[test]
fn row_37_a_directory_that_others_can_write_is_refused() {
    let place = Place::new();
    let real = place.dir.path().join("real");
    Store::open(&real).unwrap();
    let link = place.dir.path().join("link");
    symlink(&real, &link).unwrap();
    let refused = |path: &Path| {
        let opened = Store::open(path);
        assert!(
            matches!(opened, Err(StoreError::Dir(DirError::Refused { .. }))),
            "{}: {opened:?}",
            path.display()
        );
    };
    refused(&link);
    refused(&link.join(""));
    for dir in [real.clone(), real.join("v1"), real.join("v1/objects")] {
        for others in [0o777, 0o1777] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(others)).unwrap();
            refused(&real);
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    Store::open(&real).unwrap();
    fs::rename(real.join("v1/records"), real.join("v1/elsewhere")).unwrap();
    symlink("elsewhere", real.join("v1/records")).unwrap();
    refused(&real);
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&file);
}

#[test]
fn row_37_a_directory_of_another_user_is_refused_needs_root() {
    if !root() {
        return;
    }
    let place = Place::new();
    Store::open(&place.cache()).unwrap();
    for dir in [
        place.cache(),
        place.cache().join("v1"),
        place.cache().join("v1/records"),
    ] {
        std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
        assert!(matches!(
            Store::open(&place.cache()),
            Err(StoreError::Dir(DirError::Refused { .. }))
        ));
        std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    }
    Store::open(&place.cache()).unwrap();
}

#[test]
fn row_38_other_versions_are_left_alone() {
    let place = Place::new();
    for version in ["v0", "v2"] {
        fs::create_dir_all(place.cache().join(version).join("records")).unwrap();
        fs::write(place.cache().join(version).join("records/x"), version).unwrap();
    }
    assert_eq!(filled(&place, 10), Outcome::Ran);
    assert_eq!(filled(&place, 10), Outcome::Hit);
    for version in ["v0", "v2"] {
        assert_eq!(
            fs::read_to_string(place.cache().join(version).join("records/x")).unwrap(),
            version
        );
    }
}

#[test]
fn row_39_without_o_tmpfile_it_works_and_clears_up() {
    let place = Place::new();
    let open = || {
        let options = StoreOptions {
            tmpfile: false,
            ..StoreOptions::default()
        };
        Store::open_with(&place.cache(), &options).unwrap()
    };
    assert_eq!(fill(open(), 5000, false).0.unwrap(), Outcome::Ran);
    assert_eq!(fill(open(), 5000, false).0.unwrap(), Outcome::Hit);
    assert_eq!(filled(&place, 5000), Outcome::Hit);
    assert_eq!(place.count("tmp"), 0);

    // A dead writer's file goes, a living one's stays.
    let tmp = place.cache().join("v1/tmp");
    fs::write(tmp.join("1.dead"), "x").unwrap();
    fs::write(tmp.join("2.alive"), "x").unwrap();
    fs::write(place.cache().join("v1/locks/dead"), "").unwrap();
    let alive = fs::File::open(tmp.join("2.alive")).unwrap();
    rustix::fs::flock(&alive, rustix::fs::FlockOperation::LockShared).unwrap();
    drop(open());
    assert_eq!(only_file(&tmp), tmp.join("2.alive"));
    assert_eq!(place.count("locks"), 0);
    drop(alive);
    eventually(|| {
        drop(open());
        place.count("tmp") == 0
    });
}

/// A file system of this size, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(kib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={kib}k,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let mounted = begin(mount.arg(dir.path())).wait();
        assert!(mounted.unwrap().success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = begin(Command::new("umount").arg("-l").arg(self.0.path())).wait();
    }
}

#[test]
fn row_31_a_full_store_is_said_and_nothing_is_left_needs_root() {
    if !root() {
        return;
    }
    for tmpfile in [true, false] {
        for reserve in [true, false] {
            let disk = SmallDisk::new(400);
            let cache = disk.0.path().join("cache");
            let options = StoreOptions {
                tmpfile,
                ..StoreOptions::default()
            };
            let open = || Store::open_with(&cache, &options).unwrap();
            let failure = fill(open(), 500_000, reserve).0.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Space, "{failure:#}");
            assert!(failure.hint.is_some());
            if reserve {
                assert!(
                    format!("{failure:#}").contains("500000 bytes needed"),
                    "{failure:#}"
                );
            }
            for part in ["objects", "records", "locks", "tmp"] {
                let left = fs::read_dir(cache.join("v1").join(part)).unwrap().count();
                assert_eq!(left, 0, "{part}, tmpfile {tmpfile}, reserve {reserve}");
            }
            assert_eq!(fill(open(), 100_000, reserve).0.unwrap(), Outcome::Ran);
        }
    }
}

#[test]
fn row_31_wherever_the_disk_becomes_full_nothing_is_left_needs_root() {
    if !root() {
        return;
    }
    let disk = SmallDisk::new(200);
    let (cache, ballast) = (disk.0.path().join("cache"), disk.0.path().join("ballast"));
    drop(Store::open(&cache).unwrap());
    let mut failed = 0;
    // Less and less room: the object fits and its directory or its record does not, and so on.
    for kib in (0..=200).rev().step_by(4) {
        fs::write(&ballast, "").unwrap();
        let _ = fs::write(&ballast, vec![0; 1024 * (200 - kib)]);
        let Ok(store) = Store::open(&cache) else {
            continue;
        };
        match fill(store, 20_000, false).0 {
            Ok(_) => {}
            Err(failure) => {
                failed += 1;
                assert_eq!(failure.kind, FailureKind::Space, "{failure:#}");
                for part in ["objects", "records", "locks", "tmp"] {
                    let left = fs::read_dir(cache.join("v1").join(part)).unwrap().count();
                    assert_eq!(left, 0, "{part} with {kib} KiB");
                }
            }
        }
        for part in ["objects", "records", "notes"] {
            let dir = cache.join("v1").join(part);
            fs::remove_dir_all(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
        }
    }
    assert!(failed > 3, "{failed}");
}

#[test]
fn row_31_an_effect_that_can_not_be_journalled_is_not_made_needs_root() {
    if !root() {
        return;
    }
    let place = Place::new();
    let disk = SmallDisk::new(16);
    let launch = LaunchDir::claim(&disk.0.path().join("state"), "full").unwrap();
    let mut settings = Settings::new("full", place.store()).unwrap();
    settings.launch = Some(launch);
    let run = Run::start(settings).unwrap();
    let files = place.dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let first = run.effect("first", Touch::at(&files.join("a")));
    run.wait(&first).unwrap();
    let _ = fs::write(disk.0.path().join("ballast"), vec![0; 1 << 20]);
    // The journal's page has room for some more lines.
    let mut last = first;
    let failure = loop {
        last = run.effect(
            "more",
            Touch {
                path: files.join("b"),
                after: Some(last),
            },
        );
        match run.wait(&last) {
            Ok(_) => fs::remove_file(files.join("b")).unwrap(),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.kind, FailureKind::Space, "{failure:#}");
    assert!(!files.join("b").exists());
    // No part of the line that did not fit, or the next one would run into it.
    let journal = fs::read_to_string(disk.0.path().join("state/full/journal")).unwrap();
    assert!(journal.ends_with("}\n"), "{journal:?}");
    let finished = run.finish();
    assert!(finished.not_undone.is_empty());
    assert!(!files.join("a").exists());
    fs::remove_file(disk.0.path().join("ballast")).unwrap();
}
