//! What can go wrong with a network, each with what it is about.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The path of a namespace can't be opened.
    #[error("{}: the network namespace cannot be opened: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// Something is there, and it is no network namespace.
    #[error("{}: not a network namespace, but {what}", path.display())]
    NotNamespace { path: PathBuf, what: String },
    #[error("{}: the network namespace cannot be entered: {source}", path.display())]
    Enter { path: PathBuf, source: io::Error },
    /// The path names another namespace than before.
    #[error("{}: another network namespace has taken this path meanwhile", path.display())]
    Replaced { path: PathBuf },
    /// To take a host's interfaces over would cut it off.
    #[error("{}: this is the host's own network namespace, or the one that fcpipe runs in", path.display())]
    Host { path: PathBuf },
    /// The platform has not set the namespace up.
    #[error("{}: {what}", path.display())]
    NotReady { path: PathBuf, what: String },
    /// A name or an interface that this launch needs belongs to somebody else.
    #[error("{}: {name} is taken by {by}", path.display())]
    Taken {
        path: PathBuf,
        name: String,
        by: String,
    },
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Kernel { what: String, source: io::Error },
    /// The spec asks for what cannot be.
    #[error("{0}")]
    Spec(String),
}

impl NetError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "the platform makes the namespace before it starts a container; without one, use `network.mode: none` or `own`",
            ),
            Self::Open { source, .. }
            | Self::Enter { source, .. }
            | Self::Kernel { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("it takes CAP_SYS_ADMIN and CAP_NET_ADMIN over the namespace: run as root")
            }
            Self::NotNamespace { .. } => Some("`ip netns add NAME` makes one, at /run/netns/NAME"),
            Self::Host { .. } => Some(
                "a machine takes the place of whatever has the namespace's interfaces: name a container's, or use `network.mode: own`",
            ),
            Self::NotReady { .. } => Some(
                "the namespace needs a veth end that is up and has an address; `network.mode: none` does without",
            ),
            Self::Taken { .. } => {
                Some("end what uses it, or remove it; `network.tap_prefix` gives TAPs another name")
            }
            Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                Some("the kernel lacks a part of tc: load cls_bpf, act_mirred and sch_ingress")
            }
            _ => None,
        }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
        let what = what.into();
        move |source| NetError::Kernel { what, source }
    }
}
