//! Hooks on the host: programs that a spec names to be run at a point of a launch's life, with OCI's state on their
//! standard input.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fcpipe_engine::CancelToken;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

/// A hook, in OCI's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    /// With the program's name; none: the path alone.
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// How much of a hook's complaint is told.
const WORDS: usize = 2048;

/// A hook that did not end well.
#[derive(Debug, thiserror::Error)]
#[error("the {point} hook {}: {why}", path.display())]
pub struct HookError {
    point: &'static str,
    path: PathBuf,
    why: String,
}

/// Runs hooks in order; the first that fails ends it. One that still runs when `cancel` is set is ended, and has failed.
pub(crate) fn run(
    point: &'static str,
    hooks: &[Hook],
    state: &serde_json::Value,
    cancel: Option<&CancelToken>,
) -> Result<(), HookError> {
    for hook in hooks {
        one(hook, state, cancel).map_err(|why| HookError {
            point,
            path: hook.path.clone(),
            why,
        })?;
    }
    Ok(())
}

fn one(hook: &Hook, state: &serde_json::Value, cancel: Option<&CancelToken>) -> Result<(), String> {
    let said = |e: io::Error| e.to_string();
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for entry in &hook.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    // Files, and no pipes: a hook may never read the state, which has annotations of any length, and its words can be held open by
    // a child that it leaves behind. Nobody waits for either.
    let mut input = nameless().map_err(said)?;
    input
        .write_all(state.to_string().as_bytes())
        .map_err(said)?;
    input.rewind().map_err(said)?;
    let mut words = nameless().map_err(said)?;
    crate::signals::unblock_in(&mut command);
    let mut child = command
        .stdin(input)
        .stdout(words.try_clone().map_err(said)?)
        .stderr(words.try_clone().map_err(said)?)
        .process_group(0)
        .spawn()
        .map_err(said)?;
    let ended = wait(Pid::from_child(&child), hook.timeout, cancel);
    if !matches!(ended, Ok(Ended::ByItself)) {
        // With the children that it has: it leads their group.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(said)?;
    match ended.map_err(said)? {
        Ended::ByItself => {}
        Ended::Late(seconds) => return Err(format!("did not end within {seconds} s")),
        Ended::Cancelled => return Err("was ended with the launch".to_owned()),
    }
    if status.success() {
        return Ok(());
    }
    let text = {
        let mut bytes = Vec::new();
        let _ = words.rewind();
        let _ = (&mut words).take(WORDS as u64).read_to_end(&mut bytes);
        bstr::BStr::new(&bytes).to_string().trim().to_owned()
    };
    Err(match text.as_str() {
        "" => status.to_string(),
        text => format!("{status}: {text}"),
    })
}

/// Why a hook is waited for no more.
enum Ended {
    ByItself,
    /// Not within so many seconds.
    Late(u64),
    Cancelled,
}

fn wait(pid: Pid, timeout: Option<u64>, cancel: Option<&CancelToken>) -> io::Result<Ended> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
    fds.extend(cancel.map(|cancel| PollFd::new(cancel, PollFlags::IN)));
    // One that no clock reaches is none.
    let end = timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).unwrap_or(A_DAY));
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let set = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        if set(fds.first()) {
            return Ok(Ended::ByItself);
        }
        if set(fds.get(1)) {
            return Ok(Ended::Cancelled);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(Ended::Late(timeout.unwrap_or_default()));
        }
    }
}

/// The longest single wait, where the whole of it is too long for the system.
const A_DAY: Timespec = Timespec {
    tv_sec: 86_400,
    tv_nsec: 0,
};

/// A file without a name, in memory.
fn nameless() -> io::Result<File> {
    let fd = rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::until;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["WHERE=here".to_owned()],
            timeout,
        }
    }

    #[test]
    fn hooks_get_the_state_and_their_environment_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {0}; env | sort >> {0}", out.display());
        let state = serde_json::json!({"id": "one"});
        run("prestart", &[hook(&script, None)], &state, None).unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        assert!(text.starts_with(r#"{"id":"one"}"#), "{text}");
        assert!(
            text.contains("WHERE=here") && !text.contains("HOME="),
            "{text}"
        );
    }

    #[test]
    fn hooks_begin_with_no_signal_blocked() {
        crate::signals::block().unwrap();
        // Without a shell, as some clear their mask themselves. A file that is not there makes it fail, so that its words are kept.
        let args = ["grep", "-s", "SigBlk", "/proc/self/status", "/not-there"];
        let hook = Hook {
            path: "/bin/grep".into(),
            args: args.map(Into::into).to_vec(),
            ..hook("", None)
        };
        let error = run("prestart", &[hook], &serde_json::json!({}), None).unwrap_err();
        let said = error.to_string();
        assert!(said.ends_with("SigBlk:\t0000000000000000"), "{said}");
    }

    #[test]
    fn a_hook_that_fails_says_why_and_the_next_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let second = hook(&format!("touch {}", out.display()), None);
        let hooks = [hook("echo no such bridge >&2; exit 3", None), second];
        let error = run("createRuntime", &hooks, &serde_json::json!({}), None).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("createRuntime") && said.contains("no such bridge"),
            "{said}"
        );
        assert!(!out.exists());
    }

    /// A hook that never reads its input: how it failed. Nothing is left of it.
    fn hangs(timeout: Option<u64>, cancel: Option<CancelToken>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        // More than a pipe holds.
        let state = serde_json::json!({"annotations": {"long": "x".repeat(300_000)}});
        let runs = || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'));
        let (tell, told) = std::sync::mpsc::channel();
        let (hooks, token) = ([hook(&script, timeout)], cancel.clone());
        std::thread::spawn(move || tell.send(run("poststop", &hooks, &state, token.as_ref())));
        if let Some(cancel) = cancel {
            until("it does not begin", runs);
            cancel.cancel();
        }
        let told = told.recv_timeout(Duration::from_secs(60));
        let error = told.expect("it is waited for still").unwrap_err();
        // A busy host may have ended it before it had a child.
        if runs() {
            let child = std::fs::read_to_string(pid).unwrap();
            let stat = format!("/proc/{}/stat", child.trim());
            until("its child lives", || {
                !std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "))
            });
        }
        error.to_string()
    }

    #[test]
    fn a_hook_that_hangs_is_ended_at_its_timeout() {
        let said = hangs(Some(1), None);
        assert!(said.contains("did not end within 1 s"), "{said}");
    }

    #[test]
    fn row_49_a_hook_that_hangs_is_ended_with_its_launch() {
        for timeout in [None, Some(1000), Some(u64::MAX)] {
            let said = hangs(timeout, Some(CancelToken::new().unwrap()));
            assert!(said.contains("ended with the launch"), "{said}");
        }
    }
}
