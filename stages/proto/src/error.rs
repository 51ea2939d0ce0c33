//! The one error of this crate.

use std::io;

use crate::process::Failure;

/// Why a connection, or a request on it, failed.
///
/// It can be cloned, because the error that ends a connection is the answer to everything that
/// was still waiting on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The peer broke a rule of the protocol. The connection is closed.
    #[error("the other end broke the protocol: {reason}")]
    Broken { reason: String },
    /// The peer speaks another version.
    #[error(
        "the guest speaks protocol {guest} (program {guest_program}), this program speaks {host}: \
         the initrd was built by another version of fcpipe"
    )]
    Version {
        host: u32,
        guest: u32,
        guest_program: String,
    },
    /// The peer is the agent of another boot, or answers to a host that is not its own.
    #[error("boot id {got} answered where {expected} was expected")]
    BootId { expected: String, got: String },
    /// The agent is up, but serves another connection.
    #[error("the agent serves another connection")]
    Busy,
    /// Reading or writing the connection failed.
    #[error("{action}: {reason}")]
    Io {
        action: &'static str,
        kind: io::ErrorKind,
        reason: String,
    },
    /// The peer ended the connection.
    #[error("the other end closed the connection")]
    Closed,
    /// The peer did not answer.
    #[error("no answer to {what} in time")]
    Timeout { what: &'static str },
    /// This end closed the connection.
    #[error("the session was closed")]
    Ended,
    /// The guest could not do what it was asked.
    #[error("{0}")]
    Failed(Failure),
    /// Something that would break the protocol's limits was to be sent.
    #[error("{what} needs {bytes} bytes, and {limit} is the limit")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        limit: usize,
    },
}

impl ProtoError {
    pub(crate) fn broken(reason: impl Into<String>) -> Self {
        ProtoError::Broken {
            reason: reason.into(),
        }
    }

    pub(crate) fn io(action: &'static str, error: &io::Error) -> Self {
        ProtoError::Io {
            action,
            kind: error.kind(),
            reason: error.to_string(),
        }
    }
}
