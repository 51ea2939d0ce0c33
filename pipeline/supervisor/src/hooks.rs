//! Hooks on the host: programs that a spec names to be run at a point of a launch's life, with OCI's state on their
//! standard input.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// How often a hook that has a timeout is looked at.
const STEP: Duration = Duration::from_millis(5);
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

/// Runs hooks in order; the first that fails ends it.
pub(crate) fn run(
    point: &'static str,
    hooks: &[Hook],
    state: &serde_json::Value,
) -> Result<(), HookError> {
    for hook in hooks {
        one(hook, state).map_err(|why| HookError {
            point,
            path: hook.path.clone(),
            why,
        })?;
    }
    Ok(())
}

fn one(hook: &Hook, state: &serde_json::Value) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for entry in &hook.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    // Its words go to a file, which a child that it leaves behind can hold open without anybody waiting for it.
    let mut words = tempfile()?;
    let said = || words.try_clone().map_err(|e| e.to_string());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(said()?)
        .stderr(said()?)
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it is no error. The state fits a pipe.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let end = hook
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        let waited = match end {
            None => child.wait().map(Some),
            Some(_) => child.try_wait(),
        };
        if let Some(status) = waited.map_err(|e| e.to_string())? {
            break status;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = hook.timeout.unwrap_or_default();
            return Err(format!("did not end within {seconds} s"));
        }
        std::thread::sleep(STEP);
    };
    if status.success() {
        return Ok(());
    }
    let text = {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut bytes = Vec::new();
        let _ = words.seek(SeekFrom::Start(0));
        let _ = (&mut words).take(WORDS as u64).read_to_end(&mut bytes);
        bstr::BStr::new(&bytes).to_string().trim().to_owned()
    };
    Err(match text.as_str() {
        "" => status.to_string(),
        text => format!("{status}: {text}"),
    })
}

/// A file without a name, in memory.
fn tempfile() -> Result<std::fs::File, String> {
    rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)
        .map(Into::into)
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        run("prestart", &[hook(&script, None)], &state).unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        assert!(text.starts_with(r#"{"id":"one"}"#), "{text}");
        assert!(
            text.contains("WHERE=here") && !text.contains("HOME="),
            "{text}"
        );
    }

    #[test]
    fn a_hook_that_fails_says_why_and_the_next_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let second = hook(&format!("touch {}", out.display()), None);
        let hooks = [hook("echo no such bridge >&2; exit 3", None), second];
        let error = run("createRuntime", &hooks, &serde_json::json!({})).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("createRuntime") && said.contains("no such bridge"),
            "{said}"
        );
        assert!(!out.exists());
    }

    #[test]
    fn a_hook_that_hangs_is_ended_at_its_timeout() {
        let begun = Instant::now();
        let error = run(
            "poststop",
            &[hook("sleep 100", Some(1))],
            &serde_json::json!({}),
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("did not end within 1 s")
        );
        assert!(begun.elapsed() < Duration::from_secs(50));
    }
}
