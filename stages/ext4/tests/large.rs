//! Large disks, files of many pieces: layouts that only size brings about.

use fcpipe_ext4::Options;
use fcpipe_tree::DataRun;
use fcpipe_treegen::{Content, Inode, Kind, Model};

use crate::host::{Mount, assert_clean, has_root};
use crate::image::{Image, comes_out_as_it_went_in, plain};

/// A file with a block of data in every second place: an extent for each.
fn comb(teeth: u32) -> Inode {
    let data = (0..teeth).map(|n| DataRun {
        start: 2 * n,
        end: 2 * n + 1,
    });
    Inode::new(Kind::File(Content {
        size: u64::from(teeth) * 8192,
        data: Some(data.collect()),
        seed: 3,
    }))
}

#[test]
fn extent_trees_of_every_depth() {
    let mut model = Model::new();
    // In the inode: 4; in a leaf: 340; under one index node: 340 x 340.
    for teeth in [1, 4, 5, 339, 340, 341, 1360, 1361, 20_000] {
        model.add(Model::ROOT, format!("{teeth}").as_bytes(), comb(teeth));
    }
    comes_out_as_it_went_in(&model);
}

#[test]
fn a_disk_of_64_gib_costs_no_more_than_a_small_one() {
    let mut model = Model::new();
    model.add(Model::ROOT, b"file", comb(10));
    let options = Options {
        size: Some(64 << 30),
        ..plain()
    };
    let image = Image::new(&model, &options);
    assert_eq!(image.layout.size, 64 << 30);
    let small = Image::new(&model, &plain());
    assert!(
        image.stored() < small.stored() + (16 << 20),
        "{} bytes, the small one {}",
        image.stored(),
        small.stored()
    );
    assert_clean(&image.path());
    if has_root("a large disk through the kernel") {
        let mount = Mount::new(&image.path(), "rw");
        std::fs::write(mount.path().join("new"), vec![1; 1 << 20]).expect("room");
        mount.unmount();
        assert_clean(&image.path());
    }
}

#[test]
fn a_file_across_many_block_groups() {
    let mut model = Model::new();
    model.add(
        Model::ROOT,
        b"first",
        Inode::new(Kind::File(Content::plain(300 << 20, 4))),
    );
    model.add(
        Model::ROOT,
        b"second",
        Inode::new(Kind::File(Content::plain((130 << 20) + 5, 5))),
    );
    comes_out_as_it_went_in(&model);
}
