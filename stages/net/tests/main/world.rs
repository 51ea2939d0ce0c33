//! A platform's namespace as a container would get it, under a name of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fcpipe_net::{Attachment, Mark, Mode, Namespace, NetError, Wanted, plan};

pub(crate) const EVERYBODY: &(dyn Fn(&str) -> bool + Sync) = &|_| true;

/// True, and says why, where namespaces can't be made. A failure under `CI=true`.
pub(crate) fn skip() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "iproute2 is not installed"
    } else {
        return false;
    };
    let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!ci, "missing under CI: {why}");
    println!("skipped: {why}");
    true
}

#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let done = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(done.stdout), text(done.stderr));
    assert!(done.status.success(), "{script}\n{out}{err}");
    out
}

/// A "host" with a bridge, and a namespace on it with 192.168.1.5/24, fd00::5/64 and routes.
pub(crate) struct World {
    pub(crate) host: String,
    pub(crate) container: String,
}

impl World {
    pub(crate) fn new() -> World {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let host = format!("fcn{}h{number}", std::process::id());
        let container = format!("fcn{}c{number}", std::process::id());
        sh(&format!(
            "ip netns add {host}
             ip netns add {container}
             ip -n {host} link add b9_br0 type bridge
             ip -n {host} addr add 192.168.1.1/24 dev b9_br0
             ip -n {host} addr add fd00::1/64 dev b9_br0 nodad
             ip -n {host} link set b9_br0 up
             ip -n {host} link add b9_veth_h type veth peer name b9_veth_c netns {container}
             ip -n {host} link set b9_veth_h master b9_br0 up
             ip -n {container} link set lo up
             ip -n {container} link set b9_veth_c mtu 1450 up
             ip -n {container} addr add 192.168.1.5/24 dev b9_veth_c
             ip -n {container} addr add fd00::5/64 dev b9_veth_c nodad
             ip -n {container} route add default via 192.168.1.1
             ip -n {container} route add 10.1.0.0/16 via 192.168.1.2 metric 50
             ip -n {container} -6 route add default via fd00::1"
        ));
        // Both ends come up in a moment, or a later look would find them changed.
        let deadline = Instant::now() + Duration::from_secs(60);
        for (namespace, link) in [(&host, "b9_veth_h"), (&container, "b9_veth_c")] {
            while !sh(&format!("ip -n {namespace} link show {link}")).contains(" state UP ") {
                assert!(Instant::now() < deadline, "{link} does not come up");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        World { host, container }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.container)
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::open(&self.path()).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.container, &self.host] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

pub(crate) fn mark(launch: &str) -> Mark {
    Mark::new(launch, Path::new("/run/fcpipe-net-test"))
}

pub(crate) fn wanted(launch: &str) -> Wanted<'static> {
    Wanted {
        mode: Mode::Redirect,
        mark: mark(launch),
        tap_prefix: "b9fc_",
        antispoof: true,
    }
}

pub(crate) fn planned(world: &World, launch: &str) -> Result<Attachment, NetError> {
    plan(&world.namespace(), &wanted(launch), EVERYBODY)
}
