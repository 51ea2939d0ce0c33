//! The programs as the kernel runs them: a socket with the program as its filter gets a frame, or does not.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use super::*;

const MAC: [u8; 6] = [0x02, 0x42, 0xc0, 0xa8, 0x01, 0x05];
const OTHER: [u8; 6] = [0x02, 0x42, 0xc0, 0xa8, 0x01, 0x09];
const BROADCAST: [u8; 6] = [0xff; 6];
const V4: [u8; 4] = [192, 168, 1, 5];
const FOREIGN: [u8; 4] = [192, 168, 1, 9];

struct Judge {
    send: UnixDatagram,
    receive: UnixDatagram,
}

impl Judge {
    fn new(program: &[Instruction]) -> Judge {
        let (send, receive) = UnixDatagram::pair().unwrap();
        receive.set_nonblocking(true).unwrap();
        crate::sys::attach_filter(receive.as_fd(), program).unwrap();
        Judge { send, receive }
    }

    fn of_guest() -> Judge {
        let guest = Guest {
            mac: MAC,
            addresses: vec![
                "192.168.1.5".parse().unwrap(),
                "10.9.8.7".parse().unwrap(),
                "fd00::5".parse().unwrap(),
            ],
        };
        Judge::new(&from_guest(&guest).unwrap())
    }

    fn accepts(&self, frame: &[u8]) -> bool {
        // To the sender, a refused datagram looks like any other.
        assert_eq!(self.send.send(frame).unwrap(), frame.len());
        let mut buffer = [0; 4096];
        let received = self.receive.recv(&mut buffer);
        match &received {
            Ok(length) => assert_eq!(*length, frame.len(), "cut"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        received.is_ok()
    }

    #[track_caller]
    fn passes(&self, frame: &[u8]) {
        assert!(self.accepts(frame), "refused: {frame:02x?}");
        // Cut anywhere within the headers that are judged, it must not pass for want of bytes.
        for length in 0..34.min(frame.len()) {
            assert!(!self.accepts(&frame[..length]), "{length} bytes passed");
        }
    }

    #[track_caller]
    fn refuses(&self, frame: &[u8]) {
        assert!(!self.accepts(frame), "passed: {frame:02x?}");
    }
}

fn ethernet(from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = BROADCAST.to_vec();
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn arp(operation: u8, sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend_from_slice(&sender_mac);
    payload.extend_from_slice(&sender);
    payload.extend_from_slice(&[0; 6]);
    payload.extend_from_slice(&[192, 168, 1, 1]);
    ethernet(MAC, 0x0806, &payload)
}

/// Of `options` more words in the header, at `offset` in units of 8 bytes.
fn ipv4(from: [u8; 4], protocol: u8, options: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45 + options, 0, 0, 0, 0, 0];
    packet.extend_from_slice(&offset.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&[8, 8, 8, 8]);
    packet.extend(std::iter::repeat_n(1, usize::from(options) * 4));
    packet.extend_from_slice(payload);
    ethernet(MAC, 0x0800, &packet)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend_from_slice(&to.to_be_bytes());
    datagram.extend_from_slice(&[0, 8, 0, 0]);
    datagram
}

fn ipv6(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let from: std::net::Ipv6Addr = from.parse().unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend_from_slice(payload);
    ethernet(MAC, 0x86dd, &packet)
}

/// With a target address behind the header, as neighbour discovery has one.
fn icmp6(kind: u8, target: &str) -> Vec<u8> {
    let target: std::net::Ipv6Addr = target.parse().unwrap();
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message
}

fn fragment6(next: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend_from_slice(&(offset << 3 | 1).to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 7]);
    header.extend_from_slice(payload);
    header
}

const LINK_LOCAL: &str = "fe80::42:c0ff:fea8:105";

#[test]
fn row_63_only_the_guest_s_own_mac_and_addresses() {
    let judge = Judge::of_guest();
    let tcp = [0; 20];
    judge.passes(&ipv4(V4, 6, 0, 0, &tcp));
    judge.passes(&ipv4([10, 9, 8, 7], 6, 0, 0, &tcp));
    judge.refuses(&ipv4(FOREIGN, 6, 0, 0, &tcp));
    judge.refuses(&ipv4([0; 4], 6, 0, 0, &tcp));
    judge.passes(&ipv6("fd00::5", 6, &tcp));
    judge.passes(&ipv6(LINK_LOCAL, 6, &tcp));
    judge.refuses(&ipv6("fd00::6", 6, &tcp));
    judge.refuses(&ipv6("fe80::1", 6, &tcp));
    judge.refuses(&ipv6("::", 6, &tcp));
    for good in [ipv4(V4, 6, 0, 0, &tcp), ipv6("fd00::5", 6, &tcp)] {
        let mut spoofed = good;
        spoofed[6..12].copy_from_slice(&OTHER);
        judge.refuses(&spoofed);
    }
}

#[test]
fn row_63_arp_with_another_sender() {
    let judge = Judge::of_guest();
    judge.passes(&arp(1, MAC, V4));
    judge.passes(&arp(2, MAC, V4));
    // A probe.
    judge.passes(&arp(1, MAC, [0; 4]));
    judge.refuses(&arp(2, MAC, [0; 4]));
    judge.refuses(&arp(2, MAC, FOREIGN));
    judge.refuses(&arp(1, MAC, FOREIGN));
    judge.refuses(&arp(2, OTHER, V4));
    judge.refuses(&arp(3, MAC, V4));
    let mut other_hardware = arp(1, MAC, V4);
    other_hardware[15] = 6;
    judge.refuses(&other_hardware);
}

#[test]
fn row_63_other_protocols_and_tags() {
    let judge = Judge::of_guest();
    // LLC, as spanning tree has it; a VLAN tag within another; LLDP; PPPoE; EAPOL; a kind that nobody knows.
    for kind in [
        0x0026, 0x8100, 0x88a8, 0x88cc, 0x8863, 0x888e, 0x8035, 0xffff,
    ] {
        judge.refuses(&ethernet(MAC, kind, &[0; 64]));
    }
    // A version that does not fit the kind, a header that is too short.
    let mut odd = ipv4(V4, 6, 0, 0, &[0; 20]);
    odd[14] = 0x65;
    judge.refuses(&odd);
    odd[14] = 0x44;
    judge.refuses(&odd);
}

#[test]
fn row_63_dhcp_answers_and_questions() {
    let judge = Judge::of_guest();
    judge.passes(&ipv4(V4, 17, 0, 0, &udp(68, 53)));
    judge.passes(&ipv4(V4, 17, 10, 0, &udp(1000, 53)));
    for options in [0, 1, 10] {
        judge.refuses(&ipv4(V4, 17, options, 0, &udp(67, 68)));
        judge.refuses(&ipv4(V4, 17, options, 0, &udp(9, 68)));
        judge.refuses(&ipv4(V4, 17, options, 0, &udp(68, 67)));
        // With more fragments to come.
        judge.refuses(&ipv4(V4, 17, options, 0x2000, &udp(67, 68)));
    }
    judge.refuses(&ipv4([0; 4], 17, 0, 0, &udp(68, 67)));
    // A later fragment has no ports, whatever it looks like.
    judge.passes(&ipv4(V4, 17, 0, 1, &udp(67, 68)));
    // Too short for its ports.
    judge.refuses(&ipv4(V4, 17, 0, 0, &[0, 9]));
    judge.refuses(&ipv6("fd00::5", 17, &udp(547, 546)));
    judge.refuses(&ipv6(LINK_LOCAL, 17, &udp(546, 547)));
    judge.passes(&ipv6("fd00::5", 17, &udp(546, 53)));
    judge.refuses(&ipv4(V4, 1, 0, 0, &[5, 0, 0, 0, 0, 0, 0, 0]));
    judge.passes(&ipv4(V4, 1, 0, 0, &[8, 0, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn row_63_routers_messages_and_neighbours() {
    let judge = Judge::of_guest();
    for kind in [134, 137, 138, 139, 140, 148, 149, 151, 152, 153, 200] {
        judge.refuses(&ipv6("fd00::5", 58, &icmp6(kind, "::")));
        judge.refuses(&ipv6(LINK_LOCAL, 58, &icmp6(kind, "::")));
    }
    for kind in [1, 2, 3, 4, 128, 129, 131, 132, 133, 135, 143] {
        judge.passes(&ipv6(LINK_LOCAL, 58, &icmp6(kind, "fd00::1")));
    }
    judge.passes(&ipv6("fd00::5", 58, &icmp6(136, "fd00::5")));
    judge.passes(&ipv6("fd00::5", 58, &icmp6(136, LINK_LOCAL)));
    judge.refuses(&ipv6("fd00::5", 58, &icmp6(136, "fd00::1")));
    judge.refuses(&ipv6("fd00::5", 58, &icmp6(136, "fe80::1")));
    // Duplicate address detection.
    judge.passes(&ipv6("::", 58, &icmp6(135, "fd00::5")));
    judge.refuses(&ipv6("::", 58, &icmp6(135, "fd00::6")));
    judge.refuses(&ipv6("::", 58, &icmp6(134, "fd00::5")));
    judge.refuses(&ipv6("::", 58, &icmp6(136, "fd00::5")));
}

#[test]
fn row_63_nothing_hides_behind_extension_headers() {
    let judge = Judge::of_guest();
    let advertisement = icmp6(134, "::");
    let behind = |next: u8, rest: &[u8]| {
        let mut header = vec![next, 0, 1, 4, 0, 0, 0, 0];
        header.extend_from_slice(rest);
        header
    };
    for header in [0, 43, 60, 51, 135, 139, 140] {
        judge.refuses(&ipv6(LINK_LOCAL, header, &behind(58, &advertisement)));
        judge.refuses(&ipv6(LINK_LOCAL, header, &behind(6, &[0; 20])));
    }
    judge.refuses(&ipv6(LINK_LOCAL, 59, &advertisement));
    // A multicast report, as kernels send it, and the same with something else in it.
    let report = |kind: u8| {
        let mut header = vec![58, 0, 5, 2, 0, 0, 1, 0];
        header.extend_from_slice(&icmp6(kind, "::"));
        header
    };
    judge.passes(&ipv6(LINK_LOCAL, 0, &report(143)));
    judge.passes(&ipv6("::", 0, &report(143)));
    judge.refuses(&ipv6(LINK_LOCAL, 0, &report(134)));
    judge.refuses(&ipv6("fd00::7", 0, &report(143)));
    // In fragments.
    judge.refuses(&ipv6(LINK_LOCAL, 44, &fragment6(58, 0, &advertisement)));
    judge.refuses(&ipv6(
        LINK_LOCAL,
        44,
        &fragment6(58, 0, &icmp6(136, LINK_LOCAL)),
    ));
    judge.passes(&ipv6(LINK_LOCAL, 44, &fragment6(58, 0, &icmp6(128, "::"))));
    judge.passes(&ipv6(LINK_LOCAL, 44, &fragment6(58, 4, &advertisement)));
    judge.refuses(&ipv6(LINK_LOCAL, 44, &fragment6(17, 0, &udp(547, 546))));
    judge.passes(&ipv6(LINK_LOCAL, 44, &fragment6(17, 0, &udp(9, 53))));
    for next in [0, 43, 44, 60, 51] {
        judge.refuses(&ipv6(
            LINK_LOCAL,
            44,
            &fragment6(next, 0, &behind(58, &advertisement)),
        ));
        judge.refuses(&ipv6(LINK_LOCAL, 44, &fragment6(next, 3, &advertisement)));
    }
}

#[test]
fn dhcp_alone_is_kept_from_the_bridge() {
    let judge = Judge::new(&is_no_dhcp());
    assert!(judge.accepts(&ethernet(OTHER, 0x88cc, &[0; 46])));
    assert!(judge.accepts(&ipv4(FOREIGN, 6, 0, 0, &[0; 20])));
    assert!(judge.accepts(&ipv4(FOREIGN, 17, 3, 0, &udp(67, 53))));
    assert!(judge.accepts(&ipv6("fe80::1", 58, &icmp6(134, "::"))));
    judge.refuses(&ipv4(FOREIGN, 17, 3, 0, &udp(67, 68)));
    judge.refuses(&ipv4(FOREIGN, 17, 0, 0, &udp(68, 67)));
    judge.refuses(&ipv6("fe80::1", 17, &udp(547, 546)));
}

#[test]
fn the_responder_hears_questions_of_its_guest_alone() {
    let judge = Judge::new(&to_responder(MAC));
    assert!(judge.accepts(&ipv4([0; 4], 17, 0, 0, &udp(68, 67))));
    assert!(judge.accepts(&ipv4(V4, 17, 2, 0, &udp(68, 67))));
    judge.refuses(&ipv4(V4, 17, 0, 0, &udp(67, 68)));
    judge.refuses(&ipv4(V4, 6, 0, 0, &udp(68, 67)));
    judge.refuses(&ipv4(V4, 17, 0, 0x2000, &udp(68, 67)));
    let mut other = ipv4([0; 4], 17, 0, 0, &udp(68, 67));
    other[6..12].copy_from_slice(&OTHER);
    judge.refuses(&other);
}

#[test]
fn as_many_addresses_as_are_allowed_fit() {
    let addresses = |count: u32| -> Vec<std::net::IpAddr> {
        (0..count)
            .map(|n| std::net::Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(n)).into())
            .collect()
    };
    let guest = |count| Guest {
        mac: MAC,
        addresses: addresses(count),
    };
    let judge = Judge::new(&from_guest(&guest(64)).unwrap());
    judge.passes(&ipv6("fd00::3f", 6, &[0; 20]));
    judge.refuses(&ipv6("fd00::40", 6, &[0; 20]));
    assert_eq!(from_guest(&guest(65)), Err(Refused(65)));
}
