//! Which trees of control groups are mounted, and which controllers each has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupError, failed};

/// Controllers of which a machine needs a group. Others' trees are left alone.
const WANTED: [&str; 3] = ["memory", "cpu", "cpuacct"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) mount: PathBuf,
    pub(super) controllers: Vec<String>,
}

/// The trees that matter to a machine, each once.
pub(super) fn probe() -> io::Result<Vec<Hierarchy>> {
    Ok(of(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Those of a list of mounts.
pub(super) fn of(mountinfo: &str) -> Vec<Hierarchy> {
    let controllers = |mount: &Path| {
        let text = fs::read_to_string(mount.join("cgroup.controllers"))?;
        Ok::<_, io::Error>(text.split_whitespace().map(str::to_owned).collect())
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for mut hierarchy in mountinfo.lines().filter_map(parse) {
        if hierarchy.version == Version::Two {
            // A tree that can't be read is none that can be used.
            let Ok(list) = controllers(&hierarchy.mount) else {
                continue;
            };
            hierarchy.controllers = list;
        }
        let again = found.iter().any(|other| {
            other.version == hierarchy.version && other.controllers == hierarchy.controllers
        });
        let wanted =
            hierarchy.version == Version::Two || WANTED.iter().any(|name| hierarchy.has(name));
        if wanted && !again {
            found.push(hierarchy);
        }
    }
    found
}

/// A line of mountinfo (proc_pid_mountinfo(5)): `36 35 98:0 / MOUNT OPTIONS … - TYPE SOURCE SUPER_OPTIONS`.
fn parse(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    let options = after.nth(1)?;
    let mount = unescape(before.split(' ').nth(4)?);
    let controllers = match version {
        // Among them is what is no controller: `rw`, `name=systemd`.
        Version::One => options.split(',').map(str::to_owned).collect(),
        Version::Two => Vec::new(),
    };
    Some(Hierarchy {
        version,
        mount: mount.into(),
        controllers,
    })
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// In version 2 a group has the controllers that all groups above it pass on. They are there, and so is the group.
    pub(super) fn enable(&self, group: &Path) -> Result<(), CgroupError> {
        if self.version == Version::One {
            return Ok(());
        }
        let wanted: Vec<&str> = WANTED.into_iter().filter(|name| self.has(name)).collect();
        let Ok(below) = group.strip_prefix(&self.mount) else {
            return Ok(());
        };
        let mut dir = self.mount.clone();
        for name in below.components() {
            let file = dir.join("cgroup.subtree_control");
            let has = fs::read_to_string(&file).map_err(failed("cannot be read", &file))?;
            let missing: Vec<String> = wanted
                .iter()
                .filter(|name| !has.split_whitespace().any(|has| has == **name))
                .map(|name| format!("+{name}"))
                .collect();
            if !missing.is_empty() {
                fs::write(&file, missing.join(" ")).map_err(failed(
                    "controllers cannot be passed on (a group with processes of its own cannot)",
                    &file,
                ))?;
            }
            dir.push(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_read() {
        let one = parse("30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct").unwrap();
        assert_eq!(one.version, Version::One);
        assert_eq!(one.mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(one.has("cpu") && one.has("cpuacct") && !one.has("memory"));
        let two = parse("31 23 0:27 / /sys/fs/a\\040b rw - cgroup2 cgroup2 rw,nsdelegate").unwrap();
        assert_eq!(
            (two.version, two.mount),
            (Version::Two, "/sys/fs/a b".into())
        );
        assert_eq!(parse("1 0 8:1 / / rw - ext4 /dev/vda rw"), None);
        assert_eq!(parse("nonsense"), None);
    }
}
