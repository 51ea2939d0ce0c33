//! Namespaces that are odd, and two launches that want one at the same moment.

use std::os::unix::fs::symlink;
use std::path::Path;

use fcpipe_net::dhcp::Answerer;
use fcpipe_net::{Attachment, Mode, NetError, Wanted, make, plan, undo};

use crate::random::random;
use crate::spoofing::question;
use crate::world::{EVERYBODY, World, planned, sh, skip, wanted};

fn routes(attachment: &Attachment) -> Vec<String> {
    let routes = attachment.wires[0].routes.iter();
    routes
        .map(|r| format!("{} {:?} {:?}", r.destination, r.gateway, r.source))
        .collect()
}

fn bridge() -> Mode {
    Mode::Bridge {
        addresses: vec!["192.168.1.77/24".parse().unwrap()],
        routes: Vec::new(),
    }
}

/// Both have looked before either made anything.
#[test]
fn needs_root_row_51_of_two_machines_in_one_namespace_the_second_is_refused() {
    if skip() {
        return;
    }
    for (mode, qdisc) in [
        (Mode::Redirect, None),
        (Mode::Redirect, Some("ingress")),
        (Mode::Redirect, Some("clsact")),
        (bridge(), None),
    ] {
        let world = World::new();
        let name = &world.container;
        if let Some(qdisc) = qdisc {
            sh(&format!("tc -n {name} qdisc add dev b9_veth_c {qdisc}"));
        }
        let before = world.state();
        let planned = |id| {
            let wanted = Wanted {
                mode: mode.clone(),
                ..wanted(id)
            };
            plan(&world.namespace(), &wanted, EVERYBODY).unwrap()
        };
        let (first, second) = (planned("web-1"), planned("web-2"));
        make(&world.namespace(), &first).unwrap();
        let there = || {
            sh(&format!(
                "ip -n {name} -o link show | cut -d' ' -f2; ip -n {name} -o link show | grep -o 'master [^ ]*' || true
                 tc -n {name} qdisc show dev b9_veth_c; tc -n {name} filter show dev b9_veth_c ingress"
            ))
        };
        let alone = there();
        let refused = make(&world.namespace(), &second).unwrap_err();
        undo(&second).unwrap();
        assert_eq!(there(), alone, "{mode:?} {qdisc:?}");
        let taken = matches!(&refused, NetError::Taken { name, .. } if name == "b9_veth_c");
        assert!(taken, "{mode:?} {qdisc:?}: {refused}");
        undo(&first).unwrap();
        assert_eq!(world.state(), before, "{mode:?} {qdisc:?}");
    }
}

/// The other end's address leads to the gateway, and no network does.
#[test]
fn needs_root_the_other_end_of_a_point_to_point_address_is_on_the_link() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    sh(&format!(
        "ip -n {name} addr flush dev b9_veth_c scope global
         ip -n {name} addr add 10.0.0.2 peer 10.0.0.1/32 dev b9_veth_c
         ip -n {name} addr add 10.0.1.2 peer 10.9.0.1/24 dev b9_veth_c
         ip -n {name} addr add fd00::2 peer fd00:1::1/64 dev b9_veth_c nodad
         ip -n {name} route add default via 10.0.0.1"
    ));
    let attachment = planned(&world, "web-1").unwrap();
    let addresses = attachment.wires[0].addresses.iter();
    let mut addresses: Vec<String> = addresses.map(ToString::to_string).collect();
    addresses.sort();
    assert_eq!(addresses, ["10.0.0.2/32", "10.0.1.2/32", "fd00::2/128"]);
    assert_eq!(
        routes(&attachment),
        [
            "10.0.0.1/32 None Some(10.0.0.2)",
            "10.9.0.0/24 None Some(10.0.1.2)",
            "fd00:1::/64 None None",
            "0.0.0.0/0 Some(10.0.0.1) None",
            "::/0 Some(fd00::1) None",
        ]
    );
}

#[test]
fn needs_root_a_gateway_of_the_other_family_is_kept() {
    if skip() {
        return;
    }
    let world = World::new();
    sh(&format!(
        "ip -n {} -4 route replace default via inet6 fd00::1 dev b9_veth_c",
        world.container
    ));
    let attachment = planned(&world, "web-1").unwrap();
    let routes = routes(&attachment);
    let kept = "0.0.0.0/0 Some(fd00::1) None".to_owned();
    assert!(routes.contains(&kept), "{routes:?}");
}

#[test]
fn needs_root_a_namespace_may_have_any_mtu_that_a_veth_can_have() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    // Below 1,280 an interface has no IPv6.
    for mtu in [65_535, 65_522, 65_521, 9000, 1279, 68] {
        sh(&format!("ip -n {name} link set b9_veth_c mtu {mtu}"));
        for mode in [Mode::Redirect, bridge()] {
            let wanted = Wanted {
                mode,
                ..wanted("web-1")
            };
            let attachment = plan(&world.namespace(), &wanted, EVERYBODY).unwrap();
            assert_eq!(attachment.wires[0].uplink.mtu, mtu);
            make(&world.namespace(), &attachment).unwrap();
            undo(&attachment).unwrap();
        }
    }
}

/// A name of an interface is any bytes but a few, and not ours to refuse.
#[test]
fn needs_root_row_50_an_interface_that_cannot_be_read_stops_no_cleaning_up() {
    if skip() {
        return;
    }
    let world = World::new();
    let before = world.state();
    let attachment = planned(&world, "web-1").unwrap();
    make(&world.namespace(), &attachment).unwrap();
    let name = &world.container;
    sh(&format!(
        "ip -n {name} link add \"$(printf '\\377')\" type veth peer name other"
    ));
    // And filters of kinds that are not ours.
    sh(&format!(
        "tc -n {name} filter add dev b9_veth_c ingress prio 9 u32 match u32 0 0 action mirred egress redirect dev lo"
    ));
    undo(&attachment).unwrap();
    sh(&format!("tc -n {name} qdisc del dev b9_veth_c ingress"));
    // One of the guest's could be it.
    let refused = planned(&world, "web-2").unwrap_err();
    sh(&format!("ip -n {name} link del other"));
    assert_eq!(world.state(), before);
    assert!(refused.to_string().contains("UTF-8"), "{refused}");
}

#[test]
fn needs_root_row_50_a_path_that_leads_nowhere_stops_no_cleaning_up() {
    if skip() {
        return;
    }
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("sandbox");
    let path = dir.join("net");
    let link = || {
        std::fs::create_dir(&dir).unwrap();
        symlink(world.path(), &path).unwrap();
    };
    let nowhere: [&dyn Fn(); 4] = [
        &|| (),
        &|| std::fs::write(&dir, "").unwrap(),
        &|| symlink(&dir, &dir).unwrap(),
        &|| {
            std::fs::create_dir(&dir).unwrap();
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        },
    ];
    for nowhere in nowhere {
        link();
        let namespace = fcpipe_net::Namespace::open(&path).unwrap();
        let attachment = plan(&namespace, &wanted("web-1"), EVERYBODY).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        nowhere();
        undo(&attachment).unwrap();
        remove(&dir);
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        let _ = std::fs::remove_file(path);
    }
}

/// A client that hears nothing has no network; one that hears less has its router.
#[test]
fn needs_root_an_answer_of_dhcp_fits_the_link_however_many_routes_there_are() {
    if skip() {
        return;
    }
    let world = World::new();
    let name = &world.container;
    sh(&format!(
        "for i in $(seq 250); do echo \"route add 10.2.$i.0/24 via 192.168.1.2\"; done | ip -n {name} -batch -"
    ));
    let attachment = planned(&world, "web-1").unwrap();
    let wire = &attachment.wires[0];
    assert!(wire.routes.len() > 250);
    let answerer = Answerer::new(wire, &[]);
    let asked = question(wire.mac, dhcproto::v4::MessageType::Discover, None);
    let answer = answerer.answer(&asked).unwrap();
    assert!(answer.len() <= 14 + 1450, "{} bytes", answer.len());

    // Everything is on the link: there is no router, and the server has an address all the same.
    sh(&format!(
        "ip -n {name} route flush root 0/0 proto boot; ip -n {name} route add default dev b9_veth_c"
    ));
    let attachment = planned(&world, "web-1").unwrap();
    let answer = Answerer::new(&attachment.wires[0], &[]).answer(&asked);
    assert_ne!(answer.unwrap()[26..30], [0; 4]);
}

/// Whatever a guest asks: an answer or none.
#[test]
fn needs_root_row_63_questions_of_dhcp_that_are_none() {
    if skip() {
        return;
    }
    let world = World::new();
    let attachment = planned(&world, "web-1").unwrap();
    let wire = &attachment.wires[0];
    let answerer = Answerer::new(wire, &["10.0.0.53".parse().unwrap()]);
    let asked = question(wire.mac, dhcproto::v4::MessageType::Discover, None);
    let mut random = random(20_261_126);
    let mut answered = 0;
    for _ in 0..50_000 {
        let mut frame = asked.clone();
        frame.extend((0..random(300)).map(|_| random(256) as u8));
        let length = (frame.len() - 34) as u16;
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        for _ in 0..random(6) {
            let at = 14 + random(frame.len() - 14);
            frame[at] = random(256) as u8;
        }
        // Options with lengths of all kinds, in the place of the end.
        for at in 285..frame.len().min(285 + random(20)) {
            frame[at] = random(256) as u8;
        }
        if random(8) == 0 {
            frame.truncate(random(frame.len()));
        }
        answered += usize::from(answerer.answer(&frame).is_some());
    }
    assert!(answered > 1000, "{answered}");
}
