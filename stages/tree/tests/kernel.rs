//! Composition against the kernel: the same mounts, made for real in a mount namespace of their own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use fcpipe_tree::{ComposeError, compose};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::common::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[test]
fn rows_06_to_09_composition_is_what_the_kernel_shows_needs_root() {
    if !is_child() {
        if is_root() {
            again_under(
                &["unshare", "--mount", "--propagation", "private"],
                "kernel::rows_06_to_09_composition_is_what_the_kernel_shows_needs_root",
            );
        }
        return;
    }
    let mut random = Random::new();
    let cases = match std::env::var("FCPIPE_TREE_CASES") {
        Ok(cases) => cases.parse().unwrap(),
        Err(_) => 40,
    };
    let (mut made, mut refused) = (0, 0);
    for case in 0..cases {
        let counts = one_case(&mut random, case);
        made += counts.0;
        refused += counts.1;
    }
    println!("{made} mounts made, {refused} refused");
    assert!(made > cases && refused > 0);
}

/// How many mounts were made, and how many refused.
fn one_case(random: &mut Random, case: usize) -> (usize, usize) {
    let place = Place::new();
    for source in ["root", "s0", "s1"] {
        fs::create_dir(place.path(source)).unwrap();
        fill(random, &place.path(source), 2);
    }
    place.file("file", b"mounted");
    set_mtime(&place.path("file"), 77, 7);

    let seen = place.directory("seen");
    rustix::mount::mount_bind(copy(&place, "root", "root-copy"), &seen).unwrap();
    let mut layers = vec![layer("/", scan_of(&place.path("root")))];
    let mut tried = Vec::new();
    for number in 0..2 + random.below(5) {
        let from = *random.pick(&["s0", "s1", "s0", "s1", "file"]);
        let to = destination(random);
        let mut with = layers.clone();
        with.push(layer(&to, scan_of(&place.path(from))));
        // A copy, as what is made in a mount must not be seen in another one.
        let source = copy(&place, from, &format!("copy-{number}"));
        let kernel = mount(&seen, &to, &source);
        tried.push((to, from, kernel));
        let context = format!("in case {case} after {tried:?}");
        match (compose(with.clone()), kernel) {
            (Ok(_), Ok(())) => layers = with,
            (Err(composed), Err(kernel)) => {
                assert!(alike(&composed, kernel), "{composed:?} {context}");
            }
            (composed, _) => panic!("{:?} {context}", composed.map(|_| ())),
        }
    }
    let made = layers.len() - 1;
    let all = composed(layers);
    let context = format!("in case {case} after {tried:?}");
    assert_same(&describe(all.tree()), &observe(&seen), &context);
    // Everything that was mounted hangs below this one.
    rustix::mount::unmount(&seen, UnmountFlags::DETACH).unwrap();
    (made, tried.len() - made)
}

/// Whether both mean the same.
fn alike(composed: &ComposeError, kernel: Errno) -> bool {
    match composed {
        ComposeError::OntoRoot { .. } => kernel == Errno::BUSY,
        ComposeError::Loop { .. } => kernel == Errno::LOOP,
        ComposeError::NotADirectory { .. } | ComposeError::DirectoryOntoFile { .. } => {
            kernel == Errno::NOTDIR
        }
        ComposeError::FileOntoDirectory { .. } => matches!(kernel, Errno::NOTDIR | Errno::ISDIR),
        _ => false,
    }
}

/// Some directories, files, links of all kinds, each with a time of its own.
fn fill(random: &mut Random, dir: &Path, depth: usize) {
    for name in NAMES {
        let path = dir.join(name);
        match random.below(10) {
            0..=3 if depth > 0 => {
                fs::create_dir(&path).unwrap();
                fill(random, &path, depth - 1);
            }
            4 | 5 => fs::write(&path, name.repeat(random.below(5))).unwrap(),
            6 | 7 => std::os::unix::fs::symlink(target(random), &path).unwrap(),
            8 => {
                // A second name for the one before, if that is a file.
                let before = dir.join(NAMES[random.below(5)]);
                if before.symlink_metadata().is_ok_and(|m| m.is_file()) {
                    fs::hard_link(before, &path).unwrap();
                }
            }
            _ => {}
        }
        if path.symlink_metadata().is_ok() {
            set_mtime(
                &path,
                random.below(1_000_000) as i64,
                random.below(1_000_000_000) as u32,
            );
        }
    }
    set_mtime(dir, random.below(1_000_000) as i64, 1);
}

fn target(random: &mut Random) -> String {
    let up = ["", "", "/", "../", "../../", "./"][random.below(6)];
    let names: Vec<&str> = (0..1 + random.below(2))
        .map(|_| *random.pick(&NAMES))
        .collect();
    format!("{up}{}", names.join("/"))
}

fn destination(random: &mut Random) -> String {
    let mut path = String::new();
    for _ in 0..1 + random.below(4) {
        path.push('/');
        path.push_str(match random.below(12) {
            0 => "..",
            1 => "new",
            n => NAMES[n % 5],
        });
    }
    path
}

/// Mounts a source where the kernel finds the destination, inside the root that is at `seen`.
fn mount(seen: &Path, to: &str, source: &Path) -> Result<(), Errno> {
    let root: OwnedFd = rustix::fs::openat(CWD, seen, OFlags::PATH, Mode::empty())?;
    let at = reach(&root, to, source.is_dir())?;
    if same_file(&at, &root) {
        return Err(Errno::BUSY);
    }
    rustix::mount::mount_bind(source, format!("/proc/self/fd/{}", at.as_raw_fd()))
}

fn copy(place: &Place, from: &str, to: &str) -> PathBuf {
    let to = place.path(to);
    let status = Command::new("cp")
        .arg("-a")
        .arg(place.path(from))
        .arg(&to)
        .status()
        .unwrap();
    assert!(status.success());
    to
}

/// Opens a destination as inside a chroot, and makes what is missing of it, name by name: with the
/// kernel's own resolution, but for `..` after a name that is not there (as runc: no more than that
/// name is taken back).
fn reach(root: &OwnedFd, to: &str, directory: bool) -> Result<OwnedFd, Errno> {
    let mut names: Vec<String> = to
        .split('/')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    let mut at = resolve(root, ".")?;
    let mut i = 0;
    let mut links = 0;
    let mut path = String::from(".");
    // The names made so far are real directories only when all is known to be good: collect first.
    let mut missing: Vec<String> = Vec::new();
    while i < names.len() {
        let name = names[i].clone();
        i += 1;
        if name == ".." && missing.pop().is_some() {
            continue;
        }
        if !missing.is_empty() {
            missing.push(name);
            continue;
        }
        let next = format!("{path}/{name}");
        match resolve(root, &next) {
            Ok(fd) => {
                at = fd;
                path = next;
            }
            Err(Errno::NOENT) => {
                // A link whose target is not there is replaced by its target.
                let parent = resolve(root, &path)?;
                match rustix::fs::readlinkat(&parent, name.as_str(), Vec::new()) {
                    Ok(target) => {
                        links += 1;
                        if links > 40 {
                            return Err(Errno::LOOP);
                        }
                        let target = target.into_string().unwrap();
                        if target.starts_with('/') {
                            path = String::from(".");
                            at = resolve(root, ".")?;
                        }
                        let rest = names.split_off(i);
                        names = target
                            .split('/')
                            .filter(|n| !n.is_empty() && *n != ".")
                            .map(str::to_owned)
                            .chain(rest)
                            .collect();
                        i = 0;
                    }
                    Err(_) => missing.push(name),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    let count = missing.len();
    for (n, name) in missing.iter().enumerate() {
        at = make(&at, name, directory || n + 1 < count)?;
    }
    Ok(at)
}

fn resolve(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Makes a directory or a file with its parent's time, and leaves the parent's as it was.
fn make(parent: &OwnedFd, name: &str, directory: bool) -> Result<OwnedFd, Errno> {
    let by_path = format!("/proc/self/fd/{}", parent.as_raw_fd());
    let before = rustix::fs::stat(&*by_path)?;
    if directory {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let kind = rustix::fs::FileType::RegularFile;
        rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o644), 0)?;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let time = rustix::fs::Timespec {
        tv_sec: before.st_mtime,
        tv_nsec: before.st_mtime_nsec as i64,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    for fd in [&made, parent] {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
    }
    Ok(made)
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd.as_fd()).unwrap();
    let (a, b) = (stat(a), stat(b));
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}
