//! What is particular to each kind of inode that is no directory.

use std::ffi::CStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::worker::Worker;
use super::{Leaf, Open};
use crate::model::DataRun;
use crate::scan::{ScanError, holes};
use crate::sys;

/// A symlink's target is shorter than PATH_MAX.
const TARGET: usize = 4096;

impl Worker<'_> {
    /// What is particular to each kind; `None` where it is gone.
    pub(super) fn leaf(
        &mut self,
        dir: &Open,
        name: &CStr,
        stat: &Statx,
        targets: &mut Vec<u8>,
    ) -> Result<Option<Leaf>, ScanError> {
        Ok(Some(
            match FileType::from_raw_mode(u32::from(stat.stx_mode)) {
                FileType::RegularFile => return self.file(dir, name, stat),
                FileType::Symlink => {
                    let mut target = [MaybeUninit::<u8>::uninit(); TARGET];
                    let target = match rustix::fs::readlinkat_raw(&dir.fd, name, &mut target) {
                        Ok((target, _)) => target,
                        Err(Errno::NOENT) => return Ok(None),
                        Err(Errno::INVAL) => {
                            return Err(self.changed(&dir.route, name.to_bytes()));
                        }
                        Err(errno) => {
                            return Err(self.io(
                                &dir.route,
                                name.to_bytes(),
                                "read the link",
                                errno,
                            ));
                        }
                    };
                    let at = targets.len() as u32;
                    targets.extend_from_slice(target);
                    Leaf::Symlink {
                        at,
                        len: target.len() as u16,
                    }
                }
                FileType::CharacterDevice => Leaf::CharDevice,
                FileType::BlockDevice => Leaf::BlockDevice,
                FileType::Fifo => Leaf::Fifo,
                FileType::Socket => Leaf::Socket,
                _ => {
                    return Err(ScanError::Special {
                        path: self.path(&dir.route, name.to_bytes()),
                        kind: "of an unknown kind",
                    });
                }
            },
        ))
    }

    /// A regular file. It is opened where it may have holes, or where its content is what counts.
    fn file(&mut self, dir: &Open, name: &CStr, stat: &Statx) -> Result<Option<Leaf>, ScanError> {
        let manner = self.shared.request.manner;
        let sparse = holes::may_have(stat.stx_size, stat.stx_blocks, manner.keeps_ready);
        let read = manner.fields.reads();
        let (mut holes, mut content) = (None, None);
        if !sparse && !read {
            return Ok(Some(Leaf::File { holes, content }));
        }
        let route = &dir.route;
        let file = match sys::open_file(dir.fd.as_fd(), name.to_bytes()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.changed(route, name.to_bytes())),
            Err(errno) => return Err(self.io(route, name.to_bytes(), "open it", errno)),
        };
        self.is_still(dir, name, &file, stat)?;
        if sparse {
            let size = stat.stx_size;
            if size > holes::MOST {
                return Err(ScanError::FileTooLarge {
                    path: self.path(route, name.to_bytes()),
                    size,
                });
            }
            let runs = holes::data_runs(file.as_fd(), size)
                .map_err(|errno| self.io(route, name.to_bytes(), "find its holes", errno))?;
            holes = runs.map(|runs| self.keep_holes(runs));
        }
        if read {
            let hash =
                sys::hash_content(&file, &mut self.buffer).map_err(|source| ScanError::Io {
                    path: self.path(route, name.to_bytes()),
                    action: "read it",
                    source,
                })?;
            self.is_still(dir, name, &file, stat)?;
            self.contents.push(hash);
            content = Some((self.contents.len() - 1) as u32);
        }
        Ok(Some(Leaf::File { holes, content }))
    }

    fn is_still(
        &self,
        dir: &Open,
        name: &CStr,
        file: &File,
        stat: &Statx,
    ) -> Result<(), ScanError> {
        let (now, _) = sys::stamp_of_open(file.as_fd())
            .map_err(|errno| self.io(&dir.route, name.to_bytes(), "look at it", errno))?;
        if now == sys::stamp_of(stat) {
            Ok(())
        } else {
            Err(self.changed(&dir.route, name.to_bytes()))
        }
    }

    fn keep_holes(&mut self, runs: Vec<DataRun>) -> u32 {
        self.holes.push(runs);
        (self.holes.len() - 1) as u32
    }
}
