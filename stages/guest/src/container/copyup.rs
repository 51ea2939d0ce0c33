//! What was in a directory, copied into the tmpfs that covers it (`tmpcopyup`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fstat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};

/// Copies all below the directory `from` into the empty directory `to`, with owners, modes and times; and gives `to`
/// what `from` has of those.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let (from, to) = (dir(from, c".")?, dir(to, c".")?);
    let stat = fstat(&from)?;
    below(&from, &to)?;
    like(&to, c".", &stat)
}

fn dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

fn below(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                below(&dir(from.as_fd(), name)?, &dir(to.as_fd(), name)?)?;
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut source = File::from(openat(from, name, read, Mode::empty())?);
                let mut copy = File::from(openat(to, name, make, Mode::RUSR | Mode::WUSR)?);
                io::copy(&mut source, &mut copy)?;
            }
            FileType::Symlink => symlinkat(&*readlinkat(from, name, Vec::new())?, to, name)?,
            kind => mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
        }
        like(to, name, &stat)?;
    }
    Ok(())
}

/// The mode comes after the owner, whose change takes setuid away; times come last.
fn like(at: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(at, name, mode, AtFlags::empty())?;
    }
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    };
    Ok(utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_what_it_says_of_itself() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/file"), "text").unwrap();
        fs::set_permissions(from.path().join("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o2750)).unwrap();
        symlink("/nowhere", from.path().join("a/link")).unwrap();
        copy(
            File::open(from.path()).unwrap().as_fd(),
            File::open(to.path()).unwrap().as_fd(),
        )
        .unwrap();
        assert_eq!(fs::read(to.path().join("a/b/file")).unwrap(), b"text");
        assert_eq!(
            fs::read_link(to.path().join("a/link")).unwrap().to_str(),
            Some("/nowhere")
        );
        for name in ["", "a/b", "a/b/file"] {
            let of = |dir: &tempfile::TempDir| {
                let meta = fs::metadata(dir.path().join(name)).unwrap();
                (meta.mode(), meta.uid(), meta.mtime_nsec())
            };
            assert_eq!(of(&from), of(&to), "{name:?}");
        }
    }
}
