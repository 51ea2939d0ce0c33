//! What can be a source, and what stays out of it.

use std::fs;
use std::path::PathBuf;

use fcpipe_spec::Content;
use fcpipe_tree::{
    FILE_NAME, Kind, Meta, Scan, ScanError, ScanOptions, ScanRoot, ScanWarning, scan,
};
use rustix::fs::{CWD, FileType, Mode};

use crate::common::*;

fn try_scan(path: PathBuf) -> Result<Scan, ScanError> {
    scan(&path, &Content::default(), &ScanOptions::default())
}

#[test]
fn row_10_a_missing_source_is_told_apart() {
    let place = Place::new();
    for name in ["missing", "missing/below"] {
        let error = try_scan(place.path(name)).unwrap_err();
        assert!(matches!(error, ScanError::Missing { path } if path == place.path(name)));
    }
    place.file("f", b"");
    let error = try_scan(place.path("f/below")).unwrap_err();
    assert!(matches!(error, ScanError::Missing { .. }));
}

#[test]
fn row_05_a_source_that_is_a_symlink_is_followed() {
    let place = Place::new();
    place.file("real/f", b"x");
    let link = place.link("link", "real");
    let scan = try_scan(link).unwrap();
    assert_eq!(names(&scan.tree, "/"), ["f"]);
}

#[test]
fn row_12_a_fifo_or_a_socket_is_refused_and_not_opened() {
    let place = Place::new();
    let fifo = place.path("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let socket = place.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, expected) in [
        (fifo, "a FIFO"),
        (socket, "a socket"),
        ("/dev/null".into(), "a device"),
    ] {
        let error = try_scan(path.clone()).unwrap_err();
        let named = matches!(&error, ScanError::Special { path: p, kind } if *p == path && *kind == expected);
        assert!(named, "{error:?}");
    }
}

#[test]
fn a_source_can_be_one_file() {
    let place = Place::new();
    let path = place.file("hosts", b"127.0.0.1");
    set_mtime(&path, 77, 5);
    set_xattr(&path, "user.a", b"b");
    let scan = scan_of(&path);
    assert_eq!(scan.root, ScanRoot::File);
    assert_eq!(
        scan.tree.lookup(fcpipe_tree::NodeId::ROOT, FILE_NAME),
        Some(scan.top())
    );
    assert_eq!(scan.tree.kind(scan.top()), Kind::File { size: 9 });
    assert_eq!(scan.tree.meta(scan.top()).mtime.secs, 77);
    assert_eq!(scan.tree.xattrs(scan.top()).len(), 1);
    assert_eq!(scan.source_path(scan.top()), path);
    assert_eq!((scan.entries, scan.bytes), (1, 9));
}

#[test]
fn row_13_the_store_the_state_directory_and_the_output_stay_out() {
    let place = Place::new();
    place.file("a/store/object", b"x");
    place.file("a/kept", b"x");
    let output = place.file("image", b"x");
    let leave_out = [
        // Another way to the same directory.
        place.path("a/../a/store"),
        output.clone(),
        place.path("not-there"),
    ];
    let options = ScanOptions {
        leave_out: &leave_out,
        ..ScanOptions::default()
    };
    let scanned = scan(&place.top(), &Content::default(), &options).unwrap();
    assert_eq!(names(&scanned.tree, "/"), ["a"]);
    assert_eq!(names(&scanned.tree, "/a"), ["kept"]);
    let left_out = |path| ScanWarning::LeftOut { path };
    assert_eq!(
        scanned.warnings,
        [left_out(place.path("a/store")), left_out(output)]
    );
    let error = scan(&place.path("a/store"), &Content::default(), &options).unwrap_err();
    assert!(matches!(error, ScanError::Own { .. }));
}

#[test]
fn row_14_bind_does_not_cross_and_rbind_does_needs_root() {
    if !is_child() {
        if is_root() {
            again_under(
                &["unshare", "--mount", "--propagation", "private"],
                "sources::row_14_bind_does_not_cross_and_rbind_does_needs_root",
            );
        }
        return;
    }
    let (place, other) = (Place::new(), Place::new());
    other.file("inside", b"x");
    place.file("m/covered", b"below");
    let covered_file = place.file("f", b"what is below");
    rustix::mount::mount_bind(other.top(), place.path("m")).unwrap();
    rustix::mount::mount_bind(other.path("inside"), &covered_file).unwrap();

    let crossing = ScanOptions {
        cross_mounts: true,
        ..ScanOptions::default()
    };
    let rbind = scan(&place.top(), &Content::default(), &crossing).unwrap();
    assert_eq!(names(&rbind.tree, "/m"), ["inside"]);
    assert_eq!(
        rbind.tree.kind(at(&rbind.tree, "/f")),
        Kind::File { size: 1 }
    );
    assert_eq!(rbind.warnings, []);
    let all = composed(vec![layer("/", rbind)]);
    let opened = all.opener().open(at(all.tree(), "/m/inside")).unwrap();
    opened.check().unwrap();

    // As root: what is below the mounts, as a non-recursive bind shows it.
    let bind = scan_of(&place.top());
    assert_eq!(names(&bind.tree, "/m"), ["covered"]);
    assert_eq!(
        bind.tree.kind(at(&bind.tree, "/f")),
        Kind::File { size: 13 }
    );
    assert_eq!(bind.warnings, []);
    let all = composed(vec![layer("/", bind)]);
    let mut opener = all.opener();
    for path in ["/m/covered", "/f"] {
        opener.open(at(all.tree(), path)).unwrap().check().unwrap();
    }

    // Without the privilege: something stands for it, and a warning says so.
    set_mtime(&place.top(), 1234, 5);
    let top = place.top();
    fs::set_permissions(
        place.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let plain = std::thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65_534)).unwrap();
        let one = ScanOptions {
            threads: std::num::NonZeroUsize::new(1),
            ..ScanOptions::default()
        };
        scan(&top, &Content::default(), &one).unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(names(&plain.tree, "/"), ["m"]);
    assert_eq!(names(&plain.tree, "/m"), [""; 0]);
    let mtime = plain.tree.meta(fcpipe_tree::NodeId::ROOT).mtime;
    let expected = Meta {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
    };
    assert_eq!(*plain.tree.meta(at(&plain.tree, "/m")), expected);
    assert_eq!(
        plain.warnings,
        [
            ScanWarning::NotCrossed {
                path: place.path("m")
            },
            ScanWarning::CoveredFile {
                path: place.path("f")
            },
        ]
    );
    rustix::mount::unmount(place.path("m"), rustix::mount::UnmountFlags::DETACH).unwrap();
    rustix::mount::unmount(place.path("f"), rustix::mount::UnmountFlags::DETACH).unwrap();
}
