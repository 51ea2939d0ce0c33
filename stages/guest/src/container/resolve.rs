//! Names inside the container's root, looked up as the container itself would.
//!
//! The root is the user's: its symlinks may point anywhere. `openat2` with `RESOLVE_IN_ROOT`
//! treats the root's descriptor as `/` for absolute links and for `..`.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
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

/// Opens a directory, made with its parents where it is missing.
pub(crate) fn make_dir(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut at = open(root, "/")?;
    let mut so_far = String::new();
    for name in path.split('/').filter(|n| !n.is_empty() && *n != ".") {
        so_far.push('/');
        so_far.push_str(name);
        at = match open(root, &so_far) {
            Err(Errno::NOENT) if name != ".." => {
                // A symlink to nowhere is there already, and stays an error.
                mkdirat(&at, name, Mode::from_raw_mode(0o755)).map_err(|e| match e {
                    Errno::EXIST => Errno::NOENT,
                    e => e,
                })?;
                open(root, &so_far)?
            }
            result => result?,
        };
    }
    Ok(at)
}

/// Opens a file as a place, made empty where it is missing, its directories too.
pub(crate) fn make_file(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = make_dir(root, dir)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map_err(|e| match e {
        // A symlink to nowhere.
        Errno::EXIST => Errno::NOENT,
        e => e,
    })?;
    open(root, path)
}

/// A path by which mount(2) finds the place that is open. `/proc` must be the agent's.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
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
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
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
    fn links_inside_the_root_are_followed() {
        let (dir, fd) = root();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/run", dir.path().join("var/run")).unwrap();
        make_dir(fd.as_fd(), "/var/run/lock").unwrap();
        assert!(dir.path().join("run/lock").is_dir());
    }
}
