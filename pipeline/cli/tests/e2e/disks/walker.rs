//! A program on its own, built by the tests for host and guest alike: one line for everything below a directory, with all that
//! a file system keeps of it but times of access and change, sizes of directories, and numbers of inodes.
//!
//! `walker DIR [NAME…]`: the names are left out at the top. It goes by its working directory, so paths may be of any length.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

unsafe extern "C" {
    fn llistxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn lgetxattr(
        path: *const c_char,
        name: *const c_char,
        value: *mut c_void,
        size: usize,
    ) -> isize;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
}

const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
const BLOCK: usize = 4096;
const MOST: usize = 1 << 16;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("a directory");
    let skip: Vec<String> = args.collect();
    std::env::set_current_dir(dir).expect("the directory");
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let mut walk = Walk {
        path: Vec::new(),
        first: HashMap::new(),
    };
    writeln!(out, "/ {}", walk.entry(Path::new("."))).expect("a reader");
    walk.dir(&mut out, &skip);
    out.flush().expect("a reader");
}

struct Walk {
    path: Vec<u8>,
    /// Where each inode with several names was seen first.
    first: HashMap<(u64, u64), String>,
}

impl Walk {
    /// Everything in the working directory, in the order of names.
    fn dir(&mut self, out: &mut impl std::io::Write, skip: &[String]) {
        let names = fs::read_dir(".").expect("a directory to read");
        let mut names: Vec<_> = names
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            if skip
                .iter()
                .any(|skipped| skipped.as_bytes() == name.as_bytes())
            {
                continue;
            }
            let len = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name.as_bytes());
            let line = self.entry(Path::new(&name));
            writeln!(out, "{} {line}", self.path.escape_ascii()).expect("a reader");
            if fs::symlink_metadata(&name).is_ok_and(|meta| meta.is_dir()) {
                std::env::set_current_dir(&name).expect("a directory to enter");
                self.dir(out, &[]);
                std::env::set_current_dir("..").expect("the way back");
            }
            self.path.truncate(len);
        }
    }

    fn entry(&mut self, name: &Path) -> String {
        // A name that is listed and is not there: what an overlay file system makes of a device 0:0.
        let Ok(meta) = fs::symlink_metadata(name) else {
            return "gone".to_owned();
        };
        let kind = meta.file_type();
        let mut line = format!(
            "{:o} {}:{} {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if !kind.is_dir() {
            let _ = write!(line, " links={}", meta.nlink());
        }
        if kind.is_symlink() {
            let target = fs::read_link(name).expect("a target");
            let _ = write!(line, " -> {}", target.as_os_str().as_bytes().escape_ascii());
        } else if kind.is_char_device() || kind.is_block_device() {
            let _ = write!(line, " device={:#x}", meta.rdev());
        } else if kind.is_file() {
            let _ = write!(
                line,
                " size={} content={:016x}",
                meta.size(),
                content(name, meta.size())
            );
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let here = self.path.escape_ascii().to_string();
            let first = self.first.entry((meta.dev(), meta.ino())).or_insert(here);
            let _ = write!(line, " same={first}");
        }
        for (key, value) in xattrs(name) {
            let _ = write!(line, " {}={}", key.escape_ascii(), value.escape_ascii());
        }
        line
    }
}

/// A digest (FNV-1a) of all blocks that are not zeros, and of where they are.
fn content(name: &Path, size: u64) -> u64 {
    let file = File::open(name).expect("a file to read");
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        // SAFETY: plain system calls on an open descriptor.
        let (data, hole) = unsafe {
            let data = lseek(file.as_raw_fd(), at as i64, SEEK_DATA);
            if data < 0 {
                break;
            }
            (data as u64, lseek(file.as_raw_fd(), data, SEEK_HOLE) as u64)
        };
        at = data / BLOCK as u64 * BLOCK as u64;
        while at < hole {
            let mut read = 0;
            while read < BLOCK {
                let got = file
                    .read_at(&mut buffer[read..], at + read as u64)
                    .expect("bytes");
                if got == 0 {
                    break;
                }
                read += got;
            }
            if buffer[..read].iter().any(|&byte| byte != 0) {
                at.to_le_bytes().into_iter().for_each(&mut take);
                buffer[..read].iter().copied().for_each(&mut take);
            }
            at += BLOCK as u64;
        }
    }
    hash
}

fn xattrs(name: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let path = CString::new(name.as_os_str().as_bytes()).expect("a name");
    let mut list = vec![0_u8; MOST];
    // SAFETY: the kernel writes at most as many bytes as it is told there is room for.
    let len = unsafe { llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), MOST) };
    assert!(len >= 0, "{name:?}: {}", std::io::Error::last_os_error());
    let mut all: Vec<_> = list[..len as usize]
        .split_inclusive(|&byte| byte == 0)
        .map(|key| {
            let key = CStr::from_bytes_with_nul(key).expect("a name");
            let mut value = vec![0_u8; MOST];
            // SAFETY: as above.
            let len =
                unsafe { lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), MOST) };
            assert!(
                len >= 0,
                "{name:?} {key:?}: {}",
                std::io::Error::last_os_error()
            );
            value.truncate(len as usize);
            (key.to_bytes().to_vec(), value)
        })
        .collect();
    all.sort();
    all
}
