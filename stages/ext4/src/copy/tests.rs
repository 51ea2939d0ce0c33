//! The mover against a naive writer, and against files that misbehave.

mod sources;

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fcpipe_tree::NodeId;
use fcpipe_treegen::{Rng, seed};

use super::plan::{Cursor, Done, PIECE};
use super::source::{Reader, Sources};
use super::*;
use crate::map::{MapExtent, Origin};

/// Files of a directory by number, as big as the test says they were when scanned.
struct Files {
    dir: tempfile::TempDir,
    sizes: Vec<u64>,
    /// Called after a file was read, in place of the comparison with its stamp.
    check: Box<dyn Fn(NodeId) -> Result<(), CopyError> + Send + Sync>,
    open_now: AtomicU64,
    open_most: AtomicU64,
}

struct OneFile<'a> {
    file: File,
    node: NodeId,
    files: &'a Files,
}

impl Files {
    /// Files with these bytes.
    fn new(contents: &[Vec<u8>]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        for (number, bytes) in contents.iter().enumerate() {
            fs::write(dir.path().join(number.to_string()), bytes).unwrap();
        }
        Files {
            dir,
            sizes: contents.iter().map(|bytes| bytes.len() as u64).collect(),
            check: Box::new(|_| Ok(())),
            open_now: AtomicU64::new(0),
            open_most: AtomicU64::new(0),
        }
    }
}

impl Sources for Files {
    type Reader<'a> = &'a Files;

    fn reader(&self) -> &Files {
        self
    }

    fn size(&self, node: NodeId) -> u64 {
        self.sizes[node.index()]
    }

    fn path(&self, node: NodeId) -> PathBuf {
        self.dir.path().join(node.0.to_string())
    }
}

impl<'a> Reader for &'a Files {
    type File = OneFile<'a>;

    fn open(&mut self, node: NodeId) -> Result<OneFile<'a>, CopyError> {
        let now = self.open_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.open_most.fetch_max(now, Ordering::SeqCst);
        let path = self.path(node);
        let file = File::open(&path).map_err(|source| CopyError::Read { path, source })?;
        Ok(OneFile {
            file,
            node,
            files: self,
        })
    }

    fn check(&self, file: &OneFile<'a>) -> Result<(), CopyError> {
        (self.check)(file.node)
    }
}

impl AsFd for OneFile<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for OneFile<'_> {
    fn drop(&mut self) {
        self.files.open_now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A map of every kind of extent at once: files cut up and in any order, holes of the disk, metadata,
/// now and then an extent larger than a piece.
fn random_map(random: &mut Rng, sizes: &[u64]) -> ImageMap {
    let mut map = ImageMap::default();
    let mut block = random.below(4);
    for _ in 0..random.below(60) {
        block += [0, 0, 0, 1, 7, 300][random.below(6) as usize];
        let large = random.below(12) == 0;
        let blocks = 1 + random.below(if large { 3 * u64::from(PIECE) } else { 9 }) as u32;
        let origin = if random.below(3) == 0 {
            let offset = map.metadata.len() as u64;
            let bytes = random.bytes(64);
            let len = blocks as usize * BLOCK_SIZE as usize;
            map.metadata.extend(bytes.iter().cycle().take(len));
            Origin::Metadata { offset }
        } else {
            let node = random.below(sizes.len() as u64) as usize;
            let offset = random.below(sizes[node] / BLOCK_SIZE + 1) * BLOCK_SIZE;
            Origin::File {
                node: NodeId(node as u32),
                offset,
            }
        };
        map.extents.push(MapExtent {
            block,
            blocks,
            origin,
        });
        block += u64::from(blocks);
    }
    map.blocks = block + random.below(50);
    map
}

/// What the image must be, the slow way.
fn reference(map: &ImageMap, contents: &[Vec<u8>]) -> Vec<u8> {
    let mut image = vec![0; (map.blocks * BLOCK_SIZE) as usize];
    for extent in &map.extents {
        let at = (extent.block * BLOCK_SIZE) as usize;
        let len = extent.blocks as usize * BLOCK_SIZE as usize;
        let from: Vec<u8> = match extent.origin {
            Origin::Metadata { offset } => map.metadata[offset as usize..].to_vec(),
            Origin::File { node, offset } => contents[node.index()][offset as usize..].to_vec(),
        };
        let len = len.min(from.len());
        image[at..at + len].copy_from_slice(&from[..len]);
    }
    image
}

fn image_file(dir: &Path) -> File {
    tempfile::tempfile_in(dir).unwrap()
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn one_file(len: u64) -> ImageMap {
    let blocks = len.div_ceil(BLOCK_SIZE);
    ImageMap {
        extents: vec![MapExtent {
            block: 3,
            blocks: blocks as u32,
            origin: Origin::File {
                node: NodeId(0),
                offset: 0,
            },
        }],
        metadata: Vec::new(),
        blocks: blocks + 8,
    }
}

#[test]
fn random_maps_are_written_as_a_naive_writer_does() {
    let seed = seed();
    let out = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let mut random = Rng::new(seed.wrapping_add(round * 0x9e37_79b9));
        let contents: Vec<Vec<u8>> = (0..1 + random.below(8))
            .map(|_| {
                let len = match random.below(3) {
                    0 => random.below(5),
                    1 => random.below(40_000),
                    _ => random.below(9_000_000),
                };
                let some = random.bytes(5000);
                some.iter().cycle().take(len as usize).copied().collect()
            })
            .collect();
        let files = Files::new(&contents);
        let map = random_map(&mut random, &files.sizes);
        let options = CopyOptions {
            threads: NonZeroUsize::new(1 + random.below(4) as usize),
            direct: random.below(2) == 0,
            clone: random.below(2) == 0,
        };
        let image = image_file(out.path());
        let report = write_from(&map, &files, &image, &options, &Silent)
            .unwrap_or_else(|e| panic!("FCPIPE_SEED={seed} round {round}: {e}"));
        assert!(
            bytes_of(&image) == reference(&map, &contents),
            "FCPIPE_SEED={seed} round {round}: {options:?} {report:?}"
        );
        let mapped: u64 = map.extents.iter().map(|e| u64::from(e.blocks)).sum();
        assert_eq!(
            report.bytes_written + report.bytes_cloned,
            mapped * BLOCK_SIZE
        );
    }
}

#[test]
fn a_cursor_gives_every_block_once_and_leaves_out_what_is_done() {
    for seed in 1..30 {
        let mut random = Rng::new(seed);
        let map = random_map(&mut random, &[1 << 30]);
        let mut done = Vec::new();
        let mut expected = Vec::new();
        for (number, extent) in map.extents.iter().enumerate() {
            let blocks = u64::from(extent.blocks);
            let mut kept = vec![true; extent.blocks as usize];
            if random.below(3) == 0 {
                let from = random.below(blocks) as u32;
                let to = from + 1 + random.below(blocks - u64::from(from)) as u32;
                kept[from as usize..to as usize].fill(false);
                done.push(Done {
                    extent: number,
                    from,
                    to,
                });
            }
            let kept = kept.iter().enumerate().filter(|(_, kept)| **kept);
            expected.extend(kept.map(|(i, _)| (extent.block + i as u64, number)));
        }
        let mut given = Vec::new();
        let mut cursor = Cursor::new(&map.extents, &done);
        let mut piece = Vec::new();
        loop {
            cursor.next(&mut piece);
            if piece.is_empty() {
                break;
            }
            assert!(piece.iter().map(|e| e.blocks).sum::<u32>() <= PIECE);
            for part in &piece {
                let number = map
                    .extents
                    .partition_point(|e| e.block <= part.block)
                    .checked_sub(1)
                    .unwrap();
                let whole = map.extents[number];
                assert_eq!(
                    plan::part(
                        whole,
                        (part.block - whole.block) as u32,
                        (part.block - whole.block) as u32 + part.blocks
                    ),
                    *part
                );
                given.extend((0..u64::from(part.blocks)).map(|i| (part.block + i, number)));
            }
        }
        assert_eq!(given, expected, "seed {seed}");
        let runs = Cursor::new(&map.extents, &done).runs();
        let in_runs: Vec<u64> = runs
            .iter()
            .flat_map(|&(first, blocks)| first..first + blocks)
            .collect();
        let blocks: Vec<u64> = expected.iter().map(|&(block, _)| block).collect();
        assert_eq!(in_runs, blocks, "seed {seed}");
    }
}

#[test]
fn row_25_a_file_that_became_shorter_is_an_error_that_names_it() {
    let mut files = Files::new(&[vec![1; 5000]]);
    files.sizes[0] = 9000;
    let image = image_file(files.dir.path());
    let error = write_from(
        &one_file(9000),
        &files,
        &image,
        &CopyOptions::default(),
        &Silent,
    )
    .unwrap_err();
    match error {
        CopyError::Shrank { path, size, found } => {
            assert_eq!((size, found), (9000, 5000));
            assert_eq!(path, files.path(NodeId(0)));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn row_25_every_piece_of_a_large_file_is_checked_after_it_was_read() {
    static CHECKS: AtomicU64 = AtomicU64::new(0);
    let len = 3 * u64::from(PIECE) * BLOCK_SIZE + 100;
    let mut files = Files::new(&[vec![5; len as usize]]);
    files.check = Box::new(|_| {
        CHECKS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let image = image_file(files.dir.path());
    let options = CopyOptions {
        clone: false,
        ..CopyOptions::default()
    };
    let report = write_from(&one_file(len), &files, &image, &options, &Silent).unwrap();
    assert_eq!(CHECKS.load(Ordering::SeqCst), 4);
    assert_eq!((report.files, report.bytes_read), (4, len));
}

#[test]
fn row_30_an_error_of_a_read_names_the_file_and_ends_the_copy() {
    let mut files = Files::new(&[]);
    for number in 0..1000 {
        fs::write(files.dir.path().join(number.to_string()), [7; 4096]).unwrap();
        files.sizes.push(4096);
    }
    // A directory opens, and read answers EISDIR: an error in the midst of reading.
    let bad = files.path(NodeId(3));
    fs::remove_file(&bad).unwrap();
    fs::create_dir(&bad).unwrap();
    let mut map = ImageMap {
        blocks: 1000 * u64::from(PIECE),
        ..ImageMap::default()
    };
    for number in 0..1000u32 {
        map.extents.push(MapExtent {
            block: u64::from(number * PIECE),
            blocks: 1,
            origin: Origin::File {
                node: NodeId(number),
                offset: 0,
            },
        });
    }
    let image = image_file(files.dir.path());
    let error = write_from(&map, &files, &image, &CopyOptions::default(), &Silent).unwrap_err();
    assert!(
        matches!(&error, CopyError::Read { path, .. } if *path == bad),
        "{error}"
    );
}

#[test]
fn row_32_a_thread_has_one_file_open_at_a_time() {
    let contents: Vec<Vec<u8>> = (0..500).map(|i| vec![i as u8; 3000]).collect();
    let files = Files::new(&contents);
    let extents = (0..500)
        .map(|i| MapExtent {
            block: i,
            blocks: 1,
            origin: Origin::File {
                node: NodeId(i as u32),
                offset: 0,
            },
        })
        .collect();
    let map = ImageMap {
        extents,
        metadata: Vec::new(),
        blocks: 500,
    };
    let image = image_file(files.dir.path());
    write_from(&map, &files, &image, &CopyOptions::default(), &Silent).unwrap();
    assert!(files.open_most.load(Ordering::SeqCst) <= 8);
    assert_eq!(files.open_now.load(Ordering::SeqCst), 0);
    assert_eq!(bytes_of(&image), reference(&map, &contents));
}

#[test]
fn cancelling_ends_the_copy() {
    struct Soon(AtomicBool);
    impl Progress for Soon {
        fn add(&self, moved: Moved) {
            self.0.store(moved.written > 0, Ordering::SeqCst);
        }
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
    let len = 8 * u64::from(PIECE) * BLOCK_SIZE;
    let files = Files::new(&[vec![5; len as usize]]);
    let image = image_file(files.dir.path());
    let progress = Soon(AtomicBool::new(false));
    let error = write_from(
        &one_file(len),
        &files,
        &image,
        &CopyOptions::default(),
        &progress,
    );
    assert!(matches!(error, Err(CopyError::Cancelled)), "{error:?}");
}

#[test]
fn a_map_that_is_wrong_is_refused() {
    let files = Files::new(&[vec![1; 9000]]);
    let good = one_file(9000);
    let image = image_file(files.dir.path());
    let refused = |map: ImageMap| {
        let result = write_from(&map, &files, &image, &CopyOptions::default(), &Silent);
        assert!(matches!(result, Err(CopyError::Map { .. })), "{result:?}");
    };
    let mut overlap = good.clone();
    overlap.extents.push(MapExtent {
        block: 4,
        ..good.extents[0]
    });
    refused(overlap);
    refused(ImageMap {
        blocks: 5,
        ..good.clone()
    });
    let mut past = good.clone();
    past.extents[0].origin = Origin::Metadata { offset: 0 };
    refused(past);
    assert_eq!(image.metadata().unwrap().len(), 0, "nothing was written");
}

#[test]
fn row_19_what_the_map_leaves_out_takes_no_room() {
    use std::os::unix::fs::MetadataExt;
    let files = Files::new(&[vec![9; 4096]]);
    let mut map = one_file(4096);
    // A disk of 1 TiB.
    map.blocks = 1 << 28;
    map.extents[0].block = 1 << 27;
    let image = image_file(files.dir.path());
    write_from(&map, &files, &image, &CopyOptions::default(), &Silent).unwrap();
    let meta = image.metadata().unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
}

#[test]
fn a_digest_is_that_of_all_bytes_holes_included() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = image_file(dir.path());
    assert_eq!(digest_file(&image, None).unwrap(), blake3::hash(b""));
    image.write_all(&[3; 100_000]).unwrap();
    image.set_len(70 << 20).unwrap();
    image.write_all_at(&[4; 100], (33 << 20) - 50).unwrap();
    image.write_all_at(&[6; 10], (70 << 20) - 10).unwrap();
    let expected = blake3::hash(&bytes_of(&image));
    for threads in [None, NonZeroUsize::new(1), NonZeroUsize::new(3)] {
        assert_eq!(digest_file(&image, threads).unwrap(), expected);
    }
}
