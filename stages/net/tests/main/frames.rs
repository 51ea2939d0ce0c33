//! Frames as a guest could send them: what may pass and what may not, each with a word about itself. One list for the programs alone
//! (`filter/tests.rs`) and for a TAP with its redirects (`spoofing.rs`).

use std::net::Ipv6Addr;

use super::packets::{OTHER, V4, frame, ipv4, udp};

pub(crate) const V6: &str = "fd00::5";
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
const FOREIGN: [u8; 4] = [192, 168, 1, 9];
const TCP: [u8; 20] = [0; 20];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A frame, and what it is.
pub(crate) type Named = (String, Vec<u8>);

pub(crate) fn arp(operation: u8, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&sender);
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&target);
    packet
}

pub(crate) fn ipv6(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let from: Ipv6Addr = from.parse().unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend_from_slice(payload);
    packet
}

/// With a target address behind the header, as neighbour discovery has one.
pub(crate) fn icmp6(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message
}

/// In units of 8 bytes, with more to come.
pub(crate) fn fragment6(next: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![next, 0];
    packet.extend_from_slice(&(offset << 3 | 1).to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 7]);
    packet.extend_from_slice(payload);
    packet
}

/// Behind an extension header of the usual form.
fn behind(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![next, 0, 1, 4, 0, 0, 0, 0];
    packet.extend_from_slice(rest);
    packet
}

/// Behind a router alert, as kernels send reports of groups.
fn report(kind: u8) -> Vec<u8> {
    let mut packet = vec![58, 0, 5, 2, 0, 0, 1, 0];
    packet.extend_from_slice(&icmp6(kind, "::"));
    packet
}

/// What makes a list.
struct Of {
    mac: [u8; 6],
    frames: Vec<Named>,
}

impl Of {
    fn frame(&mut self, name: impl Into<String>, frame: Vec<u8>) {
        self.frames.push((name.into(), frame));
    }

    fn kind(&mut self, name: impl Into<String>, kind: u16, packet: &[u8]) {
        self.frame(name, frame(BROADCAST, self.mac, kind, packet));
    }

    fn v4(&mut self, name: impl Into<String>, protocol: u8, payload: &[u8]) {
        self.kind(name, IPV4, &ipv4(V4, protocol, 0, 0, payload));
    }

    fn v6(&mut self, name: impl Into<String>, from: &str, next: u8, payload: &[u8]) {
        self.kind(name, IPV6, &ipv6(from, next, payload));
    }
}

/// What a guest with this MAC, [`V4`] and [`V6`] may send.
pub(crate) fn good(mac: [u8; 6], link_local: &str) -> Vec<Named> {
    let mut of = Of {
        mac,
        frames: Vec::new(),
    };
    let router = [192, 168, 1, 1];
    of.kind("an ARP question", ARP, &arp(1, mac, V4, router));
    of.kind("an ARP answer", ARP, &arp(2, mac, V4, router));
    of.kind("an ARP announcement", ARP, &arp(1, mac, V4, V4));
    of.kind("an ARP probe", ARP, &arp(1, mac, [0; 4], V4));
    of.v4("an echo", 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    of.v4(
        "a router solicitation of IPv4",
        1,
        &[10, 0, 0, 0, 0, 0, 0, 0],
    );
    of.v4("TCP", 6, &TCP);
    of.v4("a report of a group", 2, &[0x22, 0, 0, 0, 0, 0, 0, 0]);
    of.v4("a datagram", 17, &udp(5000, 53, b"?"));
    of.v4("a datagram from a DHCP port", 17, &udp(68, 53, b""));
    let packet = ipv4(V4, 17, 10, 0, &udp(1000, 53, b""));
    of.kind("IPv4 with all options", IPV4, &packet);
    // A later fragment has no ports and no type, whatever it looks like.
    for (protocol, payload) in [(17, udp(67, 68, b"")), (1, vec![9; 8]), (2, vec![0x11; 8])] {
        let packet = ipv4(V4, protocol, 0, 1, &payload);
        of.kind(format!("a later fragment of {protocol}"), IPV4, &packet);
    }
    for from in [V6, link_local] {
        of.v6(format!("TCP from {from}"), from, 6, &TCP);
        of.v6(
            format!("a datagram from {from}"),
            from,
            17,
            &udp(546, 53, b""),
        );
        for kind in [1, 2, 3, 4, 128, 129, 131, 132, 133, 135, 143] {
            let message = icmp6(kind, "fd00::1");
            of.v6(format!("ICMPv6 {kind} from {from}"), from, 58, &message);
        }
        for target in [V6, link_local] {
            let message = icmp6(136, target);
            of.v6(format!("{target} advertised by {from}"), from, 58, &message);
        }
        of.v6(format!("a report from {from}"), from, 0, &report(143));
    }
    let fragments = [
        ("an echo", fragment6(58, 0, &icmp6(128, "::"))),
        ("a later part", fragment6(58, 4, &icmp6(134, "::"))),
        ("a datagram", fragment6(17, 0, &udp(9, 53, b""))),
        ("TCP", fragment6(6, 0, &TCP)),
    ];
    for (name, fragment) in fragments {
        of.v6(format!("{name} in fragments"), V6, 44, &fragment);
    }
    of.v6("a report from ::", "::", 0, &report(143));
    for target in [V6, link_local] {
        let message = icmp6(135, target);
        of.v6(format!("detection of {target}"), "::", 58, &message);
    }
    of.frames
}

/// What it may not send.
pub(crate) fn bad(mac: [u8; 6], link_local: &str) -> Vec<Named> {
    let mut of = Of {
        mac,
        frames: Vec::new(),
    };
    // Of another MAC.
    of.frame(
        "IPv4 of another MAC",
        frame(BROADCAST, OTHER, IPV4, &ipv4(V4, 6, 0, 0, &TCP)),
    );
    of.frame(
        "IPv6 of another MAC",
        frame(BROADCAST, OTHER, IPV6, &ipv6(V6, 6, &TCP)),
    );
    let router = [192, 168, 1, 1];
    let asked = arp(1, OTHER, V4, router);
    of.frame("ARP from another MAC", frame(BROADCAST, OTHER, ARP, &asked));

    // ARP.
    of.kind("ARP of another MAC", ARP, &arp(2, OTHER, V4, router));
    of.kind("ARP for the bridge", ARP, &arp(2, mac, router, V4));
    of.kind("ARP of another sender", ARP, &arp(1, mac, FOREIGN, router));
    of.kind("an ARP answer of nobody", ARP, &arp(2, mac, [0; 4], V4));
    // Whoever looks whether the address is free takes it for taken (RFC 5227, 2.1.1).
    of.kind("another's ARP probe", ARP, &arp(1, mac, [0; 4], FOREIGN));
    of.kind("reverse ARP's question", ARP, &arp(3, mac, V4, V4));
    for (place, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16)] {
        let mut odd = arp(1, mac, V4, router);
        odd[place] = value;
        of.kind(format!("ARP with {value} at {place}"), ARP, &odd);
    }
    of.kind("ARP cut short", ARP, &arp(1, mac, V4, router)[..24]);

    // Other kinds: LLC as spanning tree has it and with IPv4 in it (RFC 1042), tags, LLDP, PPPoE, EAPOL, reverse ARP, pauses, MACsec.
    let mut inside = vec![0, 1, 8, 0];
    inside.extend_from_slice(&ipv4(V4, 6, 0, 0, &TCP));
    for kind in [
        0x0026, 0x8100, 0x88a8, 0x9100, 0x88cc, 0x8863, 0x8864, 0x888e, 0x8035, 0x8808, 0x88e5,
        0xffff,
    ] {
        of.kind(format!("kind {kind:04x}"), kind, &inside);
    }
    let mut llc = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    llc.extend_from_slice(&ipv4(V4, 6, 0, 0, &TCP));
    of.kind("IPv4 in LLC", llc.len() as u16, &llc);
    let mut priority = vec![0, 0, 8, 6];
    priority.extend_from_slice(&arp(2, mac, router, V4));
    of.kind("ARP behind a priority tag", 0x8100, &priority);

    // IPv4.
    for from in [
        [0; 4],
        FOREIGN,
        router,
        [127, 0, 0, 1],
        [255; 4],
        [224, 0, 0, 1],
    ] {
        let packet = ipv4(from, 6, 0, 0, &TCP);
        of.kind(format!("IPv4 from {from:?}"), IPV4, &packet);
    }
    for (name, first) in [("version 6", 0x65), ("a header of 16 bytes", 0x44)] {
        let mut odd = ipv4(V4, 6, 0, 0, &TCP);
        odd[0] = first;
        of.kind(format!("IPv4 with {name}"), IPV4, &odd);
    }
    for options in [0, 1, 10] {
        for (from, to) in [(67, 68), (9, 68), (68, 67), (67, 67)] {
            for flags in [0, 0x2000, 0x8000] {
                let packet = ipv4(V4, 17, options, flags, &udp(from, to, &[2; 8]));
                let name = format!("DHCP {from} to {to}, {options} options, {flags:04x}");
                of.kind(name, IPV4, &packet);
            }
        }
        // ICMP: redirect, router advertisement. IGMP: a question, and a router that says it is there.
        for (protocol, kind) in [(1, 5), (1, 9), (2, 0x11), (2, 0x30)] {
            for flags in [0, 0x2000] {
                let packet = ipv4(V4, protocol, options, flags, &[kind, 0, 0, 0, 0, 0, 0, 0]);
                let name = format!("{protocol} with {kind}, {options} options, {flags:04x}");
                of.kind(name, IPV4, &packet);
            }
        }
    }
    let packet = ipv4([0; 4], 17, 0, 0, &udp(68, 67, &[1; 300]));
    of.kind("a DHCP question", IPV4, &packet);
    of.v4("too short for ports", 17, &[0, 9]);
    of.v4("too short for a type", 1, &[]);

    // IPv6.
    for from in [
        "::",
        "fd00::6",
        "fe80::1",
        "::1",
        "ff02::1",
        "::ffff:192.168.1.5",
    ] {
        of.v6(format!("TCP from {from}"), from, 6, &TCP);
    }
    let mut odd = ipv6(V6, 6, &TCP);
    odd[0] = 0x40;
    of.kind("IPv6 with version 4", IPV6, &odd);
    for from in [V6, link_local] {
        // A querier's, routers', whatever else is not a host's.
        for kind in [
            130, 134, 137, 138, 139, 140, 141, 142, 144, 147, 148, 149, 151, 152, 153, 200, 255,
        ] {
            let message = icmp6(kind, "::");
            of.v6(format!("ICMPv6 {kind} from {from}"), from, 58, &message);
            let fragment = fragment6(58, 0, &message);
            let name = format!("ICMPv6 {kind} from {from} in fragments");
            of.v6(name, from, 44, &fragment);
        }
        for target in ["fd00::1", "fe80::1", "::"] {
            let message = icmp6(136, target);
            of.v6(format!("{target} advertised by {from}"), from, 58, &message);
        }
        for (a, b) in [(547, 546), (546, 547), (9, 546)] {
            of.v6(format!("DHCPv6 {a} to {b}"), from, 17, &udp(a, b, b""));
            let fragment = fragment6(17, 0, &udp(a, b, b""));
            of.v6(
                format!("DHCPv6 {a} to {b} in fragments"),
                from,
                44,
                &fragment,
            );
        }
    }
    for kind in [134, 136, 128] {
        let name = format!("ICMPv6 {kind} from ::");
        of.v6(name, "::", 58, &icmp6(kind, V6));
    }
    of.v6("detection of another's", "::", 58, &icmp6(135, "fd00::6"));

    // Nothing hides behind a header.
    let advertisement = icmp6(134, "::");
    for header in [0, 43, 60, 51, 135, 139, 140] {
        for (next, rest) in [(58, &advertisement[..]), (6, &TCP[..])] {
            let name = format!("{next} behind {header}");
            of.v6(name, link_local, header, &behind(next, rest));
        }
    }
    of.v6("no next header", link_local, 59, &advertisement);
    for kind in [130, 134, 135, 136] {
        of.v6(format!("{kind} as a report"), link_local, 0, &report(kind));
    }
    of.v6("another's report", "fd00::7", 0, &report(143));
    let neighbour = fragment6(58, 0, &icmp6(136, link_local));
    of.v6("a neighbour's fragment", link_local, 44, &neighbour);
    for next in [0, 43, 44, 60, 51] {
        for offset in [0, 3] {
            let fragment = fragment6(next, offset, &behind(58, &advertisement));
            of.v6(
                format!("a fragment of {next} at {offset}"),
                V6,
                44,
                &fragment,
            );
        }
    }
    of.frames
}
