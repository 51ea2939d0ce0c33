//! The floor: reading every file of a tree once, in parallel, and writing the same bytes to one file.
//!
//! No image can be made with less, so it is what the compiler is held against. It packs the bytes
//! without padding, keeps no names, checks nothing, and writes past the page cache. With `blocks` it
//! begins every file at a multiple of 4 KiB, as an image of ext4 must: for small files that is twice
//! the bytes. [`write`] reads nothing: it is what the disk alone takes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::Result;
use crate::walk;

const PIECE: usize = 4 << 20;

/// Memory for direct I/O: page-aligned.
struct Buffer {
    at: *mut u8,
    used: usize,
}

#[allow(unsafe_code, reason = "page-aligned memory comes from mmap")]
// SAFETY: the mapping is private to its Buffer, which is handed from thread to thread by move.
unsafe impl Send for Buffer {}

#[allow(unsafe_code, reason = "page-aligned memory comes from mmap")]
impl Buffer {
    fn new() -> Result<Self> {
        // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing of ours.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PIECE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Ok(Buffer {
            at: at.cast(),
            used: 0,
        })
    }

    fn all(&mut self) -> &mut [u8] {
        // SAFETY: `at` maps PIECE bytes, zeroed by the kernel, for as long as the program runs.
        unsafe { std::slice::from_raw_parts_mut(self.at, PIECE) }
    }
}

/// Writes so many bytes to `out`, reading nothing: what the disk alone takes for an image of that size.
pub(crate) fn write(bytes: u64, out: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::open(out, flags, Mode::from_raw_mode(0o600));
    let target = open(flags | OFlags::DIRECT).or_else(|_| open(flags))?;
    rustix::fs::fallocate(
        &target,
        rustix::fs::FallocateFlags::empty(),
        0,
        bytes.max(1),
    )?;
    let at = AtomicU64::new(0);
    let work = || -> Result<()> {
        let mut buffer = Buffer::new()?;
        buffer.all().fill(0x5a);
        while at.load(Ordering::Relaxed) < bytes {
            buffer.used = PIECE / 2;
            flush(&mut buffer, &target, &at)?;
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..walk::threads() * 3)
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })
}

/// Reads all of `src` and writes it to `out`. Gives the bytes.
pub(crate) fn run(src: &Path, out: &Path, blocks: bool) -> Result<u64> {
    let open = |flags| rustix::fs::open(out, flags, Mode::from_raw_mode(0o600));
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    let target = open(flags | OFlags::DIRECT).or_else(|_| open(flags))?;
    let at = AtomicU64::new(0);
    let large = std::sync::Mutex::new(Vec::new());
    let workers = walk::threads() * 2;
    let buffers = walk::each(src, workers, Buffer::new, |buffer, dir, name, kind| {
        if kind != rustix::fs::FileType::RegularFile {
            return Ok(());
        }
        let buffer = match buffer {
            Ok(buffer) => buffer,
            Err(e) => return Err(e.to_string().into()),
        };
        let file = rustix::fs::openat(
            dir,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let size = rustix::fs::fstat(&file)?.st_size as u64;
        if size > PIECE as u64 {
            // Left for all the threads together, below.
            let mut large = large.lock().map_err(|_| "a thread panicked")?;
            large.push((file, size));
            return Ok(());
        }
        read(buffer, &file, 0, size, &target, &at)?;
        if blocks {
            // A piece is whole blocks, so this is within the buffer.
            buffer.used = buffer.used.next_multiple_of(4096);
            if buffer.used == PIECE {
                flush(buffer, &target, &at)?;
            }
        }
        Ok(())
    })?;
    let pieces: Vec<(usize, u64, u64)> = {
        let large = large.lock().map_err(|_| "a thread panicked")?;
        let cut = |(i, (_, size)): (usize, &(OwnedFd, u64))| {
            let size = *size;
            (0..size)
                .step_by(PIECE)
                .map(move |from| (i, from, (size - from).min(PIECE as u64)))
        };
        large.iter().enumerate().flat_map(cut).collect()
    };
    let large = large.into_inner().map_err(|_| "a thread panicked")?;
    let next = AtomicU64::new(0);
    let work = |buffer: Result<Buffer>| -> Result<()> {
        let mut buffer = buffer?;
        while let Some(&(file, from, len)) =
            pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize)
        {
            read(&mut buffer, &large[file].0, from, len, &target, &at)?;
        }
        flush(&mut buffer, &target, &at)
    };
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = buffers
            .into_iter()
            .map(|buffer| scope.spawn(move || work(buffer)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(at.load(Ordering::Relaxed))
}

fn read(
    buffer: &mut Buffer,
    file: &OwnedFd,
    mut from: u64,
    mut len: u64,
    target: &OwnedFd,
    at: &AtomicU64,
) -> Result<()> {
    while len > 0 {
        let used = buffer.used;
        let room = (PIECE - used).min(len as usize);
        let got = rustix::io::pread(file, &mut buffer.all()[used..used + room], from)?;
        if got == 0 {
            break;
        }
        buffer.used += got;
        from += got as u64;
        len -= got as u64;
        if buffer.used == PIECE {
            flush(buffer, target, at)?;
        }
    }
    Ok(())
}

fn flush(buffer: &mut Buffer, target: &OwnedFd, at: &AtomicU64) -> Result<()> {
    let len = buffer.used.next_multiple_of(4096);
    let mut offset = at.fetch_add(len as u64, Ordering::Relaxed);
    let mut rest = &buffer.all()[..len];
    while !rest.is_empty() {
        let done = rustix::io::pwrite(target.as_fd(), rest, offset)?;
        rest = &rest[done..];
        offset += done as u64;
    }
    buffer.used = 0;
    Ok(())
}
