//! One request to the kernel's routing socket, and its answer.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use fcpipe_proto::{GuestAddress, GuestRoute};
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily as Family, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

/// Of `struct nlmsghdr`.
const HEADER: usize = 16;

// linux/netlink.h and linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

pub(super) struct Kernel(OwnedFd);

impl Kernel {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is 0, NETLINK_ROUTE.
        let socket = socket_with(Family::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Kernel(socket))
    }

    /// The interface must be down.
    pub(super) fn rename(&mut self, index: u32, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.ask(RTM_SETLINK, 0, &message)
    }

    pub(super) fn up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
        self.ask(RTM_SETLINK, 0, &message)
    }

    pub(super) fn add_address(&mut self, index: u32, address: GuestAddress) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix;
        message.header.family = family(&address);
        // Whether it is free is the platform's business, and it has given it away already.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Local(address.address),
            AddressAttribute::Address(address.address),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        if let IpAddr::V4(v4) = address.address
            && address.prefix < 31
        {
            let host = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
            let broadcast = std::net::Ipv4Addr::from_bits(v4.to_bits() | host);
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast));
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RTM_NEWADDR, flags, &message)
    }

    pub(super) fn add_route(&mut self, index: u32, route: &GuestRoute) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(&route.destination);
        message.header.destination_prefix_length = route.destination.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.gateway {
            Some(_) => RouteScope::Universe,
            None => RouteScope::Link,
        };
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Oif(index));
        if route.destination.prefix > 0 {
            let to = RouteAddress::from(route.destination.address);
            attributes.push(RouteAttribute::Destination(to));
        }
        attributes.extend(route.gateway.map(|ip| match ip {
            // IPv4 by a gateway that has only the other.
            IpAddr::V6(v6) if route.destination.address.is_ipv4() => {
                RouteAttribute::Via(RouteVia::Inet6(v6))
            }
            ip => RouteAttribute::Gateway(ip.into()),
        }));
        attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        attributes.extend(route.metric.map(RouteAttribute::Priority));
        let metrics = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        attributes.extend(route.mtu.map(metrics));
        // Behind those to the same destination: a namespace can have several, with one metric too (of two routers, by two interfaces).
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.ask(RTM_NEWROUTE, flags, &message)
    }

    /// The header is written and the answer read by hand: to do so through the library would bring every message that there is
    /// into a program that is handed over at each boot (400 KiB).
    fn ask(&mut self, kind: u16, flags: u16, message: &impl Emitable) -> io::Result<()> {
        // struct nlmsghdr of netlink(7): length, type, flags, sequence number, port; native byte order.
        let length = HEADER + message.buffer_len();
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.emit(&mut bytes[HEADER..]);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &bytes, SendFlags::empty(), &kernel)?;

        let mut answer = [0; 4096];
        let (read, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        // struct nlmsgerr: after the header a negative errno, or 0.
        if read < HEADER + 4 || answer[4..6] != NLMSG_ERROR.to_ne_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

fn family(address: &GuestAddress) -> AddressFamily {
    if address.address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
