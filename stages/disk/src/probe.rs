//! Whether two directories can share blocks: found out by doing it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::choose::CloneAnswer;

/// Large enough for every block size that a file system may ask for.
const SIZE: u64 = 1 << 20;

/// Tries to make a file in `launches` share the blocks of one in `images`; both have no names and are gone at the end.
///
/// The file that is cloned is all hole: nothing is written, and nothing has to be written back before it can be cloned.
pub fn can_clone(images: &Path, launches: &Path) -> CloneAnswer {
    let unnamed = |dir: &Path| {
        tempfile::tempfile_in(dir).map_err(|e| CloneAnswer::No {
            why: format!("no file can be made in {}: {e}", dir.display()),
        })
    };
    let try_it = || -> Result<String, CloneAnswer> {
        let (from, to) = (unnamed(images)?, unnamed(launches)?);
        let cloned = from
            .set_len(SIZE)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
        match cloned.and_then(|()| rustix::fs::ioctl_ficlone(&to, &from)) {
            Ok(()) => Ok(file_system(to.as_fd())),
            Err(errno) => Err(CloneAnswer::No {
                why: refusal(errno, (&from, images), (&to, launches)),
            }),
        }
    };
    match try_it() {
        Ok(file_system) => CloneAnswer::Yes { file_system },
        Err(answer) => answer,
    }
}

fn refusal(errno: Errno, (from, images): (&File, &Path), (to, launches): (&File, &Path)) -> String {
    let name = file_system(to.as_fd());
    let (images, launches) = (images.display(), launches.display());
    if errno == Errno::XDEV {
        let other = file_system(from.as_fd());
        return format!(
            "{launches} ({name}) and {images} ({other}) are on different file systems, which share no blocks"
        );
    }
    if cannot_clone(errno) {
        return format!("{launches} is on {name}, which cannot share blocks between files");
    }
    format!("{launches} ({name}) refuses to share blocks: {errno}")
}

/// Each file system says in its own way that it cannot.
pub(crate) fn cannot_clone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS
    )
}

/// The name of the file system that a file is on, by its number in `linux/magic.h` (and ZFS's and bcachefs's own).
pub fn file_system(file: BorrowedFd<'_>) -> String {
    let Ok(stat) = rustix::fs::fstatfs(file) else {
        return "an unknown file system".to_owned();
    };
    let name = match stat.f_type as u32 {
        0xef53 => "ext4",
        0x5846_5342 => "XFS",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "NFS",
        0x6573_5546 => "FUSE",
        0xf2f5_2010 => "F2FS",
        0x2fc1_2fc1 => "ZFS",
        0xca45_1a4e => "bcachefs",
        other => return format!("a file system of type {other:#x}"),
    };
    name.to_owned()
}
