//! What the host tells the guest about its container before the first process.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::confine::{Confinement, Hooks};
use crate::network::GuestNetwork;

/// Everything about the container but its processes. It goes in the connection and not on the
/// kernel's command line, which is short and can be read by every process of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    pub root: RootFs,
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub domainname: Option<String>,
    /// Mounted in this order, after the root. All that is wanted: nothing is added by the guest.
    pub mounts: Vec<GuestMount>,
    /// The guest's clock is set to it when it comes.
    #[serde(default)]
    pub wall_clock: Option<WallClock>,
    /// Random bytes, credited to the guest's pool: as hexadecimal digits, at most 1,024.
    #[serde(default)]
    pub entropy: Option<String>,
    /// `None`: the loopback alone.
    #[serde(default)]
    pub network: Option<GuestNetwork>,
    #[serde(default)]
    pub confinement: Confinement,
    #[serde(default)]
    pub hooks: Hooks,
}

impl GuestConfig {
    /// A container of this root and these mounts, with nothing else set.
    #[must_use]
    pub fn new(root: RootFs, mounts: Vec<GuestMount>) -> Self {
        GuestConfig {
            root,
            hostname: None,
            domainname: None,
            mounts,
            wall_clock: None,
            entropy: None,
            network: None,
            confinement: Confinement::default(),
            hooks: Hooks::default(),
        }
    }
}

/// The disk that holds the container's root, and those that hold sources of its mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Its place among the VM's virtio disks: 0 is `/dev/vda`.
    pub disk: u32,
    /// `ext4` and so on.
    pub fstype: String,
    /// The disk itself cannot be written.
    pub disk_readonly: bool,
    /// The container sees its root read-only (OCI `root.readonly`); mount points are still made.
    pub readonly: bool,
    #[serde(default)]
    pub writes: Writes,
    /// Further disks with the same type of file system. Nobody sees them but through mounts that show something of
    /// them: see [`GuestMount::bind_from`].
    #[serde(default)]
    pub beside: Vec<Beside>,
}

/// A disk beside the root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Its place among the VM's virtio disks.
    pub disk: u32,
    #[serde(default)]
    pub writes: Writes,
}

/// Where writes to a disk's file system go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writes {
    /// To the disk.
    #[default]
    Direct,
    /// To a second disk: device mapper's snapshot joins the two, and the disk is never written.
    Snapshot {
        /// The second disk's place among the VM's disks.
        scratch: u32,
        /// The second disk says in the snapshot's own form what differs already. Otherwise it is as large as the first and
        /// of zeros.
        #[serde(default)]
        changes: bool,
    },
    /// To an empty ext4 on a second disk, by an overlay file system; the disk is mounted read-only.
    Overlay {
        /// The second disk's place among the VM's disks.
        scratch: u32,
    },
}

/// A file system that the guest mounts for the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// `proc`, `tmpfs`, … `cgroup` is the guest's unified hierarchy, as the container sees it. `bind` is what the
    /// root has at the destination already, as a mount of its own: for the options, and so that what is mounted
    /// above it before does not hide it.
    pub fstype: String,
    pub source: String,
    /// Absolute, resolved inside the root.
    pub destination: String,
    /// As in an OCI `mounts` entry: `nosuid`, `ro`, `mode=755`, …
    #[serde(default)]
    pub options: Vec<String>,
    /// Of a bind mount from a disk: what it shows is an empty directory that stands for a source which the host does not have. It
    /// gets the time of modification of the directory around it.
    #[serde(default)]
    pub stand_in: bool,
}

impl GuestMount {
    /// What the root has at `destination`, made a mount with these options.
    #[must_use]
    pub fn bind(destination: String, options: Vec<String>) -> GuestMount {
        GuestMount {
            fstype: Self::BIND.to_owned(),
            source: String::new(),
            destination,
            options,
            stand_in: false,
        }
    }

    /// What is at `path` on a disk beside the root's, made a mount with these options. `number` counts the root's
    /// [`RootFs::beside`] from 0.
    #[must_use]
    pub fn bind_from(
        number: usize,
        path: &str,
        destination: String,
        options: Vec<String>,
    ) -> GuestMount {
        GuestMount {
            source: format!("{number}/{path}"),
            ..Self::bind(destination, options)
        }
    }

    /// The type of what is in the root already, or (with a `source`) on a disk beside it.
    pub const BIND: &str = "bind";

    fn new(fstype: &str, source: &str, destination: &str, options: &[&str]) -> Self {
        GuestMount {
            fstype: fstype.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            stand_in: false,
        }
    }

    /// What a container has whose spec lists no such mounts: those of the OCI runtime
    /// specification for Linux, with the options that `runc spec` writes.
    #[must_use]
    pub fn defaults() -> Vec<GuestMount> {
        vec![
            Self::new("proc", "proc", "/proc", &[]),
            Self::new(
                "tmpfs",
                "tmpfs",
                "/dev",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            Self::new(
                "devpts",
                "devpts",
                "/dev/pts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            ),
            Self::new(
                "tmpfs",
                "shm",
                "/dev/shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ),
            Self::new(
                "mqueue",
                "mqueue",
                "/dev/mqueue",
                &["nosuid", "noexec", "nodev"],
            ),
            Self::new(
                "sysfs",
                "sysfs",
                "/sys",
                &["nosuid", "noexec", "nodev", "ro"],
            ),
            Self::new(
                "cgroup",
                "cgroup",
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            ),
        ]
    }
}

/// A time of day: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallClock {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl WallClock {
    /// The host's clock.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        WallClock {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }
}
