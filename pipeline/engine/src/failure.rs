//! What a launch fails with: one type, made in one place, with a kind that the command line maps to an exit code.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// Whose fault a failure is, roughly. Exit codes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The spec is wrong.
    Spec,
    /// A source can't be read, or changed while it was read.
    Source,
    /// A disk is full, or a quota is used up.
    Space,
    /// The store can't be used.
    Store,
    /// `--cache require` was given, and a stage would have to run.
    NotCached,
    /// The host refuses something: a namespace, a TAP, a permission.
    Host,
    /// The kernel or its modules don't fit.
    Kernel,
    /// The VMM is missing, refuses, or is gone.
    Vmm,
    /// The guest does not come up, or breaks its side of the protocol.
    Guest,
    /// The command to run in the guest does not exist there.
    CommandNotFound,
    /// The command exists and can't be run.
    CommandNotExecutable,
    /// Somebody asked for an end.
    Cancelled,
    /// A mistake in fcpipe itself.
    Internal,
}

/// Why a node did not come to be.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The node, by its id in receipts; empty if it was none.
    pub node: Arc<str>,
    /// What sort of failure.
    pub kind: FailureKind,
    /// What it is about: a path, an address, an option.
    pub subject: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    pub source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Failure {
    /// The one place where failures are made; steps use [`Cx::fail`](crate::Cx::fail).
    ///
    /// A full disk anywhere in the chain of causes makes the kind `Space`, whatever the caller thought it was.
    pub fn new(
        node: impl Into<Arc<str>>,
        kind: FailureKind,
        subject: impl fmt::Display,
        source: Option<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source: Option<Arc<dyn Error + Send + Sync>> = source.map(Arc::from);
        let full = source.as_deref().is_some_and(|error| is_full(error));
        Self {
            node: node.into(),
            kind: if full { FailureKind::Space } else { kind },
            subject: subject.to_string(),
            hint: full.then(|| "free some space, or choose another directory".to_owned()),
            source,
        }
    }

    /// The same with advice for the reader.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    pub(crate) fn cancelled(node: impl Into<Arc<str>>, why: &str) -> Self {
        Self::new(node, FailureKind::Cancelled, why, None)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node.is_empty() {
            write!(f, "{}: ", self.node)?;
        }
        match f.alternate() {
            true => f.write_str(&with_causes(self.subject.clone(), self.source())),
            false => f.write_str(&self.subject),
        }
    }
}

/// An error and what caused it, in one sentence.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error.source())
}

fn with_causes(mut text: String, mut cause: Option<&dyn Error>) -> String {
    while let Some(error) = cause {
        let words = error.to_string();
        // Some errors say what caused them, and a transparent one says nothing else.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// Whether an error comes from a full disk or a used-up quota.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let full = |code: i32| {
        code == rustix::io::Errno::NOSPC.raw_os_error()
            || code == rustix::io::Errno::DQUOT.raw_os_error()
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        let errno = error
            .downcast_ref::<rustix::io::Errno>()
            .map(|e| e.raw_os_error());
        if io.or(errno).is_some_and(full)
            || matches!(error.downcast_ref(), Some(StoreError::Full { .. }))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_31_a_full_disk_is_seen_through_the_chain_of_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("writing block 7")]
        struct Outer(#[source] std::io::Error);
        let full = Outer(std::io::Error::from_raw_os_error(
            rustix::io::Errno::NOSPC.raw_os_error(),
        ));
        let failure = Failure::new("copy", FailureKind::Internal, "image", Some(Box::new(full)));
        assert_eq!(failure.kind, FailureKind::Space);
        assert!(failure.hint.is_some());
        let denied = Outer(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        assert_eq!(
            Failure::new("copy", FailureKind::Source, "f", Some(Box::new(denied))).kind,
            FailureKind::Source
        );
    }

    #[test]
    fn alternate_form_tells_the_whole_chain() {
        let failure = Failure::new(
            "scan:rootfs",
            FailureKind::Source,
            "/r/f",
            Some("not permitted".into()),
        );
        assert_eq!(format!("{failure}"), "scan:rootfs: /r/f");
        assert_eq!(format!("{failure:#}"), "scan:rootfs: /r/f: not permitted");

        #[derive(Debug, thiserror::Error)]
        #[error("/r/f")]
        struct Quiet(#[source] Loud);
        #[derive(Debug, thiserror::Error)]
        #[error("cannot be read: {0}")]
        struct Loud(#[source] std::fmt::Error);
        let said = format!("/r/f: cannot be read: {}", std::fmt::Error);
        assert_eq!(chain(&Quiet(Loud(std::fmt::Error))), said);
    }
}
