//! What a guest may send: frames of its own MAC, of its own addresses, and of kinds that can be read to the end.
//!
//! | frame | passes when |
//! |---|---|
//! | any | its source is the guest's MAC, and it has no VLAN tag |
//! | ARP | a request or an answer whose sender is the guest's MAC with one of its addresses; with 0.0.0.0 in a request for one of its own (RFC 5227) |
//! | IPv4 | its source is one of the guest's addresses; not DHCP, and not what routers say: redirects and advertisements of ICMP, questions of IGMP |
//! | IPv6 | its source is one of the guest's addresses or the link-local one of its MAC; not DHCPv6, not a router's message nor a question of MLD; a neighbour advertisement is about an address of the guest |
//! | IPv6 from `::` | duplicate address detection of an address of the guest, or a multicast report |
//! | any other | never |
//!
//! Extension headers of IPv6 are a way to hide what follows (RFC 7113), so only two are let through: the hop-by-hop header of a
//! multicast report, exactly as kernels write it, and the fragment header, where the first fragment is judged by its
//! content and neighbour discovery is never fragmented (RFC 6980).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ACCEPT, Assembler, Instruction, Label, REFUSE};

/// Who the guest is on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
}

/// More addresses than a program has room for: the kernel takes 4,096 instructions.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the interface has {0} addresses; {MAX_ADDRESSES} can be filtered (`network.antispoof: off` does without)"
)]
pub struct Refused(pub usize);

const MAX_ADDRESSES: usize = 64;

const ETHERTYPE: u32 = 12;
/// Where the network header begins.
const L3: u32 = 14;
const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const IPV6: u32 = 0x86dd;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMP: u32 = 1;
const ICMP6: u32 = 58;
const HOP_BY_HOP: u32 = 0;
const FRAGMENT: u32 = 44;
/// Protocols over IPv6 that carry no message of the link's: SCTP, UDP-Lite, DCCP, ESP, GRE, IPv4 and IPv6 in IPv6.
const OTHERS: [u32; 7] = [132, 136, 33, 50, 47, 4, 41];
/// Behind the fixed header of IPv6.
const L4_OF_6: u32 = L3 + 40;
/// Bytes of an extension header of the smallest size, and of a fragment header.
const EXTENSION: u32 = 8;
const DHCP: [u32; 2] = [67, 68];
const DHCP6: [u32; 2] = [546, 547];
const IGMP: u32 = 2;
/// Redirects and router advertisements (RFC 1256) of ICMP.
const ROUTERS_ICMP: [u32; 2] = [5, 9];
/// Questions of IGMP, and routers that say that they are there (RFC 4286): a bridge sends all groups to whoever asks.
const ROUTERS_IGMP: [u32; 2] = [0x11, 0x30];
/// The question of MLD.
const MULTICAST_QUERY: u32 = 130;
const ROUTER_SOLICITATION: u32 = 133;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
/// Reports and ends of MLD, and reports of MLDv2.
const MULTICAST_REPORTS: [u32; 3] = [131, 132, 143];

impl Guest {
    fn v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    /// With the link-local one, which a guest makes of its MAC (RFC 4291, appendix A).
    fn v6(&self) -> impl Iterator<Item = Ipv6Addr> {
        let given = self.addresses.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        given.chain([link_local(self.mac)])
    }
}

pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([
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
    ])
}

/// Accepts what `guest` may send to the bridge.
pub fn from_guest(guest: &Guest) -> Result<Vec<Instruction>, Refused> {
    if guest.addresses.len() > MAX_ADDRESSES {
        return Err(Refused(guest.addresses.len()));
    }
    let mut p = Program::new();
    p.no_vlan_tag();
    p.own_source(guest.mac);
    p.asm.load_half(ETHERTYPE);
    let (arp, v4, v6) = (p.asm.label(), p.asm.label(), p.asm.label());
    p.asm.if_equal(ARP, arp);
    p.asm.if_equal(IPV4, v4);
    p.asm.if_equal(IPV6, v6);
    p.asm.go(p.refuse);

    p.asm.here(arp);
    p.arp(guest);
    p.asm.here(v4);
    p.ipv4(guest);
    p.asm.here(v6);
    p.ipv6(guest);
    Ok(p.finish())
}

/// Accepts everything but DHCP, which stays on its side of a TAP.
pub fn is_no_dhcp() -> Vec<Instruction> {
    let mut p = Program::new();
    p.asm.load_half(ETHERTYPE);
    let (v4, v6) = (p.asm.label(), p.asm.label());
    p.asm.if_equal(IPV4, v4);
    p.asm.if_equal(IPV6, v6);
    p.asm.go(p.accept);
    p.asm.here(v4);
    p.asm.load_byte(L3 + 9);
    p.asm.unless_equal(UDP, p.accept);
    p.no_dhcp();
    p.asm.go(p.accept);
    p.asm.here(v6);
    p.asm.load_byte(L3 + 6);
    p.asm.unless_equal(UDP, p.accept);
    p.refuse_ports(L4_OF_6, &DHCP6);
    p.asm.go(p.accept);
    p.finish()
}

/// Accepts what a DHCP client with this MAC asks a server over IPv4: for the responder's socket.
pub fn to_responder(mac: [u8; 6]) -> Vec<Instruction> {
    let mut p = Program::new();
    p.own_source(mac);
    p.asm.load_half(ETHERTYPE);
    p.asm.unless_equal(IPV4, p.refuse);
    p.asm.load_byte(L3 + 9);
    p.asm.unless_equal(UDP, p.refuse);
    p.asm.load_half(L3 + 6);
    p.asm.if_any_bit(0x3fff, p.refuse);
    p.asm.load_header_length(L3);
    p.asm.load_half_after_x(L3 + 2);
    p.asm.if_equal(DHCP[0], p.accept);
    p.asm.go(p.refuse);
    p.finish()
}

/// A program with its two ends.
struct Program {
    asm: Assembler,
    accept: Label,
    refuse: Label,
}

impl Program {
    fn new() -> Self {
        let mut asm = Assembler::default();
        let accept = asm.label();
        let refuse = asm.label();
        Program {
            asm,
            accept,
            refuse,
        }
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.asm.here(self.refuse);
        self.asm.end(REFUSE);
        self.asm.here(self.accept);
        self.asm.end(ACCEPT);
        self.asm.finish()
    }

    fn no_vlan_tag(&mut self) {
        self.asm.load_vlan_tag_present();
        self.asm.unless_equal(0, self.refuse);
    }

    fn own_source(&mut self, mac: [u8; 6]) {
        self.mac_at(6, mac);
    }

    fn mac_at(&mut self, at: u32, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.asm.load_word(at);
        self.asm
            .unless_equal(u32::from_be_bytes([a, b, c, d]), self.refuse);
        self.asm.load_half(at + 4);
        self.asm
            .unless_equal(u32::from(u16::from_be_bytes([e, f])), self.refuse);
    }

    fn arp(&mut self, guest: &Guest) {
        // Ethernet, IPv4, addresses of 6 and 4 bytes.
        self.asm.load_word(L3);
        self.asm.unless_equal(0x0001_0800, self.refuse);
        self.asm.load_half(L3 + 4);
        self.asm.unless_equal(0x0604, self.refuse);
        self.mac_at(L3 + 8, guest.mac);
        // The sender's address; a load of the target's sees to it that all of it is there.
        self.asm.load_word(L3 + 24);
        self.asm.load_word(L3 + 14);
        let (own, probe, operation) = (self.asm.label(), self.asm.label(), L3 + 6);
        for address in guest.v4() {
            self.asm.if_equal(address.to_bits(), own);
        }
        self.asm.unless_equal(0, self.refuse);
        self.asm.load_half(operation);
        self.asm.if_equal(1, probe);
        self.asm.go(self.refuse);
        self.asm.here(own);
        self.asm.load_half(operation);
        self.asm.if_equal(1, self.accept);
        self.asm.if_equal(2, self.accept);
        self.asm.go(self.refuse);
        // A probe for another's address makes whoever is about to take it believe that it is taken.
        self.asm.here(probe);
        self.asm.load_word(L3 + 24);
        for address in guest.v4() {
            self.asm.if_equal(address.to_bits(), self.accept);
        }
        self.asm.go(self.refuse);
    }

    fn ipv4(&mut self, guest: &Guest) {
        self.asm.load_byte(L3);
        self.asm.and(0xf0);
        self.asm.unless_equal(0x40, self.refuse);
        self.asm.load_byte(L3);
        self.asm.and(0x0f);
        self.asm.unless_at_least(5, self.refuse);
        let own = self.asm.label();
        self.asm.load_word(L3 + 16);
        self.asm.load_word(L3 + 12);
        for address in guest.v4() {
            self.asm.if_equal(address.to_bits(), own);
        }
        self.asm.go(self.refuse);

        self.asm.here(own);
        let udp = self.asm.label();
        let (icmp, igmp) = (self.asm.label(), self.asm.label());
        self.asm.load_byte(L3 + 9);
        self.asm.if_equal(UDP, udp);
        self.asm.if_equal(ICMP, icmp);
        self.asm.if_equal(IGMP, igmp);
        self.asm.go(self.accept);
        self.asm.here(udp);
        self.no_dhcp();
        self.asm.go(self.accept);
        for (label, routers) in [(icmp, ROUTERS_ICMP), (igmp, ROUTERS_IGMP)] {
            self.asm.here(label);
            self.later_fragments_pass();
            self.asm.load_header_length(L3);
            self.asm.load_byte_after_x(L3);
            for kind in routers {
                self.asm.if_equal(kind, self.refuse);
            }
            self.asm.go(self.accept);
        }
    }

    /// Of a UDP datagram over IPv4. The first fragment holds all of the ports: a fragment has a multiple of 8 bytes, and one that
    /// begins at 8 cannot change what came before.
    fn no_dhcp(&mut self) {
        self.later_fragments_pass();
        self.asm.load_header_length(L3);
        self.asm.load_half_after_x(L3 + 2);
        for port in DHCP {
            self.asm.if_equal(port, self.refuse);
        }
    }

    fn later_fragments_pass(&mut self) {
        self.asm.load_half(L3 + 6);
        self.asm.if_any_bit(0x1fff, self.accept);
    }

    fn ipv6(&mut self, guest: &Guest) {
        self.asm.load_byte(L3);
        self.asm.and(0xf0);
        self.asm.unless_equal(0x60, self.refuse);
        // The whole header is there.
        self.asm.load_word(L3 + 36);
        let (own, unspecified) = (self.asm.label(), self.asm.label());
        self.address_among(L3 + 8, guest.v6(), own);
        self.address_among(L3 + 8, [Ipv6Addr::UNSPECIFIED], unspecified);
        self.asm.go(self.refuse);

        self.asm.here(own);
        let (udp, icmp) = (self.asm.label(), self.asm.label());
        let (fragment, report) = (self.asm.label(), self.asm.label());
        self.asm.load_byte(L3 + 6);
        self.asm.if_equal(TCP, self.accept);
        self.asm.if_equal(UDP, udp);
        self.asm.if_equal(ICMP6, icmp);
        self.asm.if_equal(FRAGMENT, fragment);
        self.asm.if_equal(HOP_BY_HOP, report);
        for protocol in OTHERS {
            self.asm.if_equal(protocol, self.accept);
        }
        self.asm.go(self.refuse);

        self.asm.here(udp);
        self.refuse_ports(L4_OF_6, &DHCP6);
        self.asm.go(self.accept);

        self.asm.here(icmp);
        self.icmp6(guest);

        self.asm.here(fragment);
        self.fragment();

        self.asm.here(unspecified);
        let detection = self.asm.label();
        self.asm.load_byte(L3 + 6);
        self.asm.if_equal(HOP_BY_HOP, report);
        self.asm.if_equal(ICMP6, detection);
        self.asm.go(self.refuse);
        self.asm.here(detection);
        self.asm.load_byte(L4_OF_6);
        self.asm.unless_equal(NEIGHBOUR_SOLICITATION, self.refuse);
        self.address_among(L4_OF_6 + 8, guest.v6(), self.accept);
        self.asm.go(self.refuse);

        self.asm.here(report);
        self.multicast_report();
    }

    fn icmp6(&mut self, guest: &Guest) {
        let advertisement = self.asm.label();
        self.asm.load_byte(L4_OF_6);
        self.asm.if_equal(NEIGHBOUR_ADVERTISEMENT, advertisement);
        self.asm.if_equal(NEIGHBOUR_SOLICITATION, self.accept);
        self.asm.if_equal(ROUTER_SOLICITATION, self.accept);
        // Reports of groups, errors and echoes. Questions about groups (130), router advertisements (134), redirects (137), renumbering
        // (138) and whatever comes after are routers' business.
        for report in MULTICAST_REPORTS {
            self.asm.if_equal(report, self.accept);
        }
        self.asm.unless_at_least(MULTICAST_QUERY, self.accept);
        self.asm.go(self.refuse);
        self.asm.here(advertisement);
        self.address_among(L4_OF_6 + 8, guest.v6(), self.accept);
        self.asm.go(self.refuse);
    }

    fn fragment(&mut self) {
        let (tcp, udp, icmp) = (self.asm.label(), self.asm.label(), self.asm.label());
        let content = L4_OF_6 + EXTENSION;
        self.asm.load_byte(L4_OF_6);
        self.asm.if_equal(TCP, tcp);
        self.asm.if_equal(UDP, udp);
        self.asm.if_equal(ICMP6, icmp);
        self.asm.go(self.refuse);
        for (label, judged) in [(tcp, None), (udp, Some(UDP)), (icmp, Some(ICMP6))] {
            self.asm.here(label);
            self.asm.load_half(L4_OF_6 + 2);
            self.asm.if_any_bit(0xfff8, self.accept);
            match judged {
                Some(UDP) => self.refuse_ports(content, &DHCP6),
                Some(_) => {
                    // Errors and echoes alone: all else fits into one packet.
                    self.asm.load_byte(content);
                    self.asm.unless_at_least(MULTICAST_QUERY, self.accept);
                    self.asm.go(self.refuse);
                }
                None => {}
            }
            self.asm.go(self.accept);
        }
    }

    /// Hop-by-hop header of 8 bytes with nothing but a router alert (RFC 2711) and padding, and a report behind it.
    fn multicast_report(&mut self) {
        self.asm.load_word(L4_OF_6);
        self.asm.unless_equal(0x3a00_0502, self.refuse);
        self.asm.load_word(L4_OF_6 + 4);
        self.asm.unless_equal(0x0000_0100, self.refuse);
        self.asm.load_byte(L4_OF_6 + EXTENSION);
        for report in MULTICAST_REPORTS {
            self.asm.if_equal(report, self.accept);
        }
        self.asm.go(self.refuse);
    }

    fn refuse_ports(&mut self, at: u32, ports: &[u32]) {
        self.asm.load_half(at + 2);
        for &port in ports {
            self.asm.if_equal(port, self.refuse);
        }
    }

    /// To `found` if the IPv6 address at `at` is one of these.
    fn address_among(
        &mut self,
        at: u32,
        addresses: impl IntoIterator<Item = Ipv6Addr>,
        found: Label,
    ) {
        for address in addresses {
            let next = self.asm.label();
            let octets = address.octets();
            for (number, word) in (0_u32..).zip(octets.as_chunks::<4>().0.iter()) {
                self.asm.load_word(at + number * 4);
                let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
                self.asm.unless_equal(word, next);
            }
            self.asm.go(found);
            self.asm.here(next);
        }
    }
}
