//! What may come out of a TAP and what not, by a reading of its own: nothing here knows of the programs in the kernel.

use std::net::Ipv6Addr;

use crate::frames::{self, Named, V6};
use crate::packets::V4;

/// As a guest makes it of its MAC (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let group = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let (one, two) = (group(a ^ 2, b), group(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, one, two, group(0xfe, d), group(e, f))
}

/// Good frames and bad ones.
pub(crate) fn frames(mac: [u8; 6]) -> (Vec<Named>, Vec<Named>) {
    let local = link_local(mac).to_string();
    (frames::good(mac, &local), frames::bad(mac, &local))
}

/// What must never be heard, by a reading of its own. `None` is a frame of the guest's that may pass.
pub(crate) fn offence(frame: &[u8], mac: [u8; 6]) -> Option<String> {
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
                [17] if first && ports.is_empty() => Some("a datagram without ports".into()),
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
