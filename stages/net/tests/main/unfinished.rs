//! Row 63, and what a machine leaves to be finished behind it: a checksum must not be written over what has been judged, and no frame be cut into
//! what has not.

use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::ear::is_chatter;
use crate::frames::{BROADCAST, V6, fragment6, ipv6};
use crate::judge::{frames, offence};
use crate::packets::{V4, frame, ipv4, udp};
use crate::tap::{Header, Machine};
use crate::world::skip;

impl Header {
    /// The sum over everything from `start` on is to be written `offset` bytes behind it.
    pub(crate) fn unfinished(&mut self, start: usize, offset: usize) {
        const NEEDS_CSUM: u8 = 1;
        self.0[0] = NEEDS_CSUM;
        self.0[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
        self.0[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
    }

    /// One frame for many segments of this size.
    pub(crate) fn segments(&mut self, kind: u8, size: usize) {
        self.0[1] = kind;
        self.0[4..6].copy_from_slice(&(size as u16).to_ne_bytes());
    }
}

// linux/virtio_net.h, VIRTIO_NET_HDR_GSO_…
const TCP_OVER_IPV4: u8 = 1;
const FRAGMENTS_OF_UDP: u8 = 3;
const DATAGRAMS_OF_UDP: u8 = 5;

/// What the neighbour gets of the machine's: so many frames, and what comes in a while after them.
fn received(neighbour: &Machine, bench: &Bench, expected: usize) -> Vec<Vec<u8>> {
    let mut received = Vec::new();
    let (mut quiet, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    while quiet.elapsed() < Duration::from_millis(200)
        || received.len() < expected && Instant::now() < deadline
    {
        match neighbour.receive() {
            Some(frame) if frame[6..12] == bench.bridge || is_chatter(&frame) => {}
            Some(frame) => {
                received.push(frame);
                quiet = Instant::now();
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    received
}

/// Where the transport's header begins, and the checksum in it, of whole TCP and UDP.
fn transport(frame: &[u8]) -> Option<(usize, usize)> {
    let (start, protocol) = match frame[12..14] {
        [0x08, 0x00] if frame[20] & 0x3f != 0 || frame[21] != 0 => return None,
        [0x08, 0x00] => (14 + usize::from(frame[14] & 15) * 4, frame[23]),
        [0x86, 0xdd] => (54, frame[20]),
        _ => return None,
    };
    match protocol {
        6 => Some((start, start + 16)),
        17 => Some((start, start + 6)),
        _ => None,
    }
}

#[test]
fn needs_root_row_63_no_checksum_is_written_over_what_was_judged() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let (good, _) = frames(bench.mac);
    let before = |frame: &[u8]| Some(frame[..transport(frame)?.1].to_vec());
    let judged: Vec<_> = good.iter().filter_map(|(_, frame)| before(frame)).collect();
    let (mut sent, mut fine) = (0, 0);
    for (_, frame) in &good {
        let own = transport(frame).map_or(frame.len(), |(_, checksum)| checksum);
        for place in 0..frame.len() - 1 {
            // The sum of different ranges, so that different values are written.
            for start in [place, place.min(20), place.min(34)] {
                let mut header = Header::default();
                header.unfinished(start, place - start);
                bench.machine.send_with(&header, frame);
                sent += 1;
                fine += usize::from(place >= own);
            }
        }
    }
    let heard = received(&neighbour, &bench, fine);
    println!("{sent} sent, {} heard", heard.len());
    for frame in &heard {
        let what = offence(frame, bench.mac);
        assert_eq!(what, None, "{frame:02x?}");
        // One that passes is of TCP or UDP, and as it was up to its own checksum.
        let same = before(frame).is_some_and(|before| judged.contains(&before));
        assert!(same, "none of those that were sent: {frame:02x?}");
    }
    assert_eq!(heard.len(), fine, "all others pass");
    bench.end();
}

#[test]
fn needs_root_row_63_nothing_is_cut_into_what_was_not_judged() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let of = |kind, packet: &[u8]| frame(BROADCAST, bench.mac, kind, packet);
    // Wherever one is cut, there are a DHCP server's ports.
    let ports = [0, 67].repeat(40);
    let datagram = udp(1000, 53, &ports);
    let frames = [
        of(0x0800, &ipv4(V4, 17, 0, 0, &datagram)),
        of(0x0800, &ipv4(V4, 17, 0, 0x2000, &datagram)),
        of(0x0800, &ipv4(V4, 17, 0, 1, &ports)),
        of(0x0800, &ipv4(V4, 17, 0, 0x2001, &ports)),
        of(0x86dd, &ipv6(V6, 17, &datagram)),
        of(0x86dd, &ipv6(V6, 44, &fragment6(17, 1, &ports))),
    ];
    for frame in &frames {
        for kind in [FRAGMENTS_OF_UDP, DATAGRAMS_OF_UDP] {
            for size in 1..64 {
                for unfinished in [false, true] {
                    let mut header = Header::default();
                    if unfinished {
                        header.unfinished(if frame[12] == 8 { 34 } else { 54 }, 6);
                    }
                    header.segments(kind, size);
                    bench.machine.send_with(&header, frame);
                }
            }
        }
        for frame in received(&neighbour, &bench, 0) {
            assert_eq!(offence(&frame, bench.mac), None, "{frame:02x?}");
        }
    }
    bench.end();
}

/// Fragments are numbered with 13 bits, and what is beyond has flags for them or begins again at 0.
#[test]
fn needs_root_row_63_no_datagram_is_cut_that_is_longer_than_ip_can_say() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let of = |kind, packet: &[u8]| frame(BROADCAST, bench.mac, kind, packet);
    let mut heard = 0;
    // A VMM may take more than a frame can be: QEMU does.
    for length in [60_000, 65_536, 67_000, 140_000, 530_000] {
        // Wherever one is cut, there are a DHCP server's ports, of both families.
        let ports = [[0, 67, 0, 68], [2, 34, 2, 35]].map(|ports| ports.repeat(length / 4));
        let frames = [
            of(0x0800, &ipv4(V4, 17, 0, 0, &udp(1000, 53, &ports[0][8..]))),
            of(0x86dd, &ipv6(V6, 17, &udp(1000, 53, &ports[1][8..]))),
        ];
        for frame in &frames {
            let mut header = Header::default();
            header.unfinished(if frame[12] == 8 { 34 } else { 54 }, 6);
            header.segments(FRAGMENTS_OF_UDP, 1024);
            bench.machine.send_with(&header, frame);
            let received = received(&neighbour, &bench, 0);
            heard += received.len();
            for frame in received {
                let head = &frame[..frame.len().min(80)];
                assert_eq!(offence(&frame, bench.mac), None, "{length}: {head:02x?}");
            }
        }
    }
    assert!(heard > 100, "the test hears nothing: {heard}");
    bench.end();
}

/// RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over addresses, length and protocol that goes into a checksum of TCP or UDP (RFC 9293, RFC 8200).
fn pseudo_header(frame: &[u8], transport: usize) -> u16 {
    let (addresses, protocol) = match frame[12..14] {
        [0x08, 0x00] => (&frame[26..34], frame[23]),
        _ => (&frame[22..54], frame[20]),
    };
    let length = (frame.len() - transport) as u16;
    let rest = [&length.to_be_bytes()[..], &[0, protocol]].concat();
    sum(&[addresses, &rest].concat())
}

/// With the checksum left as Linux leaves it, and the header that says so.
fn left_unfinished(mut frame: Vec<u8>) -> (Header, Vec<u8>) {
    let (start, checksum) = transport(&frame).unwrap();
    let begun = pseudo_header(&frame, start).to_be_bytes();
    frame[checksum..checksum + 2].copy_from_slice(&begun);
    let mut header = Header::default();
    header.unfinished(start, checksum - start);
    (header, frame)
}

#[track_caller]
fn assert_finished(frame: &[u8]) {
    let (start, _) = transport(frame).unwrap();
    let begun = pseudo_header(frame, start).to_be_bytes();
    let whole = sum(&[&begun[..], &frame[start..]].concat());
    assert_eq!(whole, 0xffff, "{frame:02x?}");
}

/// A header with its length in it and no options, and a payload.
fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[12] = 5 << 4;
    segment.extend_from_slice(payload);
    segment
}

#[test]
fn needs_root_unfinished_checksums_of_tcp_and_udp_pass_and_are_finished() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let of = |kind, packet: &[u8]| frame(BROADCAST, bench.mac, kind, packet);
    let v4 = |protocol, payload: &[u8]| of(0x0800, &ipv4(V4, protocol, 0, 0, payload));
    let v6 = |next, payload: &[u8]| of(0x86dd, &ipv6(V6, next, payload));
    let options = of(0x0800, &ipv4(V4, 6, 10, 0, &tcp(b"behind options")));
    let datagram = udp(1000, 53, b"a question");
    let frames = [
        v4(6, &tcp(b"an odd payload!")),
        v4(6, &tcp(b"")),
        v4(17, &datagram),
        v6(6, &tcp(b"the same")),
        v6(17, &datagram),
        options,
    ];
    for frame in frames {
        let (header, frame) = left_unfinished(frame);
        bench.machine.send_with(&header, &frame);
        let received = received(&neighbour, &bench, 1);
        assert_eq!(received.len(), 1, "{frame:02x?}");
        assert_finished(&received[0]);
        assert_eq!(received[0].len(), frame.len());
        let there = bench.ear.all_from(bench.bridge);
        assert_eq!(there, [frame], "with nobody to finish it");
    }
    // Large segments stay what they are up to whoever cannot take them.
    let (mut header, frame) = left_unfinished(v4(6, &tcp(&[7; 3000])));
    header.segments(TCP_OVER_IPV4, 1000);
    bench.machine.send_with(&header, &frame);
    let segments = received(&neighbour, &bench, 3);
    let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1054, 1054, 1054]);
    segments.iter().for_each(|segment| assert_finished(segment));
    assert_eq!(bench.ear.all_from(bench.bridge), [frame]);
    // And datagrams that are more than a link's, as older kernels leave them.
    let (mut header, frame) = left_unfinished(v4(17, &udp(1000, 53, &[7; 3000])));
    header.segments(FRAGMENTS_OF_UDP, 1480);
    bench.machine.send_with(&header, &frame);
    let lengths: Vec<usize> = received(&neighbour, &bench, 3)
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(lengths, [1514, 1514, 82]);
    bench.end();
}
