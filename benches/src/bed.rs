//! Launches whose disks are measured: a busybox root with directories mounted in it, and what a receipt says.
//!
//! The monitor is the fake Firecracker with a guest that answers at once, as what is measured ends before a machine starts. A
//! real monitor is started beside the scan, and takes its time on the same processors: a few ms for Firecracker, 30 for QEMU,
//! which `--vmm qemu` shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Result;
use crate::options::Options;
use crate::ways::find;

/// A spec, and directories of its own for what fcpipe keeps.
pub(crate) struct Bed {
    fcpipe: PathBuf,
    vmm: String,
    dir: PathBuf,
    /// What is set beside the spec.
    set: String,
}

/// What a receipt says, in seconds.
pub(crate) struct Launch {
    /// From the start to the disk being ready.
    pub(crate) ready: f64,
    /// The private disk alone.
    pub(crate) disk: f64,
    /// What all images' copies took, and the bytes that they looked at.
    pub(crate) copied: f64,
    pub(crate) written: f64,
}

/// The option that says which monitor, and its default.
pub(crate) const VMM: (&str, &str) = ("--vmm", "fake");

impl Bed {
    /// In the directory `dir`, with sources mounted at their destinations; `set`: as `--set` takes it.
    pub(crate) fn new(
        options: &Options,
        dir: &Path,
        mounted: &[(&str, &Path)],
        set: String,
    ) -> Result<Bed> {
        let vmm: String = options.value(VMM.0, VMM.1)?;
        let rootfs = dir.join("rootfs");
        for name in ["bin", "dev", "proc", "sys", "tmp", "mnt"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        busybox(&rootfs, &["true", "sleep"])?;
        let mounted: Vec<Value> = mounted
            .iter()
            .map(|(at, source)| json!({"source": source, "destination": at}))
            .collect();
        let content = json!({
            "version": 1,
            "rootfs": rootfs,
            "process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]},
            "mounts": mounted,
        });
        fs::write(dir.join("launch.json"), content.to_string())?;
        // What was made just now is too young for an index to trust.
        std::thread::sleep(Duration::from_millis(100));
        Ok(Bed {
            fcpipe: options.fcpipe.clone(),
            vmm,
            dir: dir.to_owned(),
            set,
        })
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(&self.fcpipe);
        match self.vmm.as_str() {
            "fake" => {
                let fake = self.fcpipe.with_file_name("fake-firecracker");
                command.env("FCPIPE_FIRECRACKER", fake);
                command.env("FCPIPE_KVM", "on");
                command.args(["--progress", "quiet", "run", "--vmm", "firecracker"])
            }
            vmm => command.args(["--progress", "quiet", "run", "--vmm", vmm]),
        };
        command
            .arg(self.dir.join("launch.json"))
            .args(["--set", &self.set])
            .args(options);
        for (option, name) in [("--cache-dir", "cache"), ("--state-dir", "state")] {
            command.arg(option).arg(self.dir.join(name));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub(crate) fn launch(&self, options: &[&str]) -> Result<Launch> {
        let timings = self.dir.join("timings.json");
        let output = self
            .command(options)
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
        let number = |row: &Value, field: &str| row[field].as_f64().unwrap_or(f64::NAN);
        let disk = rows
            .iter()
            .find(|row| row["id"] == "disk")
            .ok_or("no disk")?;
        let copies = rows.iter().filter(|row| {
            let id = row["id"].as_str().unwrap_or_default();
            id == "copy" || id.starts_with("copy:")
        });
        let mut launch = Launch {
            ready: (number(disk, "start_us") + number(disk, "wall_us")) / 1e6,
            disk: number(disk, "wall_us") / 1e6,
            copied: 0.0,
            written: 0.0,
        };
        for copy in copies {
            launch.copied += number(copy, "wall_us") / 1e6;
            launch.written += number(copy, "bytes_written");
        }
        Ok(launch)
    }

    /// A machine that is there while others start; it ends when it is dropped.
    pub(crate) fn first_machine(&self) -> Result<Machine> {
        let child = self
            .command(&["--set", r#"process.args=["sleep","1000"]"#])
            .spawn()?;
        // Long enough to have its disk, wherever machines are emulated.
        std::thread::sleep(Duration::from_secs(4));
        Ok(Machine(child))
    }

    /// Pieces in which the image lies on the host's disk.
    pub(crate) fn extents(&self) -> Option<u64> {
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

pub(crate) struct Machine(Child);

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

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    succeeds(Command::new("cp").arg("-a").args([from, to]))
}

pub(crate) fn succeeds(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", output.stderr.escape_ascii()).into()),
    }
}

/// Puts a busybox with these names into a root file system, unless it is there: a second run must find the same file.
pub(crate) fn busybox(rootfs: &Path, names: &[&str]) -> Result<()> {
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin)?;
    if bin.join("busybox").exists() {
        return Ok(());
    }
    let busybox = find("busybox").ok_or("busybox is not installed")?;
    fs::copy(busybox, bin.join("busybox"))?;
    for name in names {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    Ok(())
}
