//! What a source's content is taken to depend on.

use std::fs;
use std::path::Path;

use fcpipe_spec::Content;
use fcpipe_tree::{ScanOptions, Trust, scan};

use crate::common::*;
use crate::indexing::{assert_as_cold, is_same, looked, many_kinds, settle};

fn with_trust(trust: Trust) -> ScanOptions<'static> {
    ScanOptions {
        trust,
        ..ScanOptions::default()
    }
}

/// Contents are read when something else changed, and then the same content is the same.
#[test]
fn trusting_contents_a_touched_file_is_the_same_and_an_edited_one_is_not() {
    let place = Place::new();
    many_kinds(&place);
    fs::hard_link(place.path("d3/sparse"), place.path("d4/sparse")).unwrap();
    settle();
    let options = with_trust(Trust::Content);
    let first = looked(&place, &options).digest_of_stamps();
    let warm = looked(&place, &options);
    assert!(is_same(&warm));
    assert_as_cold(&warm, &place.top(), &options, "content");
    // Made anew with the same content: another inode, other times.
    fs::copy(place.path("d1/f2"), place.path("d1/copy")).unwrap();
    fs::rename(place.path("d1/copy"), place.path("d1/f2")).unwrap();
    settle();
    let warm = looked(&place, &options);
    assert!(!is_same(&warm));
    assert_eq!(warm.digest_of_stamps(), first);
    assert_as_cold(&warm, &place.top(), &options, "made anew");
    fs::write(place.path("d1/f2"), [8; 100]).unwrap();
    settle();
    let warm = looked(&place, &options);
    assert_ne!(warm.digest_of_stamps(), first);
    assert_as_cold(&warm, &place.top(), &options, "edited");
    // And a source that is a file.
    let cold = |path: &str| {
        let scanned = scan(&place.path(path), &Content::default(), &options).unwrap();
        scanned.digest_of_stamps()
    };
    assert_eq!(cold("d1/f3"), cold("d1/f4"));
    assert_ne!(cold("d1/f3"), cold("d1/f2"));
}

#[test]
fn an_immutable_source_is_walked_once_until_another_is_in_its_place() {
    let place = Place::new();
    many_kinds(&place);
    let options = ScanOptions {
        immutable: true,
        ..ScanOptions::default()
    };
    let before = looked(&place, &options);
    let (tree, stamps) = (before.tree_digest(), before.digest_of_stamps());
    fs::write(place.path("d1/f2"), b"against its word").unwrap();
    settle();
    let warm = looked(&place, &options);
    assert_eq!(
        (warm.tree_digest(), warm.digest_of_stamps()),
        (tree, stamps)
    );
    assert!(is_same(&warm));
    // Whoever copies the file notices.
    let scan = warm.scan().unwrap();
    let composed = composed(vec![fcpipe_tree::Layer {
        destination: "/".into(),
        source: place.top(),
        scan: Some(scan),
    }]);
    assert!(
        composed
            .opener()
            .open(at(composed.tree(), "d1/f2"))
            .is_err()
    );
    let aside = place.dir.path().join("aside");
    fs::rename(place.top(), &aside).unwrap();
    fs::create_dir(place.top()).unwrap();
    settle();
    let other = looked(&place, &options);
    assert_ne!(other.tree_digest(), tree);
    assert_as_cold(&other, &place.top(), &options, "another");
}

#[test]
fn a_declared_digest_stands_for_the_stamps_and_saves_the_walk() {
    let place = Place::new();
    many_kinds(&place);
    let declared = |words: &'static str| ScanOptions {
        declared: Some(words),
        ..ScanOptions::default()
    };
    let first = looked(&place, &declared("v1"));
    let stamps = first.digest_of_stamps();
    assert_as_cold(&first, &place.top(), &declared("v1"), "declared");
    assert!(is_same(&looked(&place, &declared("v1"))));
    // The same tree in another directory, as after another mount: taken at its word, and walked when
    // somebody wants the Scan.
    let aside = place.dir.path().join("aside");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&place.top(), &aside])
        .status();
    assert!(copied.unwrap().success());
    fs::rename(place.top(), place.dir.path().join("old")).unwrap();
    fs::rename(&aside, place.top()).unwrap();
    let again = looked(&place, &declared("v1"));
    assert!(is_same(&again));
    assert_eq!(again.digest_of_stamps(), stamps);
    let ino = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let scan = again.scan().unwrap();
    let node = at(&scan.tree, "d1/f2");
    assert_eq!(scan.stamps[node.index()].ino, ino(&place.path("d1/f2")));
    fs::write(place.path("d1/f2"), b"new").unwrap();
    let other = looked(&place, &declared("v2"));
    assert_ne!(other.digest_of_stamps(), stamps);
    assert_as_cold(&other, &place.top(), &declared("v2"), "declared anew");
}

/// An overlay that is mounted again has another device number. What it shows is the same.
#[test]
fn row_29_a_source_that_is_mounted_again_is_the_same_needs_root() {
    if is_child() {
        // Overlays can't lie on every file system: on a tmpfs of their own they can.
        let base = tempfile::tempdir().unwrap();
        let mount = |args: &[&str], at: &Path| {
            let status = std::process::Command::new("mount")
                .args(args)
                .arg(at)
                .status();
            status.unwrap().success()
        };
        assert!(mount(&["-t", "tmpfs", "none"], base.path()));
        let path = |name: &str| base.path().join(name);
        for name in ["lower", "upper", "work", "source", "other"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("lower/a"), b"a").unwrap();
        let shown = |name: &str| path(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            shown("lower"),
            shown("upper"),
            shown("work")
        );
        let overlay = ["-t", "overlay", "overlay", "-o", &options];
        if !mount(&overlay, &path("source")) {
            println!("skipped: no overlayfs here");
            return;
        }
        fs::write(path("source/b"), b"b").unwrap();
        settle();
        let seen = |trust| {
            let options = with_trust(trust);
            let scanned = scan(&path("source"), &Content::default(), &options).unwrap();
            (scanned.stamps[1].dev, scanned.digest_of_stamps())
        };
        let (before, full) = (seen(Trust::Auto), seen(Trust::Full));
        assert!(
            std::process::Command::new("umount")
                .arg(path("source"))
                .status()
                .unwrap()
                .success()
        );
        // Takes the device number that the overlay had.
        assert!(mount(&["-t", "tmpfs", "none"], &path("other")));
        assert!(mount(&overlay, &path("source")));
        let (after, full_after) = (seen(Trust::Auto), seen(Trust::Full));
        assert_ne!(before.0, after.0, "the device number did not change");
        assert_eq!(before.1, after.1);
        assert_ne!(full.1, full_after.1);
        fs::write(path("source/b"), b"c").unwrap();
        assert_ne!(seen(Trust::Auto).1, after.1);
        return;
    }
    if is_root() {
        let name = "trusting::row_29_a_source_that_is_mounted_again_is_the_same_needs_root";
        again_under(&["unshare", "-m"], name);
    }
}
