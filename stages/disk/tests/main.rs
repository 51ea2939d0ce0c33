//! What a launch is given, made and looked at.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by a panic")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use fcpipe_disk::*;

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(&[7; 100_000], 20 << 20).unwrap();
    file.write_all_at(b"end", (64 << 20) - 3).unwrap();
    path
}

#[test]
fn a_copy_is_equal_as_sparse_and_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let disk = dir.path().join("disk");
    copy(&image, &disk, &|| false).unwrap();
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&disk).unwrap());
    let meta = disk.metadata().unwrap();
    assert!(meta.blocks() * 512 < 1 << 20);
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let writable = File::options().write(true).open(&disk).unwrap();
    writable.write_all_at(b"x", 0).unwrap();
    assert_eq!(&std::fs::read(&image).unwrap()[..5], b"begin");
}

#[test]
fn a_cancelled_copy_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let disk = dir.path().join("disk");
    match copy(&image, &disk, &|| true) {
        Err(DiskError::Cancelled { .. }) => assert!(!disk.exists()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let disk = dir.path().join("disk");
    std::fs::write(&disk, "somebody's").unwrap();
    copy(&image, &disk, &|| false).unwrap_err();
    clone(&image, &disk).unwrap_err();
    scratch(&disk, 1 << 20).unwrap_err();
    scratch_ext4(&disk, 1 << 20).unwrap_err();
    assert_eq!(std::fs::read(&disk).unwrap(), b"somebody's");
}

/// The answer and the deed are one, whatever file system the tests are on.
#[test]
fn row_39_what_the_probe_says_is_what_clone_does() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let disk = dir.path().join("disk");
    match can_clone(dir.path(), dir.path()) {
        CloneAnswer::Yes { .. } => {
            clone(&image, &disk).unwrap();
            assert!(std::fs::read(&image).unwrap() == std::fs::read(&disk).unwrap());
        }
        CloneAnswer::No { why } => {
            let error = clone(&image, &disk).unwrap_err();
            let DiskError::CannotClone { file_system, .. } = &error else {
                panic!("{error}");
            };
            assert!(why.contains(file_system.as_str()), "{why}; {error}");
            assert!(!disk.exists());
        }
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.len() <= 2, "{left:?}");
}

#[test]
fn row_39_two_file_systems_share_no_blocks() {
    let (here, there) = (tempfile::tempdir().unwrap(), Path::new("/dev/shm"));
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    if device(there).is_none() || device(there) == device(here.path()) {
        println!("skipped: /dev/shm is no file system of its own");
        return;
    }
    let CloneAnswer::No { why } = can_clone(there, here.path()) else {
        panic!("blocks shared with a tmpfs");
    };
    assert!(
        why.contains("/dev/shm (tmpfs)") || why.contains("cannot share blocks"),
        "{why}"
    );
    let CloneAnswer::No { why } = can_clone(Path::new("/no/such"), here.path()) else {
        panic!("blocks shared with nothing");
    };
    assert!(why.contains("/no/such"), "{why}");
}

#[test]
fn a_scratch_disk_costs_nothing_however_large() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    scratch(&disk, 3 << 40).unwrap();
    let meta = disk.metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (3 << 40, 0));
    let disk = dir.path().join("ext4");
    scratch_ext4(&disk, 3 << 30).unwrap();
    let meta = disk.metadata().unwrap();
    assert_eq!(meta.len(), 3 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
}

#[test]
fn a_scratch_ext4_is_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("small", 1), ("large", 3 << 30)] {
        let disk = dir.path().join(name);
        scratch_ext4(&disk, size).unwrap();
        assert_eq!(disk.metadata().unwrap().len(), size.max(SCRATCH_EXT4_LEAST));
        let Ok(checked) = Command::new("e2fsck").arg("-fn").arg(&disk).output() else {
            println!("skipped: no e2fsck");
            return;
        };
        assert!(checked.status.success(), "{checked:?}");
    }
}

mod choosing {
    use super::*;

    fn guest(snapshot: bool, overlay: bool) -> GuestCan {
        GuestCan {
            kernel: "6.1.0-test".to_owned(),
            snapshot,
            overlay,
        }
    }

    fn no() -> CloneAnswer {
        CloneAnswer::No {
            why: "/state is on ext4, which cannot share blocks between files".to_owned(),
        }
    }

    fn yes() -> CloneAnswer {
        CloneAnswer::Yes {
            file_system: "XFS".to_owned(),
        }
    }

    #[test]
    fn auto_takes_the_first_that_can_be_had_and_says_why() {
        for (host, guest, way, words) in [
            (yes as fn() -> _, guest(true, true), Way::Clone, "XFS"),
            (yes, guest(false, false), Way::Clone, "XFS"),
            (no, guest(true, true), Way::Snapshot, "has dm_snapshot"),
            (no, guest(true, false), Way::Snapshot, "on ext4"),
            (no, guest(false, true), Way::Overlay, "has no dm_snapshot"),
            (no, guest(false, false), Way::Copy, "no overlay"),
        ] {
            let choice = choose(None, host, &guest).unwrap();
            assert_eq!((choice.way, choice.auto), (way, true));
            assert!(choice.why.contains(words), "{}", choice.why);
        }
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        let able = guest(true, true);
        for way in [Way::Clone, Way::Snapshot, Way::Overlay, Way::Copy] {
            let choice = choose(Some(way), yes, &able).unwrap();
            assert_eq!((choice.way, choice.auto), (way, false));
        }
        let unable = guest(false, false);
        for (way, words) in [
            (Way::Clone, "on ext4"),
            (Way::Snapshot, "6.1.0-test has no dm_snapshot"),
            (Way::Overlay, "6.1.0-test has no overlay"),
        ] {
            let refusal = choose(Some(way), no, &unable).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
            assert!(refusal.starts_with(&way.to_string()), "{refusal}");
        }
        assert!(choose(Some(Way::Copy), no, &unable).is_ok());
    }

    #[test]
    fn the_host_is_asked_only_where_it_matters() {
        let asked = || panic!("asked");
        for way in [Way::Snapshot, Way::Overlay, Way::Copy] {
            choose(Some(way), asked, &guest(true, true)).unwrap();
        }
    }
}
