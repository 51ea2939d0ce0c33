//! What a scan keeps of every kind of file.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fcpipe_spec::Content;
use fcpipe_tree::{DataRun, ScanError, ScanOptions, scan};
use rustix::fs::{CWD, FileType, Mode};

use crate::common::*;

fn assert_scanned(place: &Place) {
    let scan = place.scan();
    assert_same(&describe(&scan.tree), &observe(&place.top()), "");
    assert_eq!(scan.stamps.len(), scan.tree.len());
}

#[test]
fn row_15_names_that_are_not_utf8_or_hold_newlines_or_are_long() {
    let place = Place::new();
    let long = vec![b'n'; 255];
    for name in [&b"\xff\xfe"[..], b"new\nline", b"\x1b[31mred", b" ", &long] {
        let name = std::ffi::OsString::from_vec(name.to_vec());
        fs::write(place.top().join(&name), b"x").unwrap();
        fs::create_dir_all(place.path("below").join(&name)).unwrap();
    }
    assert_scanned(&place);
    let error = ScanError::Missing {
        path: Path::new("a\x1b[31m\n").to_path_buf(),
    };
    assert!(!error.to_string().contains(['\x1b', '\n']));
}

#[test]
fn row_16_paths_deeper_than_path_max() {
    let place = Place::new();
    let mut dir = fs::File::open(place.top()).unwrap();
    // Two directories on each level: the second is reached when the chain has been left again.
    for level in 0..600 {
        for name in ["a-name-of-a-directory", "the-other-of-the-two"] {
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
        }
        rustix::fs::mknodat(
            &dir,
            "f",
            FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        let next = if level % 2 == 0 {
            "a-name-of-a-directory"
        } else {
            "the-other-of-the-two"
        };
        dir = rustix::fs::openat(&dir, next, rustix::fs::OFlags::DIRECTORY, Mode::empty())
            .unwrap()
            .into();
    }
    let scan = place.scan();
    assert_eq!(scan.entries, 600 * 3);
    let composed = composed(vec![layer("/", scan)]);
    let tree = composed.tree();
    let deepest = tree.nodes().last().unwrap();
    assert!(tree.path(deepest).len() > 600 * 20);
    let mut opener = composed.opener();
    for node in tree.nodes() {
        if matches!(tree.kind(node), fcpipe_tree::Kind::File { .. }) {
            opener.open(node).unwrap().check().unwrap();
        }
    }
    // Nothing else removes a tree this deep in one go.
    let removed = std::process::Command::new("rm")
        .arg("-rf")
        .arg(place.top())
        .status()
        .unwrap();
    assert!(removed.success());
}

#[test]
fn row_17_hard_links_within_a_source() {
    let place = Place::new();
    let first = place.file("z/first", b"1");
    fs::hard_link(&first, place.path("second")).unwrap();
    place.directory("a");
    fs::hard_link(&first, place.path("a/third")).unwrap();
    let link = place.link("link", "nowhere");
    fs::hard_link(&link, place.path("link-2")).unwrap();
    assert_scanned(&place);
    let scan = place.scan();
    let node = at(&scan.tree, "second");
    assert_eq!(scan.tree.names(node), 3);
    assert_eq!(at(&scan.tree, "a/third"), node);
    assert_eq!(scan.bytes, 1);
}

#[test]
fn row_18_symlinks_of_every_length_dangling_and_absolute() {
    let place = Place::new();
    for length in [1, 59, 60, 4095] {
        place.link(&format!("{length}"), &"t".repeat(length));
    }
    place.link("absolute", "/etc/passwd");
    place.link("up", "../../..");
    assert_scanned(&place);
    let scan = place.scan();
    assert_eq!(scan.tree.target(at(&scan.tree, "4095")).len(), 4095);
}

#[test]
fn row_19_holes_are_kept_in_units_of_4_kib() {
    let place = Place::new();
    sparse(&place.path("large"), 1 << 40, 1 << 33);
    sparse(&place.path("tail"), 1_000_001, 1_000_000 - 10);
    fs::File::create(place.path("empty"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    place.file("dense", &[1; 100_000]);
    let scan = place.scan();
    let runs = |name| scan.tree.data_runs(at(&scan.tree, name));
    let unit = ((1u64 << 33) / 4096) as u32;
    let one = |start, end| DataRun { start, end };
    assert_eq!(runs("large"), Some(&[one(unit, unit + 1)][..]));
    assert_eq!(runs("tail"), Some(&[one(244, 245)][..]));
    assert_eq!(runs("empty"), Some(&[][..]));
    assert_eq!(runs("dense"), None);
}

#[test]
fn row_21_attributes_of_all_kinds_are_kept_needs_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let file = place.file("f", b"");
    for (name, value) in [
        ("user.note", &b"v"[..]),
        ("user.empty", b""),
        ("user.large", &[7; 3000]),
        ("trusted.t", b"t"),
        // cap_net_raw=ep, revision 2.
        (
            "security.capability",
            &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        // u::rw- u:1000:r-- g::r-- m::r-- o::r--
        (
            "system.posix_acl_access",
            &acl(&[
                (1, 6, !0),
                (2, 4, 1000),
                (4, 4, !0),
                (16, 4, !0),
                (32, 4, !0),
            ]),
        ),
    ] {
        set_xattr(&file, name, value);
    }
    let dir = place.directory("d");
    set_xattr(
        &dir,
        "system.posix_acl_default",
        &acl(&[(1, 7, !0), (4, 5, !0), (32, 5, !0)]),
    );
    set_xattr(&place.link("l", "x"), "trusted.on.a.link", b"1");
    set_xattr(&place.top(), "user.root", b"root");
    assert_scanned(&place);
    let scan = place.scan();
    assert_eq!(scan.tree.xattrs(at(&scan.tree, "f")).len(), 6);
}

pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

#[test]
fn row_22_large_ids_special_bits_and_far_times_needs_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    for (name, mode, secs, nanos) in [
        ("setuid", 0o4755, -2_177_452_800, 1),
        ("setgid", 0o2755, 2_177_452_800, 999_999_999),
        ("sticky", 0o1777, 15_032_385_535, 500),
        ("none", 0, -1, 999_999_999),
    ] {
        let path = place.file(name, b"x");
        std::os::unix::fs::chown(&path, Some(4_000_000_000), Some(70_000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&path, secs, nanos);
    }
    set_mtime(&place.top(), -5, 5);
    assert_scanned(&place);
    let scan = place.scan();
    let meta = scan.tree.meta(at(&scan.tree, "setuid"));
    assert_eq!(
        (meta.uid, meta.gid, meta.mode),
        (4_000_000_000, 70_000, 0o4755)
    );
}

#[test]
fn row_23_devices_fifos_and_sockets_are_seen_and_not_opened_needs_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let node = |name: &str, kind, device| {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, place.path(name), kind, mode, device).unwrap();
    };
    // A minor of more than 8 bits. Opening a device that no driver has would be an error.
    let device = rustix::fs::makedev(240, 70_000);
    node("char", FileType::CharacterDevice, device);
    node("block", FileType::BlockDevice, device);
    node("whiteout", FileType::CharacterDevice, 0);
    // Opening it for reading would wait for ever.
    node("fifo", FileType::Fifo, 0);
    let _listener = std::os::unix::net::UnixListener::bind(place.path("socket")).unwrap();
    assert_scanned(&place);
}

#[test]
fn row_30_what_can_not_be_read_is_named_needs_root() {
    if !is_root() || is_child() {
        return;
    }
    let place = Place::new();
    place.file("closed/f", b"");
    fs::set_permissions(place.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The ids of a thread are its own when the system call is used directly.
    let top = place.top();
    let error = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_uid(nobody).unwrap();
        let one = ScanOptions {
            threads: NonZeroUsize::new(1),
            ..ScanOptions::default()
        };
        scan(&top, &Content::default(), &one).unwrap_err()
    })
    .join()
    .unwrap();
    let path = place.path("closed");
    assert!(
        matches!(&error, ScanError::Io { path: p, .. } if *p == path),
        "{error:?}"
    );
}

#[test]
fn exclude_keeps_names_out() {
    let place = Place::new();
    for name in [
        ".git/config",
        "a/.git/x",
        "a/keep",
        "build/x",
        "a/build/y",
        "b.o",
    ] {
        place.file(name, b"x");
    }
    let content = Content {
        exclude: vec![".git".into(), "/build/".into(), "*.o".into()],
        ..Content::default()
    };
    let scan = scan(&place.top(), &content, &ScanOptions::default()).unwrap();
    assert_eq!(names(&scan.tree, "/"), ["a"]);
    assert_eq!(names(&scan.tree, "/a"), ["build", "keep"]);
}

#[test]
fn any_number_of_threads_finds_the_same() {
    let place = Place::new();
    for d in 0..40 {
        for f in 0..30 {
            place.file(&format!("d{d}/e{}/f{f}", f % 3), b"x");
        }
    }
    for f in 0..6000 {
        place.file(&format!("flat/{f}"), b"");
    }
    fs::hard_link(place.path("flat/17"), place.path("d3/other")).unwrap();
    for f in 0..300 {
        set_xattr(
            &place.path(&format!("flat/{f}")),
            "user.n",
            f.to_string().as_bytes(),
        );
    }
    let scans: Vec<_> = [1, 2, 3, 8]
        .into_iter()
        .map(|threads| {
            let options = ScanOptions {
                threads: NonZeroUsize::new(threads),
                ..ScanOptions::default()
            };
            scan(&place.top(), &Content::default(), &options).unwrap()
        })
        .collect();
    assert_same(&describe(&scans[0].tree), &observe(&place.top()), "");
    for scan in &scans {
        assert_eq!(scan.tree.digest(), scans[0].tree.digest());
        assert_eq!(scan.stamps, scans[0].stamps);
        assert_eq!(scan.entries, 6000 + 40 * 34 + 1 + 1);
        let sets = |scan: &fcpipe_tree::Scan| -> Vec<u32> {
            scan.tree.nodes().map(|n| scan.tree.xattr_set(n)).collect()
        };
        assert_eq!(sets(scan), sets(&scans[0]));
    }
}

#[test]
fn a_scan_tells_of_progress_and_can_be_cancelled() {
    let place = Place::new();
    for f in 0..5000 {
        place.file(&format!("{}/{f}", f % 7), b"");
    }
    let most = AtomicU64::new(0);
    let options = ScanOptions {
        progress: Some(&|entries| {
            most.fetch_max(entries, Ordering::Relaxed);
        }),
        ..ScanOptions::default()
    };
    scan(&place.top(), &Content::default(), &options).unwrap();
    assert!(most.load(Ordering::Relaxed) >= 5000);
    let options = ScanOptions {
        cancel: Some(&|| most.fetch_add(1, Ordering::Relaxed) > 5010),
        ..ScanOptions::default()
    };
    let error = scan(&place.top(), &Content::default(), &options);
    assert!(error.is_ok() || matches!(error, Err(ScanError::Cancelled)));
    let options = ScanOptions {
        cancel: Some(&|| true),
        ..ScanOptions::default()
    };
    let error = scan(&place.top(), &Content::default(), &options).unwrap_err();
    assert!(matches!(error, ScanError::Cancelled));
}

#[test]
fn a_tree_tells_nothing_of_the_host_and_stamps_do() {
    let (one, two) = (Place::new(), Place::new());
    for place in [&one, &two] {
        // Made in another order, so with other inode numbers.
        let files = ["a/x", "b", "c"];
        let order: Vec<_> = if std::ptr::eq(place, &one) {
            files.to_vec()
        } else {
            files.iter().rev().copied().collect()
        };
        for name in order {
            place.file(name, b"content");
        }
        for name in ["a/x", "a", "b", "c", ""] {
            set_mtime(&place.path(name), 1_000_000_000, 42);
        }
    }
    let (a, b) = (one.scan(), two.scan());
    assert_eq!(a.tree.digest(), b.tree.digest());
    assert_ne!(a.digest_of_stamps(), b.digest_of_stamps());
    assert_eq!(a.digest_of_stamps(), one.scan().digest_of_stamps());
    // The same size and mtime: the ctime tells.
    fs::write(one.path("b"), b"CONTENT").unwrap();
    set_mtime(&one.path("b"), 1_000_000_000, 42);
    let changed = one.scan();
    assert_eq!(changed.tree.digest(), a.tree.digest());
    assert_ne!(changed.digest_of_stamps(), a.digest_of_stamps());
}
