//! What a container platform makes on a host, in namespaces of the test's own.
//!
//! ```text
//! outside 10.50.0.2 ── 10.50.0.1 host: NAT, forwards 8080 ─ b9_br0 192.168.1.1 ─┬─ b9_veth_c_1 in c1, 192.168.1.5
//!                                                                               └─ b9_veth_c_2 in c2, 192.168.1.6
//! ```
//! The same in IPv6: fd00:50::/64 outside, fd00:1::/64 on the bridge. `outside` has no route to the bridge's network: what comes back from
//! there has been through NAT.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::{World, not_root, skip};

/// Runs a script and gives what it wrote; it must succeed.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let done = Command::new("sh").args(["-ec", script]).output().unwrap();
    let (out, err) = (text(done.stdout), text(done.stderr));
    assert!(done.status.success(), "{script}\n{out}{err}");
    out
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Two states are the same; if not, the lines that differ.
#[track_caller]
pub(crate) fn assert_same(now: &str, before: &str, context: &str) {
    let only = |of: &str, other: &str| -> Vec<String> {
        let known: Vec<&str> = other.lines().collect();
        let new = of.lines().filter(|line| !known.contains(line));
        new.map(str::to_owned).collect()
    };
    let (gone, new) = (only(before, now), only(now, before));
    assert!(now == before, "{context}\ngone: {gone:#?}\nnew: {new:#?}");
}

pub(crate) fn skip_without_namespaces() -> bool {
    let missing = ["ip", "nft", "tc", "tcpdump", "ping"]
        .into_iter()
        .find(|program| Command::new(program).arg("-V").output().is_err())
        .map(|program| format!("{program} is not installed"));
    skip(not_root().or(missing))
}

pub(crate) struct Platform {
    pub(crate) host: String,
    pub(crate) outside: String,
    /// The containers' namespaces: c1 and c2.
    pub(crate) containers: [String; 2],
    servers: Vec<Child>,
}

/// A container's addresses.
pub(crate) const V4: [&str; 2] = ["192.168.1.5", "192.168.1.6"];
pub(crate) const V6: [&str; 2] = ["fd00:1::5", "fd00:1::6"];

impl Platform {
    pub(crate) fn new() -> Platform {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("b9{}{role}{number}", std::process::id());
        let (host, outside) = (name("host"), name("outside"));
        let containers = [name("c1"), name("c2")];
        sh(&format!(
            "for name in {host} {outside} {} {}; do ip netns add $name; ip -n $name link set lo up; done
             ip netns exec {host} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip -n {host} link add b9_br0 type bridge
             ip -n {host} addr add 192.168.1.1/24 dev b9_br0
             ip -n {host} addr add fd00:1::1/64 dev b9_br0 nodad
             ip -n {host} link set b9_br0 up
             ip -n {host} link add up0 type veth peer name eth0 netns {outside}
             ip -n {host} addr add 10.50.0.1/24 dev up0
             ip -n {host} addr add fd00:50::1/64 dev up0 nodad
             ip -n {host} link set up0 up
             ip -n {outside} addr add 10.50.0.2/24 dev eth0
             ip -n {outside} addr add fd00:50::2/64 dev eth0 nodad
             ip -n {outside} link set eth0 up",
            containers[0], containers[1]
        ));
        for (index, container) in containers.iter().enumerate() {
            let (link, v4, v6) = (index + 1, V4[index], V6[index]);
            sh(&format!(
                "ip -n {host} link add b9_veth_h_{link} type veth peer name b9_veth_c_{link} netns {container}
                 ip -n {host} link set b9_veth_h_{link} master b9_br0 up
                 ip -n {container} addr add {v4}/24 dev b9_veth_c_{link}
                 ip -n {container} addr add {v6}/64 dev b9_veth_c_{link} nodad
                 ip -n {container} link set b9_veth_c_{link} up
                 ip -n {container} route add default via 192.168.1.1
                 ip -n {container} -6 route add default via fd00:1::1"
            ));
        }
        let rules = format!(
            "table inet b9 {{
               chain post {{ type nat hook postrouting priority 100; oifname \"up0\" masquerade; }}
               chain pre {{ type nat hook prerouting priority -100
                 iifname \"up0\" tcp dport 8080 dnat ip to {}:80
                 iifname \"up0\" tcp dport 8080 dnat ip6 to [{}]:80
               }}
             }}",
            V4[0], V6[0]
        );
        sh(&format!(
            "ip netns exec {host} nft -f - <<'END'\n{rules}\nEND"
        ));
        // All links come up in a moment, the bridge with its first port, or a later look would find them changed.
        let deadline = Instant::now() + Duration::from_secs(60);
        for (namespace, link) in [
            (&host, "b9_br0"),
            (&host, "b9_veth_h_1"),
            (&host, "b9_veth_h_2"),
            (&host, "up0"),
            (&containers[0], "b9_veth_c_1"),
            (&containers[1], "b9_veth_c_2"),
        ] {
            while !sh(&format!("ip -n {namespace} link show {link}")).contains(" state UP ") {
                assert!(Instant::now() < deadline, "{link} does not come up");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Platform {
            host,
            outside,
            containers,
            servers: Vec::new(),
        }
    }

    pub(crate) fn path(&self, container: usize) -> PathBuf {
        Path::new("/var/run/netns").join(&self.containers[container])
    }

    /// Runs a command in a namespace; whether it succeeded, and what it wrote.
    pub(crate) fn inside(&self, namespace: &str, script: &str) -> (bool, String) {
        let done = Command::new("ip")
            .args(["netns", "exec", namespace, "sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = text(done.stdout) + &text(done.stderr);
        (done.status.success(), said)
    }

    #[track_caller]
    pub(crate) fn must(&self, namespace: &str, script: &str) -> String {
        let (fine, said) = self.inside(namespace, script);
        assert!(fine, "{script}\n{said}");
        said
    }

    /// A program that runs in a namespace until the platform ends.
    pub(crate) fn serve(&mut self, namespace: &str, arguments: &[&str], output: Stdio) {
        let server = Command::new("ip")
            .args(["netns", "exec", namespace])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.servers.push(server);
    }

    /// Everything on the host's side that a launch could leave changed: links, addresses, routes, rules, static neighbours, qdiscs,
    /// filters, nftables.
    pub(crate) fn host_state(&self) -> String {
        let host = &self.host;
        sh(&format!(
            "ip -n {host} -d link show | sed 's/ [a-z_]*_timer *[0-9.]*//g; s/ fdb_n_learned [0-9]*//; s/ numtxqueues .*//'
             ip -n {host} addr show scope global
             for family in 4 6; do ip -n {host} -$family route show table all | grep -v 'fe80\\|multicast\\|ff00'; ip -n {host} -$family rule show; done
             ip -n {host} neigh show nud permanent
             tc -n {host} qdisc show
             for link in b9_br0 b9_veth_h_1 b9_veth_h_2 up0; do tc -n {host} filter show dev $link ingress; done
             ip netns exec {host} nft list ruleset"
        ))
    }

    /// The same of the container's namespace.
    pub(crate) fn container_state(&self, container: usize) -> String {
        let name = &self.containers[container];
        sh(&format!(
            "ip -n {name} -d link show | sed 's/ numtxqueues .*//'
             ip -n {name} addr show scope global
             for family in 4 6; do ip -n {name} -$family route show | grep -v fe80; ip -n {name} -$family rule show; done
             ip -n {name} neigh show nud permanent
             tc -n {name} qdisc show
             tc -n {name} filter show dev b9_veth_c_{} ingress
             ip netns exec {name} nft list ruleset",
            container + 1
        ))
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        let [c1, c2] = &self.containers;
        for name in [c1, c2, &self.outside, &self.host] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// A bundle whose `linux.namespaces` names a container's namespace, as the platform writes it.
pub(crate) fn bundle(
    world: &World,
    netns: &Path,
    args: &[&str],
    mounts: &[serde_json::Value],
) -> PathBuf {
    let bundle = world.bundle(args, mounts);
    let file = bundle.join("config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["linux"] = json!({"namespaces": [
        {"type": "pid"},
        {"type": "network", "path": netns},
    ]});
    std::fs::write(&file, config.to_string()).unwrap();
    bundle
}
