//! What is said on a launch's control socket, and between a supervisor and whoever started it.
//!
//! A connection begins with one request. `exec` goes on with `signal` and `resize` from the client, which are about the
//! process that it started; so does the connection of whoever started the launch, about the launch's own process.

use std::sync::Arc;

use fcpipe_engine::{Event, Failure, FailureKind};
use fcpipe_proto::{ExitStatus, Process, WindowSize};
use serde::{Deserialize, Serialize};

use crate::stats::Stats;

/// To the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Starts the process of a launch that was created.
    Start,
    /// Sends a signal to the launch's process, or to all of them.
    Kill { signal: i32, all: bool },
    /// Ends the launch, whatever it is doing.
    End,
    /// Runs a process beside the launch's own. Its standard streams come as descriptors: input (if `stdin`), output,
    /// error.
    Exec {
        process: Box<ExecProcess>,
        stdin: bool,
    },
    /// A signal for the process of this connection; a second one of the same launch ends it.
    Signal { signal: i32 },
    /// The terminal of this connection's process has another size.
    Resize { size: WindowSize },
    /// Answered when the launch's process has ended.
    Wait,
    /// What the launch uses.
    Stats,
}

/// A process to run beside a launch's own: what is not said is as that one has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecProcess {
    /// Everything about it, as an OCI `process` has it.
    pub whole: Option<Process>,
    /// Empty: as `whole` has it.
    pub args: Vec<String>,
    /// `NAME=value`, beside the environment that there is, and over it.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// It has a terminal, of this size.
    pub terminal: Option<WindowSize>,
}

impl ExecProcess {
    /// The process, where the launch's own is `own`.
    pub(crate) fn over(self, own: &Process) -> Process {
        let mut process = self.whole.unwrap_or_else(|| own.clone());
        if !self.args.is_empty() {
            process.args = self.args;
        }
        process.env.extend(self.env);
        if let Some(cwd) = self.cwd {
            process.cwd = cwd;
        }
        if let Some((uid, gid)) = self.user {
            process.uid = uid;
            process.gid = gid.unwrap_or(process.gid);
        }
        process.terminal = self.terminal.is_some();
        process.console_size = self.terminal;
        // What confines the container confines all in it, and what a process does not say of itself it has from the first,
        // as with runc.
        process.seccomp.clone_from(&own.seccomp);
        process.personality = own.personality;
        process.capabilities = process.capabilities.or(own.capabilities);
        process
    }
}

/// From the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// A step of the launch began, got on or ended.
    Event {
        event: Event,
    },
    /// Something to tell the user: a whole line, without its end.
    Note {
        line: String,
    },
    /// The launch is created: its guest waits for `start`.
    Created,
    /// The process runs.
    Started,
    /// The process ended.
    Exited {
        status: ExitStatus,
    },
    /// The launch ended by this signal, before its process could take it.
    Ended {
        signal: i32,
    },
    /// What was asked for is done.
    Done,
    /// It is, but the process takes no notice of the signal.
    Dropped,
    /// It is not, and why.
    Failed {
        failed: Failed,
    },
    Stats {
        stats: Box<Stats>,
    },
}

/// A failure that goes from one process to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub node: String,
    pub kind: FailureKind,
    pub subject: String,
    /// The chain of causes, in one line.
    pub cause: Option<String>,
    pub hint: Option<String>,
}

impl Failed {
    /// One that no step of a launch is to blame for.
    pub fn new(kind: FailureKind, subject: impl std::fmt::Display) -> Self {
        Failed {
            node: String::new(),
            kind,
            subject: subject.to_string(),
            cause: None,
            hint: None,
        }
    }

    /// What a guest could not do.
    pub(crate) fn of_guest(error: &fcpipe_proto::ProtoError) -> Self {
        use fcpipe_proto::{FailureKind as Kind, ProtoError};
        let kind = match error {
            ProtoError::Failed(failure) => match failure.kind {
                Kind::NotFound => FailureKind::CommandNotFound,
                Kind::NotExecutable => FailureKind::CommandNotExecutable,
                Kind::Setup | Kind::Protocol => FailureKind::Guest,
            },
            _ => FailureKind::Guest,
        };
        Failed::new(kind, error)
    }
}

impl From<&Failure> for Failed {
    fn from(failure: &Failure) -> Self {
        let whole = format!("{failure:#}");
        let without = failure.to_string();
        let cause = whole
            .strip_prefix(&without)
            .and_then(|rest| rest.strip_prefix(": "))
            .map(str::to_owned);
        Failed {
            node: failure.node.to_string(),
            kind: failure.kind,
            subject: failure.subject.clone(),
            cause,
            hint: failure.hint.clone(),
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        let node: Arc<str> = failed.node.into();
        let cause = failed.cause.map(Into::into);
        let failure = Failure::new(node, failed.kind, failed.subject, cause);
        match failed.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exec_does_not_say_is_as_the_launch_s_process_has_it() {
        let mut own = Process::new(["init"]);
        own.env = vec!["A=1".to_owned(), "B=2".to_owned()];
        own.cwd = "/srv".to_owned();
        own.uid = 7;
        own.gid = 8;
        own.terminal = true;
        let exec = ExecProcess {
            args: vec!["ls".to_owned()],
            env: vec!["B=3".to_owned()],
            user: Some((9, None)),
            ..ExecProcess::default()
        };
        let process = exec.over(&own);
        assert_eq!(
            (process.args, process.cwd.as_str()),
            (vec!["ls".to_owned()], "/srv")
        );
        assert_eq!(process.env, ["A=1", "B=2", "B=3"]);
        assert_eq!((process.uid, process.gid, process.terminal), (9, 8, false));
    }

    #[test]
    fn a_failure_says_the_same_in_another_process() {
        let failure = Failure::new(
            "boot",
            FailureKind::Guest,
            "the guest",
            Some("no answer".into()),
        );
        let failure = failure.hint("look at its console");
        let json = serde_json::to_string(&Failed::from(&failure)).unwrap();
        let there: Failed = serde_json::from_str(&json).unwrap();
        let there = Failure::from(there);
        assert_eq!(format!("{there:#}"), format!("{failure:#}"));
        assert_eq!((there.kind, there.hint), (failure.kind, failure.hint));
    }
}
