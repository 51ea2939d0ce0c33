//! A spec in the guest's words: what the agent is told before it starts the process.

use std::path::Path;

use fcpipe_proto::{GuestConfig, GuestMount, Process, RootFs, WallClock, Writes};
use fcpipe_spec::{LaunchSpec, MountKind};

/// The container that the spec describes, its root on the machine's first disk.
pub(crate) fn config(spec: &LaunchSpec) -> GuestConfig {
    let mut mounts = Vec::new();
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
            // It is in the image.
            MountKind::Bind(bind) => {
                let mut options = bind.flags.clone();
                if bind.readonly {
                    options.push("ro".to_owned());
                }
                GuestMount::bind(destination, options)
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
        },
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        mounts,
        wall_clock: Some(WallClock::now()),
        entropy: None,
        // What the network is like is known when it is made.
        network: None,
    }
}

/// A process of a spec, as the agent is told of it.
pub fn process_of(process: &fcpipe_spec::Process) -> Process {
    Process {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: text(&process.cwd),
        uid: process.uid,
        gid: process.gid,
        additional_gids: process.additional_gids.clone(),
        umask: process.umask,
        terminal: process.terminal,
        console_size: None,
        no_new_privileges: process.no_new_privileges,
        rlimits: Vec::new(),
        oom_score_adj: None,
    }
}

/// A path of a spec is text: it was read from JSON or YAML.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
