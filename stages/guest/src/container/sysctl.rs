//! Kernel parameters. All of them are the guest's own, whether they have a namespace or not.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;

use fcpipe_proto::Failure;

use super::failed;

/// Sets them through the agent's `/proc`, from inside the container's namespaces: those that have one are then the
/// container's.
pub(super) fn apply(sysctl: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (name, value) in sysctl {
        let set = path(name).and_then(|path| {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.write_all(value.as_bytes())
        });
        set.map_err(|e| failed(Some(name), "setting the kernel parameter", e))?;
    }
    Ok(())
}

/// The file of a parameter. As sysctl(8) has it, the first separator decides: after a dot, dots separate and a slash
/// is a dot of a name; after a slash it is the other way round.
fn path(name: &str) -> std::io::Result<String> {
    let slashes = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('/'));
    let path: String = match slashes {
        true => name.to_owned(),
        false => {
            let swapped = name.chars().map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            });
            swapped.collect()
        }
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    Ok(format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_06_names_are_paths_below_proc_sys() {
        let of = |name| path(name).ok();
        assert_eq!(
            of("net.ipv4.ip_forward").unwrap(),
            "/proc/sys/net/ipv4/ip_forward"
        );
        assert_eq!(
            of("net/ipv4/conf/eth0.1/mtu").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/mtu"
        );
        assert_eq!(
            of("net.ipv4.conf.eth0/1.mtu").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/mtu"
        );
        for name in ["", "a//b", "net/../../x", "a...b", "/etc/passwd", ".."] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
