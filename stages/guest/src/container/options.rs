//! Mount options, as an OCI spec writes them.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// What a list of options means to mount(2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) flags: MountFlags,
    pub(crate) propagation: Vec<MountPropagationFlags>,
    /// What the file system itself understands, joined by commas.
    pub(crate) data: String,
    /// `tmpcopyup`: the file system begins with what was in the directory that it covers.
    pub(crate) copy_up: bool,
}

/// Options are applied in order: a later `rw` undoes an earlier `ro`.
pub(crate) fn parse(options: &[String]) -> Options {
    let mut parsed = Options {
        flags: MountFlags::empty(),
        propagation: Vec::new(),
        data: String::new(),
        copy_up: false,
    };
    for option in options {
        if let Some((flag, set)) = flag(option) {
            parsed.flags.set(flag, set);
        } else if let Some(propagation) = propagation(option) {
            parsed.propagation.push(propagation);
        } else if option == "tmpcopyup" {
            parsed.copy_up = true;
        } else if !for_others(option) {
            if !parsed.data.is_empty() {
                parsed.data.push(',');
            }
            parsed.data.push_str(option);
        }
    }
    parsed
}

/// The flags of the OCI runtime specification's table "Linux mount options".
fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "mand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
        "nomand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
        "silent" => (MountFlags::SILENT, true),
        "loud" => (MountFlags::SILENT, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    type Flags = MountPropagationFlags;
    Some(match option {
        "private" => Flags::PRIVATE,
        "rprivate" => Flags::PRIVATE | Flags::REC,
        "slave" => Flags::DOWNSTREAM,
        "rslave" => Flags::DOWNSTREAM | Flags::REC,
        "shared" => Flags::SHARED,
        "rshared" => Flags::SHARED | Flags::REC,
        "unbindable" => Flags::UNBINDABLE,
        "runbindable" => Flags::UNBINDABLE | Flags::REC,
        _ => return None,
    })
}

/// Options that mean nothing to the kernel: those for other programs, and those that say what is
/// so anyway.
fn for_others(option: &str) -> bool {
    option.is_empty()
        || option.starts_with("x-")
        || matches!(
            option,
            "defaults" | "auto" | "noauto" | "user" | "nouser" | "_netdev"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_into_flags_and_data() {
        let list = [
            "nosuid",
            "ro",
            "mode=755",
            "x-fcpipe.policy=live",
            "rw",
            "rslave",
            "size=1k",
        ];
        let parsed = parse(&list.map(ToOwned::to_owned));
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.data, "mode=755,size=1k");
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        assert_eq!(parsed.propagation, [slave]);
    }
}
