//! The resolved, typed form of a spec: what every later stage reads.
//!
//! Nothing here knows which syntax it came from. Paths on the host are absolute; paths inside the
//! image are `PathBuf`s too, but always begin with `/` and are never opened on the host.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// One launch, with every default filled in and every rule of the spec checked.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchSpec {
    /// The file the spec was read from (`config.json` or a launch file).
    pub file: PathBuf,
    pub process: Process,
    pub root: Root,
    /// In the order of the spec: a later mount covers an earlier one.
    pub mounts: Vec<Mount>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub machine: Machine,
    pub disk: Disk,
    pub network: Network,
    pub cgroups_path: Option<PathBuf>,
    pub annotations: BTreeMap<String, String>,
    /// What was adjusted or ignored and should be said, once, to the user.
    pub warnings: Vec<String>,
}

/// The OCI process: what runs as PID 1 inside the guest's container.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// Never empty; no argument holds a NUL.
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: Option<u32>,
    pub terminal: bool,
    pub no_new_privileges: bool,
}

/// The root file system of the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    pub path: PathBuf,
    pub readonly: bool,
    pub content: Content,
}

/// A mount of the spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// Absolute path inside the image.
    pub destination: PathBuf,
    pub kind: MountKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MountKind {
    /// A host directory or file, which goes into the image.
    Bind(Bind),
    /// A file system the guest mounts itself (proc, sysfs, tmpfs, devpts, …).
    Guest {
        fstype: String,
        source: String,
        options: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Bind {
    pub source: PathBuf,
    /// `rbind`: mounts below the source are crossed into.
    pub recursive: bool,
    pub readonly: bool,
    pub policy: Policy,
    /// The source never changes: no walk is needed once it is known.
    pub immutable: bool,
    pub content: Content,
}

/// How a source's tree is read: the same for the rootfs and for bind mounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// gitignore-style patterns, relative to the source, that stay out.
    pub exclude: Vec<String>,
    /// Every owner becomes this one.
    pub owner: Option<(u32, u32)>,
    /// Host id ranges → ids in the image; applied where `owner` is not set.
    pub uid_map: Vec<IdRange>,
    pub gid_map: Vec<IdRange>,
}

/// `size` ids from `host` on become those from `inside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub host: u32,
    pub size: u32,
}

/// What a mount's source is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Its bytes are in the image.
    #[default]
    Copy,
    /// Its bytes are read from the host when the guest asks.
    Lazy,
    /// The host's files as they are.
    Live,
    /// Copied in, and changes carried back at the end.
    Sync,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Disk {
    pub group: Group,
    pub writes: Writes,
    pub backing: Backing,
    /// Bytes; at least this large.
    pub size: Option<u64>,
    pub journal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Group {
    #[default]
    Auto,
    Single,
    PerSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writes {
    #[default]
    Auto,
    Clone,
    Snapshot,
    Overlay,
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    #[default]
    Auto,
    File,
    Lazy,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Network {
    /// The network namespace the platform has prepared.
    pub netns: Option<PathBuf>,
    pub mode: NetworkMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// `redirect` where a namespace is named, `none` otherwise.
    #[default]
    Auto,
    Redirect,
    Bridge,
    None,
    Own,
}
