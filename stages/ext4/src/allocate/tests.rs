//! An output file appears whole or not at all.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::{CWD, FileType};

use super::*;

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn guarantee_2_an_output_has_no_name_before_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for durability in [Durability::Process, Durability::Machine] {
        let output = OutputFile::create(&path).unwrap();
        output.file().write_all(b"content").unwrap();
        assert_eq!(names(dir.path()), 0);
        let mut file = output.commit(durability).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "it holds what only root may read");
        // What is given back is that file, open.
        file.write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content!");
        fs::remove_file(&path).unwrap();
    }
    drop(OutputFile::create(&path).unwrap());
    assert_eq!(names(dir.path()), 0);
}

#[test]
fn guarantee_2_what_was_there_is_replaced_at_once_and_whole() {
    const LEN: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, vec![0; LEN]).unwrap();
    let mut old = File::open(&path).unwrap();
    let (reads, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut last = 0;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(&path).expect("there is always one");
                assert_eq!(bytes.len(), LEN);
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a mixture");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Until it has been looked at often enough, however busy the host is.
        while reads.load(Ordering::Relaxed) < 100 && !reader.is_finished() {
            last = last % 99 + 1;
            let output = OutputFile::create(&path).unwrap();
            output.file().write_all(&vec![last; LEN]).unwrap();
            output.commit(Durability::Process).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read(&path).unwrap()[0], last);
    assert_eq!(names(dir.path()), 1);
    // Who had it open keeps what there was.
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![0; LEN]);
}

#[test]
fn a_symlink_stays_and_what_it_names_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let path = dir.path().join("link");
    fs::write(inner.join("image"), b"old").unwrap();
    symlink("inner/image", &path).unwrap();
    let output = OutputFile::create(&path).unwrap();
    output.file().write_all(b"new").unwrap();
    output.commit(Durability::Process).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(fs::read(inner.join("image")).unwrap(), b"new");
    assert_eq!((names(dir.path()), names(&inner)), (2, 1));
}

#[test]
fn a_symlink_that_names_nothing_stays_and_what_it_names_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let path = dir.path().join("link");
    symlink("inner/second", &path).unwrap();
    symlink("image", inner.join("second")).unwrap();
    // Nothing is there before it is whole.
    drop(OutputFile::create(&path).unwrap());
    assert_eq!((names(dir.path()), names(&inner)), (2, 1));
    let output = OutputFile::create(&path).unwrap();
    output.file().write_all(b"new").unwrap();
    output.commit(Durability::Process).unwrap();
    for link in [&path, &inner.join("second")] {
        assert!(fs::symlink_metadata(link).unwrap().is_symlink());
    }
    assert_eq!(fs::read(inner.join("image")).unwrap(), b"new");
    assert_eq!((names(dir.path()), names(&inner)), (2, 2));

    let round = dir.path().join("round");
    symlink("round", &round).unwrap();
    let refused = OutputFile::create(&round);
    assert!(
        matches!(&refused, Err(OutputError::Io { path, .. }) if *path == round),
        "{refused:?}"
    );
    let nowhere = dir.path().join("nowhere");
    symlink("none/image", &nowhere).unwrap();
    assert!(OutputFile::create(&nowhere).is_err());
    assert!(fs::symlink_metadata(&nowhere).unwrap().is_symlink());
}

#[test]
fn only_a_regular_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    for path in [&fifo, dir.path(), Path::new("/dev/null"), Path::new("/")] {
        let refused = OutputFile::create(path);
        assert!(
            matches!(&refused, Err(OutputError::NotAFile { path: named }) if named == path),
            "{refused:?}"
        );
    }
    let nowhere = dir.path().join("none/image");
    let refused = OutputFile::create(&nowhere);
    assert!(
        matches!(&refused, Err(OutputError::Io { path, .. }) if *path == nowhere),
        "{refused:?}"
    );
}

#[test]
fn row_15_a_name_of_255_bytes_is_replaced_too() {
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(&[0xfe; 255]);
    let path = dir.path().join(name);
    for content in [b"1", b"2"] {
        let output = OutputFile::create(&path).unwrap();
        output.file().write_all(content).unwrap();
        output.commit(Durability::Process).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(names(dir.path()), 1);
    }
}

/// Without O_TMPFILE, opening the directory to write answers EISDIR, as it does where it is not known.
#[test]
fn row_39_without_unnamed_files_a_name_beside_it_is_used_and_goes_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let begin = || OutputFile::begin(&path, OFlags::empty()).unwrap();
    let output = begin();
    assert_eq!(names(dir.path()), 1, "the temporary name");
    assert!(!path.exists());
    drop(output);
    assert_eq!(names(dir.path()), 0);
    for content in [b"1", b"2"] {
        let (output, other) = (begin(), begin());
        output.file().write_all(content).unwrap();
        output.commit(Durability::Machine).unwrap();
        drop(other);
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(names(dir.path()), 1);
    }
}
