//! Networks that are not as usual: none of a platform, several interfaces, and one that goes away.

use std::time::{Duration, Instant};

use serde_json::json;

use super::platform::{Platform, assert_same, bundle, sh, skip_without_namespaces};
use crate::world::{Leftovers, World, assert_code, skip_without_machine};

#[test]
fn qemu_needs_root_a_network_of_its_own_reaches_the_host_and_what_is_behind() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    // The platform's own NAT would do for this guest as well.
    platform.must(&platform.host, "nft flush chain inet b9 post");
    let before = platform.host_state();
    world.bundle(&["true"], &[]);
    let script = "busybox ip addr show eth0; busybox ping -c 1 -W 5 10.77.0.1 && busybox ping -c 1 -W 5 10.50.0.2";
    let launch = json!({
        "version": 1,
        "rootfs": "bundle/rootfs",
        "process": {"args": ["sh", "-c", script], "env": ["PATH=/bin"]},
        "network": {"mode": "own", "pool": "10.77.0.0/24", "nat": true},
    });
    std::fs::write(world.path("launch.json"), launch.to_string()).unwrap();
    let run = world.with_kernel();
    // The platform's host is the host.
    let mut command = std::process::Command::new("ip");
    command
        .args(["netns", "exec", &platform.host])
        .arg(run.get_program())
        .envs(
            run.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .args(["--progress", "quiet", "run"])
        .arg(world.path("launch.json"));
    let output = command.output().unwrap();
    assert_code(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("inet 10.77.0.2/24"), "{said}");
    assert_same(&platform.host_state(), &before, "");
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_needs_root_several_interfaces_and_a_namespace_that_is_removed() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let (host, name) = (&platform.host, &platform.containers[0]);
    // It is the guest's second, and has the name that the guest's kernel gives to the first.
    sh(&format!(
        "ip -n {host} link add second type veth peer name eth0 netns {name}
         ip -n {host} addr add 172.30.0.1/24 dev second; ip -n {host} link set second up
         ip -n {name} addr add 172.30.0.5/24 dev eth0
         ip -n {name} link set eth0 mtu 1400 up
         ip -n {name} route add 172.31.0.0/16 via 172.30.0.1"
    ));
    let launch = bundle(&world, &platform.path(0), &["sleep", "10000"], &[]);
    let fcpipe = |arguments: &[&str]| {
        let mut command = world.with_kernel();
        command.args(["--progress", "quiet"]).args(arguments);
        command
    };
    let mut run = fcpipe(&["run", "--detach", "--id", "two"]);
    assert_code(&run.arg(&launch).output().unwrap(), 0);
    let script = "busybox ip addr; busybox ip route; busybox ping -c 1 -W 5 172.30.0.1 && busybox ping -c 1 -W 5 192.168.1.1";
    let output = fcpipe(&["exec", "two", "--", "sh", "-c", script]).output();
    let output = output.unwrap();
    assert_code(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    for part in [
        ": b9_veth_c_1: ",
        ": eth0: ",
        "mtu 1400",
        "inet 172.30.0.5/24",
        "172.31.0.0/16 via 172.30.0.1 dev eth0",
        "default via 192.168.1.1 dev b9_veth_c_1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    sh(&format!("ip netns del {name}"));
    let deadline = Instant::now() + Duration::from_secs(30);
    let told = || std::fs::read_to_string(world.path("state/two/events")).unwrap();
    while !told().contains("the network namespace was removed under the running machine") {
        assert!(Instant::now() < deadline, "{}", told());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_code(&fcpipe(&["delete", "--force", "two"]).output().unwrap(), 0);
    Leftovers::of(&world).assert_none();
}
