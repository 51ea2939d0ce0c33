//! What the tests of disks need: file systems in files, a bundle with a random tree, and walks of both sides.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fcpipe_treegen::{Limits, generate};
use serde_json::json;

use crate::probe::probe;
use crate::world::{World, not_root, place, skip, skip_even_in_ci};

/// What the probe says of a tree of the host; in a guest it is `/bin/probe`.
pub(super) fn walk(dir: &Path, leave_out: &[&str]) -> Vec<String> {
    let mut walk = Command::new(probe());
    lines(walk.arg("walk").arg(dir).args(leave_out).output().unwrap())
}

/// The same of a guest's whole tree.
pub(super) const WALK: [&str; 7] = [
    "/bin/probe",
    "walk",
    "/",
    "proc",
    "dev",
    "sys",
    "lost+found",
];

pub(super) fn lines(output: Output) -> Vec<String> {
    // Not the whole tree, where it fails.
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A file system in a file, for as long as this lives.
pub(super) struct Mounted {
    pub(super) dir: tempfile::TempDir,
}

impl Mounted {
    /// `None` where there can be none, which is said.
    pub(super) fn new(mkfs: &[&str], megabytes: u64) -> Option<Mounted> {
        Mounted::within(place(), mkfs, megabytes)
    }

    /// In a file below `home`.
    pub(super) fn within(home: &Path, mkfs: &[&str], megabytes: u64) -> Option<Mounted> {
        let dir = tempfile::Builder::new()
            .prefix("fcpipe-fs-")
            .tempdir_in(home)
            .unwrap();
        let file = dir.path().join("file");
        let sparse = fs::File::create(&file).unwrap();
        sparse.set_len(megabytes << 20).unwrap();
        let on = dir.path().join("on");
        fs::create_dir(&on).unwrap();
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&file).output();
        let made = made.is_ok_and(|made| made.status.success());
        let mounted = || {
            let mut mount = Command::new("mount");
            mount.args(["-o", "loop"]).arg(&file).arg(&on);
            mount.output().is_ok_and(|mounted| mounted.status.success())
        };
        if !made || !mounted() {
            skip_even_in_ci(Some(format!("{} can't be made or mounted", mkfs[0])));
            return None;
        }
        Some(Mounted { dir })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("on").join(name)
    }

    /// With cache and state on this file system.
    pub(super) fn put(&self, command: &mut Command) {
        command
            .env("FCPIPE_CACHE_DIR", self.path("cache"))
            .env("FCPIPE_STATE_DIR", self.path("state"));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path("")).status();
    }
}

pub(super) fn xfs() -> Option<Mounted> {
    if skip(not_root()) {
        return None;
    }
    Mounted::new(&["mkfs.xfs", "-q", "-m", "reflink=1"], 1024)
}

/// `fcpipe run`, with writes going one way.
pub(super) fn run(world: &World, way: &str, bundle: &Path, on: Option<&Mounted>) -> Command {
    let mut command = world.with_kernel();
    if let Some(on) = on {
        on.put(&mut command);
    }
    command.arg("run").arg("--set");
    command.arg(format!("disk.writes={way}")).arg(bundle);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The images in a store.
pub(super) fn images(cache: &Path) -> Vec<PathBuf> {
    let listed = Command::new("find")
        .arg(cache)
        .args(["-name", "root.ext4*", "-type", "f"])
        .output()
        .unwrap();
    lines(listed).into_iter().map(PathBuf::from).collect()
}

/// Digests of what is in the images.
pub(super) fn contents(cache: &Path) -> BTreeSet<String> {
    let images = images(cache);
    assert!(!images.is_empty());
    let summed = Command::new("sha256sum").args(images).output().unwrap();
    lines(summed).into_iter().collect()
}

/// The lines that a guest's tree has and the source's has not, and the other way round.
pub(super) fn compare(mut source: Vec<String>, mut guest: Vec<String>) {
    source.sort();
    guest.sort();
    if source == guest {
        return;
    }
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (source.iter().collect(), guest.iter().collect());
    for line in a.difference(&b).take(10) {
        println!("only in the source: {line}");
    }
    for line in b.difference(&a).take(10) {
        println!("only in the guest:  {line}");
    }
    panic!("the guest's tree is not the source's");
}

/// A world with the probe in its root and a random tree in a mount; gives the bundle and how the source is walked.
pub(super) fn world_with_tree(seed: u64) -> (World, PathBuf, Vec<String>) {
    let world = World::new();
    let tree = world.path("tree");
    fs::create_dir(&tree).unwrap();
    let limits = Limits {
        inodes: 400,
        // A file of the test directory's own ext4 holds a block of them.
        xattr_bytes: 300,
        huge_sparse: false,
        ..Limits::default()
    };
    generate(seed, &limits).make(&tree).unwrap();
    let mount =
        json!({"destination": "/mnt/tree", "type": "bind", "source": &tree, "options": ["bind"]});
    let bundle = world.bundle(&WALK, &[mount]);
    let rootfs = bundle.join("rootfs");
    for dir in ["proc", "dev", "sys", "mnt/tree"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy(probe(), rootfs.join("bin/probe")).unwrap();
    fs::write(rootfs.join("etc/linked"), "two names").unwrap();
    fs::hard_link(rootfs.join("etc/linked"), rootfs.join("root/linked")).unwrap();
    let big: Vec<u8> = (0..8_u32 << 20).map(|n| (n % 251) as u8).collect();
    fs::write(rootfs.join("root/big"), big).unwrap();
    // The root's own metadata count too.
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(&rootfs, Some(12), Some(34)).unwrap();
    let set = Command::new("setfattr")
        .args(["-n", "user.of-root", "-v", "kept"])
        .arg(&rootfs)
        .status();
    assert!(set.is_err() || set.unwrap().success());

    let mut lines = walk(&rootfs, &["proc", "dev", "sys"]);
    lines.retain(|line| !line.starts_with("/mnt/tree "));
    for line in walk(&tree, &[]) {
        let line = match line.strip_prefix("/ ") {
            Some(root) => format!("/mnt/tree {root}"),
            None => format!("/mnt/tree{}", line.replace(" same=/", " same=/mnt/tree/")),
        };
        lines.push(line);
    }
    (world, bundle, lines)
}
