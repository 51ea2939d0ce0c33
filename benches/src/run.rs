//! One timed command: what it takes until its bytes are on the disk, its processor time, its memory.
#![allow(
    unsafe_code,
    reason = "wait4 has no safe wrapper that gives a child's use of resources"
)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::walk;

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// From the start of the command to the end of the write-back.
    pub(crate) wall: Duration,
    /// User and system time of the command, without the write-back.
    pub(crate) cpu: Duration,
    /// Peak resident set, bytes.
    pub(crate) memory: u64,
}

/// Runs the commands one after another, then writes back the file system that `dir` is on.
pub(crate) fn timed(commands: &mut [Command], dir: &Path) -> Result<Taken> {
    let dir = File::open(dir)?;
    let began = Instant::now();
    let mut taken = Taken {
        wall: Duration::ZERO,
        cpu: Duration::ZERO,
        memory: 0,
    };
    for command in commands {
        let (cpu, memory) = one(command)?;
        taken.cpu += cpu;
        taken.memory = taken.memory.max(memory);
    }
    rustix::fs::syncfs(&dir)?;
    taken.wall = began.elapsed();
    Ok(taken)
}

fn one(command: &mut Command) -> Result<(Duration, u64)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{name}: {e}"))?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let mut status = 0;
    let mut used: libc::rusage = {
        // SAFETY: a rusage is numbers alone; all zeros is one.
        unsafe { std::mem::zeroed() }
    };
    // SAFETY: both pointers are to locals of the right type, and the child is ours and not yet waited
    // for.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut used) };
    if waited < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    if status != 0 {
        return Err(format!("{command:?} failed ({status}): {said}").into());
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    Ok((
        time(used.ru_utime) + time(used.ru_stime),
        used.ru_maxrss as u64 * 1024,
    ))
}

/// Reads every file of a tree, so that each run finds the same cache. Page caches are not kept for
/// ever, even where there is memory for them.
pub(crate) fn warm(tree: &Path) -> Result<()> {
    let buffer = || vec![0u8; 1 << 20];
    walk::each(tree, walk::threads(), buffer, |buffer, dir, name, kind| {
        if kind == rustix::fs::FileType::RegularFile {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            while rustix::io::read(&file, &mut buffer[..])? > 0 {}
        }
        Ok(())
    })?;
    Ok(())
}
