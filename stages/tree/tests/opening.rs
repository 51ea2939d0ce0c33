//! Files that change between the scan and the end of reading.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use fcpipe_tree::{OpenError, Opener, SourceFile};
use rustix::fs::{CWD, FileType, Mode};

use crate::common::*;

/// Scans, lets something happen, and opens `name`.
fn open_after(
    place: &Place,
    name: &str,
    happen: impl FnOnce(&Path),
) -> Result<SourceFile, OpenError> {
    let all = composed(vec![layer("/", place.scan())]);
    let node = at(all.tree(), name);
    happen(&place.path(name));
    all.opener().open(node)
}

fn assert_changed(result: Result<SourceFile, OpenError>, path: &Path, why: &str) {
    match result {
        Err(OpenError::Changed { path: p, what }) => {
            assert_eq!(p, path);
            assert!(what.contains(why), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_of_many_directories_are_opened_and_read() {
    let place = Place::new();
    for d in 0..10 {
        for f in 0..10 {
            place.file(&format!("{d}/{f}"), format!("{d} {f}").as_bytes());
        }
    }
    let all = composed(vec![layer("/", place.scan())]);
    let mut opener: Opener = all.opener();
    for d in 0..10 {
        for f in 0..10 {
            let source = opener.open(at(all.tree(), &format!("{d}/{f}"))).unwrap();
            let mut text = String::new();
            source.file().read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{d} {f}"));
            assert_eq!(source.size(), 3);
            source.check().unwrap();
        }
    }
    let error = opener.open(at(all.tree(), "0")).unwrap_err();
    assert!(matches!(error, OpenError::NotAFile { .. }));
}

#[test]
fn row_25_a_file_that_grew_shrank_vanished_or_was_replaced_before_it_is_opened() {
    let place = Place::new();
    let path = place.file("d/f", b"content");
    let write = |content: &'static [u8]| move |p: &Path| fs::write(p, content).unwrap();
    assert_changed(
        open_after(&place, "d/f", write(b"longer content")),
        &path,
        "size",
    );
    assert_changed(open_after(&place, "d/f", write(b"short")), &path, "size");
    let same_size = |p: &Path| {
        fs::write(p, b"SHORT").unwrap();
        set_mtime(p, 5, 5);
    };
    assert_changed(
        open_after(&place, "d/f", same_size),
        &path,
        "modification time",
    );
    let only_ctime = |p: &Path| set_mtime(p, 5, 5);
    assert_changed(
        open_after(&place, "d/f", only_ctime),
        &path,
        "status change",
    );
    let replace = |p: &Path| {
        let new = place.file("new", b"SHORT");
        set_mtime(&new, 5, 5);
        fs::rename(new, p).unwrap();
    };
    assert_changed(open_after(&place, "d/f", replace), &path, "another file");
    let remove = |p: &Path| fs::remove_file(p).unwrap();
    assert_changed(open_after(&place, "d/f", remove), &path, "gone");
}

#[test]
fn row_25_a_file_that_changes_while_it_is_read() {
    let place = Place::new();
    let path = place.file("f", b"content");
    let source = open_after(&place, "f", |_| {}).unwrap();
    source.check().unwrap();
    fs::write(&path, b"CONTENT").unwrap();
    assert!(matches!(source.check(), Err(OpenError::Changed { .. })));
}

#[test]
fn row_26_a_file_that_became_a_symlink_or_a_fifo() {
    let place = Place::new();
    let path = place.file("f", b"content");
    place.file("other", b"content");
    let link = |p: &Path| {
        fs::remove_file(p).unwrap();
        std::os::unix::fs::symlink("other", p).unwrap();
    };
    assert_changed(open_after(&place, "f", link), &path, "symlink");
    fs::remove_file(&path).unwrap();
    place.file("f", b"content");
    let fifo = |p: &Path| {
        fs::remove_file(p).unwrap();
        rustix::fs::mknodat(CWD, p, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    };
    // Would hang if it waited for a writer.
    assert_changed(open_after(&place, "f", fifo), &path, "not a regular file");
    fs::remove_file(&path).unwrap();
    place.file("f", b"content");
    let socket = |p: &Path| {
        fs::remove_file(p).unwrap();
        drop(std::os::unix::net::UnixListener::bind(p).unwrap());
    };
    assert_changed(open_after(&place, "f", socket), &path, "socket");
}

#[test]
fn row_26_a_directory_above_that_became_a_symlink_is_not_followed() {
    let place = Place::new();
    let path = place.file("d/e/f", b"content");
    let all = composed(vec![layer("/", place.scan())]);
    fs::rename(place.path("d"), place.path("moved")).unwrap();
    place.link("d", "moved");
    let error = all.opener().open(at(all.tree(), "d/e/f"));
    assert_changed(error, &path, "symlink");
}

#[test]
fn a_source_that_was_replaced_is_noticed() {
    let place = Place::new();
    let path = place.file("f", b"content");
    let all = composed(vec![layer("/", place.scan())]);
    fs::rename(place.top(), place.dir.path().join("old")).unwrap();
    place.file("f", b"content");
    assert_changed(all.opener().open(at(all.tree(), "f")), &path, "replaced");
}

#[test]
fn a_source_that_is_one_file_is_opened_and_checked() {
    let place = Place::new();
    place.file("root/etc/hosts", b"old");
    let source = place.file("hosts", b"new!");
    let layers = || {
        vec![
            layer("/", scan_of(&place.path("root"))),
            layer("/etc/hosts", scan_of(&source)),
        ]
    };
    let all = composed(layers());
    let node = at(all.tree(), "/etc/hosts");
    let opened = all.opener().open(node).unwrap();
    let mut text = String::new();
    opened.file().read_to_string(&mut text).unwrap();
    assert_eq!(text, "new!");
    assert_eq!(opened.path(), source);

    let all = composed(layers());
    fs::remove_file(&source).unwrap();
    rustix::fs::mknodat(CWD, &source, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert_changed(all.opener().open(node), &source, "replaced");
    assert!(all.layers()[1].scan.is_some());
}

#[test]
fn guarantee_4_reading_leaves_access_times_alone() {
    let place = Place::new();
    let path = place.file("d/f", b"content");
    // Older than the modification, so that relatime would set it.
    for path in [&path, &place.path("d"), &place.top()] {
        let old = rustix::fs::Timespec {
            tv_sec: 1000,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: old,
            last_modification: rustix::fs::Timespec {
                tv_sec: 2000,
                tv_nsec: 0,
            },
        };
        rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    let all = composed(vec![layer("/", place.scan())]);
    let source = all.opener().open(at(all.tree(), "d/f")).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(rustix::io::read(source.as_fd(), &mut buffer).unwrap(), 7);
    for path in [&path, &place.path("d"), &place.top()] {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(path).unwrap().atime(), 1000, "{path:?}");
    }
}
