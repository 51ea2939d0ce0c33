//! What is made, and that nothing of it stays.

use std::io;

use fcpipe_net::{Mode, Namespace, NetError, Route, Service, Wanted, make, plan, undo};

use crate::tap::{Machine, attach, tun};
use crate::world::{EVERYBODY, World, planned, sh, skip, wanted};

/// The TAP's other end as another user has it, without capabilities.
fn open_as(namespace: &Namespace, tap: &str, user: u32) -> io::Result<Machine> {
    let opened = namespace.inside(|| {
        // A jail has a node of its own; the host's may be root's alone.
        let tun = tun();
        let user = rustix::fs::Uid::from_raw(user);
        // Of this thread alone, which ends with this. Capabilities go with root.
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        Ok(attach(tun, tap))
    });
    opened.unwrap()
}

#[test]
fn needs_root_redirect_is_made_and_undone() {
    if skip() {
        return;
    }
    let world = World::new();
    let before = world.state();
    let attachment = planned(&world, "web-1").unwrap();
    assert_eq!(world.state(), before, "a plan changes nothing");
    let wire = &attachment.wires[0];
    assert_eq!(wire.tap, "b9fc_web-1");
    assert_eq!(wire.mac, wire.uplink.mac);
    assert_eq!(wire.uplink.mtu, 1450);
    let addresses: Vec<String> = wire.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.168.1.5/24", "fd00::5/64"]);
    let routes: Vec<String> = wire
        .routes
        .iter()
        .map(|r| format!("{} {:?} {:?}", r.destination, r.gateway, r.metric))
        .collect();
    assert_eq!(
        routes,
        [
            "0.0.0.0/0 Some(192.168.1.1) None",
            "10.1.0.0/16 Some(192.168.1.2) Some(50)",
            "::/0 Some(fd00::1) Some(1024)"
        ]
    );

    let attached = make(&world.namespace(), &attachment).unwrap();
    let name = &world.container;
    let shown = sh(&format!("ip -n {name} -d addr show b9fc_web-1"));
    assert!(shown.contains("alias fcpipe:web-1:"), "{shown}");
    assert!(shown.contains("mtu 1450"), "{shown}");
    assert!(shown.contains("UP"), "{shown}");
    assert!(shown.contains("vnet_hdr on persist on"), "{shown}");
    assert!(
        !shown.contains("inet"),
        "the namespace speaks on it: {shown}"
    );
    let filters = sh(&format!(
        "tc -n {name} filter show dev b9_veth_c ingress; tc -n {name} filter show dev b9fc_web-1 ingress"
    ));
    assert!(
        filters.contains("Redirect to device b9fc_web-1"),
        "{filters}"
    );
    assert!(
        filters.contains("Redirect to device b9_veth_c"),
        "{filters}"
    );
    let service = Service::start(&world.namespace(), &attachment, &attached, &[]).unwrap();
    drop(service);

    // As a journal keeps it.
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
}

/// What a jailed VMM is given: it can attach, and no other user in that namespace.
#[test]
fn needs_root_a_tap_with_an_owner_is_for_that_user_alone() {
    if skip() {
        return;
    }
    // Above what a host gives out, as a jail's.
    let (user, other) = (0x7000_0001, 0x7000_0002);
    let world = World::new();
    let before = world.state();
    let mut attachment = planned(&world, "jailed").unwrap();
    attachment.owner = Some(user);
    make(&world.namespace(), &attachment).unwrap();
    let shown = sh(&format!("ip -n {} tuntap show", world.container));
    assert!(shown.contains(&format!(" user {user}")), "{shown}");
    let tap = &attachment.wires[0].tap;
    let refused = open_as(&world.namespace(), tap, other).err();
    assert_eq!(
        refused.map(|error| error.kind()),
        Some(std::io::ErrorKind::PermissionDenied)
    );
    drop(open_as(&world.namespace(), tap, user).unwrap());
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
}

#[test]
fn needs_root_nobody_else_in_the_namespace_can_be_the_guest() {
    if skip() {
        return;
    }
    let world = World::new();
    let attachment = planned(&world, "web-1").unwrap();
    make(&world.namespace(), &attachment).unwrap();
    let namespace = world.namespace();
    let somebody = 65534;
    let attached = open_as(&namespace, "b9fc_web-1", somebody);
    let refused = attached.err().and_then(|error| error.raw_os_error());
    assert_eq!(refused, Some(libc::EPERM));
    // Of one that belongs to nobody, anybody could be the guest.
    let name = &world.container;
    sh(&format!(
        "ip -n {name} tuntap add anybody_s mode tap vnet_hdr"
    ));
    open_as(&namespace, "anybody_s", somebody).unwrap();
    Machine::open(&namespace, "b9fc_web-1");
}

#[test]
fn needs_root_each_interface_of_a_namespace_gets_a_tap() {
    if skip() {
        return;
    }
    let world = World::new();
    let (host, name) = (&world.host, &world.container);
    sh(&format!(
        "ip -n {host} link add second type veth peer name eth1 netns {name}
         ip -n {name} addr add 172.16.0.5/24 dev eth1
         ip -n {name} link set eth1 up; ip -n {host} link set second up"
    ));
    let before = world.state();
    let attachment = planned(&world, "web-0123456789").unwrap();
    let taps: Vec<&str> = attachment.wires.iter().map(|w| w.tap.as_str()).collect();
    assert_eq!(taps, ["b9fc_0123456789", "b9fc_23456789_1"]);
    make(&world.namespace(), &attachment).unwrap();
    let filters = sh(&format!("tc -n {name} filter show dev eth1 ingress"));
    assert!(filters.contains("device b9fc_23456789_1"), "{filters}");
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
}

#[test]
fn needs_root_bridge_is_made_and_undone() {
    if skip() {
        return;
    }
    let world = World::new();
    let before = world.state();
    let mode = Mode::Bridge {
        addresses: vec!["192.168.1.77/24".parse().unwrap()],
        routes: vec![Route::default_by("192.168.1.1".parse().unwrap())],
    };
    let wanted = Wanted {
        mode,
        ..wanted("web-1")
    };
    let attachment = plan(&world.namespace(), &wanted, EVERYBODY).unwrap();
    let wire = &attachment.wires[0];
    assert_ne!(wire.mac, wire.uplink.mac);
    assert_eq!(wire.addresses.len(), 1);
    make(&world.namespace(), &attachment).unwrap();
    let name = &world.container;
    let ports = sh(&format!("ip -n {name} link show type bridge_slave"));
    assert!(ports.contains("b9_veth_c"), "{ports}");
    assert!(ports.contains("b9fc_web-1"), "{ports}");
    undo(&attachment).unwrap();
    assert_eq!(world.state(), before);
    sh(&format!("ip netns exec {name} ping -c1 -W2 192.168.1.1"));
}

#[test]
fn needs_root_row_51_thirty_at_once_in_thirty_namespaces() {
    if skip() {
        return;
    }
    let worlds: Vec<World> = (0..30).map(|_| World::new()).collect();
    let before: Vec<String> = worlds.iter().map(World::state).collect();
    std::thread::scope(|scope| {
        for (number, world) in worlds.iter().enumerate() {
            scope.spawn(move || {
                // The ends of the names are the same, and each is in a namespace of its own.
                let id = format!("{number:02}-with-the-same-end");
                let attachment = planned(world, &id).unwrap();
                make(&world.namespace(), &attachment).unwrap();
                undo(&attachment).unwrap();
            });
        }
    });
    let after: Vec<String> = worlds.iter().map(World::state).collect();
    assert_eq!(after, before);
}

#[test]
fn needs_root_a_namespace_that_is_gone_needs_no_undo() {
    if skip() {
        return;
    }
    let world = World::new();
    let attachment = planned(&world, "web-1").unwrap();
    make(&world.namespace(), &attachment).unwrap();
    let name = &world.container;
    // As a launch does: the number of a namespace that has ended can be another's.
    let held = world.namespace();
    sh(&format!("ip netns del {name}"));
    undo(&attachment).unwrap();
    // Another one under the same name is none of ours.
    sh(&format!("ip netns add {name}"));
    undo(&attachment).unwrap();
    let other = make(&world.namespace(), &attachment);
    assert!(matches!(other, Err(NetError::Replaced { .. })), "{other:?}");
    drop(held);
}

#[test]
fn needs_root_the_removal_of_a_namespace_or_an_interface_is_noticed() {
    if skip() {
        return;
    }
    let world = World::new();
    let namespace: Namespace = world.namespace();
    let attachment = planned(&world, "web-1").unwrap();
    let attached = make(&namespace, &attachment).unwrap();
    let service = Service::start(&namespace, &attachment, &attached, &[]).unwrap();
    let news = service.news();
    sh(&format!("ip netns del {}", world.container));
    let wait = |word: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let said = news.take();
            if said.iter().any(|said| said.contains(word)) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "not noticed: {word}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    wait("namespace was removed");
    sh(&format!("ip -n {} link del b9_veth_h", world.host));
    wait("b9_veth_c: the interface was removed");
}
