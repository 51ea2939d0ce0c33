//! What is not a launch's to touch, and what is no namespace.

use std::fs;
use std::path::Path;

use fcpipe_net::{Mark, Namespace, NetError, Wanted, make, plan, undo};

use crate::world::{EVERYBODY, World, mark, planned, sh, skip, wanted};

const NOBODY: &(dyn Fn(&str) -> bool + Sync) = &|_| false;

#[test]
fn row_40_what_is_no_network_namespace_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let missing = dir.path().join("missing");
    let error = Namespace::open(&missing).unwrap_err();
    assert!(matches!(error, NetError::Open { .. }), "{error}");
    assert!(error.to_string().contains("missing") && error.hint().is_some());
    let fifo = dir.path().join("fifo");
    sh(&format!("mkfifo {}", fifo.display()));
    for path in [
        file.as_path(),
        dir.path(),
        &fifo,
        Path::new("/dev/null"),
        Path::new("/proc/self/ns/uts"),
        Path::new("/proc/self/status"),
    ] {
        let error = Namespace::open(path).unwrap_err();
        assert!(matches!(error, NetError::NotNamespace { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()));
    }
    Namespace::open(Path::new("/proc/self/ns/net")).unwrap();
}

#[test]
fn needs_root_row_40_the_host_s_interfaces_are_not_taken_over() {
    if skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("a-container");
    std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
    for path in [Path::new("/proc/self/ns/net"), &link] {
        let namespace = Namespace::open(path).unwrap();
        let error = plan(&namespace, &wanted("web-1"), NOBODY).unwrap_err();
        assert!(matches!(error, NetError::Host { .. }), "{error}");
        let named = error.to_string().contains(&path.display().to_string());
        assert!(named && error.hint().is_some(), "{error}");
    }
    // One that is not process 1's, but the test's own while it asks.
    let world = World::new();
    let namespace = world.namespace();
    let inside = namespace.inside(|| Ok(plan(&namespace, &wanted("web-1"), NOBODY)));
    let inside = inside.unwrap();
    assert!(matches!(inside, Err(NetError::Host { .. })), "{inside:?}");
}

#[test]
fn needs_root_row_40_a_namespace_that_is_not_set_up() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    sh(&format!("ip -n {name} addr flush dev b9_veth_c"));
    let error = planned(&world, "web-1").unwrap_err();
    assert!(error.to_string().contains("has no address"), "{error}");
    sh(&format!("ip -n {name} link set b9_veth_c down"));
    let error = planned(&world, "web-1").unwrap_err();
    assert!(error.to_string().contains("no veth interface"), "{error}");
}

#[test]
fn needs_root_row_41_a_stranger_s_tap_stays_as_it_is() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    let link = |world: &World| {
        sh(&format!(
            "ip -n {} -d link show b9fc_web-1",
            world.container
        ))
    };
    sh(&format!("ip -n {name} tuntap add b9fc_web-1 mode tap"));
    let before = link(&world);
    let error = plan(&world.namespace(), &wanted("web-1"), NOBODY).unwrap_err();
    assert!(matches!(error, NetError::Taken { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("b9fc_web-1 is taken by somebody else"),
        "{error}"
    );
    assert_eq!(link(&world), before);

    // Between the plan and the making.
    sh(&format!("ip -n {name} link del b9fc_web-1"));
    let attachment = planned(&world, "web-1").unwrap();
    sh(&format!("ip -n {name} tuntap add b9fc_web-1 mode tap"));
    let before = world.state();
    let error = make(&world.namespace(), &attachment).unwrap_err();
    assert!(matches!(error, NetError::Taken { .. }), "{error}");
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
}

#[test]
fn needs_root_row_41_what_a_dead_launch_left_is_reclaimed() {
    if skip() {
        return;
    }
    let world = World::new();
    let before = world.state();
    let dead = planned(&world, "an-old-web-1-0123456789").unwrap();
    make(&world.namespace(), &dead).unwrap();
    // It is alive: the place is taken.
    let error = planned(&world, "web-2-0123456789").unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("is taken by launch an-old-web-1-0123456789"),
        "{text}"
    );
    let error = planned(&world, "web-3").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("b9_veth_c is taken by a machine"),
        "{error}"
    );
    // Another fcpipe's launches are not ours to judge.
    let other = Wanted {
        mark: Mark::new("web-3", Path::new("/run/another")),
        ..wanted("web-3")
    };
    let error = plan(&world.namespace(), &other, NOBODY).unwrap_err();
    assert!(matches!(error, NetError::Taken { .. }), "{error}");
    // It is dead.
    let next = plan(&world.namespace(), &wanted("web-2-0123456789"), NOBODY).unwrap();
    assert_eq!(world.state(), before);
    make(&world.namespace(), &next).unwrap();
    // The same id once more: whoever had it before is gone.
    let again = plan(&world.namespace(), &wanted("web-2-0123456789"), EVERYBODY).unwrap();
    assert_eq!(again.mark(), &mark("web-2-0123456789"));
    assert_eq!(world.state(), before);
}

#[test]
fn needs_root_a_stranger_s_qdisc_and_filters_stay() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    sh(&format!("tc -n {name} qdisc add dev b9_veth_c clsact"));
    let before = world.state();
    let attachment = planned(&world, "web-1").unwrap();
    make(&world.namespace(), &attachment).unwrap();
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);

    sh(&format!(
        "tc -n {name} filter add dev b9_veth_c ingress protocol all bpf bytecode '1,6 0 0 0,' action mirred egress redirect dev lo"
    ));
    let before = world.state();
    let error = planned(&world, "web-1").unwrap_err();
    assert!(
        error.to_string().contains("filters are at its ingress"),
        "{error}"
    );
    // One that came after the plan.
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
}

#[test]
fn needs_root_row_41_what_a_dead_launch_left_may_be_taken_away_by_two_at_once() {
    if skip() {
        return;
    }
    let world = World::new();
    let dead = planned(&world, "dead-1").unwrap();
    make(&world.namespace(), &dead).unwrap();
    // While this launch looks, another command does the same.
    let alive = |launch: &str| {
        assert_eq!(launch, "dead-1");
        undo(&dead).unwrap();
        false
    };
    let attachment = plan(&world.namespace(), &wanted("web-1"), &alive).unwrap();
    make(&world.namespace(), &attachment).unwrap();
    undo(&attachment).unwrap();
}
