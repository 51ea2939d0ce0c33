//! Reading extended attributes, each distinct set once.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::io::Errno;

use super::ScanError;
use crate::model::Xattr;
use crate::sys;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of <linux/limits.h>: nothing is larger.
const MOST: usize = 65_536;
/// What is asked for at first. The kernel allocates as much as it is asked for, and with `MOST` that
/// took longer than all else.
const USUAL: usize = 256;

/// The attributes of an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Set {
    /// Sorted by name.
    pub(crate) xattrs: Vec<Xattr>,
    /// Names of those that are left out.
    pub(crate) foreign: Vec<Vec<u8>>,
}

/// What one thread has read. Set 0 is the empty one.
#[derive(Debug)]
pub(super) struct Sets {
    pub(super) sets: Vec<Set>,
    known: HashMap<Set, u32>,
    /// The mount that has turned out to know no attributes.
    without: Option<u64>,
    names: Vec<u8>,
    value: Vec<u8>,
}

/// An attribute that can't be read, or (an empty name) the list of them.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) attribute: Vec<u8>,
    pub(super) errno: Errno,
}

impl Unreadable {
    /// The error about the file at `path`.
    pub(super) fn of(self, path: PathBuf) -> ScanError {
        if self.attribute.is_empty() {
            return ScanError::io(path, "list its attributes", self.errno);
        }
        ScanError::Attribute {
            path,
            name: self.attribute,
            source: self.errno.into(),
        }
    }
}

impl Sets {
    pub(super) fn new() -> Self {
        Sets {
            sets: vec![Set::default()],
            known: HashMap::new(),
            without: None,
            names: vec![0; MOST],
            value: vec![0; MOST],
        }
    }

    /// The set of `name` in `dir` (of `dir` itself for an empty name), which is in `mount`.
    pub(super) fn read(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        mount: u64,
    ) -> Result<u32, Unreadable> {
        if self.without == Some(mount) {
            return Ok(0);
        }
        let listed = match grown(&mut self.names, |buffer| {
            sys::list_xattrs(dir, name, buffer)
        }) {
            Ok(0) => return Ok(0),
            Ok(listed) => listed,
            Err(Errno::OPNOTSUPP) => {
                self.without = Some(mount);
                return Ok(0);
            }
            Err(errno) => {
                return Err(Unreadable {
                    attribute: Vec::new(),
                    errno,
                });
            }
        };
        let mut set = Set::default();
        for attribute in self.names[..listed].split_inclusive(|&b| b == 0) {
            let Ok(attribute) = CStr::from_bytes_with_nul(attribute) else {
                continue;
            };
            if !travels(attribute.to_bytes()) {
                set.foreign.push(attribute.to_bytes().to_vec());
                continue;
            }
            let got = grown(&mut self.value, |buffer| {
                sys::get_xattr(dir, name, attribute, buffer)
            });
            match got {
                Ok(n) => set.xattrs.push(Xattr {
                    name: attribute.to_bytes().to_vec(),
                    value: self.value[..n].to_vec(),
                }),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(errno) => {
                    return Err(Unreadable {
                        attribute: attribute.to_bytes().to_vec(),
                        errno,
                    });
                }
            }
        }
        Ok(self.intern(set))
    }

    /// The number of a set.
    pub(super) fn intern(&mut self, mut set: Set) -> u32 {
        if set == Set::default() {
            return 0;
        }
        set.xattrs.sort();
        set.foreign.sort();
        if let Some(&number) = self.known.get(&set) {
            return number;
        }
        let number = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.known.insert(set, number);
        number
    }
}

/// Calls with the usual part of a buffer first, and with all of it where that is too small.
fn grown(
    buffer: &mut [u8],
    call: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    match call(&mut buffer[..USUAL]) {
        Err(Errno::RANGE) => call(buffer),
        other => other,
    }
}

/// Whether an attribute is the file's own. Others of `system.` and of unknown prefixes
/// (`system.nfs4_acl`, `ceph.dir.layout`, `btrfs.compression`) are views of the host's file system.
fn travels(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_21_what_travels() {
        for name in [
            "user.a",
            "trusted.overlay.opaque",
            "security.capability",
            "security.selinux",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ] {
            assert!(travels(name.as_bytes()), "{name}");
        }
        for name in ["system.nfs4_acl", "btrfs.compression", "ceph.dir.layout"] {
            assert!(!travels(name.as_bytes()), "{name}");
        }
    }
}
