//! A DHCP server for one guest, which answers with what the namespace has anyway (RFC 2131).
//!
//! For guests and processes that ask; a guest of this project has everything from its boot already. It is pure: frames in, frames out.
//! Requests reach it through a packet socket and never the bridge ([`crate::filter`]).

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::Encodable as _;
use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode, SERVER_PORT,
};
use ipnet::{IpNet, Ipv4Net};

use crate::attach::Wire;

/// The largest frame that a client's question comes in: it may not be fragmented.
pub const FRAME_MAX: usize = 2048;

const ETHERNET: usize = 14;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Of a message, with the four bytes behind which options begin.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// A client's question, Ethernet, addresses of six bytes.
const REQUEST: [u8; 3] = [1, 1, 6];
const PAD: u8 = 0;
const END: u8 = 255;
const IPV4: [u8; 2] = [0x08, 0x00];

/// Clients ask again at half of it; nothing ever changes, so seldom is enough.
const LEASE_SECONDS: u32 = 24 * 3600;

/// Who the server is where no router is: a link-local address, which is nobody's here.
const NO_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 254, 254);

/// Answers what the guest of one interface asks.
#[derive(Debug, Clone)]
pub struct Answerer {
    guest_mac: [u8; 6],
    /// The guest's first IPv4 address; without one there is no answer.
    address: Option<Ipv4Net>,
    server: Ipv4Addr,
    router: Option<Ipv4Addr>,
    routes: Vec<(Ipv4Net, Ipv4Addr)>,
    dns: Vec<Ipv4Addr>,
    mtu: u16,
}

impl Answerer {
    pub fn new(wire: &Wire, dns: &[IpAddr]) -> Self {
        let address = wire.addresses.iter().find_map(|address| match address {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        });
        let routes: Vec<(Ipv4Net, Ipv4Addr)> = wire
            .routes
            .iter()
            .filter_map(|route| match (route.destination, route.gateway) {
                (IpNet::V4(net), Some(IpAddr::V4(gateway))) => Some((net, gateway)),
                // On the link: 0.0.0.0 says so (RFC 3442).
                (IpNet::V4(net), None) => Some((net, Ipv4Addr::UNSPECIFIED)),
                _ => None,
            })
            .collect();
        let router = routes
            .iter()
            .find(|(net, gateway)| net.prefix_len() == 0 && !gateway.is_unspecified())
            .map(|(_, gateway)| *gateway);
        Self {
            guest_mac: wire.mac,
            address,
            server: router.unwrap_or(NO_ROUTER),
            router,
            routes,
            dns: dns
                .iter()
                .filter_map(|server| match server {
                    IpAddr::V4(server) => Some(*server),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            mtu: u16::try_from(wire.uplink.mtu).unwrap_or(u16::MAX),
        }
    }

    /// The frame to send back, if this one is a question of the guest that has an answer.
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let question = question(frame, self.guest_mac)?;
        let address = self.address?;
        let asked = question.asked.unwrap_or(question.client);
        let answer = match question.kind {
            MessageType::Discover => MessageType::Offer,
            // Another server was chosen.
            MessageType::Request if question.server.is_some_and(|s| s != self.server) => {
                return None;
            }
            MessageType::Request if asked == address.addr() => MessageType::Ack,
            MessageType::Request => MessageType::Nak,
            MessageType::Inform => MessageType::Ack,
            // Releases and refusals change nothing: the address stays the guest's.
            _ => return None,
        };
        let message = self.message(&question, answer, address);
        // RFC 2131, 4.1: by broadcast if the client says that it can't hear otherwise, and to refuse.
        let to = match (answer, question.client) {
            (MessageType::Nak, _) => Ipv4Addr::BROADCAST,
            (_, client) if !client.is_unspecified() => client,
            _ if question.flags.broadcast() => Ipv4Addr::BROADCAST,
            _ => address.addr(),
        };
        let fitting = self.fitting(message)?;
        frame_to(self.guest_mac, self.server, to, &fitting)
    }

    /// A frame has to fit the link. Without its routes a client still has its router.
    fn fitting(&self, mut message: Message) -> Option<Message> {
        let room = usize::from(self.mtu).saturating_sub(IPV4_HEADER + UDP_HEADER);
        if message.to_vec().ok()?.len() > room {
            let options = message.opts_mut();
            options.remove(OptionCode::ClasslessStaticRoute);
        }
        Some(message)
    }

    fn message(&self, question: &Question, answer: MessageType, address: Ipv4Net) -> Message {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_xid(question.xid)
            .set_flags(question.flags)
            .set_chaddr(&self.guest_mac);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(answer));
        options.insert(DhcpOption::ServerIdentifier(self.server));
        if answer == MessageType::Nak {
            return message;
        }
        options.insert(DhcpOption::SubnetMask(address.netmask()));
        options.insert(DhcpOption::InterfaceMtu(self.mtu));
        if !self.dns.is_empty() {
            options.insert(DhcpOption::DomainNameServer(self.dns.clone()));
        }
        if let Some(router) = self.router {
            options.insert(DhcpOption::Router(vec![router]));
        }
        // A client that takes this option forgets the router (RFC 3442), so all is in it.
        if self.routes.iter().any(|(net, _)| net.prefix_len() > 0) {
            options.insert(DhcpOption::ClasslessStaticRoute(self.routes.clone()));
        }
        if question.kind != MessageType::Inform {
            options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
            message.set_yiaddr(address.addr());
        }
        if question.kind == MessageType::Request {
            message.set_ciaddr(question.client);
        }
        message
    }
}

/// What is read of a client's message.
struct Question {
    xid: u32,
    flags: Flags,
    /// The address that the client has already, or none.
    client: Ipv4Addr,
    kind: MessageType,
    server: Option<Ipv4Addr>,
    asked: Option<Ipv4Addr>,
}

/// The message in a frame, if it is whole, for a server, and of this client itself. The socket's filter has looked at the ports already; nothing rests on that.
fn question(frame: &[u8], client: [u8; 6]) -> Option<Question> {
    let packet = frame.get(ETHERNET..)?;
    if frame[12..14] != IPV4 || packet.first()? >> 4 != 4 {
        return None;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let datagram = packet.get(header..)?;
    let length = usize::from(u16::from_be_bytes([*datagram.get(4)?, *datagram.get(5)?]));
    let to = u16::from_be_bytes([datagram[2], datagram[3]]);
    let udp = *packet.get(9)? == 17 && header >= IPV4_HEADER && to == SERVER_PORT;
    read(datagram.get(UDP_HEADER..length).filter(|_| udp)?, client)
}

/// By hand (RFC 2131, 2; RFC 2132): the library's reader asserts the length of some options, which a guest chooses (dhcproto 0.15, debug builds).
fn read(message: &[u8], client: [u8; 6]) -> Option<Question> {
    let (header, mut options) = message.split_at_checked(FIXED)?;
    let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?));
    let relayed = header[24..28] != [0; 4];
    if header[..3] != REQUEST || header[28..34] != client || header[236..] != COOKIE || relayed {
        return None;
    }
    let (mut kind, mut server, mut asked) = (None, None, None);
    while let [code, rest @ ..] = options
        && *code != END
    {
        options = rest;
        if *code == PAD {
            continue;
        }
        let (length, rest) = options.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        options = rest;
        match (OptionCode::from(*code), value) {
            // Releases and refusals change nothing: the address stays the guest's.
            (OptionCode::MessageType, [1]) => kind = Some(MessageType::Discover),
            (OptionCode::MessageType, [3]) => kind = Some(MessageType::Request),
            (OptionCode::MessageType, [8]) => kind = Some(MessageType::Inform),
            (OptionCode::ServerIdentifier, _) => server = Some(address(value)?),
            (OptionCode::RequestedIpAddress, _) => asked = Some(address(value)?),
            _ => {}
        }
    }
    Some(Question {
        xid: u32::from_be_bytes(header[4..8].try_into().ok()?),
        flags: Flags::new(u16::from_be_bytes([header[10], header[11]])),
        client: address(&header[12..16])?,
        kind: kind?,
        server,
        asked,
    })
}

/// A whole frame to the guest. It comes from the guest's own MAC with the "local" bit turned over: nobody else's.
fn frame_to(mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, message: &Message) -> Option<Vec<u8>> {
    let payload = message.to_vec().ok()?;
    let udp_length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let length = u16::try_from(IPV4_HEADER).ok()?.checked_add(udp_length)?;
    let mut source = mac;
    source[0] ^= 2;

    let mut frame = Vec::with_capacity(ETHERNET + usize::from(length));
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&IPV4);
    // Version and length, no service class; length; no identification, do not fragment; TTL 64, UDP; checksum.
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&to.octets());
    let header = checksum(&frame[ETHERNET..], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.to_be_bytes());

    let datagram = frame.len();
    frame.extend_from_slice(&SERVER_PORT.to_be_bytes());
    frame.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    frame.extend_from_slice(&udp_length.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&payload);
    // RFC 768: over addresses, protocol and length too.
    let mut pseudo = Vec::from(from.octets());
    pseudo.extend_from_slice(&to.octets());
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&udp_length.to_be_bytes());
    let udp = match checksum(&frame[datagram..], sum(&pseudo)) {
        // 0 says that there is none.
        0 => 0xffff,
        sum => sum,
    };
    frame[datagram + 6..datagram + 8].copy_from_slice(&udp.to_be_bytes());
    Some(frame)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

/// The Internet checksum (RFC 1071). A frame is too short for the sum to overflow.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = sum(bytes) + start;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
