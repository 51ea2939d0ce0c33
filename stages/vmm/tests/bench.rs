//! What every test here needs: a directory, a configuration, fake programs, and a fake agent.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use fcpipe_vmm::{
    Accelerator, KernelFiles, Machine, MachineConfig, ProcessMark, Qemu, Vmm, VmmError,
};

pub(crate) const NEVER: &dyn Fn() -> bool = &|| false;

pub(crate) fn fake(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fakes")
        .join(name)
}

pub(crate) fn qemu(qemu: &str, device: &str) -> Qemu {
    Qemu::new(fake(qemu), fake(device), Accelerator::Tcg)
}

pub(crate) fn config(dir: &Path) -> MachineConfig {
    MachineConfig {
        cage: fcpipe_vmm::Cage::default(),
        id: "test".into(),
        vcpus: 1,
        memory_mib: 128,
        kernel: KernelFiles {
            bzimage: Some("/no/bzimage".into()),
            vmlinux: "/no/vmlinux".into(),
        },
        initrd: "/no/initrd".into(),
        cmdline_extra: String::new(),
        vsock_cid: 3,
        dir: dir.to_owned(),
        inherit: Vec::new(),
        netns: None,
        nics: Vec::new(),
        tuning: fcpipe_vmm::Tuning::default(),
    }
}

pub(crate) fn start(dir: &Path, qemu: &Qemu) -> Result<Box<dyn Machine>, VmmError> {
    qemu.start(&config(dir), &[], NEVER)
}

pub(crate) fn soon(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

/// Far more than anything here needs: it is reached by what hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Whether a test that needs root runs. With `CI=true` it is a failure not to be.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"));
        println!("skipped: not root");
    }
    root
}

/// A process of a test's own, which does not outlive it.
pub(crate) struct Held(pub(crate) Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The error of a connect that must fail, and fail long before its deadline.
pub(crate) fn connect_fails_at_once(machine: &dyn Machine) -> VmmError {
    let begun = Instant::now();
    let error = machine.connect(1000, begun + 10 * LONG, NEVER).unwrap_err();
    assert!(begun.elapsed() < LONG, "{error}");
    error
}

/// Listens where a real vsock device would.
pub(crate) fn listen(dir: &Path) -> UnixListener {
    let dir = std::fs::File::open(dir).unwrap();
    UnixListener::bind(format!("/proc/self/fd/{}/vsock.sock", dir.as_raw_fd())).unwrap()
}

/// Accepts one connection and reads its first line.
pub(crate) fn accept(listener: &UnixListener) -> (UnixStream, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut line)
        .unwrap();
    (stream, line)
}

/// Waits until `done`, which the host's own speed decides.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest says something when it has been started, not before a start is answered.
pub(crate) fn assert_says(machine: &dyn Machine, words: &str) {
    eventually(words, || {
        let tail = machine.console_tail();
        tail.windows(words.len())
            .any(|said| said == words.as_bytes())
    });
}

/// Tells a fake that waits for it to go on.
pub(crate) fn go(dir: &Path) {
    std::fs::write(dir.join("go"), "").unwrap();
}

pub(crate) fn assert_gone(marks: &[ProcessMark]) {
    assert!(!marks.is_empty());
    eventually("the processes end", || {
        marks.iter().all(|mark| !mark.is_alive())
    });
}
