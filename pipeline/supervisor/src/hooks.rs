//! Hooks on the host: programs that a spec names to be run at a point of a launch's life, with OCI's state on their
//! standard input.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fcpipe_engine::CancelToken;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
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
    // A file, and no pipe: a hook may never read the state, which has annotations of any length.
    let mut input = nameless().map_err(said)?;
    input
        .write_all(state.to_string().as_bytes())
        .map_err(said)?;
    input.rewind().map_err(said)?;
    let (mut words, pipe) = Words::new().map_err(said)?;
    crate::signals::unblock_in(&mut command);
    let child = command
        .stdin(input)
        .stdout(pipe.try_clone().map_err(said)?)
        .stderr(pipe)
        .process_group(0)
        .spawn();
    // It has the pipe's other end, too.
    drop(command);
    let mut child = child.map_err(said)?;
    let ended = wait(Pid::from_child(&child), hook.timeout, cancel, &mut words);
    if !matches!(ended, Ok(Ended::ByItself)) {
        // With the children that it has: it leads their group.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(said)?;
    words.end();
    match ended.map_err(said)? {
        Ended::ByItself => {}
        Ended::Late(seconds) => return Err(format!("did not end within {seconds} s")),
        Ended::Cancelled => return Err("was ended with the launch".to_owned()),
    }
    if status.success() {
        return Ok(());
    }
    let text = words.text();
    Err(match text.as_str() {
        "" => status.to_string(),
        text => format!("{status}: {text}"),
    })
}

/// What a hook says: its first words are kept, and the rest is read and forgotten.
struct Words {
    /// `None`: it has ended.
    pipe: Option<PipeReader>,
    kept: Vec<u8>,
}

/// As much as a pipe holds.
const PIPE: usize = 64 << 10;

impl Words {
    /// With the end that the hook gets.
    fn new() -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        ioctl_fionbio(&reader, true)?;
        let words = Words {
            pipe: Some(reader),
            kept: Vec::new(),
        };
        Ok((words, writer))
    }

    /// Reads what is there.
    fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return;
        };
        let mut bytes = vec![0; PIPE];
        match pipe.read(&mut bytes) {
            Ok(0) => self.pipe = None,
            Ok(got) => {
                let kept = got.min(WORDS - self.kept.len());
                self.kept.extend_from_slice(&bytes[..kept]);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }

    /// The hook has ended. A child that it left behind may have its output still: nobody waits for that, but it shall not die of writing to it
    /// as long as this process lives.
    fn end(&mut self) {
        self.read();
        let Some(mut pipe) = self.pipe.take() else {
            return;
        };
        if ioctl_fionbio(&pipe, false).is_ok() {
            let thread = std::thread::Builder::new().name("hook-words".to_owned());
            // Without a thread the pipe is closed.
            let _ = thread.spawn(move || io::copy(&mut pipe, &mut io::sink()));
        }
    }

    fn text(&self) -> String {
        bstr::BStr::new(&self.kept).to_string().trim().to_owned()
    }
}

/// Why a hook is waited for no more.
enum Ended {
    ByItself,
    /// Not within so many seconds.
    Late(u64),
    Cancelled,
}

fn wait(
    pid: Pid,
    timeout: Option<u64>,
    cancel: Option<&CancelToken>,
    words: &mut Words,
) -> io::Result<Ended> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // One that no clock reaches is none.
    let end = timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).unwrap_or(A_DAY));
        let (ended, cancelled, said) = {
            let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
            fds.extend(cancel.map(|cancel| PollFd::new(cancel, PollFlags::IN)));
            fds.extend(
                words
                    .pipe
                    .iter()
                    .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
            );
            match poll(&mut fds, left.as_ref()) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let mut set = fds.iter().map(|fd| !fd.revents().is_empty());
            let ended = set.next().unwrap_or(false);
            let cancelled = cancel.is_some() && set.next().unwrap_or(false);
            (ended, cancelled, set.next().unwrap_or(false))
        };
        if said {
            words.read();
        }
        if ended {
            return Ok(Ended::ByItself);
        }
        if cancelled {
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

    #[test]
    fn what_a_hook_says_is_kept_nowhere_but_for_its_first_words() {
        let script = "echo first; head -c 20000000 /dev/zero; stat -L -c 'kept %s' /proc/self/fd/2 >&3; exit 3";
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        let script = format!("exec 3> {}; {script}", kept.display());
        let error = run(
            "prestart",
            &[hook(&script, None)],
            &serde_json::json!({}),
            None,
        );
        let said = error.unwrap_err().to_string();
        assert!(
            said.contains("first") && said.len() < 4 * WORDS,
            "{}",
            said.len()
        );
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "kept 0\n");
    }

    #[test]
    fn a_child_that_a_hook_leaves_behind_is_not_waited_for_and_may_go_on_writing() {
        let dir = tempfile::tempdir().unwrap();
        let (go, done) = (dir.path().join("go"), dir.path().join("done"));
        // More than a pipe holds, and with the program's own words, which a closed one would end.
        let child = format!(
            "while ! test -e {}; do sleep 0.01; done; head -c 1000000 /dev/zero && echo said && touch {}",
            go.display(),
            done.display()
        );
        let hooks = [hook(&format!("({child}) & exit 0"), None)];
        run("prestart", &hooks, &serde_json::json!({}), None).unwrap();
        std::fs::write(go, "").unwrap();
        until("it died of writing", || done.exists());
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
