//! A world of its own for each test: directories, a busybox bundle, and the program under test.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
}

/// Whether the machines of the tests are Firecracker's: FCPIPE_TEST_VMM says `firecracker`. Else they are QEMU's.
pub(crate) fn with_firecracker() -> bool {
    match std::env::var("FCPIPE_TEST_VMM").as_deref() {
        Ok("firecracker") => true,
        Ok("qemu") | Err(_) => false,
        Ok(other) => panic!("FCPIPE_TEST_VMM={other}: qemu or firecracker"),
    }
}

/// The program that runs a machine.
pub(crate) fn machine_program() -> &'static str {
    match with_firecracker() {
        true => "firecracker",
        false => "qemu-system-x86_64",
    }
}

/// Why a virtual machine can't be had here, or nothing.
fn lacking() -> Option<String> {
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
        std::env::split_paths(&path)
            .chain(home)
            .any(|dir| dir.join(program).is_file())
    };
    let programs: &[&str] = match with_firecracker() {
        true => &["busybox"],
        false => &["qemu-system-x86_64", "vhost-device-vsock", "busybox"],
    };
    for program in programs {
        if !on_path(program) {
            return Some(format!("{program} is not installed"));
        }
    }
    if with_firecracker() {
        let named = std::env::var_os("FCPIPE_FIRECRACKER").map(PathBuf::from);
        if !named.is_some_and(|path| path.is_file()) {
            return Some("FCPIPE_FIRECRACKER names no Firecracker".to_owned());
        }
        if !Path::new("/dev/kvm").exists() {
            return Some("there is no /dev/kvm".to_owned());
        }
    }
    no_kernel()
}

fn no_kernel() -> Option<String> {
    (kernel_package().is_none() && data_dir_named().is_none())
        .then(|| "FCPIPE_TEST_KERNEL_DEB names no kernel package".to_owned())
}

pub(crate) fn kernel_package() -> Option<PathBuf> {
    std::env::var_os("FCPIPE_TEST_KERNEL_DEB")
        .map(PathBuf::from)
        .filter(|path| path.is_file())
}

/// True, and says why, where a test that needs this can't run. A failure under `CI=true`.
pub(crate) fn skip(why: Option<String>) -> bool {
    let Some(why) = why else { return false };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "missing under CI: {why}"
    );
    skip_even_in_ci(Some(why))
}

/// The same for what no package brings, such as a Firecracker: missing it is no failure anywhere.
pub(crate) fn skip_even_in_ci(why: Option<String>) -> bool {
    if let Some(why) = &why {
        println!("skipped: {why}");
    }
    why.is_some()
}

pub(crate) fn not_root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "not root".to_owned())
}

/// Skips unless there is a kernel, and a busybox to make a root file system of.
pub(crate) fn skip_without_kernel() -> bool {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let no_busybox = || {
        let there = busybox.iter().any(|path| Path::new(path).is_file());
        (!there).then(|| "busybox is not installed".to_owned())
    };
    skip(no_kernel().or_else(no_busybox))
}

/// Skips unless virtual machines can be booted.
pub(crate) fn skip_without_machine() -> bool {
    skip(lacking())
}

/// Skips where the host of the machines is emulated (FCPIPE_TEST_EMULATED): a guest that never rests stops that as well.
pub(crate) fn skip_in_emulation() -> bool {
    let emulated = std::env::var_os("FCPIPE_TEST_EMULATED");
    skip_even_in_ci(emulated.map(|_| {
        "the host is emulated, and a guest that is busy to the utmost stops it".to_owned()
    }))
}

/// FCPIPE_TEST_DATA_DIR: where somebody has imported a kernel for the tests.
fn data_dir_named() -> Option<PathBuf> {
    std::env::var_os("FCPIPE_TEST_DATA_DIR").map(PathBuf::from)
}

/// The kernel is imported once for all tests: it is data, and nothing changes it.
fn data_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = data_dir_named() {
            return dir;
        }
        let dir = place().join("fcpipe-test-data");
        let package = kernel_package().expect("checked by skip_without_machine");
        let status = Command::new(env!("CARGO_BIN_EXE_fcpipe"))
            .args(["kernel", "import"])
            .arg(package)
            .env("FCPIPE_DATA_DIR", &dir)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        dir
    })
}

/// Where worlds are made. Not in a tmpfs: images belong on a file system like those they are used on. Nor in a checkout of another
/// user, as containers of CI services have it: a state directory there is refused.
pub(crate) fn place() -> &'static Path {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    match fcpipe_engine::secure_path(target) {
        Ok(()) => target,
        Err(_) => Path::new("/var/tmp"),
    }
}

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::Builder::new()
            .prefix("world-")
            .tempdir_in(place())
            .unwrap();
        World { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle with busybox as its root, running `args`, with `mounts` added to its own.
    pub(crate) fn bundle(&self, args: &[&str], mounts: &[Value]) -> PathBuf {
        let bundle = self.path("bundle");
        let rootfs = bundle.join("rootfs");
        if !rootfs.exists() {
            for name in ["bin", "etc", "tmp", "root"] {
                fs::create_dir_all(rootfs.join(name)).unwrap();
            }
            let busybox = ["/bin/busybox", "/usr/bin/busybox"]
                .iter()
                .find(|path| Path::new(path).is_file())
                .unwrap();
            fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
            for applet in APPLETS {
                symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
            }
            fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        }
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
        ];
        all.extend_from_slice(mounts);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                },
            },
            "root": {"path": "rootfs"},
            "hostname": "world",
            "mounts": all,
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    /// The program, with this world's directories.
    pub(crate) fn fcpipe(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fcpipe"));
        command
            .env("FCPIPE_CACHE_DIR", self.path("cache"))
            .env("FCPIPE_STATE_DIR", self.path("state"))
            .env("FCPIPE_DATA_DIR", self.path("data"))
            // `auto` must not take the other one.
            .env(
                match with_firecracker() {
                    true => "FCPIPE_QEMU",
                    false => "FCPIPE_FIRECRACKER",
                },
                "/not/to/be/used",
            )
            .stdin(Stdio::null());
        command
    }

    /// The program with a kernel to boot.
    pub(crate) fn with_kernel(&self) -> Command {
        let mut command = self.fcpipe();
        command.env("FCPIPE_DATA_DIR", data_dir());
        command
    }

    /// The command lines of the processes that have to do with this world.
    fn processes(&self) -> Vec<String> {
        let mark = self.dir.path().display().to_string();
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let dir = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let arguments = String::from_utf8(arguments).unwrap_or_default();
            if arguments.contains(&mark)
                || dir.starts_with(self.dir.path())
                || self.is_jailed(&entry.path())
            {
                processes.push(arguments.replace('\0', " "));
            }
        }
        processes
    }

    /// The control groups of this world's launches: their names end with the state directory's device and inode.
    pub(crate) fn control_groups(&self) -> Vec<PathBuf> {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(meta) = fs::metadata(self.path("state")) else {
            return Vec::new();
        };
        let mark = format!(".{:x}.{:x}", meta.dev(), meta.ino());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut groups = Vec::new();
        for line in mounts.lines().filter(|line| line.starts_with("cgroup")) {
            let mount = line.split(' ').nth(1).unwrap();
            let own = fs::read_dir(Path::new(mount).join("fcpipe"));
            for group in own.into_iter().flatten().flatten() {
                if group.path().display().to_string().ends_with(&mark) {
                    groups.push(group.path());
                }
            }
        }
        groups
    }

    /// Whether the root of this process (`/proc/PID`) is in this world.
    pub(crate) fn is_jailed(&self, process: &Path) -> bool {
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        let root = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"));
        root.is_some_and(|line| line.contains(&self.dir.path().display().to_string()))
    }

    /// The processes of a program that have to do with this world and have not ended.
    pub(crate) fn process_ids(&self, program: &str) -> Vec<u32> {
        let mark = self.dir.path().display().to_string();
        let mut ids = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = arguments.escape_ascii().to_string();
            let name = arguments.split("\\x00").next().unwrap_or_default();
            let dir = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let ours = arguments.contains(&mark)
                || dir.starts_with(self.dir.path())
                || self.is_jailed(&entry.path());
            if ours && Path::new(name).file_name().is_some_and(|n| n == program) {
                ids.push(pid);
            }
        }
        ids
    }

    /// Runs a shell script in a machine.
    pub(crate) fn run_script(&self, script: &str) -> Output {
        let bundle = self.bundle(&["sh", "-c", script], &[]);
        self.with_kernel().arg("run").arg(bundle).output().unwrap()
    }
}

impl Drop for World {
    /// What a test that fails has started ends with it.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for launch in fs::read_dir(self.path("state")).into_iter().flatten() {
            let Ok(launch) = launch else { continue };
            let mut delete = self.fcpipe();
            let _ = delete
                .args(["delete", "--force"])
                .arg(launch.file_name())
                .output();
        }
    }
}

/// Enough to do to a file system whatever can be done.
pub(crate) const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYSLOG",
];

const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "ls",
    "sleep",
    "kill",
    "dd",
    "sha256sum",
    "find",
    "xargs",
    "sort",
    "head",
    "true",
    "id",
    "wc",
    "hostname",
    "ps",
    "mount",
    "touch",
    "stat",
    "uname",
    "grep",
    "echo",
    "test",
    "stty",
    "yes",
];

/// What a launch may leave in a world: processes, mounts, files in the state directory, unfinished objects.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Leftovers {
    processes: Vec<String>,
    mounts: Vec<String>,
    launches: Vec<PathBuf>,
    groups: Vec<PathBuf>,
    scratch: Vec<PathBuf>,
}

impl Leftovers {
    pub(crate) fn of(world: &World) -> Leftovers {
        let mark = world.dir.path().display().to_string();
        let mut processes = world.processes();
        // A supervisor ends after it has told the result, and a process that is dead is gone only when somebody waited for it.
        // Only what stays is waited for so long, so a busy host may take its time.
        let patience = Instant::now() + Duration::from_secs(60);
        while !processes.is_empty() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
            processes = world.processes();
        }
        let names = |dir: PathBuf| {
            let mut names: Vec<PathBuf> = fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.file_name().is_some_and(|name| name != ".lock"))
                .collect();
            names.sort();
            names
        };
        Leftovers {
            processes,
            mounts: fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .lines()
                .filter(|line| line.contains(&mark))
                .map(str::to_owned)
                .collect(),
            launches: names(world.path("state")),
            groups: world.control_groups(),
            scratch: names(world.path("cache/v1/tmp")),
        }
    }

    #[track_caller]
    pub(crate) fn assert_none(&self) {
        assert_eq!(*self, Leftovers::default());
    }
}

/// The exit code, with the program's words where it is not the expected one.
#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32) {
    let said = || {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        format!(
            "stdout: {}\nstderr: {}",
            text(&output.stdout),
            text(&output.stderr)
        )
    };
    assert_eq!(output.status.code(), Some(code), "{}", said());
}

/// How a program ends that says less than a pipe holds. One that does not end is killed, and that is a failure.
#[track_caller]
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command with `input` on its standard input.
pub(crate) fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}
