//! What the platform has set up in a namespace: interfaces with their addresses and routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use crate::error::NetError;
use crate::links::Link;
use crate::netlink::Netlink;

/// An interface that leads out of the namespace, and what the guest takes over from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// Without the link-local ones of IPv6: a guest makes its own, of the same MAC.
    pub addresses: Vec<IpNet>,
    pub routes: Vec<Route>,
}

/// A route of the main table, without what the kernel adds by itself for an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    /// The address that packets have that go this way.
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
    pub mtu: Option<u32>,
    /// The gateway is on the link though no address says so.
    pub onlink: bool,
}

impl Route {
    /// Everything goes by this gateway.
    pub fn default_by(gateway: IpAddr) -> Route {
        Route {
            destination: match gateway {
                IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
                IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
            },
            gateway: Some(gateway),
            source: None,
            metric: None,
            mtu: None,
            onlink: false,
        }
    }
}

/// Whether a link is one that a platform puts in a namespace: one end of a veth pair, up, and free.
pub(crate) fn is_uplink(link: &Link) -> bool {
    link.kind == Some(InfoKind::Veth) && link.up && link.controller.is_none() && link.mac.is_some()
}

/// The uplinks among `links`, in the order of their making, with what they have.
pub(crate) fn uplinks(netlink: &mut Netlink, links: &[Link]) -> Result<Vec<Uplink>, NetError> {
    let mut uplinks: Vec<Uplink> = links
        .iter()
        .filter(|link| is_uplink(link))
        .filter_map(|link| {
            Some(Uplink {
                index: link.index,
                name: link.name.clone(),
                mac: link.mac?,
                mtu: link.mtu,
                addresses: Vec::new(),
                routes: Vec::new(),
            })
        })
        .collect();
    uplinks.sort_by_key(|uplink| uplink.index);
    if uplinks.is_empty() {
        return Ok(uplinks);
    }
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in netlink.dump(question, "listing addresses")? {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(uplink) = of(&mut uplinks, message.header.index)
        {
            let Some((address, peer)) = address(&message) else {
                continue;
            };
            uplink.addresses.push(address);
            uplink.routes.extend(peer);
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let question = RouteNetlinkMessage::GetRoute(question);
        let answers = match netlink.dump(question, "listing routes") {
            // A kernel without IPv6.
            Err(_) if family == AddressFamily::Inet6 => continue,
            answers => answers?,
        };
        for answer in answers {
            if let RouteNetlinkMessage::NewRoute(message) = answer
                // A kernel without IPv6 takes the question for one about every family.
                && message.header.address_family == family
                && let Some((index, route)) = route(&message)
                && let Some(uplink) = of(&mut uplinks, index)
            {
                uplink.routes.push(route);
            }
        }
    }
    for uplink in &mut uplinks {
        // A gateway must be reachable before a route names it.
        uplink.routes.sort_by_key(|route| route.gateway.is_some());
    }
    Ok(uplinks)
}

fn of(uplinks: &mut [Uplink], index: u32) -> Option<&mut Uplink> {
    uplinks.iter_mut().find(|uplink| uplink.index == index)
}

/// An address, and what it says is on the link: nothing but its own network, or, with another end's, that one's alone.
fn address(message: &AddressMessage) -> Option<(IpNet, Option<Route>)> {
    let header = &message.header;
    // On a point-to-point link ADDRESS is the other end's; LOCAL is always ours, and IPv6 has it only there.
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let (local, other) = (find(true), find(false));
    let address = local.or(other)?;
    if let IpAddr::V6(v6) = address {
        // For IPv6 `Secondary` is a temporary address (RFC 8981), which the kernel makes and drops by itself.
        let unusable = AddressHeaderFlags::Secondary | AddressHeaderFlags::Dadfailed;
        if v6.is_unicast_link_local() || header.flags.intersects(unusable) {
            return None;
        }
    }
    match other.filter(|other| *other != address) {
        None => Some((IpNet::new(address, header.prefix_len).ok()?, None)),
        Some(other) => {
            let peer = Route {
                destination: IpNet::new(other, header.prefix_len).ok()?.trunc(),
                gateway: None,
                source: address.is_ipv4().then_some(address),
                ..Route::default_by(address)
            };
            Some((IpNet::from(address), Some(peer)))
        }
    }
}

/// A route with the index of its interface. Those with several next hops have no single interface and are left out.
fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut index, mut destination) = (None, None);
    let mut route = Route {
        destination: match header.address_family {
            AddressFamily::Inet => IpNet::V4(ipnet::Ipv4Net::default()),
            _ => IpNet::V6(ipnet::Ipv6Net::default()),
        },
        gateway: None,
        source: None,
        metric: None,
        mtu: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            // One of the other family.
            RouteAttribute::Via(RouteVia::Inet6(address)) => {
                route.gateway = Some((*address).into())
            }
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let wanted = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel
        && header.scope != RouteScope::Host;
    if !wanted {
        return None;
    }
    if let Some(address) = destination {
        route.destination = IpNet::new(address, header.destination_prefix_length).ok()?;
    }
    Some((index?, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
