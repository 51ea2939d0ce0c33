//! Which modules are kept of a kernel, and which of them a guest gets. A kernel package has a thousand and
//! more; every one in an initrd is unpacked and loaded at each boot, so this list is short, says for each what
//! it is for, and leaves to the launch what only some launches need.

/// What happens if a module of the list is neither there nor built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No guest boots without it: the import fails.
    Required,
    /// One of the modules marked so must be there: Firecracker speaks MMIO (and PCI from 1.13, on
    /// request), QEMU PCI.
    Transport,
    /// Some feature is missing; whoever wants it asks [`crate::Kernel::has_module`].
    Optional,
}

/// Which initrds a module is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Those of launches that ask for it by name: see [`crate::initrd`].
    Asked,
}

/// One line of [`WANTED`].
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The module's name, with `_`.
    pub name: &'static str,
    /// How much it is missed.
    pub need: Need,
    /// Which initrds it is in.
    pub when: When,
    /// A NUL-terminated string of the driver that stands in a kernel which has it built in, and in
    /// no other. Only asked where no `modules.builtin` is at hand.
    pub(crate) evidence: &'static str,
    /// What a guest does with it.
    pub why: &'static str,
}

const fn wanted(
    name: &'static str,
    need: Need,
    evidence: &'static str,
    why: &'static str,
) -> Wanted {
    Wanted {
        name,
        need,
        when: When::Always,
        evidence,
        why,
    }
}

/// A module that only some launches have a use for; all can do without.
const fn asked(name: &'static str, evidence: &'static str, why: &'static str) -> Wanted {
    Wanted {
        name,
        need: Need::Optional,
        when: When::Asked,
        evidence,
        why,
    }
}

/// The modules kept, in the order in which they are loaded; dependencies go before what needs them.
/// Only what somebody asks for by name stands here: `virtio_ring`, `vsock`, `dm_bufio` and such come
/// along as dependencies.
pub const WANTED: &[Wanted] = &[
    wanted(
        "virtio_pci",
        Need::Transport,
        "virtio-pci",
        "devices under QEMU's q35",
    ),
    wanted(
        "virtio_mmio",
        Need::Transport,
        "virtio-mmio",
        "devices under Firecracker",
    ),
    wanted("virtio_blk", Need::Required, "virtio_blk", "the root disk"),
    wanted("virtio_net", Need::Optional, "virtio_net", "the network"),
    wanted(
        "vmw_vsock_virtio_transport",
        Need::Required,
        "vmw_vsock_virtio_transport",
        "the agent's channel to the host",
    ),
    wanted(
        "ext4",
        Need::Required,
        "ext4",
        "every image this project makes",
    ),
    asked("overlay", "overlay", "writes: overlay"),
    asked("fuse", "fuse", "live mounts"),
    asked(
        "virtiofs",
        "virtiofs",
        "live mounts under a VMM with vhost-user-fs",
    ),
    asked("dm_mod", "device-mapper", "what dm_snapshot stands on"),
    asked("dm_snapshot", "snapshot-origin", "writes: snapshot"),
    wanted(
        "af_packet",
        Need::Optional,
        "PACKET",
        "DHCP clients and ping in the guest",
    ),
    wanted(
        "virtio_balloon",
        Need::Optional,
        "virtio_balloon",
        "machine.balloon",
    ),
    wanted(
        "virtio_rng",
        Need::Optional,
        "virtio_rng",
        "entropy from the host at boot",
    ),
];

/// Names that a soft dependency uses for what another module provides. modprobe reads them from
/// `modules.alias`, which packages do not carry and which a guest without modprobe cannot ask.
/// (ext4 as a module has `softdep=pre: crc32c`, and asks the crypto API for it at mount.)
pub(crate) const ALIASES: &[(&str, &[&str])] = &[
    ("crc32c", &["crc32c_generic", "crc32c_cryptoapi"]),
    ("crypto_crc32c", &["crc32c_generic", "crc32c_cryptoapi"]),
];
