//! An agent to test: made, talked to, and taken away again.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_guest::agent::{Agent, Outcome, Settings};
use fcpipe_proto::host::{self, RunningProcess, Session};
use fcpipe_proto::{ExitStatus, GuestConfig, GuestMount, Process, ProtoError, RootFs, Writes};

const BOOT: &str = "boot";
/// What tells the test that is the agent's process where to serve, and from which disk.
const DIR: &str = "FCPIPE_TEST_AGENT_DIR";
const DISK: &str = "FCPIPE_TEST_AGENT_DISK";
/// An empty ext4, the second disk.
const SCRATCH: &str = "FCPIPE_TEST_AGENT_SCRATCH";
/// The PID namespace of the tests, in which the agent must not be: they kill everything in theirs.
const NOT_IN: &str = "FCPIPE_TEST_AGENT_NOT_IN";

fn pid_namespace() -> PathBuf {
    fs::read_link("/proc/self/ns/pid").unwrap()
}

/// Far more than anything here needs: it is reached by what hangs.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Not a test: the process that [`Guest::new`] starts.
#[test]
#[ignore = "started by the other tests"]
fn agent_process() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(dir), Some(disk), Some(scratch)) = (path(DIR), path(DISK), path(SCRATCH)) else {
        return;
    };
    let disks = [disk, scratch];
    let outside = std::env::var_os(NOT_IN).unwrap();
    assert_ne!(pid_namespace(), Path::new(&outside));
    // It ends with the test, however that ends: its standard input is a pipe of the test's.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let agent = Arc::new(Agent::new(Settings {
        boot_id: BOOT.to_owned(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_fcpipe-guest")),
        base: dir.join("container"),
        disk: Box::new(move |number| disks.get(number as usize).cloned()),
        cgroup: None,
    }));
    agent.start_watching().unwrap();
    let listener = UnixListener::bind(dir.join("agent")).unwrap();
    for stream in listener.incoming() {
        let agent = Arc::clone(&agent);
        let stream = stream.unwrap();
        thread::spawn(move || {
            if agent.serve_one(stream) == Outcome::Shutdown {
                std::process::exit(0);
            }
        });
    }
}

/// Why these tests cannot run here, said once a test.
fn missing() -> Option<&'static str> {
    let program = |name: &str| {
        let mut command = Command::new(name);
        let quiet = command
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.status().is_ok()
    };
    if !rustix::process::geteuid().is_root() {
        Some("not root")
    } else if !program("mke2fs") {
        Some("no mke2fs")
    } else if !program("unshare") {
        Some("no unshare")
    } else if !program("losetup") || !Path::new("/dev/loop-control").exists() {
        Some("no loop devices")
    } else if !Path::new("/bin/busybox").exists() {
        Some("no /bin/busybox (busybox-static)")
    } else {
        None
    }
}

/// An agent, its disk, and a session with it.
pub(crate) struct Guest {
    pub(crate) dir: tempfile::TempDir,
    disks: [PathBuf; 2],
    agent: Child,
    pub(crate) session: Option<Session>,
}

impl Guest {
    /// `None`, and a line that says so, where such tests cannot run.
    pub(crate) fn new() -> Option<Self> {
        Self::with_root(|_| ())
    }

    /// With a root that `change` has added to.
    pub(crate) fn with_root(change: impl FnOnce(&Path)) -> Option<Self> {
        if let Some(why) = missing() {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{why}");
            println!("skipped: {why}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for sub in ["bin", "etc", "tmp", "home/web"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh",
            "cat",
            "dd",
            "echo",
            "false",
            "grep",
            "head",
            "hostname",
            "id",
            "kill",
            "ls",
            "mkfifo",
            "mount",
            "ps",
            "pwd",
            "readlink",
            "seq",
            "sha256sum",
            "sleep",
            "stat",
            "stty",
            "touch",
            "true",
            "tty",
            "umask",
            "env",
            "wc",
            "yes",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/home/web:\n",
        )
        .unwrap();
        fs::write(root.join("bin/text"), "no program\n").unwrap();
        change(&root);
        let image = dir.path().join("image");
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([&root, &image])
            .arg("48M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let empty = dir.path().join("scratch");
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
            .arg(&empty)
            .arg("16M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let disks = [&image, &empty].map(|file| {
            let attached = Command::new("losetup")
                .args(["-f", "--show"])
                .arg(file)
                .output()
                .unwrap();
            assert!(attached.status.success(), "{attached:?}");
            PathBuf::from(std::str::from_utf8(&attached.stdout).unwrap().trim())
        });
        // The agent is in namespaces of its own before it makes any: whatever it forgets to do,
        // what runs in its container cannot kill, rename or unmount anything of the host's. The
        // shell is PID 1, and its end is the end of all.
        let agent = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--uts",
                "--ipc",
            ])
            .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "agent::agent_process",
                "--ignored",
                "--nocapture",
            ])
            .env(DIR, dir.path())
            .env(DISK, &disks[0])
            .env(SCRATCH, &disks[1])
            .env(NOT_IN, pid_namespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Some(Guest {
            dir,
            disks,
            agent,
            session: None,
        })
    }

    pub(crate) fn connect(&self) -> Result<Session, ProtoError> {
        let path = self.dir.path().join("agent");
        let deadline = soon();
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Session::connect(stream, BOOT, deadline),
                Err(e) => assert!(Instant::now() < deadline, "no agent: {e}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// As [`Guest::connect`], when another session has just ended: the agent sees that a moment
    /// later.
    pub(crate) fn reconnect(&self) -> Session {
        let deadline = soon();
        loop {
            match self.connect() {
                Err(ProtoError::Busy) => assert!(Instant::now() < deadline),
                other => return other.unwrap(),
            }
        }
    }

    /// With the usual configuration.
    pub(crate) fn configured(mut self) -> Self {
        let session = self.connect().unwrap();
        session.configure(&config(), soon()).unwrap();
        self.session = Some(session);
        self
    }

    pub(crate) fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }

    pub(crate) fn start(
        &self,
        process: &Process,
        stdin: Option<OwnedFd>,
    ) -> Result<Running, ProtoError> {
        let (out, err) = (Kept::default(), Kept::default());
        let stdio = host::Stdio {
            stdin,
            stdout: Box::new(out.clone()),
            stderr: Box::new(err.clone()),
        };
        let process = self.session().start(process, stdio, soon())?;
        Ok(Running { process, out, err })
    }

    /// Runs a shell script to its end.
    pub(crate) fn sh(&self, script: &str) -> Ended {
        self.start(&sh(script), None).unwrap().end()
    }

    /// Writes everything back, as far as the agent can, and waits for it to end.
    pub(crate) fn shutdown(&mut self) -> bool {
        let clean = self.session().shutdown(soon()).unwrap();
        self.agent.wait().unwrap();
        clean
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // What still runs in the container is not left to the host.
        if let Some(session) = self.session.take() {
            let _ = session.shutdown(Instant::now() + Duration::from_secs(10));
        }
        // Without its standard input it ends.
        drop(self.agent.stdin.take());
        let _ = self.agent.wait();
        for disk in &self.disks {
            let _ = Command::new("losetup").arg("-d").arg(disk).status();
        }
    }
}

pub(crate) fn config() -> GuestConfig {
    GuestConfig {
        hostname: Some("inside".to_owned()),
        ..GuestConfig::new(
            RootFs {
                disk: 0,
                fstype: "ext4".to_owned(),
                disk_readonly: false,
                readonly: false,
                beside: Vec::new(),
                writes: Writes::Direct,
            },
            GuestMount::defaults(),
        )
    }
}

/// Waits until the container's first process is the `sleep` that its shell becomes after its last word.
pub(crate) const AWAKE: &str = "until grep -q ^sleep /proc/1/cmdline; do sleep 0.01; done";

pub(crate) fn sh(script: &str) -> Process {
    let mut process = Process::new(["/bin/sh", "-c", script]);
    process.env = vec!["PATH=/bin".to_owned()];
    process
}

/// Keeps what is written.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for this to have been written.
    pub(crate) fn wait_for(&self, what: &str) {
        let deadline = soon();
        while !self
            .bytes()
            .windows(what.len())
            .any(|w| w == what.as_bytes())
        {
            assert!(Instant::now() < deadline, "no {what:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) struct Running {
    pub(crate) process: RunningProcess,
    pub(crate) out: Kept,
    pub(crate) err: Kept,
}

impl Running {
    pub(crate) fn end(self) -> Ended {
        let status = self.process.wait(Some(soon())).unwrap();
        Ended {
            status: status.expect("it should have ended"),
            out: String::from_utf8(self.out.bytes()).unwrap(),
            err: String::from_utf8(self.err.bytes()).unwrap(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn code(&self) -> u8 {
        self.status.shell_code()
    }
}
