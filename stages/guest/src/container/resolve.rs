//! Names inside the container's root, looked up as the container itself would.
//!
//! The root is the user's: its symlinks may point anywhere. `openat2` with `RESOLVE_IN_ROOT`
//! treats the root's descriptor as `/` for absolute links and for `..`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, chmodat, chownat, mkdirat,
    openat, openat2, statat, utimensat,
};
use rustix::io::Errno;

/// Opens a path of the container as a place (`O_PATH`): nothing is opened in the usual sense, so a
/// FIFO does not block and a device does not act.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "/" } else { path };
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // "A race may have happened with a rename": try again (openat2(2)).
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

/// As many symlinks as the kernel follows in one path.
const LINKS: usize = 40;

/// What a symlink to nowhere is, on the way to something that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadLinks {
    /// There already, so that nothing can be made.
    Error,
    /// The way to what is made, as for a bind mount's destination in an image.
    Followed,
}

/// Opens a directory, made with its parents where it is missing. What is made has the times of the directory it is made in,
/// which keeps them: a mount point leaves no trace but itself.
pub(crate) fn make_dir(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    make_dir_by(root, path, DeadLinks::Error)
}

/// The same, as is asked with symlinks to nowhere.
pub(crate) fn make_dir_by(
    root: BorrowedFd<'_>,
    path: &str,
    links: DeadLinks,
) -> Result<OwnedFd, Errno> {
    make(root, path, links, &|dir, name| {
        mkdirat(dir, name, Mode::from_raw_mode(0o755))
    })
}

/// Opens a file as a place, made empty where it is missing, its directories too.
pub(crate) fn make_file(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    make_file_by(root, path, DeadLinks::Error)
}

/// The same, as is asked with symlinks to nowhere.
pub(crate) fn make_file_by(
    root: BorrowedFd<'_>,
    path: &str,
    links: DeadLinks,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    make(root, path, links, &|dir, name| {
        openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    })
}

/// Opens a path; what is missing of it is made, the last by `last`.
fn make(
    root: BorrowedFd<'_>,
    path: &str,
    links: DeadLinks,
    last: &dyn Fn(BorrowedFd<'_>, &str) -> Result<(), Errno>,
) -> Result<OwnedFd, Errno> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match open(root, &path) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        match make_once(root, &path, last)? {
            Made::All(made) => return Ok(made),
            Made::Link(_) if links == DeadLinks::Error => return Err(Errno::NOENT),
            Made::Link(instead) => path = instead,
        }
    }
    Err(Errno::LOOP)
}

enum Made {
    All(OwnedFd),
    /// A name is a symlink to nowhere: the path with what it says in its place.
    Link(String),
}

fn make_once(
    root: BorrowedFd<'_>,
    path: &str,
    last: &dyn Fn(BorrowedFd<'_>, &str) -> Result<(), Errno>,
) -> Result<Made, Errno> {
    let mut at = open(root, "/")?;
    let mut so_far = String::new();
    let mut names = path
        .split('/')
        .filter(|n| !n.is_empty() && *n != ".")
        .peekable();
    while let Some(name) = names.next() {
        let parent = so_far.clone();
        so_far.push('/');
        so_far.push_str(name);
        match open(root, &so_far) {
            Err(Errno::NOENT) if name != ".." => {}
            result => {
                at = result?;
                continue;
            }
        }
        let before = rustix::fs::fstat(&at)?;
        let made = match names.peek() {
            Some(_) => mkdirat(&at, name, Mode::from_raw_mode(0o755)),
            None => last(at.as_fd(), name),
        };
        match made {
            Ok(()) => as_if_found(at.as_fd(), name, &before)?,
            Err(Errno::EXIST) => {
                let target = rustix::fs::readlinkat(&at, name, Vec::new())?;
                // What is no text names nothing that a spec could mean.
                let target = target.to_str().map_err(|_| Errno::NOENT)?;
                let rest: Vec<&str> = names.collect();
                let base = if target.starts_with('/') { "" } else { &parent };
                return Ok(Made::Link(format!("{base}/{target}/{}", rest.join("/"))));
            }
            Err(error) => return Err(error),
        }
        at = open(root, &so_far)?;
    }
    Ok(Made::All(at))
}

/// Gives a new name what nobody has asked for: root as its owner, no more than its mode, and the times that the directory
/// had before it was made in it. The directory gets them back.
fn as_if_found(dir: BorrowedFd<'_>, name: &str, before: &rustix::fs::Stat) -> Result<(), Errno> {
    // A directory may hand down its group, its setgid bit and an ACL.
    let root = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    chownat(
        dir,
        name,
        Some(root.0),
        Some(root.1),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let made = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = match FileType::from_raw_mode(made.st_mode).is_dir() {
        true => Mode::from_raw_mode(0o755),
        false => Mode::from_raw_mode(0o644),
    };
    let path = path_of(dir).join(name);
    for acl in ["system.posix_acl_access", "system.posix_acl_default"] {
        match rustix::fs::lremovexattr(&path, acl) {
            // None, or a file system that has none.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    chmodat(dir, name, mode, AtFlags::empty())?;
    set_mtime(dir, name, before)?;
    // The directory is open as a place, which takes no times itself.
    set_mtime(dir, ".", before)
}

/// Gives a name in a directory the time of modification of something else.
pub(crate) fn set_mtime(
    dir: BorrowedFd<'_>,
    name: &str,
    of: &rustix::fs::Stat,
) -> Result<(), Errno> {
    let mtime = Timespec {
        tv_sec: of.st_mtime,
        tv_nsec: of.st_mtime_nsec as _,
    };
    let times = Timestamps {
        last_access: mtime,
        last_modification: mtime,
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// A path by which mount(2) finds the place that is open. `/proc` must be the agent's.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn row_08_destinations_stay_inside_the_root() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../../../../..", dir.path().join("up")).unwrap();
        let made = make_dir(fd.as_fd(), "/up/a/../b").unwrap();
        let inside = fs::metadata(dir.path().join("b")).unwrap();
        assert_eq!(rustix::fs::fstat(&made).unwrap().st_ino, inside.ino());
        // The absolute link names a directory that the root does not have.
        assert_eq!(make_dir(fd.as_fd(), "/abs/x").err(), Some(Errno::NOENT));
        make_dir_by(fd.as_fd(), "/abs/x", DeadLinks::Followed).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(dir.path().join(inside).join("x").is_dir());
        assert!(!dir.path().join("a").join("x").exists());
    }

    #[test]
    fn row_08_a_loop_of_links_is_an_error() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(make_dir(fd.as_fd(), "/a/x").err(), Some(Errno::LOOP));
    }

    #[test]
    fn mount_points_leave_no_trace_but_themselves() {
        let (dir, fd) = root();
        let then = rustix::fs::Timespec {
            tv_sec: 1_000_000,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: then,
            last_modification: then,
        };
        rustix::fs::utimensat(rustix::fs::CWD, dir.path(), &times, AtFlags::empty()).unwrap();
        make_file(fd.as_fd(), "/a/b/file").unwrap();
        for path in ["", "a", "a/b", "a/b/file"] {
            let meta = fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000, 5), "{path}");
        }
        assert_eq!(
            fs::metadata(dir.path().join("a")).unwrap().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn links_inside_the_root_are_followed() {
        let (dir, fd) = root();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/run", dir.path().join("var/run")).unwrap();
        make_dir(fd.as_fd(), "/var/run/lock").unwrap();
        assert!(dir.path().join("run/lock").is_dir());
    }
}
