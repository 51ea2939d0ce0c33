//! The network as the host describes it: interfaces named, addressed and brought up, routes, resolvers.

mod messages;

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fcpipe_proto::{Failure, FailureKind, GuestInterface, GuestNetwork, ResolvConf};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::console::say;
use crate::container::resolve;
use messages::Kernel;

/// How long an interface may take to appear once its driver is loaded.
const APPEAR: Duration = Duration::from_secs(10);
/// Between two looks.
const STEP: Duration = Duration::from_millis(2);

const LINKS: &str = "/sys/class/net";
/// In every network namespace.
const LOOPBACK: u32 = 1;

/// Brings `lo` up.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn loopback_up() -> io::Result<()> {
    Kernel::open()?.up(LOOPBACK, None)
}

/// Does what `network` says.
pub(crate) fn set_up(network: &GuestNetwork) -> Result<(), Failure> {
    let failed = |what: &str, error: &io::Error| {
        let message = format!("the network: {what}: {error}");
        Failure::new(FailureKind::Setup, None, message)
    };
    let mut kernel = Kernel::open().map_err(|e| failed("netlink", &e))?;
    let deadline = Instant::now() + APPEAR;
    let mut indices = Vec::with_capacity(network.interfaces.len());
    for (number, interface) in network.interfaces.iter().enumerate() {
        let index = find(interface.mac, deadline).map_err(|e| failed(&interface.name, &e))?;
        indices.push(index);
        // Out of the way of the others' names: the kernel numbers interfaces by itself.
        let aside = format!("guest{number}");
        kernel
            .rename(index, &aside)
            .map_err(|e| failed(&interface.name, &e))?;
    }
    for (interface, &index) in network.interfaces.iter().zip(&indices) {
        configure(&mut kernel, interface, index)
            .map_err(|(what, e)| failed(&format!("{}: {what}", interface.name), &e))?;
    }
    Ok(())
}

fn configure(
    kernel: &mut Kernel,
    interface: &GuestInterface,
    index: u32,
) -> Result<(), (String, io::Error)> {
    let at = |what: &str| {
        let what = what.to_owned();
        move |error| (what, error)
    };
    kernel
        .rename(index, &interface.name)
        .map_err(at("its name"))?;
    // The host has said everything; what routers say could only contradict it. Without IPv6 there is no such file.
    let _ = fs::write(
        format!("/proc/sys/net/ipv6/conf/{}/accept_ra", interface.name),
        "0",
    );
    kernel
        .up(index, Some(interface.mtu))
        .map_err(at("up, with its MTU"))?;
    for address in &interface.addresses {
        kernel
            .add_address(index, *address)
            .map_err(|e| (format!("address {}/{}", address.address, address.prefix), e))?;
    }
    for route in &interface.routes {
        let to = route.destination;
        kernel
            .add_route(index, route)
            .map_err(|e| (format!("the route to {}/{}", to.address, to.prefix), e))?;
    }
    Ok(())
}

/// The index of the interface with this address, when it has appeared.
fn find(mac: [u8; 6], deadline: Instant) -> io::Result<u32> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    loop {
        for entry in fs::read_dir(LINKS)? {
            let dir = entry?.path();
            let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
            if read("address").trim() == wanted
                && let Ok(index) = read("ifindex").trim().parse()
            {
                return Ok(index);
            }
        }
        if Instant::now() > deadline {
            let message = format!("no interface has the address {wanted}");
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        sleep(STEP);
    }
}

/// Gives the container at `root` its resolvers. A root that cannot be written keeps what it has, and that is said.
pub(crate) fn resolvers(root: &Path, conf: &ResolvConf) {
    if let Err(e) = write_resolvers(root, conf) {
        say(&format!("/etc/resolv.conf stays as it is: {e}"));
    }
}

fn write_resolvers(root: &Path, conf: &ResolvConf) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let path = "/etc/resolv.conf";
    let there = resolve::open(root.as_fd(), path);
    if let Ok(file) = &there {
        let stat = rustix::fs::fstat(file)?;
        if conf.keep && stat.st_size > 0 {
            return Ok(());
        }
    }
    let dir = resolve::make_dir(root.as_fd(), "/etc")?;
    // A new file and not a new content: what is there may be a link out of /etc, or a file that has other names.
    let new = ".resolv.conf.new";
    let _ = rustix::fs::unlinkat(&dir, new, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, new, flags, Mode::from_raw_mode(0o644))?;
    let mut file = fs::File::from(file);
    let written = file
        .write_all(conf.text.as_bytes())
        .and_then(|()| Ok(rustix::fs::renameat(&dir, new, &dir, "resolv.conf")?));
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&dir, new, AtFlags::empty());
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use fcpipe_proto::{GuestAddress, GuestRoute};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn conf(keep: bool) -> ResolvConf {
        ResolvConf {
            text: "nameserver 10.0.0.2\n".to_owned(),
            keep,
        }
    }

    #[test]
    fn resolvers_are_written_where_the_image_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etc/resolv.conf");
        let read = || fs::read_to_string(&file).unwrap();
        resolvers(dir.path(), &conf(true));
        assert_eq!(read(), conf(true).text);
        fs::write(&file, "nameserver 10.9.9.9\n").unwrap();
        resolvers(dir.path(), &conf(true));
        assert_eq!(read(), "nameserver 10.9.9.9\n");
        resolvers(dir.path(), &conf(false));
        assert_eq!(read(), conf(true).text);
    }

    #[test]
    fn row_08_a_link_to_somewhere_else_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for target in [
            "../run/systemd/resolve/stub-resolv.conf",
            outside.path().to_str().unwrap(),
        ] {
            let file = dir.path().join("etc/resolv.conf");
            let _ = fs::remove_file(&file);
            symlink(target, &file).unwrap();
            resolvers(dir.path(), &conf(true));
            assert_eq!(fs::read_to_string(&file).unwrap(), conf(true).text);
            assert!(!file.is_symlink());
        }
        assert_eq!(fs::read_to_string(outside.path()).unwrap(), "");
    }

    fn ip(arguments: &str) -> String {
        let mut ip = Command::new("ip");
        let done = ip.args(arguments.split_whitespace()).output().unwrap();
        let error = done.stderr.escape_ascii();
        assert!(done.status.success(), "ip {arguments}: {error}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn network(text: &str) -> GuestAddress {
        let (address, prefix) = text.split_once('/').unwrap();
        GuestAddress {
            address: address.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        }
    }

    fn route(destination: &str, gateway: Option<&str>) -> GuestRoute {
        GuestRoute {
            destination: network(destination),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
            metric: destination.contains(':').then_some(1024),
            mtu: None,
            onlink: false,
        }
    }

    /// All that a host's kernel can hold, a guest's can: two ways to everywhere with one metric, an address whose gateway is the other end
    /// of its link, a gateway of the other family.
    #[test]
    fn needs_root_routes_that_a_namespace_can_have() {
        if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
            let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!ci, "missing under CI: root, or iproute2");
            println!("skipped: not root, or no iproute2");
            return;
        }
        let interface = |name: &str, addresses: &[&str], routes: Vec<GuestRoute>| GuestInterface {
            mac: [0; 6],
            name: name.to_owned(),
            mtu: 1500,
            addresses: addresses.iter().map(|text| network(text)).collect(),
            routes,
        };
        let interfaces = [
            interface(
                "one",
                &["10.0.0.2/32", "fd00::2/64"],
                vec![
                    route("10.0.0.1/32", None),
                    route("0.0.0.0/0", Some("10.0.0.1")),
                    route("10.9.0.0/16", Some("fd00::1")),
                    route("::/0", Some("fd00::1")),
                ],
            ),
            interface(
                "two",
                &["192.168.1.5/24", "fd01::5/64"],
                vec![
                    route("192.168.1.0/24", None),
                    route("0.0.0.0/0", Some("192.168.1.1")),
                    route("::/0", Some("fd01::1")),
                ],
            ),
        ];
        // A namespace is a thread's, and ends with it.
        let (v4, v6) = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut kernel = Kernel::open().unwrap();
            for (interface, index) in interfaces.iter().zip([10, 20]) {
                let other = index + 1;
                ip(&format!(
                    "link add guest{index} index {index} type veth peer name other{index} index {other}"
                ));
                ip(&format!("link set other{index} up"));
                configure(&mut kernel, interface, index).unwrap();
            }
            (ip("-4 route show"), ip("-6 route show"))
        })
        .join()
        .unwrap();
        for wanted in [
            "default via 10.0.0.1 dev one",
            "default via 192.168.1.1 dev two",
            "10.9.0.0/16 via inet6 fd00::1 dev one",
        ] {
            assert!(v4.contains(wanted), "{wanted}: {v4}");
        }
        for wanted in ["via fd00::1 dev one", "via fd01::1 dev two"] {
            assert!(v6.contains(wanted), "{wanted}: {v6}");
        }
    }
}
