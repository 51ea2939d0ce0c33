//! A guest where the container would have stood: who reaches it, whom it reaches, what it is told.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::platform::{Platform, V4, V6, assert_same, bundle, sh, skip_without_namespaces};
use super::resolver;
use crate::world::{World, assert_code, skip_without_machine};

/// A machine that waits for commands.
struct Machine<'a> {
    world: &'a World,
    id: String,
}

impl<'a> Machine<'a> {
    /// In the namespace of a container of the platform.
    fn start(world: &'a World, platform: &Platform, container: usize, set: &[&str]) -> Self {
        let code = world.path("code");
        fs::create_dir_all(&code).unwrap();
        fs::write(code.join("hello.txt"), "hello\n").unwrap();
        let mount = json!({"destination": "/mnt/code", "type": "bind", "source": code, "options": ["bind"]});
        let bundle = bundle(
            world,
            &platform.path(container),
            &["sleep", "10000"],
            &[mount],
        );
        let id = format!("sandbox-{}", platform.containers[container]);
        let mut run = world.with_kernel();
        run.args(["--progress", "quiet", "run", "--detach", "--id", &id]);
        for set in set {
            run.args(["--set", set]);
        }
        assert_code(&run.arg(bundle).output().unwrap(), 0);
        Machine { world, id }
    }

    fn exec(&self, script: &str) -> (bool, String) {
        let done = self
            .world
            .with_kernel()
            .args(["exec", &self.id, "--", "sh", "-c", script])
            .output()
            .unwrap();
        let said = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8(said).unwrap_or_default(),
        )
    }

    #[track_caller]
    fn must(&self, script: &str) -> String {
        let (fine, said) = self.exec(script);
        assert!(fine, "{script}\n{said}");
        said
    }

    fn end(self) {
        let delete = ["delete", "--force", &self.id];
        let done = self.world.with_kernel().args(delete).output().unwrap();
        assert_code(&done, 0);
    }
}

/// Of a test that failed, no machine stays.
impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "--force", &self.id];
        let _ = self.world.with_kernel().args(delete).output();
    }
}

/// MiB that are sent each way.
fn transfer() -> u32 {
    std::env::var("FCPIPE_SOAK_TRANSFER")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100)
}

/// A script that gets a file by HTTP and gives its content to `then`. (Debian's static wget ends with a fault where names are looked up.)
fn get(host: &str, port: u16, path: &str, then: &str) -> String {
    format!(
        "printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 30 {host} {port} | {{
           while read -r line; do [ \"$line\" = \"$(printf '\\r')\" ] && break; done; {then}; }}"
    )
}

#[test]
fn qemu_needs_root_a_guest_has_the_container_s_place_and_the_host_does_not_notice() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let mut platform = Platform::new();
    let (host, outside) = (platform.host.clone(), platform.outside.clone());
    let [c1, c2] = platform.containers.clone();
    let srv = world.path("srv");
    fs::create_dir_all(&srv).unwrap();
    fs::write(srv.join("index.html"), "served\n").unwrap();
    sh(&format!(
        "dd if=/dev/urandom of={0}/big bs=1M count={1} status=none; cd {0}; sha256sum big > big.sum",
        srv.display(),
        transfer()
    ));
    let dir = srv.display().to_string();
    for namespace in [&c2, &outside] {
        let server = ["busybox", "httpd", "-f", "-p", "80", "-h", &dir];
        platform.serve(namespace, &server, Stdio::null());
    }
    resolver::start(&outside);

    let before = platform.host_state();
    let inside_before = platform.container_state(0);
    // Room for what is sent from the guest.
    let size = format!("disk.size={}MiB", 256 + transfer());
    let set = ["network.dns=10.50.0.2", &size];
    let machine = Machine::start(&world, &platform, 0, &set);
    // Nothing on the host's side differs while it runs.
    assert_same(&platform.host_state(), &before, "");

    // What the platform's people would look at.
    let tap = format!("b9fc_{}", &machine.id[machine.id.len() - 10..]);
    let shown = platform.must(&c1, "ip addr show");
    assert!(shown.contains(&format!(" {tap}: ")), "{shown}");
    assert!(
        shown.contains("inet 192.168.1.5/24"),
        "the veth keeps its address: {shown}"
    );
    machine.must("busybox ping -c 2 -W 5 192.168.1.1");
    let listed = machine.must("busybox ls -la /mnt/code");
    assert!(listed.contains("hello.txt"), "{listed}");
    let disks = machine.must("busybox df -h");
    assert!(disks.contains(" /\n"), "{disks}");

    // The container's own interface, to the name.
    let address = platform.must(&c1, "cat /sys/class/net/b9_veth_c_1/address");
    let link =
        machine.must("busybox ip addr show b9_veth_c_1; busybox ip route; busybox ip -6 route");
    for part in [
        address.trim(),
        "inet 192.168.1.5/24",
        "inet6 fd00:1::5/64",
        "default via 192.168.1.1",
        "default via fd00:1::1",
    ] {
        assert!(link.contains(part), "{part}: {link}");
    }

    // To the bridge, the neighbour and the outside; and from all of them.
    for target in [V4[1], "10.50.0.2"] {
        machine.must(&format!("busybox ping -c 2 -W 5 {target}"));
    }
    for target in ["fd00:1::1", V6[1], "fd00:50::2"] {
        machine.must(&format!("busybox ping6 -c 2 -W 5 {target}"));
    }
    for namespace in [&host, &c2] {
        platform.must(namespace, &format!("ping -c 2 -W 5 {}", V4[0]));
        platform.must(namespace, &format!("ping -c 2 -W 5 {}", V6[0]));
    }

    // HTTP both ways, and by the forwarded port.
    for (to, port) in [
        (V4[1], 80),
        (V6[1], 80),
        ("10.50.0.2", 80),
        ("fd00:50::2", 80),
    ] {
        let got = machine.must(&get(to, port, "/", "cat"));
        assert_eq!(got, "served\n", "{to}");
    }
    machine.must(&format!(
        "mkdir /srv && echo of the guest > /srv/index.html &&
         dd if=/dev/urandom of=/srv/up bs=1M count={} &&
         busybox httpd -p 80 -h /srv",
        transfer() / 5
    ));
    for (namespace, to, port) in [
        (&host, V4[0], 80),
        (&c2, V6[0], 80),
        (&outside, "10.50.0.1", 8080),
        (&outside, "fd00:50::1", 8080),
    ] {
        let got = platform.must(namespace, &get(to, port, "/", "cat"));
        assert_eq!(got, "of the guest\n", "{to}");
    }

    // Names.
    let said = machine.must("busybox nslookup files.example");
    assert!(
        said.contains("10.50.0.2") && said.contains("fd00:50::2"),
        "{said}"
    );

    // Much, and intact: through NAT to the guest by either family, and by the forwarded port out of it.
    let sum = fs::read_to_string(srv.join("big.sum")).unwrap();
    let sum = sum.split_whitespace().next();
    for from in ["10.50.0.2", "fd00:50::2"] {
        let got = machine.must(&get(from, 80, "/big", "sha256sum"));
        assert_eq!(got.split(' ').next(), sum, "{from}");
    }
    let sent = machine.must("sha256sum /srv/up");
    let got = platform.must(&outside, &get("10.50.0.1", 8080, "/up", "sha256sum"));
    assert_eq!(got.split(' ').next(), sent.split(' ').next());

    // A DHCP client gets the same.
    machine.must(
        "mkdir -p /tmp && printf '#!/bin/sh\\n[ \"$1\" = bound ] && busybox env\\nexit 0\\n' > /tmp/lease && busybox chmod +x /tmp/lease",
    );
    let lease = machine
        .must("busybox timeout 60 busybox udhcpc -i b9_veth_c_1 -f -n -q -t 5 -T 2 -O mtu -s /tmp/lease 2>/dev/null");
    for line in [
        "ip=192.168.1.5",
        "subnet=255.255.255.0",
        "router=192.168.1.1",
        "dns=10.50.0.2",
        "mtu=1500",
    ] {
        assert!(lease.lines().any(|l| l == line), "{line}: {lease}");
    }

    // Row 63, from inside a machine: other addresses, other MACs. The listener hears the honest ping alone.
    let heard = world.path("heard");
    let filter = "ether src 02:66:66:66:66:66 or host 192.168.1.66 or (icmp and src host 192.168.1.5) or (arp and (arp[14:4] = 0xc0a80142))";
    let listener = [
        "tcpdump",
        "-p",
        "-n",
        "-e",
        "-l",
        "-Z",
        "root",
        "-i",
        "b9_veth_h_1",
        filter,
    ];
    let file = fs::File::create(&heard).unwrap();
    platform.serve(&host, &listener, file.into());
    let hears = |what: &str| fs::read_to_string(&heard).unwrap().contains(what);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !hears("192.168.1.5 > 192.168.1.1") {
        assert!(Instant::now() < deadline, "the listener hears nothing");
        machine.must("busybox ping -c 1 -W 5 192.168.1.1");
    }
    let (fine, said) = machine.exec(
        "busybox ip addr add 192.168.1.66/24 dev b9_veth_c_1
         busybox arping -c 2 -w 2 -I b9_veth_c_1 -s 192.168.1.66 192.168.1.1
         busybox arping -U -c 2 -w 2 -I b9_veth_c_1 192.168.1.66
         busybox ping -c 2 -W 1 -I 192.168.1.66 192.168.1.1
         busybox ip link set b9_veth_c_1 down
         busybox ip link set b9_veth_c_1 address 02:66:66:66:66:66
         busybox ip link set b9_veth_c_1 up
         busybox ping -c 2 -W 1 192.168.1.1",
    );
    assert!(!fine, "{said}");
    std::thread::sleep(Duration::from_millis(200));
    let all = fs::read_to_string(&heard).unwrap();
    // Not any `66`: a time has one, or the bridge's MAC.
    for forged in ["02:66:66:66:66:66", "192.168.1.66"] {
        assert!(!all.contains(forged), "{all}");
    }

    machine.end();
    assert_same(&platform.host_state(), &before, "");
    assert_same(&platform.container_state(0), &inside_before, "");
    platform.must(&c1, "ping -c 1 -W 5 192.168.1.1");
}

#[test]
fn qemu_needs_root_two_machines_on_a_bridge_reach_each_other() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let worlds = [World::new(), World::new()];
    let platform = Platform::new();
    let before = platform.host_state();
    let one = Machine::start(&worlds[0], &platform, 0, &[]);
    // The other one by a bridge, with an address that the platform has not given to its namespace.
    let two = Machine::start(
        &worlds[1],
        &platform,
        1,
        &[
            "network.mode=bridge",
            "network.addresses=192.168.1.77/24,fd00:1::77/64",
            "network.gateways=192.168.1.1,fd00:1::1",
        ],
    );
    one.must("busybox ping -c 2 -W 5 192.168.1.77");
    one.must("busybox ping6 -c 2 -W 5 fd00:1::77");
    two.must(&format!("busybox ping -c 2 -W 5 {}", V4[0]));
    two.must(&format!("busybox ping6 -c 2 -W 5 {}", V6[0]));
    two.must("busybox ping -c 2 -W 5 10.50.0.2");
    assert_same(&platform.host_state(), &before, "");
    one.end();
    two.end();
    assert_same(&platform.host_state(), &before, "");
}
