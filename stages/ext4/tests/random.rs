//! Random trees: each must come out of the kernel exactly as it went in.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use fcpipe_ext4::{Label, Options};
use fcpipe_treegen::{Limits, Model, Rng, count, generate, seed};

use crate::host::{Mount, assert_clean, dump, has_root, run};
use crate::image::{EXACTLY, Image, assert_no_warnings};

/// The seeds of the trees to try.
fn trees() -> impl Iterator<Item = u64> {
    let first = seed();
    first..first + count("FCPIPE_SOAK_TREES", 30)
}

/// A model and options, both from one seed.
fn draw(seed: u64, limits: &Limits) -> (Model, Options) {
    let mut rng = Rng::new(seed ^ 0x6f70_7469_6f6e);
    let model = generate(seed, limits);
    let options = Options {
        size: rng.one_in(3).then(|| rng.within(256..=4096) << 20),
        journal: rng.one_in(3),
        label: Label::new(
            &rng.bytes(16)
                .iter()
                .map(|b| b % 26 + b'a')
                .collect::<Vec<_>>(),
        )
        .expect("a label"),
    };
    (model, options)
}

#[test]
fn random_trees_are_clean_for_e2fsck_and_dumpe2fs() {
    for seed in trees() {
        eprintln!("tree {seed}");
        let (model, options) = draw(seed, &Limits::default());
        let image = Image::new(&model, &options);
        assert_no_warnings(&image.layout.warnings);
        assert_clean(&image.path());
        dump(&image.path());
    }
}

#[test]
fn needs_root_random_trees_come_out_of_the_kernel_as_they_went_in() {
    if !has_root("random trees through the kernel") {
        return;
    }
    for seed in trees() {
        eprintln!("tree {seed}");
        let (model, options) = draw(seed, &Limits::default());
        let image = Image::new(&model, &options);
        let mount = Mount::new(&image.path(), "ro");
        if let Err(mismatch) = model.compare(mount.path(), EXACTLY) {
            panic!("tree {seed}: {mismatch}");
        }
        mount.unmount();
        assert_clean(&image.path());
    }
}

/// The guest can live in it: everything in the image can be changed, and the rest filled.
#[test]
fn needs_root_random_trees_can_be_changed_and_filled_and_grown() {
    if !has_root("random trees changed by the kernel") {
        return;
    }
    for seed in trees() {
        eprintln!("tree {seed}");
        let limits = Limits {
            inodes: 150,
            ..Limits::default()
        };
        let (model, mut options) = draw(seed, &limits);
        options.size = None;
        let image = Image::new(&model, &options);
        let mount = Mount::new(&image.path(), "rw");
        change(mount.path(), seed);
        mount.unmount();
        assert_clean(&image.path());
        double(&image.path(), image.layout.size);
    }
}

/// Deletes about a third, adds names to every directory near the root, and writes until the disk is full.
fn change(root: &Path, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut names: Vec<_> = std::fs::read_dir(root)
        .expect("a root")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    for path in &names {
        let is_dir = path.symlink_metadata().expect("there").is_dir();
        if rng.one_in(3) {
            let status = Command::new("rm")
                .arg("-rf")
                .arg(path)
                .status()
                .expect("rm");
            assert!(status.success());
        } else if is_dir {
            for i in 0..rng.below(400) {
                std::fs::write(path.join(format!("new {i}")), b"new").expect("room");
            }
        }
    }
    std::fs::create_dir_all(root.join("directory of the test/new/deep")).expect("room");
    for i in 0.. {
        let path = root.join(format!("filling {i}"));
        let mut file = std::fs::File::create(path).expect("an inode");
        if file.write_all(&vec![0x5a; 8 << 20]).is_err() {
            break;
        }
    }
}

/// Grows the image to twice its size with resize2fs.
fn double(path: &Path, size: u64) {
    let file = std::fs::File::options()
        .write(true)
        .open(path)
        .expect("the image");
    file.set_len(size * 2).expect("a size");
    // resize2fs wants a check since the last mount. 1 says that something was put right: here the
    // free counts, which the kernel leaves to the next mount without a journal.
    let Some(check) = run("e2fsck", &["-fy"], path) else {
        return;
    };
    assert!(check.status.code() <= Some(1));
    let output = run("resize2fs", &[], path).expect("resize2fs is where e2fsck is");
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    assert_clean(path);
    let info = dump(path).expect("dumpe2fs");
    let blocks = format!("Block count:              {}", size * 2 / 4096);
    assert!(info.contains(&blocks), "{info}");
}

/// Without root, someone else's reader stands in for the kernel.
#[test]
fn random_trees_can_be_read_by_ext4_view() {
    for seed in trees().take(10) {
        eprintln!("tree {seed}");
        let limits = Limits {
            inodes: 120,
            xattr_bytes: 300,
            huge_sparse: false,
            odd_times: false,
            ..Limits::default()
        };
        let (model, options) = draw(seed, &limits);
        let image = Image::new(&model, &options);
        let fs = ext4_view::Ext4::load_from_path(image.path()).expect("readable");
        crate::view::compare(&fs, &model, Model::ROOT, b"/");
    }
}
