//! Times a scan of a directory against the least that a scan can do: getdents and statx of every
//! name, from as many threads. `cargo run --release -p fcpipe-tree --example measure -- DIR [THREADS]`
//!
//! Each line: milliseconds, the best and the median of some runs, first on the clock, then of
//! processor time (which other work on the host disturbs less).

use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use fcpipe_spec::Content;
use fcpipe_tree::{Kind, Layer, Scan, ScanOptions, compose, scan};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().ok_or("which directory?")?);
    let threads = match args.next() {
        Some(n) => n.to_str().ok_or("THREADS is a number")?.parse()?,
        None => std::thread::available_parallelism()?,
    };
    let only_scan = args.next().is_some();
    let mut out = std::io::stdout();
    let options = ScanOptions {
        threads: Some(threads),
        ..ScanOptions::default()
    };
    let content = Content::default();
    let run_scan = || scan(&dir, &content, &options);
    if only_scan {
        let scanned = run_scan()?;
        writeln!(out, "{} entries, {}", scanned.entries, memory()?)?;
        return Ok(());
    }

    let names = bare_walk(&dir, threads)?;
    let mut bare = Vec::new();
    let mut scans = Vec::new();
    for _ in 0..15 {
        bare.push(time(|| bare_walk(&dir, threads))?.1);
        scans.push(time(run_scan)?.1);
    }
    writeln!(out, "bare walk     {} ({names} names)", show(&mut bare))?;
    writeln!(out, "scan          {}", show(&mut scans))?;

    let scanned = Arc::new(run_scan()?);
    let mut digests = Vec::new();
    let mut stamps = Vec::new();
    let mut composed = Vec::new();
    for _ in 0..7 {
        let fresh = run_scan()?;
        digests.push(time(|| Ok::<_, Failure>(fresh.tree.digest()))?.1);
        stamps.push(time(|| Ok::<_, Failure>(fresh.digest_of_stamps()))?.1);
        composed.push(time(|| compose(layers(&scanned)))?.1);
    }
    writeln!(out, "tree digest   {}", show(&mut digests))?;
    writeln!(out, "stamps digest {}", show(&mut stamps))?;
    writeln!(
        out,
        "compose       {} (with one mount)",
        show(&mut composed)
    )?;

    let all = compose(layers(&scanned))?;
    let mut opens = Vec::new();
    for _ in 0..5 {
        opens.push(
            time(|| {
                let mut opener = all.opener();
                for node in all.tree().nodes() {
                    if matches!(all.tree().kind(node), Kind::File { .. }) {
                        opener.open(node)?.check()?;
                    }
                }
                Ok::<_, fcpipe_tree::OpenError>(())
            })?
            .1,
        );
    }
    writeln!(out, "open, check   {} (one thread)", show(&mut opens))?;
    writeln!(out, "{}", memory()?)?;
    Ok(())
}

/// The source as the root, and a missing one mounted in it, so that the Tree is written anew.
fn layers(root: &Arc<Scan>) -> Vec<Layer> {
    vec![
        Layer {
            destination: "/".into(),
            source: root.source.clone(),
            scan: Some(Arc::clone(root)),
        },
        Layer {
            destination: "/a-mount-point-of-measure".into(),
            source: "/nowhere".into(),
            scan: None,
        },
    ]
}

/// Milliseconds on the clock and of processor time.
type Took = (f64, f64);

fn time<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<(T, Took), E> {
    let (start, start_cpu) = (Instant::now(), processor());
    let result = run()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    Ok((result, (took, processor() - start_cpu)))
}

fn processor() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}

fn show(times: &mut [Took]) -> String {
    let mut column = |of: fn(&Took) -> f64| {
        times.sort_by(|a, b| of(a).total_cmp(&of(b)));
        format!("{:8.1} {:8.1}", of(&times[0]), of(&times[times.len() / 2]))
    };
    format!("{}  cpu {}", column(|t| t.0), column(|t| t.1))
}

fn memory() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(peak.unwrap_or_default().to_owned())
}

/// Directories that wait, by path, and how many threads are idle.
#[derive(Default)]
struct Queue {
    waiting: Vec<PathBuf>,
    idle: usize,
    done: bool,
}

fn bare_walk(top: &Path, threads: NonZeroUsize) -> Result<u64, Failure> {
    let queue = Mutex::new(Queue {
        waiting: vec![top.to_path_buf()],
        ..Queue::default()
    });
    let wake = Condvar::new();
    let work = || -> Result<u64, Failure> {
        let mut names = 0;
        let mut buffer = Vec::with_capacity(32 * 1024);
        loop {
            let dir = {
                let mut q = queue.lock().map_err(|_| "poisoned")?;
                loop {
                    if let Some(dir) = q.waiting.pop() {
                        break dir;
                    }
                    q.idle += 1;
                    if q.done || q.idle == threads.get() {
                        q.done = true;
                        wake.notify_all();
                        return Ok(names);
                    }
                    q = wake.wait(q).map_err(|_| "poisoned")?;
                    q.idle -= 1;
                }
            };
            let mut found = Vec::new();
            names += bare_list(&dir, &mut buffer, &mut found)?;
            if !found.is_empty() {
                queue.lock().map_err(|_| "poisoned")?.waiting.extend(found);
                wake.notify_all();
            }
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads.get()).map(|_| scope.spawn(work)).collect();
        let mut sum = 0;
        for thread in all {
            sum += thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(sum)
    })
}

fn bare_list(dir: &Path, buffer: &mut Vec<u8>, found: &mut Vec<PathBuf>) -> Result<u64, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let mut names = 0;
    let mut raw = RawDir::new(fd.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        names += 1;
        rustix::fs::statx(
            &fd,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )?;
        if entry.file_type() == FileType::Directory {
            found.push(dir.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
        }
    }
    Ok(names)
}
