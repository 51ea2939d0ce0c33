//! Random sequences of edits: after each, the image near the one before must be what a cold one is, to the kernel and to
//! e2fsck; written into a copy, and as a disk of changes that a reader of its own joins.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use fcpipe_sparse::Data;
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
    /// Large ones: they are opened for each of their parts, and made once.
    large: Vec<OnceLock<File>>,
}

impl<'m> Files<'m> {
    fn of(model: &'m Model, order: Vec<usize>) -> Self {
        let large = order.iter().map(|_| OnceLock::new()).collect();
        Files {
            model,
            order,
            large,
        }
    }

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
        if content.size <= 1 << 20 {
            return Ok(in_memory(content));
        }
        let made = self.large[node.index()].get_or_init(|| in_memory(content));
        Ok(made.try_clone().expect("a descriptor"))
    }

    fn check(&self, _: &File) -> Result<(), CopyError> {
        Ok(())
    }
}

fn in_memory(content: &Bytes) -> File {
    let file: File = rustix::fs::memfd_create("content", rustix::fs::MemfdFlags::CLOEXEC)
        .expect("memory")
        .into();
    file.set_len(content.size).expect("a size");
    let mut room = vec![0; content.size.min(PIECE) as usize];
    for range in content.ranges() {
        for at in range.clone().step_by(PIECE as usize) {
            let bytes = &mut room[..(range.end - at).min(PIECE) as usize];
            content.read(at, bytes);
            file.write_all_at(bytes, at).expect("room");
        }
    }
    file
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

/// An image on the disk, its imprint, and what it held when it was made.
struct Made {
    path: PathBuf,
    imprint: Vec<u8>,
    digest: blake3::Hash,
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
    let files = Files::of(model, order);
    let contents = |node| Some(files.id(node));
    let (layout, imprint) = layout_with_imprint(&tree, options, &contents).expect("a layout");
    let path = dir.join("base");
    let file = create(&path);
    crate::copy::write_from(&layout.map, &files, &file, &CopyOptions::default(), &Silent)
        .expect("written");
    Made {
        path,
        imprint,
        digest: digest(&file, &Changes::default()),
    }
}

fn create(path: &Path) -> File {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true);
    options.open(path).expect("created")
}

/// What a disk of changes holds: which of its chunks stands in the place of which of the base's.
#[derive(Default)]
struct Changes<'f> {
    file: Option<&'f File>,
    moved: BTreeMap<u64, u64>,
}

const CHUNK: u64 = 4096;

impl Changes<'_> {
    /// Reads one by the kernel's documentation alone: a header of four words, then tables of 256 pairs with as many chunks
    /// behind each.
    fn on(cow: &File) -> Changes<'_> {
        let word = |at: u64| {
            let mut bytes = [0; 8];
            cow.read_exact_at(&mut bytes, at).expect("whole tables");
            u64::from_le_bytes(bytes)
        };
        assert_eq!(word(0), 1 << 32 | 0x7041_6e53, "magic and `valid`");
        assert_eq!(word(8), 8 << 32 | 1, "version and sectors in a chunk");
        let mut moved = BTreeMap::new();
        'tables: for area in 0.. {
            for entry in 0..256 {
                let at = (1 + area * 257) * CHUNK + entry * 16;
                let (old, new) = (word(at), word(at + 8));
                if new == 0 {
                    break 'tables;
                }
                assert_ne!((new - 1) % 257, 0, "data in the place of a table");
                assert_eq!(moved.insert(old, new), None, "a chunk twice");
            }
        }
        let file = Some(cow);
        Changes { file, moved }
    }
}

/// How much is read at once: a multiple of chunks.
const PIECE: u64 = 64 * CHUNK;

/// The pieces of a file that are not holes.
fn pieces(file: &File) -> BTreeSet<u64> {
    let size = file.metadata().expect("there").len();
    let mut pieces = BTreeSet::new();
    for data in Data::of(file.as_fd(), size).expect("a file") {
        let data = data.expect("known holes");
        pieces.extend(data.start / PIECE..data.end.div_ceil(PIECE));
    }
    pieces
}

/// Of an image and the changes joined to it: of the size, and of every byte that is in a piece with anything but zeros. So it does not
/// depend on holes, and costs nothing for them.
fn digest(image: &File, changes: &Changes<'_>) -> blake3::Hash {
    let size = image.metadata().expect("there").len();
    let mut pieces = pieces(image);
    pieces.extend(changes.moved.keys().map(|chunk| chunk * CHUNK / PIECE));
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    let mut room = vec![0; PIECE as usize];
    for at in pieces.into_iter().map(|piece| piece * PIECE) {
        let bytes = &mut room[..(size - at).min(PIECE) as usize];
        image.read_exact_at(bytes, at).expect("readable");
        for (old, new) in changes.moved.range(at / CHUNK..(at + PIECE) / CHUNK) {
            let chunk = &mut bytes[(old * CHUNK - at) as usize..][..CHUNK as usize];
            let file = changes.file.expect("whose chunks these are");
            file.read_exact_at(chunk, new * CHUNK).expect("data");
        }
        if bytes.iter().any(|&byte| byte != 0) {
            hasher.update(&at.to_le_bytes());
            hasher.update(bytes);
        }
    }
    hasher.finalize()
}

/// A copy with the same holes.
fn copy(from: &File, to: &Path) -> File {
    let size = from.metadata().expect("there").len();
    let to = create(to);
    to.set_len(size).expect("a size");
    let mut room = vec![0; PIECE as usize];
    for at in pieces(from).into_iter().map(|piece| piece * PIECE) {
        let bytes = &mut room[..(size - at).min(PIECE) as usize];
        from.read_exact_at(bytes, at).expect("readable");
        to.write_all_at(bytes, at).expect("room");
    }
    to
}

fn compare(image: &Path, model: &Model, what: &str) {
    let mount = Mount::new(image, "ro");
    if let Err(mismatch) = model.compare(mount.path(), EXACTLY) {
        panic!("{what}: {mismatch}");
    }
    mount.unmount();
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
    let _during = During(what);
    let (tree, order) = model.tree();
    let files = Files::of(model, order);
    let contents = |node| Some(files.id(node));
    let imprint = Imprint::new(base.imprint.clone()).expect("an imprint");
    let change = match layout_near(&tree, options, &imprint, &contents, true) {
        Ok(Near::Changed(change)) => change,
        Ok(Near::Far(_)) => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let path = dir.join("near");
    let from = File::open(&base.path).expect("the base");
    let target = copy(&from, &path);
    let map = &change.layout.map;
    let copying = CopyOptions::default();
    patch_from(map, &files, &from, &target, &copying, &Silent)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let cow = create(&dir.join("cow"));
    let patched = cow_from(map, &files, &from, &cow, &copying, &Silent)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let changes = Changes::on(&cow);
    assert_eq!(changes.moved.len() as u64, patched.blocks, "{what}");
    assert!(
        cow.metadata().expect("there").len() <= cow_size(map.blocks),
        "{what}"
    );
    let digest_of_both = digest(&target, &Changes::default());
    let joined = digest(&from, &changes);
    assert_eq!(joined, digest_of_both, "{what}: the two ways differ");
    let base_now = digest(&from, &Changes::default());
    assert_eq!(base_now, base.digest, "{what}: the base is another");
    drop(target);
    assert_clean(&path);
    compare(&path, model, what);
    Some(Made {
        path,
        imprint: change.imprint.clone().expect("asked for"),
        digest: digest_of_both,
    })
}

/// Says what it was about when something fails.
struct During<'w>(&'w str);

impl Drop for During<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
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

/// A directory keeps its block, which is then its first, and gets others before it on the disk.
#[test]
fn needs_root_a_directory_that_grows_into_blocks_before_its_own_is_in_order() {
    if !has_root("images near others through the kernel") {
        return;
    }
    let directory = || Inode::new(ModelKind::Directory(BTreeMap::new()));
    let dirs = |others: usize, names: usize| {
        let mut model = Model::new();
        for number in 0..others {
            model.add(Model::ROOT, format!("a{number}").as_bytes(), directory());
        }
        let last = model.add(Model::ROOT, b"b", directory());
        for number in 0..names {
            let file = Inode::new(ModelKind::File(Bytes::plain(0, 0)));
            model.add(last, format!("{number:0200}").as_bytes(), file);
        }
        model
    };
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::default();
    let base = cold(dir.path(), &dirs(8, 10), &options);
    let near = near_image(dir.path(), &base, &dirs(0, 60), &options, "more names");
    assert!(near.is_some(), "too far");
}

#[test]
fn needs_root_images_near_others_are_what_cold_ones_are() {
    if !has_root("images near others through the kernel") {
        return;
    }
    let (first, many) = (seed(), count("FCPIPE_SOAK_SEQUENCES", 4));
    let edits = count("FCPIPE_SOAK_EDITS", 15);
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let sums = Mutex::new(Sums::default());
    let some = || {
        loop {
            let seed = match next.fetch_add(1, Ordering::Relaxed) {
                number if number < many => first + number,
                _ => return,
            };
            let result = catch_unwind(|| sequence(seed, edits, seed % 2 == 0));
            let (near, far) = result.unwrap_or_else(|failure| {
                next.store(many, Ordering::Relaxed);
                resume_unwind(failure)
            });
            let mut sums = sums.lock().expect("nothing fails with it");
            sums.sequences += 1;
            sums.near += near;
            sums.far += far;
            if sums.sequences % 25 == 0 {
                let time = begun.elapsed().as_secs();
                eprintln!("{sums:?} of {many}, FCPIPE_SEED={first}, {time} s");
            }
        }
    };
    // Each waits for mounts and the disk half of its time.
    std::thread::scope(|scope| {
        for number in 0..2 {
            let thread = std::thread::Builder::new().name(format!("sequences-{number}"));
            thread.spawn_scoped(scope, some).expect("a thread");
        }
    });
    let Sums { near, far, .. } = sums.into_inner().expect("nothing failed with it");
    assert!(near > far, "{near} images near others, {far} too far");
}

#[derive(Debug, Default)]
struct Sums {
    sequences: u64,
    near: u64,
    far: u64,
}
