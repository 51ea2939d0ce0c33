//! Random sequences of edits: after each, the image near the one before must be what a cold one is, to the kernel and to
//! e2fsck; written into a copy, and as a disk of changes that a reader of its own joins.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fcpipe_tree::{ContentId, NodeId};
use fcpipe_treegen::{
    Content as Bytes, Expect, Inode, Kind as ModelKind, Limits, Model, Rng, count, generate, seed,
};

use super::*;
use crate::copy::{CopyError, CopyOptions, Silent, cow_from, patch_from, source};
use crate::cow_size;

#[path = "../../tests/host.rs"]
#[allow(dead_code, reason = "shared with the tests beside the library")]
mod host;

use host::{Mount, assert_clean, has_root};

/// What the kernel must find.
const EXACTLY: Expect = Expect {
    holes: true,
    lost_found: true,
    all_times_equal: true,
};

/// The files of a model, each as a file in memory when it is opened.
struct Files<'m> {
    model: &'m Model,
    order: Vec<usize>,
}

impl Files<'_> {
    fn content(&self, node: NodeId) -> &Bytes {
        match &self.model.inodes[self.order[node.index()]].kind {
            ModelKind::File(content) => content,
            other => panic!("{node:?} is {other:?}"),
        }
    }

    /// Seed and shape: files of the same content have the same.
    fn id(&self, node: NodeId) -> ContentId {
        let content = self.content(node);
        let shape = blake3::hash(format!("{:?}", content.data).as_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&shape.as_bytes()[..8]);
        ContentId {
            sort: ContentId::ANYWHERE,
            words: [content.seed, content.size, u64::from_le_bytes(word), 0],
        }
    }
}

impl source::Sources for Files<'_> {
    type Reader<'a>
        = &'a Self
    where
        Self: 'a;

    fn reader(&self) -> &Self {
        self
    }

    fn size(&self, node: NodeId) -> u64 {
        self.content(node).size
    }

    fn path(&self, node: NodeId) -> PathBuf {
        format!("{node:?}").into()
    }
}

impl source::Reader for &Files<'_> {
    type File = File;

    fn open(&mut self, node: NodeId) -> Result<File, CopyError> {
        let content = self.content(node);
        let file: File = rustix::fs::memfd_create("content", rustix::fs::MemfdFlags::CLOEXEC)
            .expect("memory")
            .into();
        file.set_len(content.size).expect("a size");
        for range in content.ranges() {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            content.read(range.start, &mut bytes);
            file.write_all_at(&bytes, range.start).expect("room");
        }
        Ok(file)
    }

    fn check(&self, _: &File) -> Result<(), CopyError> {
        Ok(())
    }
}

/// Memfds of terabytes are refused by nobody, but slow.
fn limits() -> Limits {
    Limits {
        inodes: 120,
        file_bytes: 1 << 20,
        huge_sparse: false,
        ..Limits::default()
    }
}

/// An image on the disk and its imprint.
struct Made {
    path: PathBuf,
    imprint: Vec<u8>,
}

impl Made {
    fn moved_to(self, path: &Path) -> Made {
        std::fs::rename(&self.path, path).expect("renamed");
        Made {
            path: path.to_owned(),
            ..self
        }
    }
}

/// Laid out from nothing.
fn cold(dir: &Path, model: &Model, options: &Options) -> Made {
    let (tree, order) = model.tree();
    let files = Files { model, order };
    let contents = |node| Some(files.id(node));
    let (layout, imprint) = layout_with_imprint(&tree, options, &contents).expect("a layout");
    let path = dir.join("base");
    let file = File::create(&path).expect("created");
    crate::copy::write_from(&layout.map, &files, &file, &CopyOptions::default(), &Silent)
        .expect("written");
    Made { path, imprint }
}

/// Applies a disk of changes to a copy of its base, by a reading of the kernel's documentation alone: a header of four
/// words, then tables of 256 pairs with as many chunks behind each.
fn join(base: &Path, cow: &Path, joined: &Path) -> BTreeMap<u64, u64> {
    let cow = File::open(cow).expect("changes");
    let word = |at: u64| {
        let mut bytes = [0; 8];
        cow.read_exact_at(&mut bytes, at).expect("whole tables");
        u64::from_le_bytes(bytes)
    };
    assert_eq!(word(0), 1 << 32 | 0x7041_6e53, "magic and `valid`");
    assert_eq!(word(8), 8 << 32 | 1, "version and sectors in a chunk");
    copy(base, joined);
    let joined = File::options().write(true).open(joined).expect("the copy");
    let mut moved = BTreeMap::new();
    'tables: for area in 0.. {
        for entry in 0..256 {
            let at = (1 + area * 257) * 4096 + entry * 16;
            let (old, new) = (word(at), word(at + 8));
            if new == 0 {
                break 'tables;
            }
            assert_ne!((new - 1) % 257, 0, "data in the place of a table");
            assert_eq!(moved.insert(old, new), None, "a chunk twice");
            let mut chunk = vec![0; 4096];
            cow.read_exact_at(&mut chunk, new * 4096).expect("data");
            joined.write_all_at(&chunk, old * 4096).expect("room");
        }
    }
    moved
}

/// A copy with the same holes.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status();
    assert!(status.expect("cp").success());
}

fn compare(image: &Path, model: &Model, what: &str) {
    let mount = Mount::new(image, "ro");
    if let Err(mismatch) = model.compare(mount.path(), EXACTLY) {
        panic!("{what}: {mismatch}");
    }
    mount.unmount();
}

fn same_bytes(a: &Path, b: &Path) -> bool {
    let digest = |path: &Path| {
        crate::digest_file(&File::open(path).expect("there"), None).expect("readable")
    };
    digest(a) == digest(b)
}

/// The image of `model` near `base`, in both ways, compared with each other and with the model through the kernel; `None` where it
/// is too far.
fn near_image(
    dir: &Path,
    base: &Made,
    model: &Model,
    options: &Options,
    what: &str,
) -> Option<Made> {
    let (tree, order) = model.tree();
    let files = Files { model, order };
    let contents = |node| Some(files.id(node));
    let imprint = Imprint::new(base.imprint.clone()).expect("an imprint");
    let change = match layout_near(&tree, options, &imprint, &contents, true) {
        Ok(Near::Changed(change)) => change,
        Ok(Near::Far(_)) => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let path = dir.join("near");
    let from = File::open(&base.path).expect("the base");
    let before = crate::digest_file(&from, None).expect("readable");
    copy(&base.path, &path);
    let target = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("the copy");
    let map = &change.layout.map;
    let copying = CopyOptions::default();
    patch_from(map, &files, &from, &target, &copying, &Silent)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    drop(target);
    let cow = dir.join("cow");
    let target = File::create(&cow).expect("created");
    let patched = cow_from(map, &files, &from, &target, &copying, &Silent)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let joined = dir.join("joined");
    let moved = join(&base.path, &cow, &joined);
    assert_eq!(moved.len() as u64, patched.blocks, "{what}");
    assert!(
        target.metadata().expect("there").len() <= cow_size(map.blocks),
        "{what}"
    );
    assert!(same_bytes(&path, &joined), "{what}: the two ways differ");
    assert_eq!(
        crate::digest_file(&from, None).expect("readable"),
        before,
        "{what}"
    );
    assert_clean(&path);
    compare(&path, model, what);
    let imprint = change.imprint.clone().expect("asked for");
    Some(Made { path, imprint })
}

/// A sequence of edits. `chain`: each image is near the one before it, otherwise all are near the first.
fn sequence(seed: u64, edits: u64, chain: bool) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rng = Rng::new(seed ^ 0x6e65_6172);
    let options = Options {
        size: None,
        journal: rng.one_in(4),
        ..Options::default()
    };
    let mut model = generate(seed, &limits());
    let mut base = cold(dir.path(), &model, &options);
    let (mut near, mut far) = (0, 0);
    for edit in 0..edits {
        let done = model.edit(rng.number(), &limits());
        let what = format!("FCPIPE_SEED={seed}, edit {edit}: {done}");
        let Some(made) = near_image(dir.path(), &base, &model, &options, &what) else {
            far += 1;
            base = cold(dir.path(), &model, &options);
            continue;
        };
        near += 1;
        if chain || rng.one_in(10) {
            base = made.moved_to(&dir.path().join("base"));
        }
    }
    (near, far)
}

/// 1,024 inodes share a block of attributes. When one of them goes the first of the next block takes its place, and nothing else
/// of it changes.
#[test]
fn needs_root_a_file_whose_block_of_attributes_is_another_is_written_again() {
    if !has_root("images near others through the kernel") {
        return;
    }
    let files = |from: usize| {
        let mut model = Model::new();
        for number in from..1030 {
            let mut file = Inode::new(ModelKind::File(Bytes::plain(1, 1)));
            file.xattrs.insert(b"user.note".to_vec(), vec![b'n'; 300]);
            model.add(Model::ROOT, format!("{number:04}").as_bytes(), file);
        }
        model
    };
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::default();
    let base = cold(dir.path(), &files(0), &options);
    let near = near_image(dir.path(), &base, &files(1), &options, "one file less");
    assert!(near.is_some(), "too far");
}

#[test]
fn needs_root_images_near_others_are_what_cold_ones_are() {
    if !has_root("images near others through the kernel") {
        return;
    }
    let first = seed();
    let (mut near, mut far) = (0, 0);
    for seed in first..first + count("FCPIPE_SOAK_SEQUENCES", 4) {
        let edits = count("FCPIPE_SOAK_EDITS", 15);
        let (more, cold) = sequence(seed, edits, seed % 2 == 0);
        near += more;
        far += cold;
    }
    assert!(near > far, "{near} images near others, {far} too far");
}
