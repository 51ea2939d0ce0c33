//! Where a file has data, and where holes: the one place that asks a file system.
//!
//! `lseek` with SEEK_DATA and SEEK_HOLE tells it on every file system but one: the XFS of Linux 6.1 (and others before the
//! mending) calls data a hole where a reflinked file was written to nearby. XFS keeps blocks ready around a block that it has
//! copied on write, and the answer for all of that range is taken from the page cache, so that data that is not cached is
//! passed over. Whoever copies by these answers loses bytes, without an error. FIEMAP reads the file's own extents and is right; so XFS
//! is asked that.
//!
//! Architecture invariant: what this says is a hole reads as zeros; what it says is data may be zeros. When in doubt, it is data. It writes
//! to no file.
//!
//! Begin reading at [`Data`].

mod fiemap;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The ranges of bytes of a file that are not in holes: in order, not empty, none beyond the file's end.
///
/// Two that touch may come apart. An error is the last item.
pub struct Data<'f> {
    file: BorrowedFd<'f>,
    at: u64,
    size: u64,
    way: Way,
}

enum Way {
    Seek,
    /// What was answered, and not yet given.
    Extents(VecDeque<Range<u64>>),
}

/// `XFS_SUPER_MAGIC` of `linux/magic.h`.
const XFS: i64 = 0x5846_5342;

impl<'f> Data<'f> {
    /// Of a regular file of `size` bytes. Moves the descriptor's offset.
    ///
    /// # Errors
    /// When the file system cannot be asked what it is.
    pub fn of(file: BorrowedFd<'f>, size: u64) -> Result<Self, Errno> {
        let xfs = rustix::fs::fstatfs(file)?.f_type as i64 == XFS;
        Ok(Data {
            file,
            at: 0,
            size,
            way: match xfs {
                true => Way::Extents(VecDeque::new()),
                false => Way::Seek,
            },
        })
    }

    fn find(&mut self) -> Result<Option<Range<u64>>, Errno> {
        let found = match &mut self.way {
            Way::Seek => seek(self.file, self.at)?,
            Way::Extents(known) => {
                if known.is_empty() {
                    *known = extents(self.file, self.at, self.size)?;
                }
                known.pop_front()
            }
        };
        let found = found.map(|found| found.start.max(self.at)..found.end.min(self.size));
        Ok(found.filter(|found| !found.is_empty()))
    }
}

impl Iterator for Data<'_> {
    type Item = Result<Range<u64>, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.size {
            return None;
        }
        let found = match self.find() {
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(Some(self.at..self.size)),
            found => found,
        };
        self.at = match &found {
            Ok(Some(found)) => found.end,
            Ok(None) | Err(_) => self.size,
        };
        found.transpose()
    }
}

fn seek(file: BorrowedFd<'_>, at: u64) -> Result<Option<Range<u64>>, Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        // Nothing but a hole to the end.
        Err(Errno::NXIO) => return Ok(None),
        start => start?,
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        // It was cut short meanwhile.
        Err(Errno::NXIO) => Ok(None),
        end => Ok(Some(start..end?)),
    }
}

/// The next extents that hold data.
fn extents(file: BorrowedFd<'_>, mut at: u64, size: u64) -> Result<VecDeque<Range<u64>>, Errno> {
    loop {
        let extents = fiemap::extents(file, at..size)?;
        let Some(last) = extents.last() else {
            return Ok(VecDeque::new());
        };
        let (end, is_last) = (last.range.end, last.last);
        let written = extents.into_iter().filter(|extent| extent.written);
        let data: VecDeque<_> = written.map(|extent| extent.range).collect();
        // A batch of nothing but room that was reserved.
        if !data.is_empty() || is_last || end <= at {
            return Ok(data);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Starts and ends.
    fn data(file: &File) -> Vec<(u64, u64)> {
        let size = file.metadata().unwrap().len();
        let data = Data::of(file.as_fd(), size).unwrap();
        data.map(|run| run.map(|run| (run.start, run.end)).unwrap())
            .collect()
    }

    /// What is said to be a hole reads as zeros; whether there was one at all.
    fn holes_are_zeros(file: &File) -> bool {
        let size = file.metadata().unwrap().len();
        let mut end = 0;
        let mut any = false;
        let mut ranges = data(file);
        ranges.push((size, size));
        for range in ranges {
            assert!(range.0 >= end, "{range:?}");
            let mut hole = vec![1; (range.0 - end) as usize];
            file.read_exact_at(&mut hole, end).unwrap();
            assert!(hole.iter().all(|&byte| byte == 0), "{end} to {range:?}");
            any |= !hole.is_empty();
            end = range.1;
        }
        any
    }

    #[test]
    fn row_19_data_is_found_and_holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(data(&file), []);
        file.set_len(1 << 40).unwrap();
        assert_eq!(data(&file), []);
        file.write_all_at(&[1; 4096], 1 << 30).unwrap();
        assert_eq!(data(&file), [(1 << 30, (1 << 30) + 4096)]);
        file.set_len((1 << 30) + 100).unwrap();
        assert_eq!(data(&file), [(1 << 30, (1 << 30) + 100)]);
    }

    /// True, and says why, where XFS can't be mounted: it is the kernel's to have, so it is no failure anywhere.
    fn skip(dir: &Path) -> bool {
        let image = dir.join("image");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        std::fs::create_dir(dir.join("on")).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|done| done.status.success());
        let mounted = ran(Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&image))
            && ran(Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(dir.join("on")));
        if !mounted {
            // Not by print: a library's tests have none.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"skipped: no XFS can be mounted\n",
            );
        }
        !mounted
    }

    /// The case in which SEEK_DATA is wrong on some kernels.
    #[test]
    fn needs_root_row_19_a_shared_file_of_xfs_that_was_written_to_keeps_its_data() {
        let dir = tempfile::tempdir().unwrap();
        if skip(dir.path()) {
            return;
        }
        let on = dir.path().join("on");
        let sh = |script: &str| {
            let done = Command::new("sh")
                .args(["-ec", script])
                .current_dir(&on)
                .output();
            let done = done.unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        sh("truncate -s 32M a
            dd if=/dev/urandom of=a bs=4096 seek=516 count=2000 conv=notrunc oflag=direct
            sync; cp --reflink=always a b
            dd if=/dev/urandom of=b bs=4096 seek=526 count=1 conv=notrunc oflag=direct
            cp --reflink=always a c; printf x | dd of=c bs=4096 seek=900 conv=notrunc
            truncate -s 32M room; fallocate -l 16M room; printf x | dd of=room bs=4096 seek=2000 conv=notrunc");
        for name in ["a", "b", "c", "room"] {
            let file = File::open(on.join(name)).unwrap();
            assert!(holes_are_zeros(&file), "{name}");
        }
        let done = Command::new("umount").arg(&on).status();
        assert!(done.unwrap().success());
    }
}
