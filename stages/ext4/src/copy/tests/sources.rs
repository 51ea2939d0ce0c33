//! The mover on real directories: sources that change, access times, mappings, file systems that clone
//! and that are full.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fcpipe_tree::{Composed, Layer, OpenError, ScanOptions, compose, scan};
use fcpipe_treegen::Rng;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use super::image_file;
use crate::copy::Moved;
use crate::copy::{
    CopyError, CopyOptions, CopyReport, NonZeroUsize, Progress, Silent, digest_file, write_image,
};
use crate::map::{BLOCK_SIZE, Origin};
use crate::{Layout, Options, OutputFile, layout};

/// A directory that was scanned and laid out, in a directory with room beside it.
struct Place {
    dir: tempfile::TempDir,
}

struct Ready {
    composed: Composed,
    layout: Layout,
}

impl Place {
    fn new() -> Place {
        Place::in_dir(&std::env::temp_dir())
    }

    fn in_dir(dir: &Path) -> Place {
        let dir = tempfile::tempdir_in(dir).unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        Place { dir }
    }

    fn source(&self, name: &str) -> PathBuf {
        self.dir.path().join("source").join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.source(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn ready(&self) -> Ready {
        let source = self.dir.path().join("source");
        let scan = scan(&source, &Default::default(), &ScanOptions::default()).unwrap();
        let composed = compose(vec![Layer {
            destination: "/".into(),
            source,
            scan: Some(Arc::new(scan)),
        }])
        .unwrap();
        let layout = layout(composed.tree(), &Options::default()).unwrap();
        Ready { composed, layout }
    }

    /// As `build` does it: the image is at its path if all went well.
    fn build(
        &self,
        ready: &Ready,
        options: &CopyOptions,
        progress: &dyn Progress,
    ) -> Result<CopyReport, CopyError> {
        let output = OutputFile::create(&self.image()).unwrap();
        let report = write_image(
            &ready.layout.map,
            &ready.composed,
            output.file(),
            options,
            progress,
        )?;
        output.commit(crate::Durability::Process).unwrap();
        Ok(report)
    }

    /// That a copy failed because of that file, and left the path as it was.
    #[track_caller]
    fn assert_refused(&self, result: Result<CopyReport, CopyError>, path: &Path, case: &str) {
        match result {
            Err(CopyError::Source(OpenError::Changed { path: named, .. })) => {
                assert_eq!(named, path, "{case}");
            }
            other => panic!("{case}: {other:?}"),
        }
        assert_eq!(fs::read(self.image()).unwrap(), b"before", "{case}");
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2, "{case}");
    }
}

impl Ready {
    /// Compares every block of content in an image with the source.
    #[track_caller]
    fn assert_holds(&self, image: &File) {
        for extent in &self.layout.map.extents {
            let len = extent.blocks as usize * BLOCK_SIZE as usize;
            let mut found = vec![0; len];
            image
                .read_exact_at(&mut found, extent.block * BLOCK_SIZE)
                .unwrap();
            let mut wanted = vec![0; len];
            match extent.origin {
                Origin::Metadata { offset } => {
                    wanted.copy_from_slice(&self.layout.map.metadata[offset as usize..][..len]);
                }
                Origin::File { node, offset } => {
                    let file = File::open(self.composed.source_path(node)).unwrap();
                    let mut done = 0;
                    while done < len {
                        match file
                            .read_at(&mut wanted[done..], offset + done as u64)
                            .unwrap()
                        {
                            0 => break,
                            more => done += more,
                        }
                    }
                }
            }
            assert!(found == wanted, "{extent:?}");
        }
    }
}

/// Lets something happen when the first piece was written.
struct Once<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send> Progress for Once<F> {
    fn add(&self, _moved: Moved) {
        if let Some(happen) = self.0.lock().unwrap().take() {
            happen();
        }
    }

    fn cancelled(&self) -> bool {
        false
    }
}

fn one_thread() -> CopyOptions {
    CopyOptions {
        threads: NonZeroUsize::new(1),
        ..CopyOptions::default()
    }
}

/// Something that is done to the file at a path.
type Change = (&'static str, fn(&Path));

/// A test's file is newer than the clock's grain before it is scanned, so that its change is seen.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

const CHANGES: [Change; 5] = [
    ("grows", |path| {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    }),
    ("shrinks", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(4097).unwrap();
    }),
    ("is written again", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"other", 0).unwrap();
    }),
    ("is replaced", |path| {
        let beside = path.with_extension("new");
        fs::copy(path, &beside).unwrap();
        fs::rename(beside, path).unwrap();
    }),
    ("vanishes", |path| fs::remove_file(path).unwrap()),
];

#[test]
fn row_25_a_file_that_changed_after_the_scan_is_named_and_nothing_is_published() {
    for size in [9000, 9 << 20] {
        for (case, change) in CHANGES {
            let place = Place::new();
            let path = place.file("changes", &vec![7; size]);
            place.file("stays", &[8; 9000]);
            fs::write(place.image(), b"before").unwrap();
            settle();
            let ready = place.ready();
            change(&path);
            let result = place.build(&ready, &CopyOptions::default(), &Silent);
            place.assert_refused(result, &path, case);
        }
    }
}

#[test]
fn row_25_a_file_that_changes_while_it_is_read_is_named_and_nothing_is_published() {
    for (case, change) in CHANGES {
        let place = Place::new();
        let path = place.file("changes", &vec![7; 20 << 20]);
        fs::write(place.image(), b"before").unwrap();
        settle();
        let ready = place.ready();
        let changing = path.clone();
        let progress = Once(Mutex::new(Some(move || change(&changing))));
        let result = place.build(&ready, &one_thread(), &progress);
        place.assert_refused(result, &path, case);
    }
}

#[test]
fn row_26_a_file_that_became_something_else_is_not_followed_and_does_not_hang() {
    let changes: [Change; 3] = [
        ("symlink", |path| symlink("/etc/passwd", path).unwrap()),
        ("FIFO", |path| {
            rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        }),
        ("directory", |path| fs::create_dir(path).unwrap()),
    ];
    for (case, change) in changes {
        let place = Place::new();
        let path = place.file("changes", &[7; 9000]);
        fs::write(place.image(), b"before").unwrap();
        let ready = place.ready();
        fs::remove_file(&path).unwrap();
        change(&path);
        let result = place.build(&ready, &CopyOptions::default(), &Silent);
        place.assert_refused(result, &path, case);
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_on_the_way_they_are_written() {
    let place = Place::new();
    let mut random = Rng::new(11);
    for number in 0..300 {
        let len = random.below(if number % 50 == 0 { 5 << 20 } else { 9000 }) as usize;
        let some = random.bytes(997);
        let bytes: Vec<u8> = some.iter().cycle().take(len).copied().collect();
        place.file(&format!("file-{number}"), &bytes);
    }
    let ready = place.ready();
    let mut digests = Vec::new();
    for (threads, direct) in [(1, true), (8, true), (3, false)] {
        let image = image_file(place.dir.path());
        let options = CopyOptions {
            threads: NonZeroUsize::new(threads),
            direct,
            clone: true,
        };
        write_image(
            &ready.layout.map,
            &ready.composed,
            &image,
            &options,
            &Silent,
        )
        .unwrap();
        ready.assert_holds(&image);
        digests.push(digest_file(&image, None).unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn row_19_holes_of_a_source_are_holes_of_the_image() {
    let place = Place::new();
    let file = File::create(place.source("sparse")).unwrap();
    file.set_len(1 << 40).unwrap();
    for at in [0, 5 << 20, (1 << 40) - 3] {
        file.write_all_at(b"xyz", at).unwrap();
    }
    place.file("dense", &[0; 100_000]);
    let ready = place.ready();
    let image = image_file(place.dir.path());
    let report = write_image(
        &ready.layout.map,
        &ready.composed,
        &image,
        &CopyOptions::default(),
        &Silent,
    )
    .unwrap();
    ready.assert_holds(&image);
    assert!(report.bytes_read < 1 << 20, "{report:?}");
    let stored = image.metadata().unwrap().blocks() * 512;
    assert!(stored < 4 << 20, "{stored} bytes for {report:?}");
}

#[test]
fn guarantee_4_access_times_of_sources_stay() {
    let place = Place::new();
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    // Older than the modification, so that relatime would set it.
    let times = Timestamps {
        last_access: time(1000),
        last_modification: time(2000),
    };
    let paths = [
        place.file("small", &[1; 100]),
        place.file("large", &vec![2; 9 << 20]),
        place.source(""),
    ];
    for path in &paths {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
    }
    let ready = place.ready();
    place
        .build(&ready, &CopyOptions::default(), &Silent)
        .unwrap();
    for path in &paths {
        assert_eq!(fs::metadata(path).unwrap().atime(), 1000, "{path:?}");
    }
}

/// A file's content, mapped shared and for writing.
#[allow(unsafe_code, reason = "memory that is shared with a file")]
mod mapped {
    use std::fs::File;

    use rustix::mm::{MapFlags, ProtFlags};

    /// Stores a byte at the beginning of a file through a mapping of its first page, which stays.
    pub(super) struct Mapped(*mut u8);

    impl Mapped {
        pub(super) fn new(file: &File) -> Mapped {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at a place of the kernel's choice.
            let at = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    4096,
                    protection,
                    MapFlags::SHARED,
                    file,
                    0,
                )
            };
            Mapped(at.unwrap().cast())
        }

        pub(super) fn store(&self, byte: u8) {
            // SAFETY: the mapping is there until the process ends, and the file has the page.
            unsafe { self.0.write_volatile(byte) }
        }
    }
}

/// After the first store, those that follow change content and leave the times as they are, until the
/// page is written back. So a copy writes it back before it reads: what is stored later is then seen.
#[test]
fn row_27_pages_that_are_mapped_for_writing_are_written_back_before_they_are_read() {
    const TMPFS: i64 = 0x0102_1994;
    // `/tmp` is a tmpfs on many hosts, which writes nothing back.
    let place = Place::in_dir("/var/tmp".as_ref());
    if rustix::fs::statfs(place.dir.path()).unwrap().f_type == TMPFS {
        eprintln!("skipped: /var/tmp is a tmpfs as well");
        return;
    }
    let path = place.file("mapped", &[1; 4096]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mapped = mapped::Mapped::new(&file);
    mapped.store(2);
    settle();
    let times = || {
        let meta = fs::metadata(&path).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    let scanned = times();
    mapped.store(3);
    assert_eq!(
        times(),
        scanned,
        "a store that nobody sees: what this is about"
    );
    let ready = place.ready();
    place
        .build(&ready, &CopyOptions::default(), &Silent)
        .unwrap();
    ready.assert_holds(&File::open(place.image()).unwrap());
    settle();
    mapped.store(4);
    assert_ne!(times(), scanned, "a store after the copy is not seen");
    let result = place.build(&ready, &CopyOptions::default(), &Silent);
    assert!(
        matches!(&result, Err(CopyError::Source(OpenError::Changed { path: p, .. })) if *p == path),
        "{result:?}"
    );
}

#[test]
fn needs_root_large_extents_are_cloned_where_the_file_system_can() {
    let Some(mount) = Mount::xfs() else {
        return;
    };
    let place = Place::in_dir(mount.0.path());
    let mut random = Rng::new(5);
    let some = random.bytes(4099);
    let bytes = |len: usize| -> Vec<u8> { some.iter().cycle().take(len).copied().collect() };
    place.file("large", &bytes((9 << 20) + 100));
    place.file("small", &bytes(5000));
    place.file("just too small", &bytes((1 << 20) - 4096));
    // Its times are newer than what is cloned, which is written back first.
    let dirty = place.file("dirty", &bytes(3 << 20));
    let ready = place.ready();
    let report = place
        .build(&ready, &CopyOptions::default(), &Silent)
        .unwrap();
    ready.assert_holds(&File::open(place.image()).unwrap());
    assert_eq!(report.bytes_cloned, 12 << 20, "{report:?}");
    let copied = place
        .build(
            &ready,
            &CopyOptions {
                clone: false,
                ..CopyOptions::default()
            },
            &Silent,
        )
        .unwrap();
    assert_eq!(copied.bytes_cloned, 0);
    ready.assert_holds(&File::open(place.image()).unwrap());

    // A clone is checked like a copy.
    fs::write(place.image(), b"before").unwrap();
    settle();
    let ready = place.ready();
    fs::write(&dirty, bytes(3 << 20)).unwrap();
    let result = place.build(&ready, &CopyOptions::default(), &Silent);
    place.assert_refused(result, &dirty, "cloned");
}

#[test]
fn row_31_needs_root_a_full_disk_is_told_with_what_was_needed_and_nothing_is_left() {
    let Some(mount) = Mount::tmpfs() else {
        return;
    };
    let place = Place::new();
    place.file("large", &vec![1; 20 << 20]);
    let ready = place.ready();
    let image = mount.0.path().join("image");
    fs::write(&image, b"before").unwrap();
    let output = OutputFile::create(&image).unwrap();
    // Known before anything is done to the file.
    let early = crate::allocate(&ready.layout.map, output.file());
    assert!(matches!(early, Err(CopyError::NoSpace { .. })), "{early:?}");
    assert_eq!(output.file().metadata().unwrap().len(), 0);
    let error = write_image(
        &ready.layout.map,
        &ready.composed,
        output.file(),
        &CopyOptions::default(),
        &Silent,
    )
    .unwrap_err();
    drop(output);
    match error {
        CopyError::NoSpace { needed, available } => {
            assert!(needed > 20 << 20 && needed < 30 << 20, "{needed}");
            assert!(available > 3 << 20 && available < 8 << 20, "{available}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&image).unwrap(), b"before");
    assert_eq!(fs::read_dir(mount.0.path()).unwrap().count(), 1);
}

/// A file system of this test's own, unmounted at the end.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs() -> Option<Mount> {
        Mount::new(&["-t", "tmpfs", "-o", "size=8m", "none"])
    }

    /// An XFS with reflink in a loop file.
    fn xfs() -> Option<Mount> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512 << 20).unwrap();
        let path = file.path().to_str().unwrap();
        let made = Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1", path])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        if !made.is_ok_and(|status| status.success()) {
            skipped("no mkfs.xfs");
            return None;
        }
        // The file goes when the loop device does.
        Mount::new(&["-o", "loop", path])
    }

    fn new(arguments: &[&str]) -> Option<Mount> {
        let dir = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() {
            skipped("it needs root to mount");
            return None;
        }
        let mounted = Command::new("mount")
            .args(arguments)
            .arg(dir.path())
            .status()
            .unwrap();
        if !mounted.success() {
            skipped("mount failed");
            return None;
        }
        Some(Mount(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What can't be unmounted now goes with the last user.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[allow(clippy::print_stderr, reason = "tests say what was skipped")]
#[track_caller]
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped: {why}");
    eprintln!("skipped: {why}");
}
