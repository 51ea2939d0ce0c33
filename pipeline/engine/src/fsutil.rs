//! Small things about directories and locks that the store and the launch directories share.

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Somebody else could put things there, or has.
    #[error("{} is not used: it {why}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It can't be made or opened.
    #[error("{}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Symlinks on the way to a directory: as many as the kernel follows.
const LINKS: u32 = 40;

/// Refuses a path at which somebody but root and this user may put what they like, now or later. Nothing need be there yet.
///
/// Each directory and each symlink on the way belongs to one of the two, and no directory there can be written by others, unless
/// it is sticky as /tmp is: there nobody moves away what is not theirs. The last one may not be written by others at all.
///
/// # Errors
/// [`DirError::Refused`] for the first that is not so.
pub fn secure_path(path: &Path) -> Result<(), DirError> {
    let io = |source: io::Error| DirError::Io {
        path: path.to_owned(),
        source,
    };
    let refused = |path: &Path, why| {
        let path = path.to_owned();
        Err(DirError::Refused { path, why })
    };
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    // What is still to be gone through, the next at the end; and where that has led, without symlinks.
    let mut rest = parts(&std::path::absolute(path).map_err(io)?);
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        if Path::new(&part).components().next() == Some(Component::ParentDir) {
            at.pop();
            continue;
        }
        let here = at.join(&part);
        let meta = match std::fs::symlink_metadata(&here) {
            // The rest is made by whoever may write to what there is.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            meta => meta.map_err(io)?,
        };
        if !is_ours(meta.uid()) {
            return refused(&here, ANOTHERS);
        }
        if meta.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(io(Errno::LOOP.into()));
            }
            rest.extend(parts(&std::fs::read_link(&here).map_err(io)?));
            continue;
        }
        let sticky = meta.mode() & 0o1000 != 0 && !rest.is_empty();
        let list = || rustix::fs::getxattr(&here, ACCESS_LIST, &mut [0; 0]).is_ok();
        if !sticky && others_write(meta.mode(), meta.gid(), list) {
            return refused(&here, OTHERS_WRITE);
        }
        at = here;
    }
    Ok(())
}

const ANOTHERS: &str =
    "belongs to another user, who could put anything there (name another directory)";
const OTHERS_WRITE: &str = "can be written by others (`chmod go-w` ends that)";

/// A POSIX ACL.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Whether others may write to a directory: everybody, or its group. A group whose only business is its user's, as many
/// distributions give one to each, is that user; unless there is an access list, whose users' right shows as the group's.
fn others_write(mode: u32, group: u32, has_list: impl FnOnce() -> bool) -> bool {
    let own = group == 0 || group == rustix::process::getegid().as_raw();
    mode & 0o002 != 0 || mode & 0o020 != 0 && (!own || has_list())
}

/// Whether a user is root or this one.
fn is_ours(uid: u32) -> bool {
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        return true;
    }
    // In a user namespace everybody from outside looks like nobody, root as well.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let all = ["0", "0", "4294967295"];
    let outside = read("/proc/sys/kernel/overflowuid");
    outside.trim() == uid.to_string() && !read("/proc/self/uid_map").split_whitespace().eq(all)
}

/// Opens a directory that is this user's alone to write, making it and its parents (0700) where missing.
///
/// Refused: a symlink, another owner, and a directory that others may write to.
pub(crate) fn own_dir(path: &Path) -> Result<(PathBuf, OwnedFd), DirError> {
    // O_NOFOLLOW does not hold for "link/": take trailing slashes off.
    let path: PathBuf = path.components().collect();
    let io = |source: io::Error| DirError::Io {
        path: path.clone(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(parent).map_err(io)?;
    }
    own_dir_at(CWD, &path, &path).map(|fd| (path.clone(), fd))
}

/// The same for `name` in the directory `dir`; `path` is for messages.
pub(crate) fn own_dir_at(dir: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd, DirError> {
    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_own_dir_at(dir, name, path),
        Err(errno) => Err(DirError::Io {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// The same for one that must be there.
pub(crate) fn open_own_dir_at(
    dir: impl AsFd,
    name: &Path,
    path: &Path,
) -> Result<OwnedFd, DirError> {
    let io = |errno: Errno| DirError::Io {
        path: path.to_owned(),
        source: errno.into(),
    };
    let refused = |why| {
        Err(DirError::Refused {
            path: path.to_owned(),
            why,
        })
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::LOOP | Errno::NOTDIR) => return refused("is a symlink or not a directory"),
        Err(errno) => return Err(io(errno)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(io)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused(ANOTHERS);
    }
    let list = || rustix::fs::fgetxattr(&fd, ACCESS_LIST, &mut [0; 0]).is_ok();
    if others_write(stat.st_mode, stat.st_gid, list) {
        return refused(OTHERS_WRITE);
    }
    Ok(fd)
}

/// Takes a flock, waiting as long as it takes.
pub(crate) fn flock(file: impl AsFd, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::fs::flock(&file, operation)
    })?)
}

/// Takes a flock if it is free. `operation` must be one of the non-blocking ones.
pub(crate) fn try_flock(file: impl AsFd, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an open file has lost its last name.
pub(crate) fn is_unlinked(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_nlink == 0)
}

/// Opens, or makes (0600), a file to lock.
pub(crate) fn open_lock(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// What a file holds, up to so many bytes. Something else of its name is an error, and not waited for as a FIFO would be.
///
/// # Errors
/// What the system says; `InvalidData` for what is no regular file.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// 16 hexadecimal digits that no other call gives, in this process or (but for bad luck) another.
pub(crate) fn nonce() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    // std's hasher keys are the one source of randomness that needs no dependency.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(CALLS.fetch_add(1, Ordering::Relaxed));
    format!("{:016x}", hasher.finish())
}

/// A file that appears under its name, in place of what was there, when it is complete. Dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    dir: OwnedFd,
    name: std::ffi::OsString,
    /// Its name until then, where it has one.
    tmp: Option<String>,
}

impl NewFile {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty())?;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let unnamed = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, tmp) = match rustix::fs::openat(&dir, ".", unnamed, mode) {
            Ok(fd) if Path::new("/proc/self/fd").is_dir() => (fd.into(), None),
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let tmp = format!(".fcpipe.{}", nonce());
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&dir, tmp.as_str(), flags, mode)?;
                (fd.into(), Some(tmp))
            }
            Err(errno) => return Err(errno.into()),
        };
        Ok(Self {
            file,
            dir,
            name: name.to_owned(),
            tmp,
        })
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn commit(mut self) -> io::Result<()> {
        if self.tmp.is_none() {
            // A link can't take the place of a file, a rename can.
            let tmp = format!(".fcpipe.{}", nonce());
            link_unnamed(&self.file, &self.dir, &tmp)?;
            self.tmp = Some(tmp);
        }
        if let Some(tmp) = &self.tmp {
            let (old, new) = (Path::new(&self.name), tmp.as_str());
            // They change places: for a rename over another file ext4 writes the new one's blocks out at once (`auto_da_alloc`). Dropping
            // this takes the old one away.
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let stat = rustix::fs::statat(&self.dir, old, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let file = |mode| rustix::fs::FileType::from_raw_mode(mode).is_file();
            if stat.is_ok_and(|stat| file(stat.st_mode))
                && rustix::fs::renameat_with(&self.dir, new, &self.dir, old, flags).is_ok()
            {
                return Ok(());
            }
            // There is none, or the file system can't do it. What is no file stays: a directory is an error.
            rustix::fs::renameat(&self.dir, new, &self.dir, old)?;
        }
        self.tmp = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(tmp) = &self.tmp {
            let _ = rustix::fs::unlinkat(&self.dir, tmp.as_str(), rustix::fs::AtFlags::empty());
        }
    }
}

/// The file that a name of somebody's stands for: a symlink stays one, and what it names is replaced or made, as by tar, dd or a shell's `>`.
pub(crate) fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match std::fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            // No link, or nothing at all.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::LOOP.into())
}

/// Puts bytes into a file that somebody named: whole, or it is as it was. A symlink stays one, a mode stays as it is, and what is no file (a pipe, a
/// terminal) is written to.
///
/// # Errors
/// What the system says.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let meta = match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        meta => Some(meta?),
    };
    let real = match &meta {
        Some(meta) if !meta.is_file() => return std::fs::write(path, bytes),
        _ => behind_links(path)?,
    };
    let new = match NewFile::create(&real) {
        // Who may write to the file need not be allowed to put another in its place.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return std::fs::write(path, bytes);
        }
        new => new?,
    };
    if let Some(meta) = meta {
        new.file.set_permissions(meta.permissions())?;
    }
    new.file().write_all(bytes)?;
    new.commit()
}

/// Gives a file made with O_TMPFILE its name.
pub(crate) fn link_unnamed(file: &File, dir: impl AsFd, name: &str) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the way through /proc needs nothing.
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, through, dir, name, rustix::fs::AtFlags::SYMLINK_FOLLOW)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn guarantee_2_a_file_that_is_named_is_replaced_whole_and_links_and_modes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_file(&at("new"), b"one").unwrap();
        chmod(&at("new"), 0o640);
        symlink("new", at("link")).unwrap();
        symlink("made", at("dangling")).unwrap();
        let mut reader = fs::File::open(at("new")).unwrap();
        write_file(&at("link"), b"two").unwrap();
        write_file(&at("dangling"), b"three").unwrap();
        // Whoever has the old one open reads it to its end.
        let mut old = String::new();
        io::Read::read_to_string(&mut reader, &mut old).unwrap();
        assert_eq!(old, "one");
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!((read("new"), read("made")), ("two".into(), "three".into()));
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::metadata(at("new")).unwrap().mode() & 0o7777, 0o640);
        write_file(Path::new("/dev/null"), b"gone").unwrap();
        let over = NewFile::create(dir.path().join("dir").as_path()).unwrap();
        fs::create_dir(at("dir")).unwrap();
        over.commit().unwrap_err();
        fs::remove_dir(at("dir")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[track_caller]
    fn refused(path: &Path, at: &Path) {
        let judged = secure_path(path);
        assert!(
            matches!(&judged, Err(DirError::Refused { path, .. }) if path == at),
            "{judged:?}"
        );
    }

    #[test]
    fn row_37_a_path_is_ours_where_nobody_else_can_write_on_the_way() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let (shared, own) = (at("shared"), at("shared/own"));
        fs::create_dir_all(&own).unwrap();
        symlink("shared/own/..", at("link")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        for path in ["", "shared/own", "link", "link/own/nothing/yet", "nothing"] {
            secure_path(&at(path)).unwrap();
        }
        assert!(matches!(secure_path(&at("loop")), Err(DirError::Io { .. })));
        chmod(&shared, 0o777);
        for path in ["shared", "shared/own", "link", "link/own", "shared/nothing"] {
            refused(&at(path), &shared);
        }
        // Nobody takes away there what is not theirs, but everybody may put something there.
        chmod(&shared, 0o1777);
        secure_path(&own).unwrap();
        secure_path(&at("shared/nothing")).unwrap();
        refused(&shared, &shared);
        // This user's group is no one else's business.
        chmod(&shared, 0o770);
        secure_path(&own).unwrap();
        secure_path(&shared).unwrap();
    }

    #[test]
    fn row_37_a_path_through_what_is_another_user_s_is_not_ours_needs_root() {
        if !rustix::process::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI is root");
            println!("skipped: needs root");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let (dir, link) = (at("dir"), at("link"));
        fs::create_dir_all(dir.join("below")).unwrap();
        symlink("dir", &link).unwrap();
        let group = Some(12345);
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        refused(&link.join("below"), &link);
        secure_path(&dir.join("below")).unwrap();
        std::os::unix::fs::chown(&dir, None, group).unwrap();
        secure_path(&dir.join("below")).unwrap();
        chmod(&dir, 0o770);
        refused(&dir.join("below"), &dir);
        std::os::unix::fs::chown(&dir, Some(12345), Some(0)).unwrap();
        refused(&dir.join("below"), &dir);
    }
}
