//! The programs as the kernel runs them: a socket with the program as its filter gets a frame, or does not.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use super::guest::link_local;
use super::*;

#[path = "../../tests/main/frames.rs"]
mod frames;
#[path = "../../tests/main/packets.rs"]
mod packets;

use frames::{BROADCAST, V6, icmp6, ipv6};
use packets::{OTHER, V4, frame, ipv4, udp};

const MAC: [u8; 6] = [0x02, 0x42, 0xc0, 0xa8, 0x01, 0x05];
const TCP: [u8; 20] = [0; 20];

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

    fn of_guest(addresses: &[&str]) -> Judge {
        let guest = Guest {
            mac: MAC,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
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

    fn accepts_packet(&self, kind: u16, packet: &[u8]) -> bool {
        self.accepts(&frame(BROADCAST, MAC, kind, packet))
    }
}

#[test]
fn row_63_what_a_guest_may_send_and_what_not() {
    let judge = Judge::of_guest(&["192.168.1.5", V6]);
    let own = link_local(MAC).to_string();
    for (name, frame) in frames::good(MAC, &own) {
        assert!(judge.accepts(&frame), "refused: {name}: {frame:02x?}");
        // Cut anywhere within the headers that are judged, it must not pass for want of bytes.
        for length in 0..34.min(frame.len()) {
            let cut = judge.accepts(&frame[..length]);
            assert!(!cut, "{length} bytes of {name} passed");
        }
    }
    let mut bad = frames::bad(MAC, &own);
    bad.retain(|(_, frame)| judge.accepts(frame));
    assert!(bad.is_empty(), "passed: {bad:02x?}");
}

#[test]
fn row_63_each_of_several_addresses_is_the_guest_s() {
    let judge = Judge::of_guest(&["192.168.1.5", "10.9.8.7", "fd00::5", "fd00::6"]);
    for from in [V4, [10, 9, 8, 7]] {
        assert!(judge.accepts_packet(0x0800, &ipv4(from, 6, 0, 0, &TCP)));
        let probe = frames::arp(1, MAC, [0; 4], from);
        assert!(judge.accepts_packet(0x0806, &probe));
    }
    assert!(judge.accepts_packet(0x86dd, &ipv6("fd00::6", 6, &TCP)));
    // Of one family alone: of the other not even the link-local ones of others.
    let judge = Judge::of_guest(&["fd00::5"]);
    assert!(!judge.accepts_packet(0x0800, &ipv4(V4, 6, 0, 0, &TCP)));
    assert!(!judge.accepts_packet(0x0806, &frames::arp(1, MAC, [0; 4], V4)));
    assert!(!judge.accepts_packet(0x0806, &frames::arp(1, MAC, [0; 4], [0; 4])));
}

#[test]
fn dhcp_alone_is_kept_from_the_bridge() {
    let judge = Judge::new(&is_no_dhcp());
    let foreign = [192, 168, 1, 9];
    let passes = |kind: u16, packet: &[u8]| judge.accepts(&frame(BROADCAST, OTHER, kind, packet));
    assert!(passes(0x88cc, &[0; 46]));
    assert!(passes(0x0800, &ipv4(foreign, 6, 0, 0, &TCP)));
    assert!(passes(0x0800, &ipv4(foreign, 17, 3, 0, &udp(67, 53, b""))));
    assert!(passes(0x86dd, &ipv6("fe80::1", 58, &icmp6(134, "::"))));
    assert!(!passes(0x0800, &ipv4(foreign, 17, 3, 0, &udp(67, 68, b""))));
    assert!(!passes(0x0800, &ipv4(foreign, 17, 0, 0, &udp(68, 67, b""))));
    assert!(!passes(0x86dd, &ipv6("fe80::1", 17, &udp(547, 546, b""))));
}

#[test]
fn the_responder_hears_questions_of_its_guest_alone() {
    let judge = Judge::new(&to_responder(MAC));
    let question = ipv4([0; 4], 17, 0, 0, &udp(68, 67, b""));
    let hears = |packet: &[u8]| judge.accepts_packet(0x0800, packet);
    assert!(hears(&question));
    assert!(hears(&ipv4(V4, 17, 2, 0, &udp(68, 67, b""))));
    assert!(!hears(&ipv4(V4, 17, 0, 0, &udp(67, 68, b""))));
    assert!(!hears(&ipv4(V4, 6, 0, 0, &udp(68, 67, b""))));
    assert!(!hears(&ipv4(V4, 17, 0, 0x2000, &udp(68, 67, b""))));
    assert!(!judge.accepts(&frame(BROADCAST, OTHER, 0x0800, &question)));
}

#[test]
fn as_many_addresses_as_are_allowed_fit() {
    let addresses = |count: u32| -> Vec<IpAddr> {
        (0..count)
            .map(|n| std::net::Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(n)).into())
            .collect()
    };
    let guest = |count| Guest {
        mac: MAC,
        addresses: addresses(count),
    };
    let judge = Judge::new(&from_guest(&guest(64)).unwrap());
    assert!(judge.accepts_packet(0x86dd, &ipv6("fd00::3f", 6, &TCP)));
    assert!(!judge.accepts_packet(0x86dd, &ipv6("fd00::40", 6, &TCP)));
    assert_eq!(from_guest(&guest(65)), Err(Refused(65)));
}
