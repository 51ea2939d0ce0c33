//! Row 63 at the TAP: this test is the machine, and whatever it likes goes in. What comes out at the host's end of the veth pair
//! is judged by a parser that knows nothing of the programs in the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use fcpipe_net::{Attachment, Service, make, undo};

use crate::frames::{self, Named, OTHER, V4, V6, arp, frame, ipv4, udp};
use crate::machine::{Ear, Machine, is_chatter};
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

/// As a guest makes it of its MAC (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let group = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let (one, two) = (group(a ^ 2, b), group(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, one, two, group(0xfe, d), group(e, f))
}

/// Good frames and bad ones.
fn frames(mac: [u8; 6]) -> (Vec<Named>, Vec<Named>) {
    let local = link_local(mac).to_string();
    (frames::good(mac, &local), frames::bad(mac, &local))
}

/// What must never be heard, by a reading of its own. `None` is a frame of the guest's that may pass.
fn offence(frame: &[u8], mac: [u8; 6]) -> Option<String> {
    let at = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    if at(6..12) != mac {
        return Some("another MAC".into());
    }
    let is_own6 = |bytes: &[u8]| {
        let address: Option<[u8; 16]> = bytes.try_into().ok();
        let own: Ipv6Addr = V6.parse().unwrap();
        address.is_some_and(|bytes| bytes == own.octets() || bytes == link_local(mac).octets())
    };
    match at(12..14) {
        [0x08, 0x06] => {
            let sender = at(28..32);
            let probe = sender == [0; 4] && at(20..22) == [0, 1] && at(38..42) == V4;
            (at(22..28) != mac || (sender != V4 && !probe)).then(|| "another ARP sender".into())
        }
        [0x08, 0x00] => {
            let header = usize::from(at(14..15)[0] & 15) * 4;
            let ports = at(14 + header..14 + header + 4);
            let kind = at(14 + header..14 + header + 1);
            let first = u16::from_be_bytes([at(20..21)[0], at(21..22)[0]]) & 0x1fff == 0;
            match at(23..24) {
                _ if at(26..30) != V4 => Some("another IPv4 source".into()),
                [17] if first => {
                    let to = u16::from_be_bytes([ports[2], ports[3]]);
                    [67, 68].contains(&to).then(|| "DHCP".into())
                }
                [1] if first => matches!(kind, [5 | 9]).then(|| "a router's ICMP".into()),
                [2] if first => matches!(kind, [0x11 | 0x30]).then(|| "a router's IGMP".into()),
                _ => None,
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
                (58, [130 | 134 | 137 | 138]) => Some("a router's message".into()),
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

#[test]
fn needs_root_row_63_what_a_malicious_guest_sends_reaches_nobody() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let (good, bad) = frames(bench.mac);
    for (name, frame) in &good {
        let offence = offence(frame, bench.mac);
        assert_eq!(offence, None, "the test's own judge: {name}: {frame:02x?}");
        bench.machine.send(frame);
    }
    let heard = bench.ear.all_from(bench.bridge);
    for (name, frame) in &good {
        // The namespace's own stack could have said those.
        let there = is_chatter(frame) || heard.contains(frame);
        assert!(there, "not heard: {name}: {frame:02x?}");
    }
    while bench.machine.receive().is_some() {}
    for (_, frame) in &bad {
        bench.machine.send(frame);
    }
    let heard = bench.ear.all_from(bench.bridge);
    let named = |frame: &Vec<u8>| bad.iter().find(|bad| bad.1 == *frame).map(|bad| &bad.0);
    let names: Vec<_> = heard.iter().map(|frame| (named(frame), frame)).collect();
    assert!(names.is_empty(), "heard: {names:02x?}");
    // The namespace's own stack has heard none of it either: nothing answers at the TAP.
    let question = arp(1, OTHER, [192, 168, 1, 9], V4);
    let asks = frame([0xff; 6], OTHER, 0x0806, &question);
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
    let (good, bad) = frames(bench.mac);
    let seeds: Vec<Vec<u8>> = good.into_iter().chain(bad).map(|named| named.1).collect();
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
    frame([0xff; 6], mac, 0x0800, &ipv4([0; 4], 17, 0, 0, &payload))
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
