//! A model against an image as the crate ext4-view reads it.

use std::collections::BTreeSet;

use bstr::ByteSlice;
use ext4_view::{Ext4, FileType, Path};
use fcpipe_treegen::{Kind, Model};

/// ext4-view takes no longer ones.
const PATH_MAX: usize = 4000;

/// Compares a directory and all below it.
pub(crate) fn compare(fs: &Ext4, model: &Model, number: usize, path: &[u8]) {
    let Kind::Directory(names) = &model.inodes[number].kind else {
        panic!("{:?} is no directory", path.as_bstr());
    };
    let entries = fs.read_dir(Path::new(path)).expect("a directory");
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry.expect("an entry");
        let name = entry.file_name();
        let name: &[u8] = name.as_ref();
        if name != b"." && name != b".." && !(number == Model::ROOT && name == b"lost+found") {
            found.insert(name.to_vec());
        }
    }
    let wanted: BTreeSet<Vec<u8>> = names.keys().cloned().collect();
    assert_eq!(found, wanted, "{:?}", path.as_bstr());
    for (name, &to) in names {
        let mut inner = path.to_vec();
        if inner.last() != Some(&b'/') {
            inner.push(b'/');
        }
        inner.extend_from_slice(name);
        if inner.len() < PATH_MAX {
            compare_inode(fs, model, to, &inner);
        }
    }
}

fn compare_inode(fs: &Ext4, model: &Model, number: usize, path: &[u8]) {
    let inode = &model.inodes[number];
    let shown = path.as_bstr();
    let found = fs
        .symlink_metadata(Path::new(path))
        .unwrap_or_else(|e| panic!("{shown:?}: {e}"));
    assert_eq!(found.mode() & 0o7777, inode.meta.mode, "{shown:?}");
    assert_eq!(
        (found.uid(), found.gid()),
        (inode.meta.uid, inode.meta.gid),
        "{shown:?}"
    );
    let time = found.modified();
    let mtime = inode.meta.mtime;
    assert_eq!(
        (time.seconds(), time.nanoseconds()),
        (mtime.secs, mtime.nanos),
        "{shown:?}"
    );
    let kind = match &inode.kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::File(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    assert_eq!(found.file_type(), kind, "{shown:?}");
    match &inode.kind {
        Kind::Directory(_) => compare(fs, model, number, path),
        // ext4-view wants targets that are paths; ext4 does not.
        Kind::Symlink(target) if target.split(|&b| b == b'/').any(|part| part.len() > 255) => {}
        Kind::Symlink(target) => {
            let found = fs.read_link(Path::new(path)).expect("a link");
            assert_eq!(found.as_ref().as_bstr(), target.as_bstr());
        }
        Kind::File(content) => {
            assert_eq!(found.len(), content.size, "{shown:?}");
            let bytes = fs.read(Path::new(path)).expect("a file");
            let mut wanted = vec![0; content.size as usize];
            content.read(0, &mut wanted);
            assert!(bytes == wanted, "{shown:?} differs");
        }
        _ => {}
    }
}
