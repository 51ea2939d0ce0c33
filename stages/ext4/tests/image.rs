//! Images from models: the simplest writer there can be, and what must hold for every map.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fcpipe_ext4::{BLOCK_SIZE, Layout, LayoutWarning, Options, Origin, layout};
use fcpipe_tree::{Kind, Tree};
use fcpipe_treegen::{Expect, Model};

use crate::host::{Mount, assert_clean, has_root};

/// An image on the disk, in a directory that goes away with it.
pub(crate) struct Image {
    dir: tempfile::TempDir,
    pub(crate) layout: Layout,
}

impl Image {
    /// Lays out and writes a model. Checks the map on the way.
    #[track_caller]
    pub(crate) fn new(model: &Model, options: &Options) -> Image {
        let (tree, order) = model.tree();
        let layout = layout(&tree, options).expect("a layout");
        check_map(&layout, &tree);
        let dir = tempfile::tempdir().expect("a directory");
        let image = Image { dir, layout };
        write(&image.layout, model, &order, &image.path());
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Bytes that the image takes on the host's disk.
    pub(crate) fn stored(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path()).expect("an image").blocks() * 512
    }
}

/// Writes every extent of a layout, with contents from the model.
pub(crate) fn write(layout: &Layout, model: &Model, order: &[usize], path: &Path) {
    let file = File::create(path).expect("created");
    file.set_len(layout.size).expect("a size");
    let mut buffer = vec![0; 1 << 20];
    for extent in &layout.map.extents {
        let bytes = u64::from(extent.blocks) * BLOCK_SIZE;
        let at = extent.block * BLOCK_SIZE;
        match extent.origin {
            Origin::Metadata { offset } => {
                let metadata = &layout.map.metadata[offset as usize..(offset + bytes) as usize];
                file.write_all_at(metadata, at).expect("written");
            }
            Origin::File { node, offset } => {
                let fcpipe_treegen::Kind::File(content) = &model.inodes[order[node.index()]].kind
                else {
                    panic!("{node:?} is no file");
                };
                for from in (0..bytes).step_by(buffer.len()) {
                    let len = (bytes - from).min(buffer.len() as u64) as usize;
                    content.read(offset + from, &mut buffer[..len]);
                    file.write_all_at(&buffer[..len], at + from)
                        .expect("written");
                }
            }
        }
    }
}

/// A map is in the order of the disk and apart, its metadata has no gap and no block of zeros, and each
/// file's data is there once, whole and in order.
#[track_caller]
pub(crate) fn check_map(layout: &Layout, tree: &Tree) {
    let map = &layout.map;
    assert_eq!(map.blocks * BLOCK_SIZE, layout.size);
    let mut end = 0;
    let mut metadata = 0;
    let mut reached = vec![0u64; tree.len()];
    for (i, extent) in map.extents.iter().enumerate() {
        assert!(extent.blocks > 0 && extent.block >= end, "{extent:?}");
        let follows = i > 0 && extent.block == end;
        let before = i.checked_sub(1).map(|i| map.extents[i].origin);
        end = extent.block + u64::from(extent.blocks);
        let bytes = u64::from(extent.blocks) * BLOCK_SIZE;
        match extent.origin {
            Origin::Metadata { offset } => {
                assert_eq!(offset, metadata, "metadata is not in the order of the disk");
                metadata += bytes;
                let merged = !(follows && matches!(before, Some(Origin::Metadata { .. })));
                assert!(merged, "adjacent metadata is in two extents");
                for block in map.metadata[offset as usize..metadata as usize].chunks(4096) {
                    assert!(block.iter().any(|&b| b != 0), "a block of zeros is stored");
                }
            }
            Origin::File { node, offset } => {
                let at = &mut reached[node.index()];
                // A node of which there are several inodes begins again.
                assert!(offset >= *at || tree.names(node) > 65_000, "{extent:?}");
                *at = offset + bytes;
            }
        }
    }
    assert!(end <= map.blocks);
    assert_eq!(metadata, map.metadata.len() as u64);
    check_files(layout, tree);
}

fn check_files(layout: &Layout, tree: &Tree) {
    let mut data = vec![0u64; tree.len()];
    for extent in &layout.map.extents {
        if let Origin::File { node, offset } = extent.origin {
            let Kind::File { size } = tree.kind(node) else {
                panic!("{node:?} is no file");
            };
            assert!(offset < size);
            data[node.index()] += u64::from(extent.blocks);
        }
    }
    for node in tree.nodes() {
        let Kind::File { size } = tree.kind(node) else {
            continue;
        };
        let expected = match tree.data_runs(node) {
            None => size.div_ceil(BLOCK_SIZE),
            Some(runs) => runs.iter().map(|run| u64::from(run.end - run.start)).sum(),
        };
        let inodes = u64::from(tree.names(node).div_ceil(65_000));
        assert_eq!(
            data[node.index()],
            expected * inodes,
            "{:?}",
            tree.path(node)
        );
    }
}

/// What the kernel must find of a model.
pub(crate) const EXACTLY: Expect = Expect {
    holes: true,
    lost_found: true,
    all_times_equal: true,
};

/// Lays the model out, has e2fsck look at it, and the kernel compare every byte.
#[track_caller]
pub(crate) fn comes_out_as_it_went_in(model: &Model) -> Image {
    let image = Image::new(model, &plain());
    assert_clean(&image.path());
    if has_root("comparing by the kernel's mount") {
        let mount = Mount::new(&image.path(), "ro");
        if let Err(mismatch) = model.compare(mount.path(), EXACTLY) {
            panic!("{mismatch}");
        }
        mount.unmount();
    }
    image
}

/// The options of an ordinary image.
pub(crate) fn plain() -> Options {
    Options::default()
}

/// Only warnings that the test asked for.
#[track_caller]
pub(crate) fn assert_no_warnings(warnings: &[LayoutWarning]) {
    assert!(warnings.is_empty(), "{warnings:?}");
}
