//! A spec in the guest's words: what the agent is told before it starts the process.

use std::path::Path;

use fcpipe_engine::{Failure, FailureKind};
use fcpipe_proto::confine::{
    Capabilities, Confinement, Device, DeviceKind, Hook, HookState, Hooks, Limits, Propagation,
};
use fcpipe_proto::{GuestConfig, GuestMount, Process, Rlimit, RootFs, WindowSize, Writes};
use fcpipe_spec::{LaunchSpec, MountKind, Personality};

use crate::seccomp;

/// The version of the OCI specification that a state is written by.
const OCI_VERSION: &str = "1.2.0";

use crate::group::Grouping;

/// The container that the spec describes, its root on the machine's first disk. `grouping` says on which disks the sources
/// of its mounts are.
pub(crate) fn config(spec: &LaunchSpec, id: &str, grouping: &Grouping) -> GuestConfig {
    let mut mounts = Vec::new();
    // The root is the first source.
    let mut source = 0;
    if !spec
        .mounts
        .iter()
        .any(|mount| matches!(mount.kind, MountKind::Guest { .. }))
    {
        mounts = GuestMount::defaults();
    }
    mounts.extend(spec.mounts.iter().map(|mount| {
        let destination = text(&mount.destination);
        match &mount.kind {
            MountKind::Bind(bind) => {
                source += 1;
                let mut options = bind.flags.clone();
                if bind.readonly {
                    options.push("ro".to_owned());
                }
                match grouping.place_of(source) {
                    // Beside the root's, under its number.
                    Some((image @ 1.., member)) => {
                        let member = member.to_string();
                        GuestMount {
                            stand_in: grouping.is_missing(source),
                            ..GuestMount::bind_from(image - 1, &member, destination, options)
                        }
                    }
                    // It is in the root's image, at its destination.
                    _ => GuestMount::bind(destination, options),
                }
            }
            MountKind::Guest {
                fstype,
                source,
                options,
            } => GuestMount {
                fstype: fstype.clone(),
                source: source.clone(),
                destination,
                options: options.clone(),
                stand_in: false,
            },
        }
    }));
    GuestConfig {
        root: RootFs {
            disk: 0,
            fstype: "ext4".to_owned(),
            disk_readonly: false,
            readonly: spec.root.readonly,
            // What the disks are decides, at the boot.
            writes: Writes::Direct,
            beside: Vec::new(),
        },
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        mounts,
        // As it is when the guest is there.
        wall_clock: None,
        entropy: None,
        // What the network is like is known when it is made.
        network: None,
        confinement: confinement(spec),
        hooks: hooks(spec, id),
    }
}

/// Bytes that no other guest has, from the host's own pool; `None` where it gives none, and then the guest has to do
/// without.
pub(crate) fn entropy() -> Option<String> {
    let mut bytes = [0; 64];
    let mut random = std::fs::File::open("/dev/urandom").ok()?;
    std::io::Read::read_exact(&mut random, &mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn confinement(spec: &LaunchSpec) -> Confinement {
    let linux = &spec.linux;
    let device = |device: &fcpipe_spec::Device| Device {
        path: device.path.clone(),
        kind: match device.kind {
            fcpipe_spec::DeviceKind::Character => DeviceKind::Character,
            fcpipe_spec::DeviceKind::Block => DeviceKind::Block,
            fcpipe_spec::DeviceKind::Fifo => DeviceKind::Fifo,
        },
        major: device.major,
        minor: device.minor,
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
    };
    Confinement {
        masked_paths: linux.masked_paths.clone(),
        readonly_paths: linux.readonly_paths.clone(),
        sysctl: linux.sysctl.clone(),
        devices: linux.devices.iter().map(device).collect(),
        root_propagation: linux.root_propagation.map(|propagation| match propagation {
            fcpipe_spec::Propagation::Shared => Propagation::Shared,
            fcpipe_spec::Propagation::Slave => Propagation::Slave,
            fcpipe_spec::Propagation::Private => Propagation::Private,
            fcpipe_spec::Propagation::Unbindable => Propagation::Unbindable,
        }),
        limits: Limits {
            pids: linux.pids_limit,
            unified: linux.unified.clone(),
        },
    }
}

fn hooks(spec: &LaunchSpec, id: &str) -> Hooks {
    let list = |hooks: &[fcpipe_spec::Hook]| {
        let hook = |hook: &fcpipe_spec::Hook| Hook {
            path: hook.path.clone(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout_seconds: hook.timeout,
        };
        hooks.iter().map(hook).collect()
    };
    let bundle = spec.file.parent().map(text).unwrap_or_default();
    Hooks {
        create_container: list(&spec.hooks.create_container),
        start_container: list(&spec.hooks.start_container),
        state: Some(HookState {
            oci_version: OCI_VERSION.to_owned(),
            id: id.to_owned(),
            bundle,
            annotations: spec.annotations.clone(),
        }),
    }
}

/// A process of a spec, as the agent is told of it.
///
/// # Errors
/// For a filter of system calls that is larger than the kernel takes.
pub fn process_of(process: &fcpipe_spec::Process) -> Result<Process, Failure> {
    let filter = process.seccomp.as_ref().map(seccomp::compile).transpose();
    let filter = filter
        .map_err(|e| Failure::new("", FailureKind::Spec, "linux.seccomp", Some(Box::new(e))))?;
    let limit = |limit: &fcpipe_spec::Rlimit| Rlimit {
        kind: limit.kind.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    Ok(Process {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: text(&process.cwd),
        uid: process.uid,
        gid: process.gid,
        additional_gids: process.additional_gids.clone(),
        umask: process.umask,
        terminal: process.terminal,
        console_size: process.console_size.map(|size| WindowSize {
            rows: size.rows,
            columns: size.columns,
        }),
        no_new_privileges: process.no_new_privileges,
        rlimits: process.rlimits.iter().map(limit).collect(),
        oom_score_adj: process.oom_score_adj,
        capabilities: process.capabilities.map(|sets| Capabilities {
            bounding: sets.bounding,
            effective: sets.effective,
            inheritable: sets.inheritable,
            permitted: sets.permitted,
            ambient: sets.ambient,
        }),
        seccomp: filter,
        // `PER_…` of linux/personality.h
        personality: process.personality.map(|domain| match domain {
            Personality::Linux => 0,
            Personality::Linux32 => 8,
        }),
    })
}

/// A path of a spec is text: it was read from JSON or YAML.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
