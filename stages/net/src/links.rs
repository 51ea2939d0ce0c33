//! Links as netlink messages: found, made, changed, deleted.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::NetError;
use crate::netlink::{Netlink, Request};

/// What is read of a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// The bridge or bond that it belongs to.
    pub(crate) controller: Option<u32>,
}

pub(crate) fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

const LISTING: &str = "listing interfaces";

/// Every link; one that cannot be read is an error.
pub(crate) fn all(netlink: &mut Netlink) -> Result<Vec<Link>, NetError> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(listed(netlink.dump(question, LISTING)?))
}

/// Every link that can be read: enough to find our own again.
pub(crate) fn readable(netlink: &mut Netlink) -> Result<Vec<Link>, NetError> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(listed(netlink.dump_readable(question, LISTING)?))
}

fn listed(answers: Vec<RouteNetlinkMessage>) -> Vec<Link> {
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(read(message)),
        _ => None,
    });
    links.collect()
}

pub(crate) fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetError> {
    let mut question = LinkMessage::default();
    question.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let answer = netlink.get(RouteNetlinkMessage::GetLink(question), name)?;
    Ok(match answer {
        Some(RouteNetlinkMessage::NewLink(message)) => Some(read(message)),
        _ => None,
    })
}

/// A change of a link, put together.
pub(crate) struct Change {
    message: LinkMessage,
    what: String,
}

impl Change {
    /// Of the link with this index; 0 is one that is to be made.
    pub(crate) fn of(index: u32, what: impl Into<String>) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self {
            message,
            what: what.into(),
        }
    }

    pub(crate) fn with(mut self, attribute: LinkAttribute) -> Self {
        self.message.attributes.push(attribute);
        self
    }

    pub(crate) fn name(self, name: &str) -> Self {
        self.with(LinkAttribute::IfName(name.to_owned()))
    }

    pub(crate) fn alias(self, alias: &str) -> Self {
        self.with(LinkAttribute::IfAlias(alias.to_owned()))
    }

    pub(crate) fn mtu(self, mtu: u32) -> Self {
        self.with(LinkAttribute::Mtu(mtu))
    }

    pub(crate) fn no_arp(mut self) -> Self {
        self.message.header.flags |= LinkFlags::Noarp;
        self.message.header.change_mask |= LinkFlags::Noarp;
        self
    }

    pub(crate) fn kind(self, kind: InfoKind) -> Self {
        self.with(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]))
    }

    pub(crate) fn up(mut self) -> Self {
        self.message.header.flags |= LinkFlags::Up;
        self.message.header.change_mask |= LinkFlags::Up;
        self
    }

    pub(crate) fn request(self) -> Request {
        Request::change(RouteNetlinkMessage::SetLink(self.message), self.what)
    }

    /// Makes the link that was described.
    pub(crate) fn create(self) -> Request {
        Request::create(RouteNetlinkMessage::NewLink(self.message), self.what)
    }
}

/// The kernel gives the link no link-local address, so the namespace's stack never speaks on it. Where there is no IPv6, or none for a link
/// with an MTU below 1,280, it could not anyway.
pub(crate) fn without_ipv6(netlink: &mut Netlink, index: u32, of: &str) -> Result<(), NetError> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let family = vec![AfSpecUnspec::Inet6(vec![mode])];
    let change = Change::of(index, format!("{of}: no link-local address"));
    let change = change.with(LinkAttribute::AfSpecUnspec(family));
    match netlink.one(change.request()) {
        Err(NetError::Kernel { source, .. })
            if source.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            Ok(())
        }
        answer => answer,
    }
}

pub(crate) fn delete(link: &Link) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    Request::change(
        RouteNetlinkMessage::DelLink(message),
        format!("{}: deleting it", link.name),
    )
}

pub(crate) fn add_address(index: u32, address: IpNet, of: &str) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    if let IpNet::V4(net) = address
        && net.prefix_len() < 31
    {
        message
            .attributes
            .push(AddressAttribute::Broadcast(net.broadcast()));
    }
    Request::create(
        RouteNetlinkMessage::NewAddress(message),
        format!("{of}: adding {address}"),
    )
}

pub(crate) fn add_default_route(index: u32, gateway: IpAddr, of: &str) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::from(gateway)),
        RouteAttribute::Oif(index),
    ];
    Request::create(
        RouteNetlinkMessage::NewRoute(message),
        format!("{of}: a default route by {gateway}"),
    )
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
