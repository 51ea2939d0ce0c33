//! A network without a platform. The "host" is a namespace too, which the test's thread moves to.

use std::process::Command;

use fcpipe_net::{NetError, make_own, plan_own, undo_own};

use crate::world::{World, mark, sh, skip};

const INNER: &str = "FCPIPE_NET_TEST_OWN";

/// Not a test by itself: what the next one runs in a namespace.
#[test]
fn helper_in_a_host_of_its_own() {
    if std::env::var_os(INNER).is_none() {
        return;
    }
    let pool = "10.77.0.0/29".parse().unwrap();
    let links = || sh("ip link show | grep -v '^ ' | cut -d: -f2; nft list ruleset");
    let before = links();
    let first = plan_own(&mark("one"), pool, true);
    assert!(matches!(first, Err(NetError::Spec(_))), "no forwarding");
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    let one = plan_own(&mark("one"), pool, true).unwrap();
    let inside = make_own(&one).unwrap();
    let two = plan_own(&mark("two"), pool, true).unwrap();
    let other = make_own(&two).unwrap();
    let rules = sh("nft list ruleset");
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
    let ping = |namespace: &fcpipe_net::Namespace, to: &str| {
        let inside = namespace.path().display().to_string();
        // The shell has its own descriptors: the namespace is named by this process's.
        let path = inside.replace("/proc/self", &format!("/proc/{}", std::process::id()));
        sh(&format!("nsenter --net={path} ping -c1 -W2 {to}"))
    };
    ping(&inside, "10.77.0.1");
    ping(&inside, "10.77.0.3");
    ping(&other, "10.77.0.2");
    // Addresses 2 to 6 of 8 are guests'.
    let mut more = Vec::new();
    for number in 3..=5 {
        let own = plan_own(&mark(&format!("{number}")), pool, false).unwrap();
        more.push((make_own(&own).unwrap(), own));
    }
    let full = plan_own(&mark("six"), pool, false).and_then(|own| make_own(&own));
    assert!(full.unwrap_err().to_string().contains("in use"));
    for (namespace, own) in more {
        drop(namespace);
        undo_own(&own).unwrap();
    }
    undo_own(&one).unwrap();
    ping(&other, "10.77.0.1");
    undo_own(&two).unwrap();
    undo_own(&two).unwrap();
    // Launches that begin while others end: each has its bridge, and NAT, until its own end.
    std::thread::scope(|scope| {
        for launch in ["three", "four"] {
            let (pool, ping) = (&pool, &ping);
            scope.spawn(move || {
                for _ in 0..8 {
                    let own = plan_own(&mark(launch), *pool, true).unwrap();
                    let inside = make_own(&own).unwrap();
                    ping(&inside, "10.77.0.1");
                    assert!(sh("nft list ruleset").contains("masquerade"));
                    drop(inside);
                    undo_own(&own).unwrap();
                }
            });
        }
    });
    assert_eq!(links(), before);
    let clash = sh("ip link add x type veth; ip addr add 10.77.0.9/24 dev x; echo");
    assert_eq!(clash.trim(), "");
    let wide = "10.77.0.0/16".parse().unwrap();
    let error = plan_own(&mark("one"), wide, false).unwrap_err();
    assert!(error.to_string().contains("10.77.0.9"), "{error}");
    println!("\nhelper done");
}

#[test]
fn needs_root_an_own_network_is_made_shared_and_undone() {
    if skip() {
        return;
    }
    let world = World::new();
    let done = Command::new("ip")
        .args(["netns", "exec", &world.host])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "own::helper_in_a_host_of_its_own", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    let errors = String::from_utf8(done.stderr).unwrap();
    assert!(
        done.status.success() && said.contains("helper done"),
        "{said}{errors}"
    );
}
