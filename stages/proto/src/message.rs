//! Control messages: what the two ends say to each other besides the bytes of streams.
//!
//! Each is one JSON object in a control frame, with its name under `type`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::GuestConfig;
use crate::error::ProtoError;
use crate::process::{ExitStatus, Failure, Process, ProcessId, Signal, WindowSize};
use crate::stats::Stats;

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostMessage {
    /// The first message of a connection.
    Hello(Hello),
    /// Makes the container's root. Once a boot.
    Configure(Box<GuestConfig>),
    /// Starts a process. [`ProcessId::INIT`] first: the others run in its namespaces.
    Start(Box<Start>),
    /// Sends a signal to a process, or to all of the container.
    Signal {
        request: u32,
        process: ProcessId,
        signal: Signal,
        all: bool,
    },
    /// Gives a process's terminal another size. There is no answer: it may cross the process's end.
    Resize {
        process: ProcessId,
        size: WindowSize,
    },
    /// Asks for [`GuestMessage::Stats`].
    Stats { request: u32 },
    /// Asks for a [`GuestMessage::Pong`].
    Ping,
    /// Ends the container, writes everything back, answers, and resets the machine.
    Shutdown,
}

/// From the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GuestMessage {
    /// The answer to [`HostMessage::Hello`].
    Hello(HelloReply),
    /// The answer instead, and the end of the connection: another one is being served.
    Busy,
    /// The root is there.
    Configured,
    /// It could not be made.
    ConfigureFailed {
        failure: Failure,
    },
    /// The process was started: its program runs.
    Started {
        process: ProcessId,
    },
    /// It could not be; it has no streams and no exit.
    StartFailed {
        process: ProcessId,
        failure: Failure,
    },
    /// The signal was sent, or why not.
    Signalled {
        request: u32,
        outcome: SignalOutcome,
    },
    /// The process ended. Its output may still be under way: each stream has its own end.
    Exited {
        process: ProcessId,
        status: ExitStatus,
    },
    /// What the container and its machine have used.
    Stats {
        request: u32,
        stats: Box<Stats>,
    },
    /// The guest's kernel has killed processes of the container for want of memory: so many since the boot. Never
    /// fewer than were told before, and told before the exits that it caused.
    Oom {
        kills: u64,
    },
    Pong,
    /// Everything ended and was written back; the machine resets now.
    Stopped {
        clean: bool,
    },
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalOutcome {
    Sent,
    /// The kernel has dropped it: of the signals that end a process, the container's first takes only KILL, and those that it has a handler for or
    /// blocks (pid_namespaces(7)).
    Dropped,
    /// The process had ended, or never began.
    NotRunning,
}

/// Who the host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// The program's version.
    pub program: String,
    /// What the kernel's command line said, so that no agent of another VM is taken for this one.
    pub boot_id: String,
}

/// Who the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    pub protocol: u32,
    pub program: String,
    pub boot_id: String,
    /// An earlier connection of this boot sent the configuration.
    #[serde(default)]
    pub configured: bool,
    /// Processes that earlier connections started and that still run. Their streams ended with
    /// the connection that started them.
    #[serde(default)]
    pub running: Vec<ProcessId>,
    /// As [`GuestMessage::Oom`].
    #[serde(default)]
    pub oom_kills: u64,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub id: ProcessId,
    pub process: Process,
    /// Whether there is a standard input; without, the process has `/dev/null`.
    pub stdin: bool,
}

/// The message as JSON.
pub(crate) fn to_json(
    message: &impl Serialize,
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, ProtoError> {
    // Serializing these types fails only for a map with keys that are no strings: there is none.
    let json = serde_json::to_vec(message).map_err(|e| ProtoError::broken(e.to_string()))?;
    if json.len() > limit {
        return Err(ProtoError::TooLarge {
            what,
            bytes: json.len(),
            limit,
        });
    }
    Ok(json)
}

/// The message in a control frame.
///
/// # Errors
/// [`ProtoError::Broken`] for what is not a message.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ProtoError> {
    serde_json::from_slice(json).map_err(|e| {
        // It may hold as much of the message as there is.
        let why: String = e.to_string().chars().take(MAX_WHY).collect();
        ProtoError::broken(format!("a control message that is none: {why}"))
    })
}

/// Characters that are told of why a message is none.
const MAX_WHY: usize = 200;
