//! What can go wrong with a machine, and the ends of the logs that tell why.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bstr::ByteSlice;

use crate::config::VmmKind;

/// How much of each log an error carries.
const TAIL: usize = 4 << 10;

/// The end of one log, as bytes: a guest writes what it likes.
#[derive(Clone, PartialEq, Eq)]
pub struct LogTail {
    /// `console`, or the name of the program that wrote it.
    pub name: &'static str,
    /// At most 4 KiB.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name, self.bytes.as_bstr())
    }
}

/// The ends of a machine's logs, when it failed. `Display` makes them harmless to print.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs(pub Vec<LogTail>);

impl Logs {
    pub(crate) fn push(&mut self, name: &'static str, mut bytes: Vec<u8>) {
        bytes.drain(..bytes.len().saturating_sub(TAIL));
        self.0.push(LogTail { name, bytes });
    }

    /// The last line that says something, of the programs' logs first (QEMU's own complaint names the cause), then of the console.
    fn last_line(&self) -> Option<String> {
        let programs = self.0.iter().filter(|tail| tail.name != "console");
        let console = self.0.iter().filter(|tail| tail.name == "console");
        programs.chain(console).find_map(|tail| {
            let line = tail.bytes.lines().rfind(|line| !line.trim().is_empty())?;
            Some(format!("{}: {}", tail.name, harmless(line.trim())))
        })
    }
}

impl fmt::Display for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tail in self.0.iter().filter(|tail| !tail.bytes.is_empty()) {
            writeln!(f, "--- end of {} ---", tail.name)?;
            for line in tail.bytes.lines() {
                writeln!(f, "{}", harmless(line))?;
            }
        }
        Ok(())
    }
}

/// A line with its control characters and stray bytes escaped, so that it can't drive a terminal.
pub(crate) fn harmless(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() && c != '\t' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// `: console: last words`, or nothing.
fn because(logs: &Logs) -> String {
    logs.last_line()
        .map(|line| format!(": {line}"))
        .unwrap_or_default()
}

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A program is not where it was looked for.
    #[error("{program} was not found (looked at {looked})")]
    NotFound {
        program: &'static str,
        looked: String,
        hint: &'static str,
    },
    #[error("{kind} cannot be used: {why}")]
    Unsupported { kind: VmmKind, why: String },
    #[error("machine {id}: {why}")]
    Config { id: String, why: String },
    #[error("{path}: {what}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path}: not a kernel that {kind} can start: {why}")]
    Kernel {
        path: PathBuf,
        kind: VmmKind,
        why: String,
    },
    #[error("{program}: cannot be started: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    /// A process of the machine ended before the agent answered.
    #[error("{program} ended ({status}) before the guest's agent answered{}", because(.logs))]
    Exited {
        program: &'static str,
        status: String,
        logs: Box<Logs>,
    },
    /// A helper did not make its socket in time.
    #[error("{program} was not ready after {waited:?}{}", because(.logs))]
    NotReady {
        program: &'static str,
        waited: Duration,
        logs: Box<Logs>,
    },
    /// The guest's kernel gave up: also when there is no init or no root.
    #[error("the guest's kernel panicked: {line}")]
    Panic { line: String, logs: Box<Logs> },
    #[error("the guest's agent did not answer on port {port} within {waited:?} ({last})")]
    NoAnswer {
        port: u32,
        waited: Duration,
        /// How the last attempt ended.
        last: String,
        logs: Box<Logs>,
    },
    #[error("the vsock device answered {got:?} to CONNECT {port}")]
    Protocol {
        port: u32,
        got: String,
        logs: Box<Logs>,
    },
    /// The VMM's API said no. `message` is what it gave as the reason.
    #[error("{program} refused {call} ({status}): {message}")]
    Refused {
        program: &'static str,
        call: String,
        status: u16,
        message: String,
        logs: Box<Logs>,
    },
    /// The VMM's API did not answer as an API does.
    #[error("{program} did not answer {call}: {why}{}", because(.logs))]
    Api {
        program: &'static str,
        call: String,
        why: String,
        logs: Box<Logs>,
    },
    #[error("cancelled")]
    Cancelled,
    /// Processes of a dead launch could not be ended.
    #[error("{dir}: process {pid} did not end within {waited:?} of SIGKILL")]
    Immortal {
        dir: PathBuf,
        pid: u32,
        waited: Duration,
    },
}

impl VmmError {
    /// The ends of the machine's logs, where it had any.
    pub fn logs(&self) -> Option<&Logs> {
        match self {
            Self::Exited { logs, .. }
            | Self::NotReady { logs, .. }
            | Self::Panic { logs, .. }
            | Self::NoAnswer { logs, .. }
            | Self::Protocol { logs, .. }
            | Self::Refused { logs, .. }
            | Self::Api { logs, .. } => Some(logs),
            _ => None,
        }
    }

    pub(crate) fn logs_mut(&mut self) -> Option<&mut Logs> {
        match self {
            Self::Exited { logs, .. }
            | Self::NotReady { logs, .. }
            | Self::Panic { logs, .. }
            | Self::NoAnswer { logs, .. }
            | Self::Protocol { logs, .. }
            | Self::Refused { logs, .. }
            | Self::Api { logs, .. } => Some(logs),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { hint, .. } => Some(hint),
            Self::Kernel { .. } => Some(
                "import a kernel with `fcpipe kernel import`; it must be built with CONFIG_PVH, or come as a bzImage",
            ),
            Self::Unsupported { .. } => Some("use `--vmm qemu` or `--vmm auto`"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_cannot_drive_a_terminal() {
        let mut logs = Logs::default();
        logs.push("console", b"ok\n\x1b[2Jboo\xff\n\n".to_vec());
        assert_eq!(
            logs.to_string(),
            "--- end of console ---\nok\n\\u{1b}[2Jboo\\xff\n\n"
        );
        assert_eq!(logs.last_line().unwrap(), "console: \\u{1b}[2Jboo\\xff");
    }

    #[test]
    fn the_programs_words_come_before_the_consoles() {
        let mut logs = Logs::default();
        logs.push("console", b"booting\n".to_vec());
        logs.push("qemu", b"qemu: no such option\n".to_vec());
        assert_eq!(logs.last_line().unwrap(), "qemu: qemu: no such option");
    }

    #[test]
    fn a_tail_is_bounded() {
        let mut logs = Logs::default();
        logs.push("console", vec![b'x'; 100_000]);
        assert_eq!(logs.0[0].bytes.len(), TAIL);
    }
}
