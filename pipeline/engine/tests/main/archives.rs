//! Carrying outputs to another store, in files that may be damaged or made to do harm.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use fcpipe_engine::store::Collect;
use fcpipe_engine::store::archive::{ArchiveError, Imported};
use fcpipe_engine::{CancelToken, Digest, Key, Outcome, Store};

use crate::kit::Place;
use crate::upkeep::{LONG, collect, filled, launch, open, outcomes};

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

fn import(store: &Store, bytes: &[u8], expected: Option<Digest>) -> Result<Imported, ArchiveError> {
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
    // The manifest, from its header's end on.
    let end = whole.windows(2).position(|two| two == b"}\0").unwrap();
    let said = 512..=end;
    // Also where it would read as well as before.
    let word = whole.windows(6).position(|word| word == b"blob:1").unwrap();
    let mut renamed = whole.clone();
    renamed[word + 5] = b'3';
    assert!(said.contains(&word) && import(&store, &renamed, None).is_err());
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
                assert!(!said.contains(&at), "byte {at} says something");
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

#[test]
fn guarantee_2_a_link_stays_one_and_what_is_no_file_is_left_alone() {
    let place = Place::new();
    let (store, objects) = filled(&place, &[1]);
    let at = |name: &str| place.dir.path().join(name);
    let export = |path: &std::path::Path| store.export(&[objects[0].id.key()], path, 1, &|| false);
    fs::write(at("old"), "the old one").unwrap();
    for (link, to) in [("first", "second"), ("second", "old"), ("dangling", "made")] {
        std::os::unix::fs::symlink(to, at(link)).unwrap();
    }
    let bytes = export(&at("first")).unwrap().bytes;
    export(&at("dangling")).unwrap();
    for (link, to) in [("second", "old"), ("dangling", "made")] {
        assert_eq!(fs::read_link(at(link)).unwrap(), std::path::Path::new(to));
        assert_eq!(fs::symlink_metadata(at(to)).unwrap().len(), bytes, "{to}");
    }
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, 0o600.into(), 0).unwrap();
    for name in ["loop", "fifo", "."] {
        let refused = export(&at(name)).unwrap_err();
        assert!(
            matches!(refused, ArchiveError::Io { .. }),
            "{name}: {refused}"
        );
    }
    let kind = fs::symlink_metadata(at("fifo")).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
}

#[test]
fn it_can_be_cancelled_at_every_look() {
    use std::sync::atomic::{AtomicI32, Ordering};
    let place = Place::new();
    let (store, objects) = filled(&place, &[1, 2]);
    let keys: Vec<Key> = objects.iter().map(|object| object.id.key()).collect();
    let path = place.dir.path().join("out.tar");
    let mut looks = 0;
    loop {
        let left = AtomicI32::new(looks);
        let cancelled = || left.fetch_sub(1, Ordering::SeqCst) <= 0;
        match store.export(&keys, &path, 1, &cancelled) {
            Err(ArchiveError::Cancelled) => assert!(!path.exists()),
            Ok(_) => break,
            Err(error) => panic!("{error}"),
        }
        looks += 1;
    }
    // Once a piece when it is hashed and once when it is written, at the least.
    assert!(looks >= 8, "{looks}");
}
