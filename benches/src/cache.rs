//! What a launch costs before its machine starts, when everything, something or nothing was built before.
//!
//! A launch is `fcpipe run` of a busybox root with a tree of 100,000 files mounted in it; its receipt says
//! when the disk was ready. The machine boots too, so that what is measured is a launch and not a part of
//! one, but its boot is not counted. Beside it, in the same minutes: a parallel stat walk of the same tree,
//! and the way without a cache (mkfs.ext4, loop mount, cp -a), which every launch pays.
//!
//! `cold`: nothing is kept. `dirty`: nothing is kept, and the sources were written a moment ago and are not
//! on the disk yet. `warm`: nothing has changed. `second`: the same while another machine runs on the same
//! image. `new` and `old` are the private disk's own part in milliseconds: right after the image was written,
//! and later.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::drivers::Needs;
use crate::ways::{Job, Way, find};
use crate::{Result, mounts, run, trees, walk};

pub(crate) const USAGE: &str = "bench-ext4 cache FCPIPE [--runs N] [--tree b] [--dir target/bench]";

const WRITES: [&str; 4] = ["clone", "snapshot", "overlay", "copy"];

struct Asked {
    fcpipe: PathBuf,
    runs: usize,
    tree: String,
    dir: PathBuf,
}

impl Asked {
    fn from(args: &[String]) -> Result<Asked> {
        let mut asked = Asked {
            fcpipe: PathBuf::new(),
            runs: 5,
            tree: "b".into(),
            dir: "target/bench".into(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} what?\n{USAGE}"));
            match arg.as_str() {
                "--runs" => asked.runs = value()?.parse()?,
                "--tree" => asked.tree = value()?.clone(),
                "--dir" => asked.dir = value()?.into(),
                path => asked.fcpipe = path.into(),
            }
        }
        asked.fcpipe = fs::canonicalize(&asked.fcpipe)
            .map_err(|e| format!("{}: {e}\n{USAGE}", asked.fcpipe.display()))?;
        fs::create_dir_all(&asked.dir)?;
        asked.dir = fs::canonicalize(&asked.dir)?;
        Ok(asked)
    }
}

/// Measures on the file system of `--dir`, then on XFS with reflink where the host can have one.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let asked = Asked::from(args)?;
    mounts::sweep(&asked.dir)?;
    let home = asked.dir.join("trees");
    trees::make(&home, std::slice::from_ref(&asked.tree))?;
    let tree = home.join(&asked.tree);
    let mut report = json!({"tree": asked.tree, "runs": asked.runs});
    report["here"] = place("the directory's own file system", &asked, &tree, &asked.dir)?;
    match mounts::Xfs::new(&asked.dir)? {
        None => println!("skipped: XFS with reflink needs root and mkfs.xfs"),
        Some(xfs) => {
            let source = xfs.path().join("tree");
            let copied = Command::new("cp")
                .arg("-a")
                .args([&tree, &source])
                .status()?;
            if !copied.success() {
                return Err("cp -a to XFS failed".into());
            }
            report["xfs"] = place(
                "XFS with reflink, in a loop file",
                &asked,
                &source,
                xfs.path(),
            )?;
        }
    }
    let path = asked.dir.join("cache.json");
    fs::write(&path, format!("{report:#}\n"))?;
    println!("figures: {}", path.display());
    Ok(())
}

/// All ways to give a machine its disk, with tree and store on one file system.
fn place(title: &str, asked: &Asked, tree: &Path, dir: &Path) -> Result<Value> {
    println!(
        "\n{title}\n{:10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "writes",
        "cold s",
        "dirty s",
        "warm s",
        "x walk",
        "second s",
        "new ms",
        "old ms",
        "extents"
    );
    let mut out = json!({});
    let walks = (0..asked.runs).map(|_| timed(|| walk::stat(tree).map(drop)));
    let walked = median(walks.collect::<Result<_>>()?);
    for writes in WRITES {
        let Some(figures) = way(asked, tree, dir, writes)? else {
            continue;
        };
        println!(
            "{writes:10} {:8.3} {:8.3} {:8.3} {:8.2} {:8.3} {:8.2} {:8.2} {:>8}",
            figures.cold,
            figures.dirty,
            figures.warm,
            figures.warm / walked,
            figures.second,
            figures.disk_new,
            figures.disk_old,
            figures.extents.map_or("?".into(), |n| n.to_string()),
        );
        out[writes] = json!({
            "cold_s": figures.cold,
            "cold_dirty_s": figures.dirty,
            "warm_s": figures.warm,
            "warm_per_walk": figures.warm / walked,
            "second_s": figures.second,
            "disk_new_ms": figures.disk_new,
            "disk_old_ms": figures.disk_old,
            "extents": figures.extents,
        });
    }
    println!(
        "{:10} {:>8} {:>8} {walked:8.3}  a parallel stat walk of the same tree",
        "walk", "", ""
    );
    out["walk_s"] = json!(walked);
    match Way::Loop.missing() {
        Some(why) => println!("skipped: {}: {why}", Way::Loop.name()),
        None => {
            let scratch = mounts::Scratch::new(dir)?;
            run::warm(tree)?;
            let job = Job {
                fcpipe: &asked.fcpipe,
                tree,
                needs: Needs::of(tree)?,
                out: scratch.path(),
            };
            let taken = run::timed(&mut Way::Loop.commands(&job)?, scratch.path())?;
            let seconds = taken.wall.as_secs_f64();
            println!(
                "{:10} {seconds:8.3} {seconds:8.3} {seconds:8.3}  {}",
                Way::Loop.name(),
                Way::Loop.about()
            );
            out["loop_cp_s"] = json!(seconds);
        }
    }
    Ok(out)
}

/// What one way takes; seconds but for the disk's milliseconds.
struct Figures {
    cold: f64,
    dirty: f64,
    warm: f64,
    second: f64,
    disk_new: f64,
    disk_old: f64,
    extents: Option<u64>,
}

/// `None` where the host can't do it.
fn way(asked: &Asked, tree: &Path, dir: &Path, writes: &str) -> Result<Option<Figures>> {
    let scratch = mounts::Scratch::new(dir)?;
    let bed = Bed::new(asked, tree, scratch.path(), writes)?;
    run::warm(tree)?;
    let cold = match bed.launch("cold") {
        Ok(cold) => cold,
        Err(why) => {
            println!("{writes:10} not here: {}", first_line(&why.to_string()));
            return Ok(None);
        }
    };
    let launches =
        |name: &str| -> Result<Vec<Launch>> { (0..asked.runs).map(|_| bed.launch(name)).collect() };
    let warm = launches("warm")?;
    let first = bed.first_machine()?;
    let second = launches("second")?;
    drop(first);
    let extents = bed.extents();
    drop(scratch);
    let ready = |launches: &[Launch]| median(launches.iter().map(|l| l.ready).collect());
    Ok(Some(Figures {
        cold: cold.ready,
        dirty: dirty(asked, tree, dir, writes)?,
        warm: ready(&warm),
        second: ready(&second),
        disk_new: cold.disk * 1e3,
        disk_old: median(warm.iter().map(|l| l.disk * 1e3).collect()),
        extents,
    }))
}

/// A cold launch of a tree that was copied just before.
fn dirty(asked: &Asked, tree: &Path, dir: &Path, writes: &str) -> Result<f64> {
    let scratch = mounts::Scratch::new(dir)?;
    let copy = scratch.path().join("tree");
    let copied = Command::new("cp").arg("-a").args([tree, &copy]).status()?;
    if !copied.success() {
        return Err("cp -a failed".into());
    }
    let bed = Bed::new(asked, &copy, scratch.path(), writes)?;
    Ok(bed.launch("dirty")?.ready)
}

/// A spec, and directories of its own for what fcpipe keeps.
struct Bed<'a> {
    fcpipe: &'a Path,
    dir: &'a Path,
    spec: PathBuf,
    writes: &'a str,
}

/// What a receipt says, in seconds.
struct Launch {
    /// From the start to the disk being ready.
    ready: f64,
    /// The private disk alone.
    disk: f64,
}

impl<'a> Bed<'a> {
    fn new(asked: &'a Asked, tree: &Path, dir: &'a Path, writes: &'a str) -> Result<Bed<'a>> {
        let rootfs = dir.join("rootfs");
        for name in ["bin", "dev", "proc", "sys", "tmp", "mnt"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let busybox = find("busybox").ok_or("busybox is not installed")?;
        fs::copy(busybox, rootfs.join("bin/busybox"))?;
        for applet in ["sh", "true", "sleep"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        let spec = dir.join("launch.json");
        let content = json!({
            "version": 1,
            "rootfs": rootfs,
            "process": {"args": ["/bin/true"], "cwd": "/"},
            "mounts": [{"source": tree, "destination": "/mnt/tree"}],
        });
        fs::write(&spec, content.to_string())?;
        // What was made just now is too young for an index to trust.
        std::thread::sleep(Duration::from_millis(100));
        Ok(Bed {
            fcpipe: &asked.fcpipe,
            dir,
            spec,
            writes,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.fcpipe);
        let process = json!(args).to_string();
        command
            .args(["--progress", "quiet", "run"])
            .arg(&self.spec)
            .arg("--set")
            .arg(format!("disk.writes={}", self.writes))
            .arg("--set")
            .arg(format!("process.args={process}"));
        for (option, name) in [("--cache-dir", "cache"), ("--state-dir", "state")] {
            command.arg(option).arg(self.dir.join(name));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn launch(&self, name: &str) -> Result<Launch> {
        let timings = self.dir.join(format!("{name}.json"));
        let output = self
            .command(&["/bin/true"])
            .arg("--timings")
            .arg(&timings)
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr)?.into());
        }
        let receipt: Value = serde_json::from_slice(&fs::read(&timings)?)?;
        let rows = receipt["stages"]
            .as_array()
            .ok_or("a receipt without stages")?;
        let disk = rows
            .iter()
            .find(|row| row["id"] == "disk")
            .ok_or("no disk")?;
        let us = |field: &str| disk[field].as_f64().unwrap_or(f64::NAN);
        Ok(Launch {
            ready: (us("start_us") + us("wall_us")) / 1e6,
            disk: us("wall_us") / 1e6,
        })
    }

    /// A machine that is there while others start; it ends when it is dropped.
    fn first_machine(&self) -> Result<Machine> {
        let child = self.command(&["/bin/sleep", "1000"]).spawn()?;
        // Long enough to have its disk, wherever machines are emulated.
        std::thread::sleep(Duration::from_secs(4));
        Ok(Machine(child))
    }

    /// Pieces in which the image lies on the host's disk.
    fn extents(&self) -> Option<u64> {
        let objects = self.dir.join("cache/v1/objects");
        let mut dirs = vec![objects];
        let mut largest: Option<(u64, PathBuf)> = None;
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).ok()?.flatten() {
                let meta = entry.metadata().ok()?;
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else if largest.as_ref().is_none_or(|(size, _)| *size < meta.len()) {
                    largest = Some((meta.len(), entry.path()));
                }
            }
        }
        let output = Command::new(find("filefrag")?)
            .arg(largest?.1)
            .output()
            .ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        said.rsplit_once(": ")?.1.split(' ').next()?.parse().ok()
    }
}

struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // The first signal is the process's, which as PID 1 ignores it; the second ends the machine.
        for _ in 0..2 {
            if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        let _ = self.0.wait();
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}
