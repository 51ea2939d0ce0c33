//! No false hit: whatever is done to a source, a launch that would find an image made of it before finds
//! the same content in it.

#![allow(unsafe_code, reason = "mmap and sync_file_range have no safe wrapper")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fcpipe_spec::Content;
use fcpipe_tree::{IndexDir, Kind, ScanOptions, look};
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::common::*;
use crate::indexing::assert_as_cold;

/// A file that somebody has mapped for writing.
struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(path: &Path) -> Option<Mapping> {
        let file = File::options().read(true).write(true).open(path).ok()?;
        let len = file.metadata().unwrap().len() as usize;
        if len == 0 {
            return None;
        }
        // SAFETY: a new mapping of a file of `len` bytes; nothing else is at its address.
        let at = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let at = at.unwrap().cast();
        Some(Mapping { at, len })
    }

    fn store(&self, at: usize, byte: u8) {
        // SAFETY: inside of the mapping, which lives as long as `self`; the files that are mapped here
        // are never cut short.
        unsafe { self.at.add(at % self.len).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with these, and nobody uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.at.cast(), self.len) };
    }
}

/// All that an image of a source holds: what a scan says and the contents, read as a copy reads them.
type Image = BTreeMap<Vec<u8>, Vec<u8>>;

struct Launches {
    top: PathBuf,
    indexes: IndexDir,
    /// What was made, by the digests of the Tree and of the stamps.
    images: BTreeMap<([u8; 32], [u8; 32]), Image>,
    hits: usize,
}

impl Launches {
    /// Looks, and finds an image or makes one. What is found must hold what is there.
    fn launch(&mut self, context: &str) {
        let options = ScanOptions::default();
        let content = Content::default();
        let mut warm = look(&self.top, &content, &options, Some(&self.indexes)).unwrap();
        warm.settle();
        assert_as_cold(&warm, &self.top, &options, context);
        let key = (
            *warm.tree_digest().as_bytes(),
            *warm.digest_of_stamps().as_bytes(),
        );
        let there = contents(&self.top);
        if let Some(image) = self.images.get(&key) {
            self.hits += 1;
            for (path, now) in &there {
                let path = bstr::BStr::new(path);
                assert!(
                    image.get(&**path) == Some(now),
                    "{path}: a false hit, {context}"
                );
            }
            assert_eq!(image.len(), there.len(), "{context}");
            return;
        }
        let composed = composed(vec![fcpipe_tree::Layer {
            destination: "/".into(),
            source: self.top.clone(),
            scan: Some(warm.scan().unwrap()),
        }]);
        let mut opener = composed.opener();
        let tree = composed.tree();
        let mut image = Image::new();
        for node in tree.nodes() {
            if matches!(tree.kind(node), Kind::File { .. }) {
                let file = opener.open(node).unwrap();
                write_back(file.file());
                let mut bytes = vec![0; file.size() as usize];
                file.file().read_exact_at(&mut bytes, 0).unwrap();
                // Written through a mapping between the look and the read: the copy is refused, and
                // the next launch makes it.
                if file.check().is_err() {
                    return;
                }
                image.insert(tree.path(node), bytes);
            }
        }
        // Other names of the same files.
        let image = there
            .keys()
            .filter_map(|path| {
                let first = tree.path(find(tree, std::str::from_utf8(path).ok()?)?);
                Some((path.clone(), image.get(&first)?.clone()))
            })
            .collect();
        self.images.insert(key, image);
    }
}

fn write_back(file: &File) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes an open descriptor and numbers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}

fn contents(top: &Path) -> Image {
    let mut all = Image::new();
    let mut waiting = vec![(top.to_path_buf(), Vec::new())];
    while let Some((dir, name)) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let mut below = name.clone();
            below.push(b'/');
            below.extend_from_slice(entry.file_name().as_encoded_bytes());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                waiting.push((entry.path(), below));
            } else if kind.is_file() {
                all.insert(below, fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

/// What is done to a source.
struct Edits {
    random: Random,
    top: PathBuf,
    mapped: Vec<Mapping>,
    may_map: bool,
}

const SIZE: usize = 5000;

impl Edits {
    fn name(&mut self) -> PathBuf {
        let name = format!("d{}/f{}", self.random.below(5), self.random.below(6));
        self.top.join(name)
    }

    fn content(&mut self) -> Vec<u8> {
        vec![self.random.below(256) as u8; SIZE]
    }

    /// Writes over a file as it is, keeping inode and size.
    fn overwrite(&mut self, path: &Path) {
        let content = self.content();
        if let Ok(file) = File::options().write(true).open(path) {
            let at = self.random.below(SIZE - 10);
            file.write_all_at(&content[at..at + 10], at as u64).unwrap();
        }
    }

    fn create(&mut self, path: &Path) {
        let content = self.content();
        File::create(path).unwrap().write_all(&content).unwrap();
    }

    /// Changes nothing else than times.
    fn times_of(from: &Path, to: &Path) {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(meta), true) = (fs::symlink_metadata(from), to.symlink_metadata().is_ok()) {
            set_mtime(to, meta.mtime(), meta.mtime_nsec() as u32);
        }
    }

    /// One edit; gives its name.
    fn edit(&mut self) -> &'static str {
        let path = self.name();
        let other = self.name();
        let beside = self.top.join("beside");
        let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
        match self.random.below(16) {
            0 => {
                self.overwrite(&path);
                "overwritten"
            }
            1 => {
                let kept = beside.with_file_name("../kept");
                fs::copy(&path, &kept).ok();
                Self::times_of(&path, &kept);
                self.overwrite(&path);
                Self::times_of(&kept, &path);
                "overwritten, mtime put back"
            }
            2 => {
                self.overwrite(&path);
                self.overwrite(&path);
                "overwritten twice in a tick"
            }
            3 => {
                self.create(&beside);
                Self::times_of(&path, &beside);
                fs::rename(&beside, &path).unwrap();
                "renamed over, mtime and size the same"
            }
            4 if is_file && path != other => {
                fs::remove_file(&other).ok();
                fs::hard_link(&path, &other).unwrap();
                "hard-linked"
            }
            5 if is_file && other.exists() => {
                Self::times_of(&path, &other);
                rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE).ok();
                "two files of one size and time swapped"
            }
            6 if is_file => {
                self.overwrite(&path);
                let secs = *self.random.pick(&[-1, 0, 1_000_000_000, 4_000_000_000]);
                set_mtime(&path, secs, 0);
                "touch -d"
            }
            7 if is_file => {
                fs::remove_file(&path).unwrap();
                "removed"
            }
            8 if is_file => {
                use std::os::unix::fs::PermissionsExt;
                let mode = 0o600 + self.random.below(64) as u32;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                "mode"
            }
            9 if is_file => {
                let value = [self.random.below(3) as u8];
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(&path, "user.a", &value, flags).ok();
                "attribute"
            }
            10 if is_file => {
                let file = File::options().write(true).open(&path).unwrap();
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, 0, 4096).ok();
                "a hole"
            }
            11 if is_file => {
                fs::remove_file(&path).unwrap();
                let target = format!("{}", self.random.below(3));
                std::os::unix::fs::symlink(target, &path).unwrap();
                "became a symlink"
            }
            12 => {
                let dir = path.parent().unwrap();
                let name = self.top.join("d-renamed");
                fs::rename(dir, &name).unwrap();
                fs::create_dir(dir).unwrap();
                self.create(&path);
                fs::rename(&name, dir.join("below")).ok();
                fs::remove_dir_all(dir.join("below")).ok();
                fs::remove_dir_all(&name).ok();
                "a directory replaced"
            }
            13 | 14 if self.may_map => {
                if self.mapped.len() < 4 || self.random.below(8) == 0 {
                    // A mapped file has its own name: it is never cut short.
                    let name = self.top.join(format!("mapped{}", self.random.below(8)));
                    if !name.exists() {
                        self.create(&name);
                    }
                    self.mapped.extend(Mapping::new(&name));
                    if self.mapped.len() > 6 {
                        self.mapped.remove(0);
                    }
                }
                let (at, byte) = (self.random.below(SIZE), self.random.below(256) as u8);
                for _ in 0..2 {
                    let mapping = self.random.below(self.mapped.len());
                    self.mapped[mapping].store(at, byte);
                }
                "stored through a mapping"
            }
            _ => {
                fs::remove_file(&path).ok();
                self.create(&path);
                "made anew"
            }
        }
    }
}

/// How many edits: a tenth, unless FCPIPE_SOAK is set.
fn rounds() -> usize {
    if std::env::var_os("FCPIPE_SOAK").is_some() {
        2000
    } else {
        200
    }
}

/// `pause`: how long nothing is done now and then, so that something can be found again.
fn no_false_hit(dir: &Path, rounds: usize, may_map: bool, pause: Option<Duration>) {
    let top = dir.join("source");
    let mut edits = Edits {
        random: Random::new(),
        top: top.clone(),
        mapped: Vec::new(),
        may_map,
    };
    for d in 0..5 {
        fs::create_dir_all(top.join(format!("d{d}"))).unwrap();
        for f in 0..6 {
            let path = top.join(format!("d{d}/f{f}"));
            edits.create(&path);
        }
    }
    let mut launches = Launches {
        top,
        indexes: IndexDir::new(dir.join("indexes")),
        images: BTreeMap::new(),
        hits: 0,
    };
    launches.launch("first");
    for round in 0..rounds {
        if let Some(pause) = pause.filter(|_| round % 30 == 0) {
            std::thread::sleep(pause);
            for again in 0..2 {
                launches.launch(&format!("round {round}, at rest: {again}"));
            }
        }
        let what = edits.edit();
        launches.launch(&format!("round {round}: {what}"));
        // Once more at once: a hit unless something is not settled; and another edit without a launch between.
        match edits.random.below(3) {
            0 => launches.launch(&format!("round {round}, again: {what}")),
            1 => {
                edits.edit();
            }
            _ => {}
        }
    }
    println!(
        "{} launches that made an image, {} that found one",
        launches.images.len(),
        launches.hits
    );
    let expected = if pause.is_some() { 30 } else { 8 };
    assert!(launches.hits >= rounds / expected, "{}", launches.hits);
}

#[test]
fn row_27_28_no_edit_leads_to_a_false_hit() {
    /// linux/magic.h
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    let dir = tempfile::tempdir().unwrap();
    // tmpfs does not notice stores through mappings, as ramfs below.
    let notices = rustix::fs::statfs(dir.path()).unwrap().f_type as u32 != TMPFS_MAGIC;
    no_false_hit(dir.path(), rounds(), notices, None);
}

/// ramfs stamps changes with the coarse clock alone, as every file system did before Linux 6.13: two
/// edits within a tick leave the same times. It does not notice stores through mappings at all.
#[test]
fn row_27_28_no_edit_leads_to_a_false_hit_by_the_coarse_clock_needs_root() {
    if is_child() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "ramfs", "none"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        no_false_hit(dir.path(), rounds(), false, None);
        return;
    }
    if is_root() {
        let name = "edits::row_27_28_no_edit_leads_to_a_false_hit_by_the_coarse_clock_needs_root";
        again_under(&["unshare", "-m"], name);
    }
}

/// ext4 with inodes of 128 bytes keeps whole seconds: what was changed in this second or the last is unsettled.
#[test]
fn row_27_no_edit_leads_to_a_false_hit_in_whole_seconds_needs_root() {
    if is_child() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let at = dir.path().join("at");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let run = |program: &str, args: &[&str]| {
            let mut command = std::process::Command::new(program);
            let output = command.args(args).arg(&image).output();
            output.is_ok_and(|output| output.status.success())
        };
        if !run("mke2fs", &["-q", "-t", "ext4", "-I", "128"]) {
            println!("skipped: no mke2fs");
            return;
        }
        let mounted = std::process::Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &at])
            .status()
            .unwrap();
        assert!(mounted.success());
        no_false_hit(&at, rounds() / 3, true, Some(Duration::from_millis(3100)));
        return;
    }
    if is_root() {
        let name = "edits::row_27_no_edit_leads_to_a_false_hit_in_whole_seconds_needs_root";
        again_under(&["unshare", "-m"], name);
    }
}

/// The same file, changed twice within one tick, by a file system of the coarse clock.
#[test]
fn row_27_an_edit_within_the_tick_of_the_look_needs_root() {
    if is_child() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "ramfs", "none"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        let top = dir.path().join("source");
        fs::create_dir(&top).unwrap();
        let indexes = IndexDir::new(dir.path().join("indexes"));
        let path = top.join("f");
        let mut hidden = 0;
        for round in 0..200u32 {
            fs::write(&path, format!("{round:05}a")).unwrap();
            let look = || {
                let options = ScanOptions::default();
                let mut looked = look(&top, &Content::default(), &options, Some(&indexes)).unwrap();
                looked.settle();
                looked
            };
            let first = look();
            let stamp = first.scan().unwrap().stamps[1];
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(format!("{round:05}b").as_bytes(), 0)
                .unwrap();
            let second = look();
            let different = first.digest_of_stamps() != second.digest_of_stamps();
            assert!(different, "round {round}");
            hidden += usize::from(second.scan().unwrap().stamps[1] == stamp);
        }
        println!("{hidden} of 200 edits were hidden by the clock");
        return;
    }
    if is_root() {
        let name = "edits::row_27_an_edit_within_the_tick_of_the_look_needs_root";
        again_under(&["unshare", "-m"], name);
    }
}

/// Times in the future, as after the clock was set back: nothing that was written then is trusted.
#[test]
fn row_28_mtimes_put_back_and_forth_keep_nothing_hidden() {
    let place = Place::new();
    let path = place.file("f", b"one");
    set_mtime(&path, 4_000_000_000, 0);
    let dir = crate::indexing::indexes(&place);
    let options = ScanOptions::default();
    let digest = || {
        let mut looked = look(&place.top(), &Content::default(), &options, Some(&dir)).unwrap();
        looked.settle();
        looked.digest_of_stamps()
    };
    let before = digest();
    assert_eq!(before, digest());
    fs::write(&path, b"two").unwrap();
    rustix::fs::utimensat(
        CWD,
        &path,
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 4_000_000_000,
                tv_nsec: 0,
            },
        },
        AtFlags::empty(),
    )
    .unwrap();
    assert_ne!(before, digest());
}
