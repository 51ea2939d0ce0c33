//! What a launch costs beside the walk of its sources, the monitor and the guest: the wall time of `fcpipe run`, taken from
//! outside, where everything is built already.
//!
//! The monitor is the fake Firecracker, whose guest answers at once; so all of the time is fcpipe's, but for the fake's own
//! start and end, which are measured alone beside it. Then the same with what a user waits for: QEMU, or a real Firecracker where one is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::bed::busybox;
use crate::figures::median;
use crate::goals::goal;

const USAGE: &str = "bench-ext4 launch FCPIPE [--runs N] [--dir target/bench/launch] [--no-qemu] [--firecracker FILE]";

/// Launches of real machines, which take seconds where they are emulated.
const REAL: usize = 5;

pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut args = args.iter();
    let fcpipe = PathBuf::from(args.next().ok_or(USAGE)?);
    let (mut runs, mut dir, mut qemu) = (30, PathBuf::from("target/bench/launch"), true);
    let mut firecracker: Option<PathBuf> = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--runs" => runs = args.next().ok_or(USAGE)?.parse()?,
            "--dir" => dir = args.next().ok_or(USAGE)?.into(),
            "--no-qemu" => qemu = false,
            "--firecracker" => firecracker = Some(args.next().ok_or(USAGE)?.into()),
            _ => return Err(USAGE.into()),
        }
    }
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let fake = fcpipe.with_file_name("fake-firecracker");
    let bundle = bundle(&dir)?;
    let command = |vmm: &str, firecracker: &Path, kvm: Option<&str>| {
        let mut command = Command::new(&fcpipe);
        command
            .env("FCPIPE_CACHE_DIR", dir.join("cache"))
            .env("FCPIPE_STATE_DIR", dir.join("state"))
            .env("FCPIPE_FIRECRACKER", firecracker)
            .envs(kvm.map(|kvm| ("FCPIPE_KVM", kvm)))
            .args(["--progress", "quiet", "run", "--vmm", vmm])
            .arg(&bundle)
            .arg("--timings")
            .arg(dir.join("timings.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    println!("`fcpipe run`, everything built, wall time from outside, milliseconds ({runs} runs)");
    let nothing = measure(runs, || {
        let mut command = Command::new(&fcpipe);
        command.arg("--version").stdout(Stdio::null());
        command
    })?;
    row("fcpipe --version (a process)", &nothing);
    let alone = measure(runs, || {
        let mut command = Command::new(&fake);
        command.arg("--version").stdout(Stdio::null());
        command
    })?;
    row("the fake monitor --version", &alone);
    let faked = launches(runs, &dir, || command("firecracker", &fake, Some("on")))?;
    row("run, fake monitor and agent", &faked.wall);
    faked.print();
    let took = median(faked.wall.clone());
    let what = format!("a launch's own share, {took:.1} ms (goal 10)");
    let reached = goal(took <= 10.0, &what);
    println!("{reached}");
    let report = json!({"run_ms": faked.wall, "goals": [reached]});
    fs::write(dir.with_extension("json"), format!("{report:#}\n"))?;
    if qemu {
        let real = launches(REAL, &dir, || command("qemu", &fake, Some("off")))?;
        row("run, QEMU", &real.wall);
        real.print();
    }
    if let Some(firecracker) = firecracker {
        let real = launches(REAL, &dir, || command("firecracker", &firecracker, None))?;
        row("run, Firecracker", &real.wall);
        real.print();
    }
    Ok(())
}

fn row(what: &str, times: &[f64]) {
    println!(
        "{:34} median {:9.2}  least {:9.2}  most {:9.2}",
        what,
        median(times.to_vec()),
        times.first().copied().unwrap_or_default(),
        times.last().copied().unwrap_or_default(),
    );
}

/// Sorted.
fn measure(runs: usize, command: impl Fn() -> Command) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    // The first finds cold caches.
    for number in 0..=runs {
        let time = once(&mut command())?;
        if number > 0 {
            times.push(time.as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn once(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.status()?;
    let time = begun.elapsed();
    match status.success() {
        true => Ok(time),
        false => Err(format!("{command:?}: {status}").into()),
    }
}

struct Launches {
    wall: Vec<f64>,
    /// Of each step: when it began and how long it took, microseconds.
    steps: BTreeMap<String, Vec<(f64, f64)>>,
    total: Vec<f64>,
}

fn launches(runs: usize, dir: &Path, command: impl Fn() -> Command) -> Result<Launches> {
    let mut launches = Launches {
        wall: Vec::new(),
        steps: BTreeMap::new(),
        total: Vec::new(),
    };
    for number in 0..runs + 2 {
        let time = once(&mut command())?;
        if number < 2 {
            continue;
        }
        launches.wall.push(time.as_secs_f64() * 1e3);
        let receipt: Value = serde_json::from_slice(&fs::read(dir.join("timings.json"))?)?;
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        launches.total.push(number(&receipt["total_us"]) / 1e3);
        for stage in receipt["stages"].as_array().into_iter().flatten() {
            let id = stage["id"].as_str().unwrap_or_default().to_owned();
            let times = (number(&stage["start_us"]), number(&stage["wall_us"]));
            launches.steps.entry(id).or_default().push(times);
        }
    }
    launches.wall.sort_by(f64::total_cmp);
    launches.total.sort_by(f64::total_cmp);
    Ok(launches)
}

impl Launches {
    fn print(&self) {
        println!(
            "  of that in the graph, undoing included: {:.2}",
            median(self.total.clone())
        );
        let of = |times: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
            let mut times: Vec<f64> = times.iter().map(which).collect();
            times.sort_by(f64::total_cmp);
            median(times) / 1e3
        };
        let mut rows: Vec<(f64, f64, &str)> = self
            .steps
            .iter()
            .map(|(id, times)| (of(times, |t| t.0), of(times, |t| t.1), id.as_str()))
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (start, wall, id) in rows {
            println!("    at {start:9.2}  for {wall:9.2}  {id}");
        }
    }
}

/// A root of a handful of files: the walk takes no time.
fn bundle(dir: &Path) -> Result<PathBuf> {
    let bundle = dir.join("bundle");
    fs::create_dir_all(bundle.join("rootfs/proc"))?;
    busybox(&bundle.join("rootfs"), &["true"])?;
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(bundle)
}
