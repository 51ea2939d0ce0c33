//! Making directories, and two ways to describe what they hold: by an ordinary walk, and from a Tree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bstr::ByteSlice;
use fcpipe_spec::Content;
use fcpipe_tree::{
    Composed, Kind, Layer, NodeId, Scan, ScanOptions, Timestamp, Tree, compose, scan,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

/// A directory with a source in it.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(place.top()).unwrap();
        place
    }

    /// The source.
    pub(crate) fn top(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn link(&self, name: &str, target: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, &path).unwrap();
        path
    }

    pub(crate) fn scan(&self) -> Scan {
        scan_of(&self.top())
    }
}

pub(crate) fn scan_of(path: &Path) -> Scan {
    scan(path, &Content::default(), &ScanOptions::default()).unwrap()
}

pub(crate) fn layer(destination: &str, scan: Scan) -> Layer {
    Layer {
        destination: destination.into(),
        source: scan.source.clone(),
        scan: Some(Arc::new(scan)),
    }
}

pub(crate) fn composed(layers: Vec<Layer>) -> Composed {
    compose(layers).unwrap()
}

/// Finds a node by its path in the image.
pub(crate) fn find(tree: &Tree, path: &str) -> Option<NodeId> {
    let mut at = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = tree.lookup(at, name.as_bytes())?;
    }
    Some(at)
}

pub(crate) fn at(tree: &Tree, path: &str) -> NodeId {
    find(tree, path).unwrap_or_else(|| panic!("{path} is not there"))
}

/// The names in a directory.
pub(crate) fn names(tree: &Tree, path: &str) -> Vec<String> {
    tree.entries(at(tree, path))
        .map(|entry| entry.name.to_string())
        .collect()
}

pub(crate) fn set_mtime(path: &Path, secs: i64, nanos: u32) {
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: nanos.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// What can be told of one path without its content.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Described {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All names of the same file, where it has several.
    pub(crate) names: Vec<Vec<u8>>,
}

pub(crate) type Description = BTreeMap<Vec<u8>, Described>;

/// Describes a directory by walking it with the standard library.
pub(crate) fn observe(top: &Path) -> Description {
    let mut all = Description::new();
    let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut waiting = vec![(top.to_path_buf(), b"/".to_vec())];
    while let Some((path, name)) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let kind = if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let mut below = name.clone();
                if below != b"/" {
                    below.push(b'/');
                }
                below.extend_from_slice(entry.file_name().as_bytes());
                waiting.push((entry.path(), below));
            }
            "directory".to_owned()
        } else if kind.is_file() {
            format!("file {}", meta.len())
        } else if kind.is_symlink() {
            format!("symlink {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else if kind.is_socket() {
            "socket".to_owned()
        } else {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            let block = if kind.is_block_device() {
                "block"
            } else {
                "char"
            };
            format!("{block} {major} {minor}")
        };
        if !meta.is_dir() {
            let group = (meta.dev(), meta.ino());
            groups.entry(group).or_default().push(name.clone());
            inodes.insert(name.clone(), group);
        }
        let described = Described {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: Timestamp {
                secs: meta.mtime(),
                nanos: meta.mtime_nsec() as u32,
            },
            xattrs: xattrs(&path),
            names: Vec::new(),
        };
        all.insert(name, described);
    }
    for (name, group) in inodes {
        let mut names = groups[&group].clone();
        if names.len() > 1 {
            names.sort();
            all.get_mut(&name).unwrap().names = names;
        }
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let n = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    buffer[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65_536];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect()
}

/// Describes a Tree in the same words.
pub(crate) fn describe(tree: &Tree) -> Description {
    let mut all = Description::new();
    let mut groups: BTreeMap<NodeId, Vec<Vec<u8>>> = BTreeMap::new();
    let mut waiting = vec![(NodeId::ROOT, b"/".to_vec())];
    while let Some((node, name)) = waiting.pop() {
        for entry in tree.entries(node) {
            let mut below = name.clone();
            if below != b"/" {
                below.push(b'/');
            }
            below.extend_from_slice(entry.name);
            waiting.push((entry.node, below));
        }
        let kind = match tree.kind(node) {
            Kind::Directory => "directory".to_owned(),
            Kind::File { size } => format!("file {size}"),
            Kind::Symlink => {
                let target = Path::new(std::ffi::OsStr::from_bytes(tree.target(node)));
                format!("symlink {target:?}")
            }
            Kind::CharDevice { major, minor } => format!("char {major} {minor}"),
            Kind::BlockDevice { major, minor } => format!("block {major} {minor}"),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Socket => "socket".to_owned(),
        };
        if kind != "directory" {
            groups.entry(node).or_default().push(name.clone());
        }
        let meta = tree.meta(node);
        let described = Described {
            kind,
            mode: meta.mode.into(),
            owner: (meta.uid, meta.gid),
            mtime: meta.mtime,
            xattrs: tree
                .xattrs(node)
                .iter()
                .map(|x| (x.name.clone(), x.value.clone()))
                .collect(),
            names: Vec::new(),
        };
        all.insert(name, described);
    }
    for mut names in groups.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            all.get_mut(name).unwrap().names = names.clone();
        }
    }
    all
}

/// The first difference, or a panic would print thousands of lines.
pub(crate) fn assert_same(got: &Description, expected: &Description, context: &str) {
    for (path, expected) in expected {
        assert_eq!(
            got.get(path),
            Some(expected),
            "{:?} {context}",
            path.as_bstr()
        );
    }
    for path in got.keys() {
        assert!(
            expected.contains_key(path),
            "{:?} should not be there {context}",
            path.as_bstr()
        );
    }
}

/// Whether a test that needs root goes on. With CI=true it has to.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "these tests need root in CI"
    );
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Runs one test of this binary again, by itself, under a command such as `unshare -m`. The child
/// finds FCPIPE_TREE_CHILD set.
pub(crate) fn again_under(command: &[&str], test: &str) {
    let output = std::process::Command::new(command[0])
        .args(&command[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("FCPIPE_TREE_CHILD", "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = bstr::BString::from(text);
    assert!(output.status.success(), "{text}");
    assert!(text.windows(8).any(|w| w == b"1 passed"), "{text}");
    println!("{text}");
}

pub(crate) fn is_child() -> bool {
    std::env::var_os("FCPIPE_TREE_CHILD").is_some()
}

/// Splitmix64; the seed is printed, and FCPIPE_SEED repeats one.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("FCPIPE_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap()
                .as_nanos() as u64,
        };
        println!("FCPIPE_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Puts a hole and some data into a file of `size` bytes.
pub(crate) fn sparse(path: &Path, size: u64, data_at: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"data", data_at).unwrap();
}
