//! What an index saves, and that it never makes a scan wrong.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fcpipe_spec::Content;
use fcpipe_tree::{Difference, FieldValue, IndexDir, Looked, ScanOptions, Trust, look, scan};

use crate::common::*;

/// Waits until what was changed before is old enough to be trusted.
pub(crate) fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(60));
}

pub(crate) fn indexes(place: &Place) -> IndexDir {
    IndexDir::new(place.dir.path().join("indexes"))
}

/// A look with the index, which is written when this returns.
pub(crate) fn looked(place: &Place, options: &ScanOptions<'_>) -> Looked {
    let indexes = indexes(place);
    let mut looked = look(&place.top(), &Content::default(), options, Some(&indexes)).unwrap();
    looked.settle();
    looked
}

/// Warm and cold say the same.
pub(crate) fn assert_as_cold(warm: &Looked, top: &Path, options: &ScanOptions<'_>, context: &str) {
    let cold = scan(top, &Content::default(), options).unwrap();
    let made = warm.scan().unwrap();
    assert_eq!(warm.tree_digest(), cold.tree.digest(), "{context}");
    assert_eq!(made.tree.digest(), cold.tree.digest(), "{context}");
    assert_eq!(made.stamps, cold.stamps, "{context}");
    if cold.is_settled() && made.is_settled() {
        assert_eq!(
            warm.digest_of_stamps(),
            cold.digest_of_stamps(),
            "{context}"
        );
    }
    assert_eq!(
        made.digest_of_stamps(),
        warm.digest_of_stamps(),
        "{context}"
    );
    assert_eq!(warm.warnings(), cold.warnings, "{context}");
    assert_eq!(warm.entries(), cold.entries, "{context}");
    assert_eq!(warm.bytes(), cold.bytes, "{context}");
}

pub(crate) fn is_same(looked: &Looked) -> bool {
    looked.changes() == Some(&[])
}

/// Every kind that needs no root.
pub(crate) fn many_kinds(place: &Place) {
    for dir in 0..12 {
        for file in 0..30 {
            place.file(&format!("d{dir}/f{file}"), &[7; 100]);
        }
    }
    place.directory("empty");
    place.link("d1/link", "f3");
    fs::hard_link(place.path("d1/f1"), place.path("d2/hard")).unwrap();
    sparse(&place.path("d3/sparse"), 1 << 24, 1 << 20);
    set_xattr(&place.path("d4/f1"), "user.a", b"1");
    set_xattr(&place.path("d4"), "user.dir", b"2");
    std::os::unix::net::UnixListener::bind(place.path("d5/socket")).unwrap();
    settle();
}

#[test]
fn an_unchanged_source_is_the_same_with_any_number_of_threads() {
    let place = Place::new();
    many_kinds(&place);
    let first = looked(&place, &ScanOptions::default());
    assert_eq!(first.changes(), None);
    for threads in [1, 2, 7] {
        let options = ScanOptions {
            threads: NonZeroUsize::new(threads),
            ..ScanOptions::default()
        };
        let warm = looked(&place, &options);
        assert!(is_same(&warm), "{:?}", warm.changes());
        assert_as_cold(&warm, &place.top(), &options, "unchanged");
    }
}

#[test]
fn row_24_a_large_directory_is_shared_between_threads_and_the_same() {
    let place = Place::new();
    for file in 0..9000 {
        fs::write(place.path(&format!("{file}")), b"").unwrap();
    }
    place.directory("0-directory");
    settle();
    looked(&place, &ScanOptions::default());
    let warm = looked(&place, &ScanOptions::default());
    assert!(is_same(&warm), "{:?}", warm.changes());
    assert_as_cold(&warm, &place.top(), &ScanOptions::default(), "large");
    fs::remove_file(place.path("5000")).unwrap();
    fs::write(place.path("77"), b"more").unwrap();
    let warm = looked(&place, &ScanOptions::default());
    let told = |looked: &Looked| -> Vec<String> {
        let changes = looked.changes().unwrap().iter();
        let what = |what: &Difference| match what {
            Difference::New => "new",
            Difference::Gone => "gone",
            Difference::Changed(_) => "changed",
        };
        changes
            .map(|c| format!("{} {}", c.path.display(), what(&c.what)))
            .collect()
    };
    assert_eq!(told(&warm), ["5000 gone", "77 changed"]);
    assert_as_cold(&warm, &place.top(), &ScanOptions::default(), "large");
    // The same inode under another name.
    fs::rename(place.path("6000"), place.path("renamed")).unwrap();
    settle();
    let warm = looked(&place, &ScanOptions::default());
    assert_eq!(told(&warm), ["6000 gone", "renamed new"]);
}

/// What is the same is recalled in shares, each with attributes, holes and hashes of its own.
#[test]
fn many_directories_are_recalled_by_several_threads() {
    let place = Place::new();
    for dir in 0..230 {
        let name = |file: &str| format!("d{dir}/{file}");
        place.file(&name("f"), format!("{dir}").as_bytes());
        set_xattr(
            &place.path(&name("f")),
            "user.a",
            format!("{}", dir / 3).as_bytes(),
        );
        sparse(&place.path(&name("s")), 1 << 20, (dir % 100) << 13);
        place.link(&name("l"), &format!("{dir}"));
        set_xattr(&place.path(&format!("d{dir}")), "user.d", b"every");
        place.file(&name("below/f"), b"below");
    }
    settle();
    for trust in [Trust::Full, Trust::Content] {
        let options = ScanOptions {
            threads: NonZeroUsize::new(4),
            trust,
            ..ScanOptions::default()
        };
        looked(&place, &options);
        for round in 0..3 {
            assert_as_cold(
                &looked(&place, &options),
                &place.top(),
                &options,
                "recalled",
            );
            fs::write(place.path("d99/f"), format!("round {round}")).unwrap();
            settle();
            let warm = looked(&place, &options);
            assert_eq!(warm.changes().unwrap().len(), 1);
            assert_as_cold(&warm, &place.top(), &options, "one changed");
            // First of all directories and sets: every other has another number in the next index.
            place.file(&format!("a{round}/f"), b"first");
            set_xattr(&place.path(&format!("a{round}/f")), "user.a", b"first");
            set_xattr(&place.path(&format!("a{round}")), "user.a", b"dir");
            settle();
            assert_as_cold(
                &looked(&place, &options),
                &place.top(),
                &options,
                "renumbered",
            );
            let whole = || fs::metadata(only_index(&place)).unwrap().ino();
            let before = whole();
            let again = looked(&place, &options);
            assert!(is_same(&again), "{:?}", again.changes());
            // Where a part of it had to be read anew, it was written again.
            assert_eq!(whole(), before);
            assert_as_cold(&again, &place.top(), &options, "from renumbered");
        }
    }
}

#[test]
fn changes_are_told_by_name_and_field() {
    let place = Place::new();
    many_kinds(&place);
    looked(&place, &ScanOptions::default());
    fs::write(place.path("d7/f9"), [1; 117]).unwrap();
    place.file("d8/new", b"");
    fs::remove_file(place.path("d9/f0")).unwrap();
    fs::remove_dir(place.path("empty")).unwrap();
    let warm = looked(&place, &ScanOptions::default());
    let changes = warm.changes().unwrap();
    let told: Vec<_> = changes.iter().map(|c| c.path.to_str().unwrap()).collect();
    assert_eq!(told, ["d7/f9", "d8/new", "d9/f0", "empty"]);
    let Difference::Changed(fields) = &changes[0].what else {
        panic!("{changes:?}");
    };
    assert_eq!(fields[0].name, "size");
    assert_eq!(fields[0].was, FieldValue::Number(100));
    assert_eq!(fields[0].is, FieldValue::Number(117));
    assert_eq!(fields[1].name, "mtime");
    assert_eq!(changes[1].what, Difference::New);
    assert_eq!(changes[2].what, Difference::Gone);
    assert_as_cold(&warm, &place.top(), &ScanOptions::default(), "told");
}

#[test]
fn what_is_asked_is_part_of_what_an_index_is_known_by() {
    let place = Place::new();
    many_kinds(&place);
    let dir = indexes(&place);
    let exclude = |pattern: &str| Content {
        exclude: vec![pattern.to_owned()],
        ..Content::default()
    };
    let options = ScanOptions::default();
    for content in [Content::default(), exclude("f1"), exclude("d4/")] {
        for _ in 0..2 {
            let warm = look(&place.top(), &content, &options, Some(&dir)).unwrap();
            let cold = scan(&place.top(), &content, &options).unwrap();
            assert_eq!(warm.tree_digest(), cold.tree.digest());
            assert_eq!(warm.scan().unwrap().tree.digest(), cold.tree.digest());
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    // What stays out is asked anew each time.
    let own = [place.path("d4"), place.path("d5/f1")];
    for leave_out in [&own[..], &[], &own[..1]] {
        let options = ScanOptions {
            leave_out,
            ..ScanOptions::default()
        };
        let warm = looked(&place, &options);
        assert_as_cold(&warm, &place.top(), &options, "left out");
    }
}

/// An index is only written where that is allowed, and a look without one leaves nothing.
#[test]
fn a_read_only_directory_of_indexes_stays_as_it_is() {
    let place = Place::new();
    many_kinds(&place);
    let dir = indexes(&place).read_only();
    let look = |dir: &IndexDir| {
        let options = ScanOptions::default();
        drop(look(&place.top(), &Content::default(), &options, Some(dir)).unwrap());
    };
    look(&dir);
    assert!(!dir.path().exists());
    looked(&place, &ScanOptions::default());
    place.file("new", b"");
    settle();
    let read = || fs::read(only_file(dir.path())).unwrap();
    let before = read();
    look(&dir);
    assert!(read() == before);
    looked(&place, &ScanOptions::default());
    assert!(read() != before);
}

fn only_file(dir: &Path) -> PathBuf {
    let all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn row_36_an_index_damaged_anywhere_is_never_believed() {
    let place = Place::new();
    many_kinds(&place);
    looked(&place, &ScanOptions::default());
    let path = only_file(indexes(&place).path());
    let whole = fs::read(&path).unwrap();
    let mut random = Random::new();
    // Something did change, so that a wrong index would be seen as a wrong result.
    fs::write(place.path("d0/f0"), b"changed").unwrap();
    settle();
    let dir = indexes(&place).read_only();
    for round in 0..300 {
        let mut damaged = whole.clone();
        let at = random.below(damaged.len());
        match random.below(4) {
            0 => damaged.truncate(at),
            1 => damaged[at..].fill(0),
            2 => {
                let from = random.below(damaged.len());
                let len = (damaged.len() - at.max(from)).min(200);
                damaged.copy_within(from..from + len, at);
            }
            _ => damaged[at] ^= 1 << random.below(8),
        }
        fs::write(&path, &damaged).unwrap();
        let options = ScanOptions::default();
        let warm = look(&place.top(), &Content::default(), &options, Some(&dir)).unwrap();
        assert_as_cold(
            &warm,
            &place.top(),
            &options,
            &format!("round {round}, at {at}"),
        );
    }
    // Damaged after it was read, before the Scan is asked for: what is put together of it must come to an end.
    fs::remove_file(&path).unwrap();
    looked(&place, &ScanOptions::default());
    let whole = fs::read(&path).unwrap();
    for round in 0..300 {
        let options = ScanOptions::default();
        let warm = look(&place.top(), &Content::default(), &options, Some(&dir)).unwrap();
        assert!(is_same(&warm));
        let mut damaged = whole.clone();
        let at = random.below(damaged.len());
        let len = (damaged.len() - at).min(1 << random.below(12));
        for byte in &mut damaged[at..at + len] {
            *byte = random.below(256) as u8;
        }
        fs::write(&path, &damaged).unwrap();
        let context = format!("round {round}, {len} bytes at {at}");
        assert_as_cold(&warm, &place.top(), &options, &context);
        fs::write(&path, &whole).unwrap();
    }
    // Cut short or removed as well.
    for damage in 0..3 {
        fs::remove_file(&path).ok();
        looked(&place, &ScanOptions::default());
        let warm = looked(&place, &ScanOptions::default());
        assert!(is_same(&warm));
        let size = fs::metadata(&path).unwrap().len();
        let file = fs::File::options().write(true).open(&path).unwrap();
        match damage {
            0 => file.set_len(300).unwrap(),
            1 => std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 64], size / 3).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        assert_as_cold(
            &warm,
            &place.top(),
            &ScanOptions::default(),
            "damaged later",
        );
    }
}

#[test]
fn row_37_an_index_that_is_a_symlink_or_no_file_is_not_used() {
    let place = Place::new();
    many_kinds(&place);
    looked(&place, &ScanOptions::default());
    let path = only_file(indexes(&place).path());
    let elsewhere = place.dir.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let dir = indexes(&place).read_only();
    let look = || {
        look(
            &place.top(),
            &Content::default(),
            &ScanOptions::default(),
            Some(&dir),
        )
    };
    assert_eq!(look().unwrap().changes(), None);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(look().unwrap().changes(), None);
}

#[test]
fn row_38_an_index_of_another_version_is_not_used() {
    let place = Place::new();
    many_kinds(&place);
    looked(&place, &ScanOptions::default());
    let path = only_file(indexes(&place).path());
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[..12], b"fcpipe-index");
    bytes[15] += 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(looked(&place, &ScanOptions::default()).changes(), None);
    assert!(is_same(&looked(&place, &ScanOptions::default())));
}

#[test]
fn row_35_many_at_once_write_one_index() {
    let place = Place::new();
    many_kinds(&place);
    let expected = place.scan().tree.digest();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let warm = looked(&place, &ScanOptions::default());
                    assert_eq!(warm.tree_digest(), expected);
                    assert_eq!(warm.scan().unwrap().tree.digest(), expected);
                    fs::remove_file(only_index(&place)).ok();
                }
            });
        }
    });
    looked(&place, &ScanOptions::default());
    only_file(indexes(&place).path());
}

fn only_index(place: &Place) -> PathBuf {
    let dir = indexes(place).path().to_path_buf();
    let mut all = fs::read_dir(dir).unwrap().flatten();
    all.find(|entry| !entry.file_name().to_string_lossy().starts_with("new."))
        .map_or_else(PathBuf::new, |entry| entry.path())
}

#[test]
fn old_indexes_and_those_of_dead_writers_go() {
    let place = Place::new();
    let dir = indexes(&place);
    fs::create_dir(dir.path()).unwrap();
    let put = |name: &str, days: i64| {
        let path = dir.path().join(name);
        fs::write(&path, b"").unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        set_mtime(&path, now as i64 - days * 24 * 3600, 1);
        path
    };
    let (old, young) = (put("old", 61), put("young", 59));
    let (dead, writing) = (put("new.1.1", 1), put("new.1.2", 0));
    for number in 0..300 {
        put(&format!("many{number}"), 40);
    }
    looked(&place, &ScanOptions::default());
    assert!(!old.exists() && !young.exists() && !dead.exists() && writing.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 256 + 1);
}

/// The part that strace watches: between two marks, a warm look at FCPIPE_TREE_TOP.
#[test]
fn child_of_the_strace_test() {
    let Some(dir) = std::env::var_os("FCPIPE_TREE_DIR") else {
        return;
    };
    let dir = PathBuf::from(dir);
    let mark = |name: &str| assert!(!Path::new("/fcpipe-mark").join(name).exists());
    // Asking how many processors there are takes calls of its own.
    let options = ScanOptions {
        threads: NonZeroUsize::new(2),
        ..ScanOptions::default()
    };
    let indexes = IndexDir::new(dir.join("indexes"));
    mark("begin");
    let warm = look(
        &dir.join("source"),
        &Content::default(),
        &options,
        Some(&indexes),
    )
    .unwrap();
    mark("end");
    assert!(is_same(&warm));
}

#[test]
fn a_warm_scan_makes_one_statx_an_entry_and_no_other_call_for_it() {
    let place = Place::new();
    many_kinds(&place);
    let scan = looked(&place, &ScanOptions::default()).scan().unwrap();
    let dirs = 14;
    let log = place.dir.path().join("strace");
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&log);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "indexing::child_of_the_strace_test"]);
    command.env("FCPIPE_TREE_DIR", place.dir.path());
    match command.output() {
        Ok(output) if output.status.success() => {}
        failed => {
            let said = format!("{failed:?}");
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "{said}"
            );
            println!("skipped: strace is missing or may not trace: {said}");
            return;
        }
    }
    let log = fs::read(&log).unwrap();
    let log = bstr::BString::from(log).to_string();
    let begin = log.find("/fcpipe-mark/begin").unwrap();
    let end = log.find("/fcpipe-mark/end").unwrap();
    let end = log[..end].rfind('\n').unwrap();
    let calls: Vec<&str> = log[begin..end]
        .lines()
        .skip(1)
        .filter(|line| !line.contains(" resumed>"))
        .collect();
    // `PID  call(…`; what was interrupted is counted where it began.
    let count = |name: &str| {
        let call = format!(" {name}(");
        calls.iter().filter(|line| line.contains(&call)).count()
    };
    // The source itself twice more, and the index twice.
    let statx = count("statx");
    let entries = scan.entries as usize;
    assert!(
        (entries + 1..=entries + 5).contains(&statx),
        "{statx} for {entries}"
    );
    for none in [
        "listxattr",
        "getxattr",
        "syscall_0x1d0",
        "syscall_0x1d1",
        "readlink",
        "lseek",
    ] {
        let called: Vec<_> = calls.iter().filter(|line| line.contains(none)).collect();
        assert!(called.is_empty(), "{called:?}");
    }
    // Each directory, the source's own once more, and the index.
    let opened: Vec<_> = calls.iter().filter(|line| line.contains(" open")).collect();
    assert!(opened.len() <= dirs + 3, "{opened:#?}");
    let files = opened.iter().filter(|line| !line.contains("O_DIRECTORY"));
    let files: Vec<_> = files.filter(|line| !line.contains("O_PATH")).collect();
    assert!(
        files.len() == 1 && files[0].contains("/indexes/"),
        "{files:?}"
    );
    assert_eq!(count("getdents64"), 2 * dirs);
    println!(
        "{} calls for {entries} entries in {dirs} directories",
        calls.len()
    );
}
