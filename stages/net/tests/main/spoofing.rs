//! Row 63 at the TAP: this test is the machine, and whatever it likes goes in. What comes out at the host's end of the veth pair
//! is judged by a parser that knows nothing of the programs in the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use fcpipe_net::{Attachment, Service, make, undo};

use crate::machine::{Ear, Machine};
use crate::world::{World, planned, skip};

struct Bench {
    world: World,
    attachment: Attachment,
    service: Service,
    machine: Machine,
    ear: Ear,
    mac: [u8; 6],
    bridge: [u8; 6],
}

impl Bench {
    fn new() -> Bench {
        let world = World::new();
        // Nobody but the machine speaks: no link-local addresses, no reports of groups.
        for (namespace, link) in [
            (&world.host, "b9_br0"),
            (&world.host, "b9_veth_h"),
            (&world.container, "b9_veth_c"),
        ] {
            crate::world::sh(&format!(
                "ip -n {namespace} link set {link} addrgenmode none
                 ip -n {namespace} -6 addr flush dev {link} scope link"
            ));
        }
        let attachment = planned(&world, "web-1").unwrap();
        let namespace = world.namespace();
        let attached = make(&namespace, &attachment).unwrap();
        let dns = ["10.0.0.53".parse().unwrap()];
        let service = Service::start(&namespace, &attachment, &attached, &dns).unwrap();
        let bridge = crate::world::sh(&format!(
            "ip netns exec {} cat /sys/class/net/b9_br0/address",
            world.host
        ));
        let bridge: Vec<u8> = bridge
            .trim()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let ear = Ear::open(&world.host, "b9_veth_h");
        let bridge: [u8; 6] = bridge.try_into().unwrap();
        ear.all_from(bridge);
        Bench {
            machine: Machine::open(&namespace, "b9fc_web-1"),
            ear,
            mac: attachment.wires[0].mac,
            bridge,
            attachment,
            service,
            world,
        }
    }

    fn end(self) {
        drop(self.machine);
        drop(self.service);
        undo(&self.attachment).unwrap();
        drop(self.world);
    }
}

const V4: [u8; 4] = [192, 168, 1, 5];
const V6: &str = "fd00::5";

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn arp(operation: u8, mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend_from_slice(&mac);
    payload.extend_from_slice(&ip);
    payload.extend_from_slice(&[0; 6]);
    payload.extend_from_slice(&[192, 168, 1, 1]);
    payload
}

fn ipv4(from: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8];
    packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&[192, 168, 1, 1]);
    packet.extend_from_slice(payload);
    packet
}

fn ipv6(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let from: std::net::Ipv6Addr = from.parse().unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend_from_slice(payload);
    packet
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend_from_slice(&to.to_be_bytes());
    datagram.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    datagram
}

/// What must never be heard, by a reading of its own. `None` is a frame of the guest's that may pass.
fn offence(frame: &[u8], mac: [u8; 6]) -> Option<String> {
    let at = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    if at(6..12) != mac {
        return Some("another MAC".into());
    }
    let is_own6 = |bytes: &[u8]| {
        let address: Option<[u8; 16]> = bytes.try_into().ok();
        let [a, b, c, d, e, f] = mac;
        let local = [
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ];
        let own: std::net::Ipv6Addr = V6.parse().unwrap();
        address.is_some_and(|bytes| bytes == own.octets() || bytes == local)
    };
    match at(12..14) {
        [0x08, 0x06] => {
            let sender = at(28..32);
            let probe = sender == [0; 4] && at(20..22) == [0, 1];
            (at(22..28) != mac || (sender != V4 && !probe)).then(|| "another ARP sender".into())
        }
        [0x08, 0x00] => {
            let header = usize::from(at(14..15)[0] & 15) * 4;
            let ports = at(14 + header..14 + header + 4);
            let first = u16::from_be_bytes([at(20..21)[0], at(21..22)[0]]) & 0x1fff == 0;
            if at(26..30) != V4 {
                Some("another IPv4 source".into())
            } else if at(23..24) == [17] && first {
                let to = u16::from_be_bytes([ports[2], ports[3]]);
                [67, 68].contains(&to).then(|| "DHCP".into())
            } else {
                None
            }
        }
        [0x86, 0xdd] => {
            let (source, next) = (at(22..38), at(20..21)[0]);
            // All headers that hide something, followed to the end.
            let mut kind = next;
            let mut offset = 54;
            while [0, 43, 44, 60, 51, 135].contains(&kind) {
                let head = at(offset..offset + 2);
                let [following, units] = head else { break };
                let length = match kind {
                    44 => 8,
                    51 => (usize::from(*units) + 2) * 4,
                    _ => (usize::from(*units) + 1) * 8,
                };
                if kind == 44 && at(offset + 2..offset + 4) != [0, 0] {
                    return (!is_own6(source)).then(|| "another IPv6 source".into());
                }
                kind = *following;
                offset += length;
            }
            let message = at(offset..offset + 1);
            let target = at(offset + 8..offset + 24);
            match (kind, message) {
                (58, [134 | 137 | 138]) => Some("a router's message".into()),
                (58, [136]) if !is_own6(target) => Some("another's advertisement".into()),
                (17, _)
                    if [[2, 34], [2, 35]]
                        .iter()
                        .any(|p| at(offset + 2..offset + 4) == *p) =>
                {
                    Some("DHCPv6".into())
                }
                (58, [135]) if source == [0; 16] => {
                    (!is_own6(target)).then(|| "detection of another's address".into())
                }
                (58, [131 | 132 | 143]) if source == [0; 16] => None,
                _ => (!is_own6(source)).then(|| "another IPv6 source".into()),
            }
        }
        kind => Some(format!("a frame of kind {kind:02x?}")),
    }
}

/// A frame, and what is wrong with it.
type Named = (&'static str, Vec<u8>);

/// Good frames, and bad ones by name.
fn frames(mac: [u8; 6], bridge: [u8; 6]) -> (Vec<Vec<u8>>, Vec<Named>) {
    let everybody = [0xff; 6];
    let other = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];
    let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let tcp = [0; 20];
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut neighbour = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    neighbour.extend_from_slice(&"fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let mut hidden = vec![58, 0, 1, 4, 0, 0, 0, 0];
    hidden.extend_from_slice(&advertisement);
    let good = vec![
        frame(everybody, mac, 0x0806, &arp(1, mac, V4)),
        frame(everybody, mac, 0x0806, &arp(1, mac, [0; 4])),
        frame(bridge, mac, 0x0800, &ipv4(V4, 1, &echo)),
        frame(bridge, mac, 0x0800, &ipv4(V4, 6, &tcp)),
        frame(bridge, mac, 0x0800, &ipv4(V4, 17, &udp(5000, 53, b"?"))),
        frame(bridge, mac, 0x86dd, &ipv6(V6, 6, &tcp)),
        frame(
            bridge,
            mac,
            0x86dd,
            &ipv6(V6, 58, &[128, 0, 0, 0, 0, 0, 0, 0]),
        ),
    ];
    let mut tagged = vec![0x00, 0x01, 0x08, 0x00];
    tagged.extend_from_slice(&ipv4(V4, 6, &tcp));
    let bad = vec![
        (
            "another MAC",
            frame(bridge, other, 0x0800, &ipv4(V4, 1, &echo)),
        ),
        (
            "another IPv4 source",
            frame(bridge, mac, 0x0800, &ipv4([192, 168, 1, 9], 1, &echo)),
        ),
        (
            "the bridge's address",
            frame(bridge, mac, 0x0800, &ipv4([192, 168, 1, 1], 6, &tcp)),
        ),
        (
            "ARP for the bridge",
            frame(everybody, mac, 0x0806, &arp(2, mac, [192, 168, 1, 1])),
        ),
        (
            "ARP of another MAC",
            frame(everybody, mac, 0x0806, &arp(2, other, V4)),
        ),
        (
            "ARP from another MAC",
            frame(everybody, other, 0x0806, &arp(1, other, V4)),
        ),
        ("a VLAN tag", frame(bridge, mac, 0x8100, &tagged)),
        ("a service tag", frame(bridge, mac, 0x88a8, &tagged)),
        (
            "spanning tree",
            frame([1, 0x80, 0xc2, 0, 0, 0], mac, 0x0026, &[0x42; 38]),
        ),
        (
            "LLDP",
            frame([1, 0x80, 0xc2, 0, 0, 0xe], mac, 0x88cc, &[0; 46]),
        ),
        (
            "a DHCP offer",
            frame(
                everybody,
                mac,
                0x0800,
                &ipv4(V4, 17, &udp(67, 68, &[2; 300])),
            ),
        ),
        (
            "a DHCP question",
            frame(
                everybody,
                mac,
                0x0800,
                &ipv4([0; 4], 17, &udp(68, 67, &[1; 300])),
            ),
        ),
        (
            "a DHCPv6 answer",
            frame(
                everybody,
                mac,
                0x86dd,
                &ipv6(V6, 17, &udp(547, 546, &[7; 20])),
            ),
        ),
        (
            "a router advertisement",
            frame(everybody, mac, 0x86dd, &ipv6(V6, 58, &advertisement)),
        ),
        (
            "one behind a header",
            frame(everybody, mac, 0x86dd, &ipv6(V6, 60, &hidden)),
        ),
        (
            "one behind hop-by-hop",
            frame(everybody, mac, 0x86dd, &ipv6(V6, 0, &hidden)),
        ),
        (
            "another's advertisement",
            frame(everybody, mac, 0x86dd, &ipv6(V6, 58, &neighbour)),
        ),
        (
            "another IPv6 source",
            frame(bridge, mac, 0x86dd, &ipv6("fd00::9", 6, &tcp)),
        ),
        (
            "another link-local",
            frame(bridge, mac, 0x86dd, &ipv6("fe80::1", 6, &tcp)),
        ),
    ];
    (good, bad)
}

#[test]
fn needs_root_row_63_what_a_malicious_guest_sends_reaches_nobody() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let (good, bad) = frames(bench.mac, bench.bridge);
    for frame in &good {
        assert_eq!(
            offence(frame, bench.mac),
            None,
            "the test's own judge: {frame:02x?}"
        );
        bench.machine.send(frame);
    }
    assert_eq!(bench.ear.all_from(bench.bridge), good, "what may pass does");
    while bench.machine.receive().is_some() {}
    for (name, frame) in &bad {
        bench.machine.send(frame);
        assert_eq!(
            bench.ear.all_from(bench.bridge),
            Vec::<Vec<u8>>::new(),
            "{name}"
        );
    }
    // The namespace's own stack has heard none of it either: nothing answers at the TAP.
    let mut question = arp(1, [2, 9, 9, 9, 9, 9], [192, 168, 1, 9]);
    question[24..28].copy_from_slice(&V4);
    let asks = frame([0xff; 6], [2, 9, 9, 9, 9, 9], 0x0806, &question);
    bench.machine.send(&asks);
    std::thread::sleep(Duration::from_millis(200));
    while let Some(answer) = bench.machine.receive() {
        assert_eq!(answer[6..12], bench.bridge, "{answer:02x?}");
    }
    bench.end();
}

#[test]
fn needs_root_row_63_random_frames() {
    if skip() {
        return;
    }
    let count: u32 = std::env::var("FCPIPE_SOAK_FRAMES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(20_000);
    let mut seed: u64 = std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64
        });
    println!("seed {seed} (FCPIPE_SEED repeats it)");
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let bench = Bench::new();
    let (good, bad) = frames(bench.mac, bench.bridge);
    let seeds: Vec<Vec<u8>> = good
        .into_iter()
        .chain(bad.into_iter().map(|b| b.1))
        .collect();
    let (mut heard, mut offences) = (0, Vec::new());
    for number in 0..count {
        let mut frame = seeds[random(seeds.len())].clone();
        for _ in 0..random(4) {
            // Mostly in the headers.
            let at = random(frame.len().min(80));
            frame[at] = [random(256) as u8, 0, 0x3a, 0x11, 0x86, 0xff][random(6)];
        }
        if random(8) == 0 {
            frame.truncate(14 + random(frame.len() - 13));
        }
        bench.machine.send(&frame);
        if number % 64 == 63 {
            for frame in bench.ear.drain(bench.bridge) {
                heard += 1;
                offences.extend(offence(&frame, bench.mac).map(|what| (what, frame)));
            }
            while bench.machine.receive().is_some() {}
        }
    }
    println!("{count} frames, {heard} heard");
    assert!(heard > count / 100, "the test hears nothing");
    assert!(offences.is_empty(), "{offences:02x?}");
    bench.end();
}

fn question(mac: [u8; 6], kind: MessageType, asked: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_xid(0x1234_5678)
        .set_flags(Flags::default().set_broadcast())
        .set_chaddr(&mac);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(asked) = asked {
        let option = DhcpOption::RequestedIpAddress(asked);
        message.opts_mut().insert(option);
    }
    let payload = udp(68, 67, &message.to_vec().unwrap());
    frame([0xff; 6], mac, 0x0800, &ipv4([0; 4], 17, &payload))
}

#[test]
fn needs_root_dhcp_is_answered_at_the_tap_and_stays_there() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    while bench.machine.receive().is_some() {}
    let answer = |bench: &Bench| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let frame = bench.machine.receive();
            let dhcp = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 17;
            if let Some(frame) = frame.filter(dhcp) {
                return Message::from_bytes(&frame[42..]).unwrap();
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let own = Ipv4Addr::from(V4);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Discover, None));
    let offer = answer(&bench);
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!((offer.yiaddr(), offer.xid()), (own, 0x1234_5678));
    bench
        .machine
        .send(&question(bench.mac, MessageType::Request, Some(own)));
    let ack = answer(&bench);
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    let option = |code| ack.opts().get(code).cloned();
    let router = Ipv4Addr::new(192, 168, 1, 1);
    assert_eq!(
        option(OptionCode::Router),
        Some(DhcpOption::Router(vec![router]))
    );
    let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0));
    assert_eq!(option(OptionCode::SubnetMask), Some(mask));
    assert_eq!(
        option(OptionCode::InterfaceMtu),
        Some(DhcpOption::InterfaceMtu(1450))
    );
    let IpAddr::V4(dns) = "10.0.0.53".parse().unwrap() else {
        panic!()
    };
    let dns = DhcpOption::DomainNameServer(vec![dns]);
    assert_eq!(option(OptionCode::DomainNameServer), Some(dns));
    let other = Ipv4Addr::new(192, 168, 1, 9);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Request, Some(other)));
    assert_eq!(answer(&bench).opts().msg_type(), Some(MessageType::Nak));
    assert_eq!(bench.ear.all_from(bench.bridge), Vec::<Vec<u8>>::new());

    // Garbage, lengths that lie, another's MAC: no answer, and the server lives.
    for cut in [42, 60, 200, 281, 282, 285] {
        let mut broken = question(bench.mac, MessageType::Discover, None);
        broken.truncate(cut);
        bench.machine.send(&broken);
    }
    let mut lying = question(bench.mac, MessageType::Discover, None);
    lying[44] = 255;
    bench.machine.send(&lying);
    let mut of_another = question(bench.mac, MessageType::Discover, None);
    of_another[70] ^= 0xff;
    bench.machine.send(&of_another);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(bench.machine.receive().filter(|f| f[23] == 17), None);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Discover, None));
    assert_eq!(answer(&bench).opts().msg_type(), Some(MessageType::Offer));
    bench.end();
}
