//! A process: what is to run, and what became of it.

use std::fmt;

use crate::confine::{Capabilities, Seccomp};
use serde::{Deserialize, Serialize};

/// A process of one VM. 1 is the container's own, its PID 1; the host numbers the others as it
/// starts them, upwards, and uses no number twice in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ProcessId(u32);

impl ProcessId {
    /// The container's first process, whose end is the container's end.
    pub const INIT: ProcessId = ProcessId(1);
    /// The largest, so that a stream's number fits in 32 bits.
    pub const MAX: u32 = u32::MAX / 4 - 1;

    /// `None` for 0 and above [`ProcessId::MAX`].
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX)
            .contains(&number)
            .then_some(ProcessId(number))
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for ProcessId {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        ProcessId::new(number).ok_or_else(|| format!("{number} is no process id"))
    }
}

impl From<ProcessId> for u32 {
    fn from(id: ProcessId) -> u32 {
        id.0
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to run, with the words of an OCI `process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments; never empty. A program without a slash is looked up in the
    /// `PATH` of `env`.
    pub args: Vec<String>,
    /// `NAME=value`, in this order; of two with one name the last counts.
    #[serde(default)]
    pub env: Vec<String>,
    /// Absolute, inside the container; made when it is missing, as runc does.
    pub cwd: String,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(default)]
    pub additional_gids: Vec<u32>,
    /// `None`: 022.
    #[serde(default)]
    pub umask: Option<u32>,
    /// Its standard streams are a terminal of the container's `/dev/pts`: stdin goes to it, all output comes on
    /// stdout, and stderr ends at once.
    #[serde(default)]
    pub terminal: bool,
    /// The terminal's size at the beginning.
    #[serde(default)]
    pub console_size: Option<WindowSize>,
    #[serde(default)]
    pub no_new_privileges: bool,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// -1000 to 1000; `None`: 0.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// `None`: all that the guest's kernel has.
    #[serde(default)]
    pub capabilities: Option<Capabilities>,
    #[serde(default)]
    pub seccomp: Option<Seccomp>,
    /// As `personality(2)` takes it.
    #[serde(default)]
    pub personality: Option<u32>,
}

impl Process {
    /// `args` as root in `/`, with nothing else set.
    #[must_use]
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Process {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            umask: None,
            terminal: false,
            console_size: None,
            no_new_privileges: false,
            rlimits: Vec::new(),
            oom_score_adj: None,
            capabilities: None,
            seccomp: None,
            personality: None,
        }
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// A resource limit of `setrlimit(2)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The OCI name: `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// `u64::MAX` is no limit.
    pub soft: u64,
    pub hard: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum ExitStatus {
    /// It ended itself.
    Code { code: u8 },
    /// A signal ended it; `core` where the kernel dumped one.
    Signal { signal: Signal, core: bool },
}

impl ExitStatus {
    /// What a shell, and `fcpipe run`, answers with: the code, or 128 + the signal.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            ExitStatus::Code { code } => code,
            ExitStatus::Signal { signal, .. } => 128 + signal.get(),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code { code } => write!(f, "exit code {code}"),
            ExitStatus::Signal { signal, core } => {
                write!(f, "signal {}", signal.get())?;
                if *core {
                    f.write_str(" (core dumped)")?;
                }
                Ok(())
            }
        }
    }
}

/// A signal's number on Linux: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Signal(u8);

impl Signal {
    pub const HUP: Signal = Signal(1);
    pub const INT: Signal = Signal(2);
    pub const KILL: Signal = Signal(9);
    pub const TERM: Signal = Signal(15);

    /// `None` for a number that is no signal.
    #[must_use]
    pub fn new(number: i32) -> Option<Self> {
        u8::try_from(number)
            .ok()
            .filter(|n| (1..=64).contains(n))
            .map(Signal)
    }

    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// Whether a process that does nothing about it ends by it: signal(7).
    #[must_use]
    pub fn ends_by_default(self) -> bool {
        // CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG and WINCH.
        !matches!(self.0, 17..=23 | 28)
    }
}

impl TryFrom<i32> for Signal {
    type Error = String;
    fn try_from(number: i32) -> Result<Self, String> {
        Signal::new(number).ok_or_else(|| format!("{number} is no signal"))
    }
}

impl From<Signal> for i32 {
    fn from(signal: Signal) -> i32 {
        i32::from(signal.0)
    }
}

/// Why the guest could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// The cause, in words for a person. It comes from the guest: see [`Failure`]'s `Display`.
    pub message: String,
    /// What it is about: a program, a mount's destination, a disk.
    #[serde(default)]
    pub path: Option<String>,
}

/// The longest text of a guest that is kept.
const MAX_TEXT: usize = 4096;

impl Failure {
    #[must_use]
    pub fn new(kind: FailureKind, path: Option<&str>, message: impl Into<String>) -> Self {
        Failure {
            kind,
            message: message.into(),
            path: path.map(ToOwned::to_owned),
        }
        .bounded()
    }

    /// Cuts texts that are too long to be meant for a person.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let cut = |text: &mut String| {
            if text.len() > MAX_TEXT {
                let end = (0..=MAX_TEXT).rev().find(|i| text.is_char_boundary(*i));
                text.truncate(end.unwrap_or(0));
            }
        };
        cut(&mut self.message);
        if let Some(path) = &mut self.path {
            cut(path);
        }
        self
    }

    /// What `fcpipe run` answers with: as `docker run`, 127, 126 or 125.
    #[must_use]
    pub fn shell_code(&self) -> u8 {
        match self.kind {
            FailureKind::NotFound => 127,
            FailureKind::NotExecutable => 126,
            FailureKind::Setup | FailureKind::Protocol => 125,
        }
    }
}

/// Control characters are escaped: the text comes from the guest and may go to a terminal.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.escape_debug())?;
        }
        for c in self.message.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program does not exist.
    NotFound,
    /// The program exists and cannot be run.
    NotExecutable,
    /// The root, a mount, the user or another part of the container could not be made.
    Setup,
    /// The request came at the wrong time, or asked for what this guest does not have.
    Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shell_s() {
        let signal = Signal::KILL;
        assert_eq!(ExitStatus::Code { code: 3 }.shell_code(), 3);
        assert_eq!(
            ExitStatus::Signal {
                signal,
                core: false
            }
            .shell_code(),
            137
        );
        let last = Signal::new(64).unwrap();
        assert_eq!(
            ExitStatus::Signal {
                signal: last,
                core: true
            }
            .shell_code(),
            192
        );
    }

    #[test]
    fn row_47_exits_that_cannot_be_are_not_parsed() {
        for json in [
            r#"{"how":"code","code":256}"#,
            r#"{"how":"code","code":-1}"#,
            r#"{"how":"signal","signal":0,"core":false}"#,
            r#"{"how":"signal","signal":200,"core":false}"#,
            r#"{"how":"magic"}"#,
        ] {
            assert!(serde_json::from_str::<ExitStatus>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn row_15_a_failure_prints_no_control_characters() {
        let failure = Failure::new(FailureKind::Setup, Some("/a\x1b[2J\n"), "bad\x07\u{9b}31m");
        assert!(!failure.to_string().chars().any(char::is_control));
    }

    #[test]
    fn row_47_texts_of_a_guest_are_bounded() {
        let failure = Failure::new(FailureKind::Setup, None, "é".repeat(100_000));
        assert!(failure.message.len() <= MAX_TEXT);
    }
}
