//! Hooks: programs of the container's root that run on the way to its process.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fcpipe_proto::Failure;
use fcpipe_proto::confine::{Hook, HookState};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

use super::{failed, setup};
use crate::sys;

/// How often a hook with a timeout is looked at.
const STEP: Duration = Duration::from_millis(5);
/// How much of what a hook said an error shows, bytes.
const SHOWN: usize = 512;

/// The OCI state, as a hook reads it.
#[derive(Serialize)]
struct State<'a> {
    #[serde(flatten)]
    fixed: &'a HookState,
    status: &'a str,
    /// The container's PID 1 as the hook sees it.
    pid: u32,
}

/// Runs them one after another; the first that fails is an error. `root` is what they have as their root, where that
/// is not the root already.
pub(super) fn run(
    hooks: &[Hook],
    state: Option<&HookState>,
    status: &str,
    root: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    if hooks.is_empty() {
        return Ok(());
    }
    let none = HookState::default();
    let state = State {
        fixed: state.unwrap_or(&none),
        status,
        pid: std::process::id(),
    };
    let state = serde_json::to_vec(&state).map_err(|e| setup(&e.to_string()))?;
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, &state, root))
}

fn run_one(hook: &Hook, state: &[u8], root: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let path = Some(hook.path.as_str());
    let why = |e: std::io::Error| failed(path, "running the hook", e);
    // Files, so that neither side waits for the other.
    let mut input = scratch().map_err(why)?;
    input.write_all(state).map_err(why)?;
    input.rewind().map_err(why)?;
    let mut said = scratch().map_err(why)?;
    let output = said.try_clone().map_err(why)?;

    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    for variable in &hook.env {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    command
        .stdin(input)
        .stdout(output.try_clone().map_err(why)?)
        .stderr(output);
    if let Some(root) = root {
        sys::spawn_in_root(&mut command, root.try_clone_to_owned().map_err(why)?);
    }
    let mut child = command.spawn().map_err(why)?;
    let timeout = hook
        .timeout_seconds
        .map(|s| Duration::from_secs(u64::from(s)));
    let Some(status) = wait(&mut child, timeout).map_err(why)? else {
        return Err(Failure::new(
            fcpipe_proto::FailureKind::Setup,
            path,
            "the hook took longer than its timeout",
        ));
    };
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    // What a hook said is worth showing, and no more.
    let _ = said
        .rewind()
        .and_then(|()| said.take(SHOWN as u64).read_to_end(&mut words));
    Err(Failure::new(
        fcpipe_proto::FailureKind::Setup,
        path,
        format!(
            "the hook failed, {status}: {}",
            words.trim_ascii_end().escape_ascii()
        ),
    ))
}

fn scratch() -> std::io::Result<File> {
    let fd: OwnedFd = memfd_create("hook", MemfdFlags::CLOEXEC)?;
    Ok(File::from(fd))
}

/// `None`: it took too long, and was killed.
fn wait(child: &mut Child, timeout: Option<Duration>) -> std::io::Result<Option<ExitStatus>> {
    let Some(timeout) = timeout else {
        return child.wait().map(Some);
    };
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(STEP);
    }
}
