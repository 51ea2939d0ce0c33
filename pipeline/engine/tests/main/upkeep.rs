//! Collecting and verifying.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fcpipe_engine::store::{Collect, Collected, Finding, StoreOptions, Unusable};
use fcpipe_engine::{
    Cx, Digest, Failure, FailureKind, Identity, Kept, Key, KeyWriter, Object, Outcome, Output, Run,
    Settings, Stage, Store, StoreError,
};

use crate::kit::{Place, Text, begin, nobody_begins};

/// A sparse file of 3 MiB and something, with two islands in it.
pub(crate) struct Blob(u8);

pub(crate) const LONG: u64 = (3 << 20) + 1234;

impl Stage for Blob {
    const NAME: &'static str = "blob";
    const VERSION: u32 = 1;
    type Output = Text;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("seed", &self.0);
    }
    fn run(&self, cx: &Cx) -> Result<Text, Failure> {
        let writer = cx.object("blob.img")?;
        let file = writer.file();
        let failed = |e| cx.fail(FailureKind::Store, "blob", e);
        file.set_len(LONG).map_err(failed)?;
        file.write_all_at(&[self.0; 5000], 100).map_err(failed)?;
        file.write_all_at(&[self.0; 1000], LONG - 1000)
            .map_err(failed)?;
        Ok(Text(cx.publish(writer)?))
    }
}

/// Launches of these blobs: what came of each, and the objects.
pub(crate) fn launch(store: &Arc<Store>, seeds: &[u8]) -> Vec<(Outcome, Object)> {
    let run = Run::start(Settings::new("blobs", store.clone()).unwrap()).unwrap();
    let nodes: Vec<_> = seeds
        .iter()
        .map(|seed| run.stage(format!("blob:{seed}"), Blob(*seed)))
        .collect();
    let objects: Vec<_> = nodes
        .iter()
        .zip(seeds)
        .map(|(node, seed)| {
            let object = run.wait(node).unwrap().0.clone();
            let bytes = fs::read(&object.path).unwrap();
            assert_eq!(bytes.len() as u64, LONG);
            let count = bytes.iter().filter(|byte| *byte == seed).count();
            assert_eq!((count, bytes[100]), (6000, *seed));
            object
        })
        .collect();
    let finished = run.finish();
    finished.result.unwrap();
    let rows = finished.receipt.stages.into_iter();
    rows.map(|row| row.outcome).zip(objects).collect()
}

pub(crate) fn open(place: &Place) -> Arc<Store> {
    Arc::new(Store::open(&place.cache()).unwrap())
}

/// A store with these blobs in it, looked at and synced.
pub(crate) fn filled(place: &Place, seeds: &[u8]) -> (Arc<Store>, Vec<Object>) {
    let store = open(place);
    let objects = launch(&store, seeds).into_iter().map(|(_, object)| object);
    let objects = objects.collect();
    store.settle(&|| false).unwrap();
    (store, objects)
}

pub(crate) fn outcomes(store: &Arc<Store>, seeds: &[u8]) -> Vec<Outcome> {
    let launched = launch(store, seeds).into_iter();
    launched.map(|(outcome, _)| outcome).collect()
}

pub(crate) fn collect(store: &Store, what: Collect) -> Collected {
    // Another test may be starting a child, which shares this process's locks until its exec.
    let wait = Duration::from_secs(10);
    store.collect(&Collect { wait, ..what }).unwrap()
}

fn set_used(place: &Place, key: Key, ago: Duration) {
    let path = place.cache().join("v1/records").join(key.to_string());
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - ago).unwrap();
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_was_used_longest_ago_goes_first() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1, 2, 3]);
    for (object, hours) in objects.iter().zip([3, 9, 5]) {
        set_used(&place, object.id.key(), HOUR * hours);
    }
    // A hit makes the oldest one the youngest.
    assert_eq!(outcomes(&store, &[2]), [Outcome::Hit]);
    let there = |n: usize| objects[n].path.exists();

    let all = store.survey().unwrap();
    let order: Vec<Key> = all.entries.iter().map(|entry| entry.key).collect();
    let key = |n: usize| objects[n].id.key();
    assert_eq!(order, [key(1), key(0), key(2)]);
    assert_eq!(all.total().disk, disk(&place.cache().join("v1")));

    let nothing = collect(
        &store,
        Collect {
            max_size: Some(all.total().disk),
            max_age: Some(HOUR * 24),
            ..Collect::default()
        },
    );
    assert_eq!((nothing.records, nothing.freed), (0, 0));
    let one = collect(
        &store,
        Collect {
            max_size: Some(all.total().disk - 1),
            ..Collect::default()
        },
    );
    assert_eq!(one.records, 1);
    assert_eq!((there(0), there(1), there(2)), (true, true, false));
    assert_eq!(one.left, disk(&place.cache().join("v1")));
    assert_eq!(one.left + one.freed, all.total().disk);

    let old = collect(
        &store,
        Collect {
            max_age: Some(HOUR),
            ..Collect::default()
        },
    );
    assert_eq!(old.records, 1);
    assert_eq!((there(0), there(1)), (false, true));
    let rest = collect(
        &store,
        Collect {
            max_size: Some(0),
            ..Collect::default()
        },
    );
    assert_eq!(rest.left, 0);
    assert_eq!(place.count("objects"), 0);
    assert_eq!(outcomes(&store, &[1, 2, 3]), [Outcome::Ran; 3]);
}

/// What the files below a directory take of the disk.
fn disk(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        sum += if meta.is_dir() {
            disk(&entry.path())
        } else {
            meta.blocks() * 512
        };
    }
    sum
}

#[test]
fn a_time_in_the_future_is_no_age() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let path = place
        .cache()
        .join("v1/records")
        .join(objects[0].id.key().to_string());
    let later = SystemTime::now() + HOUR * 1000;
    fs::File::open(&path).unwrap().set_modified(later).unwrap();
    let gone = collect(
        &store,
        Collect {
            max_age: Some(HOUR),
            ..Collect::default()
        },
    );
    assert_eq!(gone.records, 0);
    // And it does not stay the youngest for ever.
    assert_eq!(outcomes(&store, &[1]), [Outcome::Hit]);
    assert!(fs::metadata(&path).unwrap().modified().unwrap() < later - HOUR);
}

#[test]
fn what_scans_remember_goes_by_age_and_size_too() {
    let place = Place::new();
    let store = open(&place);
    let [old, young] = ["old", "young"].map(|name| store.scans_dir().join(name));
    for path in [&old, &young] {
        fs::write(path, [1; 9000]).unwrap();
    }
    let file = fs::File::open(&old).unwrap();
    file.set_modified(SystemTime::now() - HOUR * 2).unwrap();
    assert_eq!(store.survey().unwrap().scans.files, 2);
    let age = Collect {
        max_age: Some(HOUR),
        ..Collect::default()
    };
    assert_eq!(collect(&store, age).scans, 1);
    assert!(!old.exists() && young.exists());
    let size = Collect {
        max_size: Some(0),
        ..Collect::default()
    };
    let gone = collect(&store, size);
    assert_eq!((gone.scans, gone.left), (1, 0));
}

#[test]
fn what_a_machine_holds_stays_also_when_only_its_child_holds_it() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1, 2]);
    let lease = store.lease(&objects[0]).unwrap();
    // As a machine's process does: the descriptor is inherited, the launcher's own is closed.
    let mut child = begin(
        Command::new("sleep")
            .arg("100")
            .stdin(Stdio::from(lease.file.try_clone().unwrap())),
    );
    drop(lease);
    let everything = || {
        collect(
            &store,
            Collect {
                max_size: Some(0),
                ..Collect::default()
            },
        )
    };
    let gone = everything();
    assert_eq!((gone.records, gone.in_use), (1, 1));
    assert!(objects[0].path.exists() && !objects[1].path.exists());
    assert!(store.survey().unwrap().entries[0].leased());
    assert_eq!(outcomes(&store, &[1, 2]), [Outcome::Hit, Outcome::Ran]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(everything().in_use, 0);
    assert!(!objects[0].path.exists());
}

#[test]
fn a_collector_does_not_come_between_a_launch_and_its_objects() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let launch = open(&place);
    let wait = Duration::from_millis(30);
    let refused = store.collect(&Collect {
        max_size: Some(0),
        wait,
        ..Collect::default()
    });
    assert!(
        matches!(refused, Err(StoreError::InUse { .. })),
        "{refused:?}"
    );
    assert!(objects[0].path.exists());
    // It holds the store again: nobody else can have it alone now.
    launch.release();
    let refused = launch.collect(&Collect::default());
    assert!(
        matches!(refused, Err(StoreError::InUse { .. })),
        "{refused:?}"
    );
    drop(launch);
    assert_eq!(collect(&store, Collect::default()).records, 0);
}

#[test]
fn row_33_what_the_dead_left_goes() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let v1 = place.cache().join("v1");
    let nobodys = Digest::of("test", &[]).to_string();
    fs::create_dir(v1.join("objects").join(&nobodys)).unwrap();
    fs::write(v1.join("objects").join(&nobodys).join("a.0123"), [1; 9000]).unwrap();
    // Beside a good one: a maker under the same key that was killed before its record.
    fs::write(objects[0].path.with_extension("0000"), "x").unwrap();
    fs::write(v1.join("tmp/1.dead"), "x").unwrap();
    fs::write(v1.join("locks/dead"), "").unwrap();
    fs::write(v1.join("records").join(&nobodys), "damaged").unwrap();
    fs::write(v1.join("notes").join(&nobodys), "damaged").unwrap();
    let gone = collect(&store, Collect::default());
    assert_eq!(
        (
            gone.records,
            gone.unusable,
            gone.orphans,
            gone.notes,
            gone.leftovers
        ),
        (0, 1, 2, 1, 2)
    );
    assert_eq!(gone.left, disk(&v1));
    for part in ["objects", "records"] {
        assert_eq!(place.count(part), 1, "{part}");
    }
    assert_eq!((place.count("tmp"), place.count("locks")), (0, 0));
    assert_eq!(outcomes(&store, &[1]), [Outcome::Hit]);
}

#[test]
fn row_34_what_another_boot_left_unsynced_goes() {
    let place = Place::new();
    let boot = |id: &str| {
        let options = StoreOptions {
            boot_id: Some(id.to_owned()),
            ..StoreOptions::default()
        };
        Arc::new(Store::open_with(&place.cache(), &options).unwrap())
    };
    launch(&boot("one"), &[1]);
    let store = boot("two");
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    let stale = |finding: &Finding| {
        matches!(
            finding,
            Finding::Record {
                why: Unusable::OtherBoot,
                ..
            }
        )
    };
    assert!(verified.findings.iter().all(stale) && verified.findings.len() == 1);
    assert!(!verified.findings[0].is_damage());
    launch(&store, &[1]);
    drop(store);
    let gone = collect(&boot("three"), Collect::default());
    assert_eq!((gone.unusable, gone.orphans), (1, 1));
}

/// Every kind of file in the store.
fn files(place: &Place) -> Vec<PathBuf> {
    let v1 = place.cache().join("v1");
    let mut files = Vec::new();
    for part in ["records", "notes"] {
        let dir = fs::read_dir(v1.join(part)).unwrap();
        files.extend(dir.map(|entry| entry.unwrap().path()));
    }
    for key in fs::read_dir(v1.join("objects")).unwrap() {
        let dir = fs::read_dir(key.unwrap().path()).unwrap();
        files.extend(dir.map(|entry| entry.unwrap().path()));
    }
    files
}

#[test]
fn row_36_a_flipped_bit_anywhere_is_found() {
    let place = Place::new();
    let (store, _) = filled(&place, &[1]);
    let clean = |store: &Store| {
        let verified = store.verify(2, &|| false).unwrap().unwrap();
        assert_eq!(verified.findings, []);
        assert_eq!((verified.records, verified.objects), (1, 1));
    };
    clean(&store);
    // What is damaged is removed at once where nobody else uses the store.
    let _alone = nobody_begins();
    let seed = std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut seed: u64 = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64
    });
    println!("seed {seed} (FCPIPE_SEED repeats it)");
    let mut kinds = [0; 3];
    for round in 0..60 {
        let files = files(&place);
        let path = &files[round % files.len()];
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let len = fs::metadata(path).unwrap().len();
        let at = (seed >> 33) % len;
        let mut byte = [0];
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (seed % 8))], at)
            .unwrap();
        let verified = store.verify(1, &|| false).unwrap().unwrap();
        let why = format!("{} byte {at}", path.display());
        assert_eq!(verified.findings.len(), 1, "{why}");
        assert!(verified.findings[0].is_damage(), "{why}");
        let (kind, next) = match &verified.findings[0] {
            Finding::Record { why, .. } => {
                assert_eq!(*why, Unusable::Damaged);
                (0, Outcome::Ran)
            }
            Finding::Note { .. } => (1, Outcome::Hit),
            Finding::Object { .. } => (2, Outcome::Ran),
            other => panic!("{why}: {other:?}"),
        };
        kinds[kind] += 1;
        assert!(!path.exists(), "{why}");
        // Also: what is handed out next is right.
        assert_eq!(outcomes(&store, &[1]), [next], "{why}");
        store.settle(&|| false).unwrap();
        clean(&store);
    }
    assert!(kinds.iter().all(|count| *count > 10), "{kinds:?}");
}

#[test]
fn what_nobody_has_looked_at_is_not_believed() {
    let place = Place::new();
    let store = open(&place);
    let (_, object) = launch(&store, &[1]).remove(0);
    // A launch that ends early leaves it so.
    assert_eq!(store.prove_pending(1, &|| true).unwrap(), 0);
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    let node = "blob:1".to_owned();
    let unproven = Finding::Unproven {
        id: object.id.clone(),
        node,
    };
    assert!(!unproven.is_damage());
    assert_eq!(verified.findings, [unproven]);
    assert_eq!(outcomes(&store, &[1]), [Outcome::Ran]);
    // A later launch that goes by the record looks at it.
    drop(store);
    let store = open(&place);
    assert_eq!(outcomes(&store, &[1]), [Outcome::Hit]);
    assert_eq!(store.prove_pending(1, &|| false).unwrap(), 1);
    assert_eq!(store.verify(1, &|| false).unwrap().unwrap().findings, []);
    assert!(store.verify(1, &|| true).unwrap().is_none());
}

/// Another byte at its beginning.
fn damage(object: &Object) {
    fs::set_permissions(&object.path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&object.path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
}

#[test]
fn verify_takes_nothing_from_under_a_launch() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let other = open(&place);
    damage(&objects[0]);
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    assert_eq!(verified.findings.len(), 1);
    // The record is gone. The object is in nobody's way, and somebody may be about to open it.
    assert_eq!(verified.orphans.files, 1);
    assert!(objects[0].path.exists());
    drop(other);
    assert_eq!(collect(&store, Collect::default()).orphans, 1);
}

/// A file of its own, and a blob that another stage made: found by the hint that the blob left.
struct Borrow(u8);

struct Pair(Vec<Object>);

impl Output for Pair {
    fn identity(&self) -> Identity {
        Identity::new(Digest::of("test pair", &[]))
    }
    fn keep(&self) -> Option<Kept> {
        Some(Kept {
            body: serde_json::Value::Null,
            objects: self.0.clone(),
        })
    }
    fn recall(kept: Kept) -> Option<Self> {
        Some(Pair(kept.objects))
    }
}

impl Stage for Borrow {
    const NAME: &'static str = "borrow";
    const VERSION: u32 = 1;
    type Output = Pair;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("number", &self.0);
    }
    fn run(&self, cx: &Cx) -> Result<Pair, Failure> {
        let lender: Key = cx.hint::<String>("lender").unwrap().parse().unwrap();
        let (kept, _) = cx.earlier(&lender).unwrap();
        let writer = cx.object("own")?;
        let own = cx.publish(writer)?;
        Ok(Pair(vec![own, kept.objects[0].clone()]))
    }
}

/// Leaves the hint.
struct Lend(Key);

impl Stage for Lend {
    const NAME: &'static str = "lend";
    const VERSION: u32 = 1;
    type Output = crate::kit::Number;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("lender", &self.0.to_string());
    }
    fn run(&self, cx: &Cx) -> Result<Self::Output, Failure> {
        cx.leave_hint("lender", &self.0.to_string());
        Ok(crate::kit::Number(1))
    }
}

/// The run of a stage that borrows the first object of `lender`, and its own record's key.
fn borrowed(store: &Arc<Store>, lender: Key) -> Key {
    let run = Run::start(Settings::new("borrowing", Arc::clone(store)).unwrap()).unwrap();
    run.wait(&run.stage("lend", Lend(lender))).unwrap();
    let pair = run.wait(&run.stage("borrow", Borrow(1))).unwrap();
    run.finish().result.unwrap();
    store.settle(&|| false).unwrap();
    pair.0[0].id.key()
}

#[test]
fn row_36_who_borrows_what_is_damaged_is_no_hit_either() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let borrower = borrowed(&store, objects[0].id.key());
    // Somebody else has the store open, so the object itself stays.
    let other = open(&place);
    damage(&objects[0]);
    let findings = store.verify(1, &|| false).unwrap().unwrap().findings;
    let id = objects[0].id.clone();
    let node = "borrow".to_owned();
    let follows = Finding::Borrowed { id, node };
    assert!(
        findings.len() == 2 && findings[1] == follows,
        "{findings:?}"
    );
    assert!(store.record(&borrower).is_none());
    drop(other);
    assert_eq!(store.verify(1, &|| false).unwrap().unwrap().findings, []);
}

#[test]
fn what_another_record_names_stays_as_long_as_that() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1, 2]);
    let lender = objects[0].id.key();
    let borrower = borrowed(&store, lender);
    // The lender was not used for long, but its borrower was.
    set_used(&place, lender, HOUR * 9);
    set_used(&place, objects[1].id.key(), HOUR * 5);
    let gone = collect(
        &store,
        Collect {
            max_age: Some(HOUR),
            ..Collect::default()
        },
    );
    assert_eq!(gone.records, 1, "{gone:?}");
    assert!(store.record(&lender).is_some() && store.record(&borrower).is_some());
    assert!(objects[0].path.exists() && !objects[1].path.exists());
    // Each object is looked at with its own record.
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    assert_eq!((verified.findings, verified.objects), (vec![], 2));
    // Without the lender's record the object is the borrower's.
    store.forget(&lender).unwrap();
    let gone = collect(&store, Collect::default());
    assert_eq!((gone.orphans, gone.records), (0, 0), "{gone:?}");
    assert!(objects[0].path.exists());
    // Both go when both are too old, the borrower first.
    let gone = collect(
        &store,
        Collect {
            max_size: Some(0),
            ..Collect::default()
        },
    );
    assert!(gone.records >= 1 && !objects[0].path.exists(), "{gone:?}");
    assert!(store.survey().unwrap().orphans.is_empty());
}
