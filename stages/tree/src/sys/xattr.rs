//! Extended attributes of a name in a directory, without opening what it names.
//!
//! Linux 6.13 has listxattrat(2) and getxattrat(2), which no crate wraps yet. Older kernels get the
//! same through /proc/self/fd/N/name. Link and FIFO are looked at, never followed or opened.

#![allow(
    unsafe_code,
    reason = "listxattrat and getxattrat have no safe wrapper"
)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// The same numbers on every architecture whose table Linux generates from the common one.
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;

/// Set when the kernel has turned out not to have the calls.
static MISSING: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of <linux/xattr.h>.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// The NUL-terminated names of all attributes of `name` in `dir`, or of `dir` itself where the name
/// is empty, put into `buffer`; gives how many bytes.
pub(crate) fn list(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    if !MISSING.load(Ordering::Relaxed) {
        // SAFETY: `name` is NUL-terminated, and the kernel writes at most `buffer.len()` bytes to
        // `buffer`, which outlives the call.
        let listed = result(unsafe {
            libc::syscall(
                LISTXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                at_flags(name),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        });
        if !is_missing(listed) {
            return listed;
        }
    }
    if name.is_empty() {
        rustix::fs::flistxattr(dir, &mut *buffer)
    } else {
        rustix::fs::llistxattr(by_proc(dir, name)?, &mut *buffer)
    }
}

/// One attribute's value, put into `buffer`; gives how many bytes.
pub(crate) fn get(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    if !MISSING.load(Ordering::Relaxed) {
        let args = XattrArgs {
            value: buffer.as_mut_ptr() as u64,
            size: buffer.len() as u32,
            flags: 0,
        };
        // SAFETY: both strings are NUL-terminated, `args` is laid out as the kernel has it and its
        // size is given, and `args.value` points to `args.size` writable bytes that outlive the call.
        let got = result(unsafe {
            libc::syscall(
                GETXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                at_flags(name),
                attribute.as_ptr(),
                &args,
                size_of::<XattrArgs>(),
            )
        });
        if !is_missing(got) {
            return got;
        }
    }
    if name.is_empty() {
        rustix::fs::fgetxattr(dir, attribute, &mut *buffer)
    } else {
        rustix::fs::lgetxattr(by_proc(dir, name)?, attribute, &mut *buffer)
    }
}

fn at_flags(name: &CStr) -> libc::c_int {
    if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        libc::AT_SYMLINK_NOFOLLOW
    }
}

fn by_proc(dir: BorrowedFd<'_>, name: &CStr) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

fn result(returned: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(returned)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Whether the answer says that the call itself is not there. A seccomp filter that does not know it
/// may say EPERM, which these calls otherwise do not: then the older way is asked, once and for all.
fn is_missing(answer: Result<usize, Errno>) -> bool {
    let missing = matches!(answer, Err(Errno::NOSYS | Errno::PERM));
    if missing {
        MISSING.store(true, Ordering::Relaxed);
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn both_ways_list_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        rustix::fs::setxattr(
            &path,
            "user.note",
            b"value",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        let mut buffer = [0; 4096];
        let mut seen = Vec::new();
        for missing in [false, true] {
            MISSING.store(missing, Ordering::Relaxed);
            let n = list(opened.as_fd(), c"f", &mut buffer).unwrap();
            seen.push(buffer[..n].to_vec());
            let n = get(opened.as_fd(), c"f", c"user.note", &mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"value");
            let n = list(opened.as_fd(), c"", &mut buffer).unwrap();
            assert!(!buffer[..n].starts_with(b"user.note"));
        }
        MISSING.store(false, Ordering::Relaxed);
        assert_eq!(seen[0], seen[1]);
    }
}
