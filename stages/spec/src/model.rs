//! The resolved, typed form of a spec: what every later stage reads.
//!
//! Nothing here knows which syntax it came from. Paths on the host are absolute; paths inside the
//! image are `PathBuf`s too, but always begin with `/` and are never opened on the host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

use crate::confine::{Capabilities, ConsoleSize, Hooks, Linux, Personality, Rlimit, Seccomp};

/// One launch, with every default filled in and every rule of the spec checked.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchSpec {
    /// The file the spec was read from (`config.json` or a launch file).
    pub file: PathBuf,
    pub process: Process,
    pub linux: Linux,
    pub hooks: Hooks,
    pub root: Root,
    /// In the order of the spec: a later mount covers an earlier one.
    pub mounts: Vec<Mount>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub machine: Machine,
    pub disk: Disk,
    pub network: Network,
    /// `linux.cgroupsPath`, made normal: absolute, or relative to where the runtime puts its own.
    /// It never climbs with `..`.
    pub cgroups_path: Option<PathBuf>,
    /// All of them, those that fcpipe read too.
    pub annotations: BTreeMap<String, String>,
    /// What was adjusted or ignored and should be said, once, to the user.
    /// Each begins with `file:line:column: field: `, as a [`SpecError`](crate::SpecError) does.
    pub warnings: Vec<String>,
}

/// The OCI process: what runs as PID 1 inside the guest's container.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// Never empty; no argument holds a NUL.
    pub args: Vec<String>,
    /// `NAME=value`, each name once, no NUL.
    pub env: Vec<String>,
    /// Absolute path inside the image.
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: Option<u32>,
    pub terminal: bool,
    pub no_new_privileges: bool,
    /// Of the terminal, at the beginning.
    pub console_size: Option<ConsoleSize>,
    /// `None`: all that the guest's kernel has. An OCI config that says nothing gives none at all.
    pub capabilities: Option<Capabilities>,
    pub rlimits: Vec<Rlimit>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// `linux.seccomp`: of this process and all others of the container.
    pub seccomp: Option<Seccomp>,
    /// `linux.personality`, likewise.
    pub personality: Option<Personality>,
}

/// The root file system of the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    pub path: PathBuf,
    pub readonly: bool,
    pub trust: Trust,
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

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bind {
    /// Absolute path on the host, not yet resolved; it may not exist.
    pub source: PathBuf,
    /// `rbind`: mounts below the source are crossed into.
    pub recursive: bool,
    pub readonly: bool,
    pub policy: Policy,
    /// The source never changes: no walk is needed once it is known.
    pub immutable: bool,
    /// What the source is, in the user's own words (a version, a checksum): as long as it is the same, so is the
    /// source, and no walk is needed once it is known. Never checked.
    pub digest: Option<String>,
    pub trust: Trust,
    /// What the guest gives the mount besides `ro`: `nosuid`, `nodev`, `noexec`, `noatime`, `rshared`, …
    pub flags: Vec<String>,
    pub content: Content,
}

/// How a source's tree is read: the same for the rootfs and for bind mounts.
///
/// Where a map is given, an id that no range of it holds has no name in the image; it becomes
/// 65534, as the kernel shows it inside a user namespace.
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

/// What shows that a file's content may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// `Full`, or `Stable` where the source's file system is on the network, in user space, or an overlay.
    #[default]
    Auto,
    /// Device, inode, size, and the times of modification and change.
    Full,
    /// What is the same when the file system is mounted again: size and times, and the inode where it lasts.
    Stable,
    /// The content itself.
    Content,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// 1 to 32, and no more than the host has.
    pub vcpus: u32,
    /// Bytes: a whole number of MiB, at least 128 MiB.
    pub memory: u64,
    /// What the host gives the VM's threads together; it may be less than one CPU.
    pub cpu_quota: Option<CpuQuota>,
    /// Firecracker's static CPU template.
    pub cpu_template: Option<CpuTemplate>,
    /// Whether the guest sees two threads of a core.
    pub smt: bool,
    pub huge_pages: HugePages,
    pub balloon: Option<Balloon>,
}

impl Default for Machine {
    /// 1 CPU and 512 MiB, as a spec that says nothing.
    fn default() -> Self {
        Machine {
            vcpus: 1,
            memory: 512 << 20,
            cpu_quota: None,
            cpu_template: None,
            smt: false,
            huge_pages: HugePages::None,
            balloon: None,
        }
    }
}

/// `linux.resources.cpu`: `quota_us` of CPU time in each `period_us`, as cgroup v2's `cpu.max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    pub quota_us: u64,
    pub period_us: u64,
}

/// The names that Firecracker's `PUT /machine-config` takes as `cpu_template`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
}

/// What backs the guest's memory on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    #[default]
    None,
    /// hugetlbfs pages of 2 MiB; `memory` is then a multiple of 2 MiB.
    TwoMiB,
}

/// A virtio balloon: memory the guest gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balloon {
    /// Bytes it takes from the guest at the start; less than the guest's memory.
    pub size: u64,
    pub deflate_on_oom: bool,
}

/// At most this much a second; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Requests or packets a second.
    pub ops: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    pub group: Group,
    pub writes: Writes,
    pub backing: Backing,
    /// Bytes; at least this large.
    pub size: Option<u64>,
    pub journal: bool,
    pub rate_limit: RateLimit,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The network namespace the platform has prepared.
    pub netns: Option<PathBuf>,
    pub mode: NetworkMode,
    pub antispoof: Antispoof,
    /// What the TAPs' names begin with: 1 to 10 bytes.
    pub tap_prefix: String,
    /// The guest's, in mode `bridge`.
    pub addresses: Vec<IpNet>,
    /// The guest's default routes, in mode `bridge`: at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// The guest's resolvers; `None` are the host's.
    pub dns: Option<Vec<IpAddr>>,
    /// Domains that names are looked up in.
    pub search: Vec<String>,
    /// Where mode `own` takes addresses from.
    pub pool: Ipv4Net,
    /// Mode `own`: the guest reaches what the host reaches.
    pub nat: bool,
    /// For each direction on its own.
    pub rate_limit: RateLimit,
}

impl Default for Network {
    fn default() -> Self {
        let pool = Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16);
        Network {
            netns: None,
            mode: NetworkMode::default(),
            antispoof: Antispoof::default(),
            tap_prefix: "b9fc_".to_owned(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            dns: None,
            search: Vec::new(),
            pool,
            nat: false,
            rate_limit: RateLimit::default(),
        }
    }
}

impl Network {
    /// The mode with `auto` decided.
    pub fn decided(&self) -> NetworkMode {
        match (self.mode, &self.netns) {
            (NetworkMode::Auto, Some(_)) => NetworkMode::Redirect,
            (NetworkMode::Auto, None) => NetworkMode::None,
            (mode, _) => mode,
        }
    }
}

/// Whether a guest may only send as itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Antispoof {
    #[default]
    On,
    Off,
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

/// An enum that a spec spells as a name.
pub(crate) trait Choice: Copy + 'static {
    const NAMES: &'static [&'static str];

    fn named(name: &str) -> Option<Self>;
}

/// Says how each enum is spelled in a spec; `Display` gives the same name back.
macro_rules! choices {
    ($($type:ident { $($variant:ident = $name:literal),* $(,)? })*) => {
        $(impl Choice for $type {
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some($type::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self {
                    $($type::$variant => $name,)*
                })
            }
        })*
    };
}

choices! {
    Policy { Copy = "copy", Lazy = "lazy", Live = "live", Sync = "sync" }
    Trust { Auto = "auto", Full = "full", Stable = "stable", Content = "content" }
    Group { Auto = "auto", Single = "single", PerSource = "per-source" }
    Writes {
        Auto = "auto", Clone = "clone", Snapshot = "snapshot", Overlay = "overlay", Copy = "copy",
    }
    Backing { Auto = "auto", File = "file", Lazy = "lazy" }
    NetworkMode {
        Auto = "auto", Redirect = "redirect", Bridge = "bridge", None = "none", Own = "own",
    }
    Antispoof { On = "on", Off = "off" }
    CpuTemplate { C3 = "C3", T2 = "T2", T2S = "T2S", T2CL = "T2CL", T2A = "T2A", V1N1 = "V1N1" }
    HugePages { None = "none", TwoMiB = "2MiB" }
}
