//! The same bytes: with any number of threads, from any directory, on any file system, by any user.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fcpipe_ext4::{CopyOptions, Silent, digest_file, layout, write_image};
use fcpipe_spec::Content as Mapping;
use fcpipe_tree::{Composed, Layer, ScanOptions, compose, scan};
use fcpipe_treegen::{Inode, Kind, Limits, Model, generate, seed};

use crate::host::has_root;
use crate::image::plain;

/// A model that any file system of the host can hold, and that needs no root to be made.
fn modest(seed: u64, root: bool) -> Model {
    let limits = Limits {
        inodes: 200,
        xattr_bytes: 1000,
        huge_sparse: false,
        odd_times: false,
        ..Limits::default()
    };
    let mut model = generate(seed, &limits);
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    for inode in &mut model.inodes {
        // tmpfs holds few sorts of xattrs, and without root there are few owners.
        inode.xattrs.retain(|name, _| {
            root && (name.starts_with(b"trusted.") || name.starts_with(b"security.fc"))
        });
        if !root {
            (inode.meta.uid, inode.meta.gid) = (uid, gid);
        }
        if !root
            && matches!(
                inode.kind,
                Kind::CharDevice { .. } | Kind::BlockDevice { .. }
            )
        {
            inode.kind = Kind::Fifo;
        }
        // Whoever made it must be able to read it.
        inode.meta.mode |= match inode.kind {
            Kind::Directory(_) => 0o700,
            _ => 0o600,
        };
    }
    model
}

/// A directory as the whole tree of an image.
fn composed(source: &Path, mapping: &Mapping, threads: Option<NonZeroUsize>) -> Composed {
    let options = ScanOptions {
        threads,
        ..ScanOptions::default()
    };
    let scanned = scan(source, mapping, &options).expect("a scan");
    compose(vec![Layer {
        destination: "/".into(),
        source: source.into(),
        scan: Some(Arc::new(scanned)),
    }])
    .expect("a tree")
}

/// The digest of the image of a directory.
fn image_of(source: &Path, mapping: &Mapping, threads: usize) -> blake3::Hash {
    let threads = NonZeroUsize::new(threads);
    let composed = composed(source, mapping, threads);
    let layout = layout(composed.tree(), &plain()).expect("a layout");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a file");
    let options = CopyOptions {
        threads,
        ..CopyOptions::default()
    };
    write_image(&layout.map, &composed, &file, &options, &Silent).expect("written");
    digest_file(&file, threads).expect("a digest")
}

fn made(model: &Model, dir: &Path) -> PathBuf {
    let source = dir.join("source");
    std::fs::create_dir(&source).expect("a directory");
    model.make(&source).expect("made");
    source
}

#[test]
fn threads_directories_and_file_systems_do_not_show() {
    let root = has_root("every sort of inode in the tree");
    let first = seed();
    for seed in first..first + 3 {
        eprintln!("tree {seed}");
        let model = modest(seed, root);
        let one = tempfile::tempdir().expect("a directory");
        let source = made(&model, one.path());
        let image = image_of(&source, &Mapping::default(), 1);
        assert_eq!(
            image,
            image_of(&source, &Mapping::default(), 8),
            "eight threads"
        );
        // Made again: other inode numbers, other ctimes, another order of the names.
        let other = tempfile::tempdir().expect("a directory");
        let source = made(&model, other.path());
        assert_eq!(
            image,
            image_of(&source, &Mapping::default(), 2),
            "another directory"
        );
        let shm = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let source = made(&model, shm.path());
        assert_eq!(
            image,
            image_of(&source, &Mapping::default(), 3),
            "another file system"
        );
    }
}

#[test]
fn one_byte_one_mode_or_one_name_shows() {
    let mut model = Model::new();
    let content = fcpipe_treegen::Content::plain(10_000, 1);
    model.add(Model::ROOT, b"file", Inode::new(Kind::File(content)));
    for inode in &mut model.inodes {
        inode.meta.uid = rustix::process::getuid().as_raw();
        inode.meta.gid = rustix::process::getgid().as_raw();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let source = made(&model, dir.path());
    let digest = || image_of(&source, &Mapping::default(), 2);
    let path = source.join("file");
    let mtime = path.metadata().and_then(|m| m.modified()).expect("a time");
    let root_time = source
        .metadata()
        .and_then(|m| m.modified())
        .expect("a time");
    let settle = |path: &Path| {
        File::options()
            .write(true)
            .open(path)
            .and_then(|f| f.set_modified(mtime))
            .expect("set");
        File::open(&source)
            .and_then(|f| f.set_modified(root_time))
            .expect("set");
    };
    let before = digest();

    let mut bytes = std::fs::read(&path).expect("read");
    bytes[5000] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    settle(&path);
    let byte = digest();
    assert_ne!(before, byte);
    bytes[5000] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    settle(&path);
    assert_eq!(before, digest(), "the byte is back");

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o751)).expect("set");
    assert_ne!(before, digest());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
    assert_eq!(before, digest(), "the mode is back");

    let renamed = source.join("elif");
    std::fs::rename(&path, &renamed).expect("renamed");
    settle(&renamed);
    assert_ne!(before, digest());
}

#[test]
fn an_owner_that_is_mapped_stands_for_the_user_who_builds() {
    let mut model = Model::new();
    let mut dir_of_root = Inode::new(Kind::Directory(Default::default()));
    dir_of_root.meta.mode = 0o700;
    model.add(Model::ROOT, b"private", dir_of_root);
    let mine = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    for inode in &mut model.inodes {
        (inode.meta.uid, inode.meta.gid) = mine;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let source = made(&model, dir.path());
    let mapping = |owner| Mapping {
        owner: Some(owner),
        ..Mapping::default()
    };
    let mapped = image_of(&source, &mapping((1234, 5678)), 2);
    // The same as a tree that really belongs to them.
    for inode in &mut model.inodes {
        (inode.meta.uid, inode.meta.gid) = (1234, 5678);
    }
    let (tree, _) = model.tree();
    let wanted = layout(&tree, &plain()).expect("a layout").digest();
    let found = composed(&source, &mapping((1234, 5678)), None);
    let found = layout(found.tree(), &plain()).expect("a layout").digest();
    assert_eq!(found, wanted);
    assert_ne!(mapped, image_of(&source, &mapping((1234, 5679)), 2));
}
