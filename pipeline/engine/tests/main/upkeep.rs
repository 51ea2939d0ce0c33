//! Collecting, verifying, and carrying outputs to another store.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fcpipe_engine::store::archive::ArchiveError;
use fcpipe_engine::store::{Collect, Collected, Finding, StoreOptions, Unusable};
use fcpipe_engine::{
    CancelToken, Cx, Digest, Failure, FailureKind, Key, KeyWriter, Object, Outcome, Run, Settings,
    Stage, Store, StoreError,
};

use crate::kit::{Place, Text};

/// A sparse file of 3 MiB and something, with two islands in it.
struct Blob(u8);

const LONG: u64 = (3 << 20) + 1234;

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
fn launch(store: &Arc<Store>, seeds: &[u8]) -> Vec<(Outcome, Object)> {
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

fn open(place: &Place) -> Arc<Store> {
    Arc::new(Store::open(&place.cache()).unwrap())
}

/// A store with these blobs in it, looked at and synced.
fn filled(place: &Place, seeds: &[u8]) -> (Arc<Store>, Vec<Object>) {
    let store = open(place);
    let objects = launch(&store, seeds).into_iter().map(|(_, object)| object);
    let objects = objects.collect();
    store.settle(&|| false).unwrap();
    (store, objects)
}

fn outcomes(store: &Arc<Store>, seeds: &[u8]) -> Vec<Outcome> {
    let launched = launch(store, seeds).into_iter();
    launched.map(|(outcome, _)| outcome).collect()
}

fn collect(store: &Store, what: Collect) -> Collected {
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
fn what_a_machine_holds_stays_also_when_only_its_child_holds_it() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1, 2]);
    let lease = store.lease(&objects[0]).unwrap();
    // As a machine's process does: the descriptor is inherited, the launcher's own is closed.
    let mut child = Command::new("sleep")
        .arg("100")
        .stdin(Stdio::from(lease.file.try_clone().unwrap()))
        .spawn()
        .unwrap();
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

#[test]
fn verify_takes_nothing_from_under_a_launch() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let other = open(&place);
    fs::set_permissions(&objects[0].path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(&objects[0].path)
        .unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    assert_eq!(verified.findings.len(), 1);
    // The record is gone. The object is in nobody's way, and somebody may be about to open it.
    assert_eq!(verified.orphans.files, 1);
    assert!(objects[0].path.exists());
    drop(other);
    assert_eq!(collect(&store, Collect::default()).orphans, 1);
}

/// An archive of these blobs.
fn archive(place: &Place, seeds: &[u8]) -> (PathBuf, Digest) {
    let (store, objects) = filled(place, seeds);
    let keys: Vec<Key> = objects.iter().map(|object| object.id.key()).collect();
    let path = place.dir.path().join("archive.tar");
    let exported = store.export(&keys, &path, 2, &|| false).unwrap();
    assert_eq!(exported.objects, seeds.len() as u64);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(exported.bytes, bytes.len() as u64);
    assert_eq!(exported.digest, Digest::from(blake3_of(&bytes)));
    (path, exported.digest)
}

fn blake3_of(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn import(
    store: &Store,
    bytes: &[u8],
    expected: Option<Digest>,
) -> Result<fcpipe_engine::store::archive::Imported, ArchiveError> {
    let cancel = CancelToken::new().unwrap();
    store.import(bytes, Path::new("archive"), expected, &cancel)
}

#[test]
fn an_archive_makes_the_same_launch_a_hit_elsewhere() {
    let (here, there) = (Place::new(), Place::new());
    let (path, digest) = archive(&here, &[1, 2]);
    let bytes = fs::read(&path).unwrap();
    // Holes are not in it: of each blob's four pieces two are.
    assert!(bytes.len() < 5 << 20, "{}", bytes.len());
    let store = open(&there);
    assert_eq!(outcomes(&store, &[2]), [Outcome::Ran]);
    let imported = import(&store, &bytes, Some(digest)).unwrap();
    assert_eq!((imported.records.len(), imported.present), (1, 1));
    assert_eq!(imported.records[0].1, "blob:1");
    let launched = launch(&store, &[1, 2]);
    assert!(launched.iter().all(|(outcome, _)| *outcome == Outcome::Hit));
    // Holes are holes again.
    let blocks = fs::metadata(&launched[0].1.path).unwrap().blocks();
    assert!(blocks * 512 < 64 << 10, "{blocks}");
    // What was imported is known already, and right.
    drop(store);
    let store = open(&there);
    let verified = store.verify(1, &|| false).unwrap().unwrap();
    assert_eq!((verified.objects, verified.findings.len()), (1, 1));
    // Twice is as good as once.
    assert_eq!(import(&store, &bytes, None).unwrap().records.len(), 1);
    assert_eq!(import(&store, &bytes, None).unwrap().present, 2);
    assert_eq!(collect(&store, Collect::default()).orphans, 0);
}

/// Nothing was published and nothing was left.
fn assert_untouched(place: &Place, why: &str) {
    for part in ["objects", "records", "locks", "tmp"] {
        assert_eq!(place.count(part), 0, "{part}: {why}");
    }
}

#[test]
fn a_damaged_archive_is_refused_whole() {
    let (here, there) = (Place::new(), Place::new());
    let (path, digest) = archive(&here, &[1, 2]);
    let whole = fs::read(&path).unwrap();
    let other = Digest::of("another", &[]);
    let store = open(&there);
    let refused = import(&store, &whole, Some(other));
    assert!(matches!(refused, Err(ArchiveError::Refused { .. })));
    assert_untouched(&there, "another digest");
    let mut refusals = 0;
    // Every part of it: headers and manifest densely, contents here and there.
    let places = (0..10_000)
        .step_by(101)
        .chain((10_000..whole.len()).step_by(50_021));
    for at in places {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x20;
        assert!(import(&store, &damaged, Some(digest)).is_err(), "byte {at}");
        assert_untouched(&there, &format!("byte {at}, digest given"));
        match import(&store, &damaged, None) {
            Err(ArchiveError::Refused { .. } | ArchiveError::Io { .. }) => {
                refusals += 1;
                assert_untouched(&there, &format!("byte {at}"));
            }
            Err(error) => panic!("byte {at}: {error}"),
            // Padding between the parts says nothing.
            Ok(imported) => {
                assert_eq!(imported.records.len(), 2);
                assert_eq!(outcomes(&store, &[1, 2]), [Outcome::Hit; 2], "byte {at}");
                assert_eq!(
                    collect(
                        &store,
                        Collect {
                            max_size: Some(0),
                            ..Collect::default()
                        }
                    )
                    .left,
                    0
                );
            }
        }
    }
    assert!(refusals > 100, "{refusals}");
    // The last two blocks only say that nothing follows.
    let end = whole.len() - 1024;
    for len in (0..end).step_by(end / 40).chain([end - 512]) {
        assert!(import(&store, &whole[..len], None).is_err(), "cut at {len}");
        assert_untouched(&there, &format!("cut at {len}"));
    }
    let mut longer = whole.clone();
    longer.extend(b"x");
    assert!(import(&store, &longer, None).is_err());
    assert_untouched(&there, "longer");
    import(&store, &whole, Some(digest)).unwrap();
}

/// An archive with this manifest and these parts.
fn forged(manifest: &serde_json::Value, parts: &[(&str, &[u8])]) -> Vec<u8> {
    let text = serde_json::to_vec(manifest).unwrap();
    let digest = Digest::from(blake3_of(&text)).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let seal = [
        ("manifest.json", &text[..]),
        ("manifest.blake3", digest.as_bytes()),
    ];
    for (name, bytes) in seal.iter().chain(parts) {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn an_archive_that_was_made_to_do_harm_is_refused() {
    let (here, there) = (Place::new(), Place::new());
    let (path, _) = archive(&here, &[1]);
    let mut tar = tar::Archive::new(fs::File::open(path).unwrap());
    let parts: Vec<Vec<u8>> = tar
        .entries()
        .unwrap()
        .map(|entry| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry.unwrap(), &mut bytes).unwrap();
            bytes
        })
        .collect();
    let good: serde_json::Value = serde_json::from_slice(&parts[0]).unwrap();
    let object = ("objects/0", &parts[2][..]);
    let store = open(&there);
    let other_key = Digest::of("another", &[]).to_string();
    let id = good["objects"][0]["id"].as_str().unwrap().to_owned();
    type Change = Box<dyn Fn(&mut serde_json::Value)>;
    let set = |pointer: &'static str, value: serde_json::Value| -> Change {
        Box::new(move |manifest| *manifest.pointer_mut(pointer).unwrap() = value.clone())
    };
    let changes: Vec<(&str, Change)> = vec![
        (
            "another form",
            set("/schema", "fcpipe.cache-archive/2".into()),
        ),
        (
            "another key",
            set("/records/0/key", other_key.clone().into()),
        ),
        (
            "a path",
            set("/objects/0/id", format!("{other_key}/../../x").into()),
        ),
        ("absolute", set("/objects/0/id", "/etc/passwd".into())),
        ("too long", set("/objects/0/size", u64::MAX.into())),
        ("another length", set("/objects/0/size", (LONG + 1).into())),
        ("no pieces", set("/objects/0/pieces", serde_json::json!([]))),
        (
            "pieces beyond the end",
            set(
                "/objects/0/pieces",
                serde_json::json!([{"start": 0, "end": u64::MAX}]),
            ),
        ),
        (
            "pieces twice",
            set(
                "/objects/0/pieces",
                serde_json::json!([{"start": 3, "end": 4}, {"start": 0, "end": 1}]),
            ),
        ),
        (
            "backwards",
            set(
                "/objects/0/pieces",
                serde_json::json!([{"start": 3, "end": 0}]),
            ),
        ),
        (
            "another content",
            set("/objects/0/content", other_key.clone().into()),
        ),
        ("no object", set("/objects", serde_json::json!([]))),
        ("no record", set("/records", serde_json::json!([]))),
        (
            "named twice",
            Box::new(|manifest| {
                for list in ["/records/0/kept/objects", "/objects"] {
                    let list = manifest.pointer_mut(list).unwrap().as_array_mut().unwrap();
                    list.push(list[0].clone());
                }
            }),
        ),
        (
            "unknown field",
            Box::new(|manifest| manifest["objects"][0]["mode"] = 0o4755.into()),
        ),
        (
            "a long name",
            Box::new(move |manifest| {
                let key = id.split_once('/').unwrap().0;
                let long = format!("{key}/{}.0123", "x".repeat(65));
                manifest["objects"][0]["id"] = long.clone().into();
                manifest["records"][0]["kept"]["objects"][0][0] = long.into();
            }),
        ),
    ];
    for (name, change) in changes {
        let mut manifest = good.clone();
        change(&mut manifest);
        let parts: [_; 2] = [object, ("objects/1", object.1)];
        let listed = manifest["objects"].as_array().unwrap().len();
        let refused = import(&store, &forged(&manifest, &parts[..listed]), None);
        assert!(
            matches!(refused, Err(ArchiveError::Refused { .. })),
            "{name}: {refused:?}"
        );
        assert_untouched(&there, name);
    }
    let zeros = vec![0; object.1.len()];
    for (name, parts) in [
        ("more than it names", vec![object, ("objects/1", &b"x"[..])]),
        ("another name", vec![("objects/1", object.1)]),
        ("less", vec![]),
        (
            "longer",
            vec![("objects/0", &[object.1, b"x"].concat()[..])],
        ),
        ("zeros", vec![("objects/0", &zeros[..])]),
    ] {
        let parts: Vec<_> = parts
            .into_iter()
            .filter(|part| !part.0.starts_with(".."))
            .collect();
        let refused = import(&store, &forged(&good, &parts), None);
        assert!(
            matches!(refused, Err(ArchiveError::Refused { .. })),
            "{name}: {refused:?}"
        );
        assert_untouched(&there, name);
    }
    // The forger's tool itself makes what is taken.
    import(&store, &forged(&good, &[object]), None).unwrap();
}

#[test]
fn what_is_damaged_or_not_there_is_not_exported() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let key = objects[0].id.key();
    let path = place.dir.path().join("out.tar");
    fs::write(&path, "the old one").unwrap();
    let not_there = Key::new(Digest::of("another", &[]));
    let result = store.export(&[key, not_there], &path, 1, &|| false);
    assert!(matches!(result, Err(ArchiveError::NotThere { .. })));
    fs::set_permissions(&objects[0].path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(&objects[0].path)
        .unwrap();
    file.write_all_at(b"x", LONG - 1).unwrap();
    let result = store.export(&[key], &path, 1, &|| false);
    assert!(
        matches!(result, Err(ArchiveError::Damaged { .. })),
        "{result:?}"
    );
    let result = store.export(&[key], &path, 1, &|| true);
    assert!(matches!(result, Err(ArchiveError::Cancelled)), "{result:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "the old one");
    assert_eq!(
        fs::read_dir(place.dir.path()).unwrap().count(),
        2,
        "leftovers"
    );
}
