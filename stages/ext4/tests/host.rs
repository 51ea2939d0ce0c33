//! The tools of the host, and loop mounts that go away by themselves.

use std::path::Path;
use std::process::{Command, Output};

/// Whether a test that needs root can run; says why if not. With `CI=true` it must.
pub(crate) fn has_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{test} needs root"
        );
        eprintln!("skipped: {test} needs root");
    }
    root
}

/// Runs a program to its end. `None`, with a word, if the host does not have it; with `CI=true` it must.
pub(crate) fn run(program: &str, args: &[&str], image: &Path) -> Option<Output> {
    let result = Command::new(program)
        .args(args)
        .arg(image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .output();
    match result {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "there is no {program}"
            );
            eprintln!("skipped: there is no {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    both.escape_ascii().to_string().replace("\\n", "\n")
}

/// Every structure of the image is right, and nothing was to be repaired.
#[track_caller]
pub(crate) fn assert_clean(image: &Path) {
    let Some(output) = run("e2fsck", &["-fn"], image) else {
        return;
    };
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    // Some findings are told without a change of the status.
    let last = text
        .lines()
        .rfind(|line| line.contains(" files "))
        .unwrap_or("");
    let lines = text.lines().filter(|line| {
        !line.starts_with("Pass ") && !line.starts_with("e2fsck ") && !line.is_empty()
    });
    let others: Vec<&str> = lines.filter(|line| *line != last).collect();
    assert!(others.is_empty(), "{text}");
}

/// dumpe2fs reads everything and complains of nothing. Gives what it says.
#[track_caller]
pub(crate) fn dump(image: &Path) -> Option<String> {
    let output = run("dumpe2fs", &[], image)?;
    assert!(output.status.success(), "{}", text(&output));
    let errors = String::from_utf8(output.stderr.clone()).expect("text");
    let errors: Vec<&str> = errors
        .lines()
        .filter(|l| !l.starts_with("dumpe2fs "))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    Some(text(&output))
}

/// Gives this thread, and what it starts, mounts of its own. Else whatever program of the host makes itself a mount
/// namespace meanwhile gets a copy of ours, and the file system stays in use when it is unmounted here.
#[track_caller]
fn own_mounts() {
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if DONE.replace(true) {
        return;
    }
    let flags = rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS;
    #[allow(unsafe_code, reason = "unshare for one thread")]
    // SAFETY: no descriptors are unshared, and what this thread looks up by path is its own affair.
    unsafe { rustix::thread::unshare_unsafe(flags) }.expect("a mount namespace");
    let status = Command::new("mount")
        .args(["--make-rprivate", "/"])
        .status()
        .expect("mount");
    assert!(status.success(), "mounts can't be made private");
}

/// A loop mount; unmounted when dropped.
pub(crate) struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    /// Mounts an image with those options beside `loop`.
    #[track_caller]
    pub(crate) fn new(image: &Path, options: &str) -> Mount {
        own_mounts();
        let dir = tempfile::tempdir().expect("a directory");
        let status = Command::new("mount")
            .args(["-t", "ext4", "-o", &format!("loop,{options}")])
            .arg(image)
            .arg(dir.path())
            .status()
            .expect("mount");
        assert!(status.success(), "the kernel does not mount the image");
        Mount { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts, and makes sure that it worked. A program that another test is just starting has every
    /// descriptor of this one for a moment, so the first attempt may find the mount busy.
    pub(crate) fn unmount(self) {
        for _ in 0..3000 {
            let output = Command::new("umount")
                .arg(self.path())
                .output()
                .expect("umount");
            if output.status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("{:?} can't be unmounted", self.path());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After a failure, or after `unmount`, when it does nothing.
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        if mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == self.path().to_str())
        {
            Command::new("umount")
                .arg("-l")
                .arg(self.path())
                .status()
                .ok();
        }
    }
}
