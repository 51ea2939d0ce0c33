//! Mode `own`: a network made by nobody else, for use without a platform.
//!
//! A namespace without a name, a veth pair from it to a bridge of the host, an address from a pool, and NAT by nftables where it is asked for.
//! From there on the namespace is like any that a platform has set up.
//!
//! The kernel keeps the books. The host's end of the pair is called after the address, so a name can be had only once, and an address
//! too; and the pair ends with the namespace, which ends with the last process of the launch. Nobody has to be alive for an address to
//! come free. The bridge is all that launches share: whoever makes or takes away a network holds the books ([`Books`]), or one that ends
//! could take the bridge from under one that has just found it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::attach::{gone, member_of};
use crate::error::NetError;
use crate::links::{self, Change, Link};
use crate::mark::Mark;
use crate::namespace::{Identity, Namespace};
use crate::netlink::{Netlink, Request};
use crate::nft;

/// What is going to be made, and all that an undo needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNetwork {
    host: Identity,
    mark: Mark,
    pool: Ipv4Net,
    nat: bool,
}

/// The interface that the guest's name comes from.
const GUEST_LINK: &str = "eth0";

/// What an error of it is about.
const NFT: &str = "nft (for network.nat)";

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// How long others may hold the books. Each does for some ten milliseconds, most of them for nft.
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(1);

/// The right to change what launches of this host share: a lock on the host's namespace itself, which is there for every state directory,
/// and goes with the process that has it.
struct Books {
    _held: Arc<OwnedFd>,
}

impl Books {
    /// Any user of the host can take this lock, and one who keeps it must keep no launch from its network: after [`PATIENCE`] it goes on without.
    fn take(host: &Namespace) -> Result<Self, NetError> {
        let held = host.fd();
        let end = Instant::now() + PATIENCE;
        loop {
            match flock(&held, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => std::thread::sleep(STEP),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => {
                    return Err(NetError::kernel("locking the host's namespace")(
                        error.into(),
                    ));
                }
            }
        }
        Ok(Books { _held: held })
    }
}

/// Looks at the host and decides.
pub fn plan_own(mark: &Mark, pool: Ipv4Net, nat: bool) -> Result<OwnNetwork, NetError> {
    // The network's own, the bridge's, the broadcast's, and one for a guest.
    if pool.prefix_len() > 30 || pool.addr() != pool.network() {
        return Err(NetError::Spec(format!(
            "network.pool: {pool} is not a network with room for a bridge and a guest"
        )));
    }
    let own = OwnNetwork {
        host: Namespace::current()?.identity(),
        mark: mark.clone(),
        pool,
        nat,
    };
    let mut netlink = Netlink::open()?;
    let bridge = links::by_name(&mut netlink, &own.bridge())?;
    if let Some(bridge) = &bridge
        && bridge.alias.as_deref() != Some(&own.bridge_alias())
    {
        return Err(taken(&own.bridge()));
    }
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in netlink.dump(question, "listing addresses")? {
        let RouteNetlinkMessage::NewAddress(message) = answer else {
            continue;
        };
        let ours = bridge
            .as_ref()
            .is_some_and(|bridge| bridge.index == message.header.index);
        let clash = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(IpAddr::V4(ip)) if pool.contains(ip) => Some(*ip),
            _ => None,
        });
        if let Some(address) = clash.filter(|_| !ours) {
            return Err(NetError::Spec(format!(
                "network.pool: the host has {address} in {pool} already; name another pool"
            )));
        }
    }
    if nat {
        let on = std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() != "0");
        if !on {
            return Err(NetError::Spec(
                "network.nat: this host forwards nothing (net.ipv4.ip_forward is 0), and to change that is not fcpipe's to decide"
                    .to_owned(),
            ));
        }
    }
    Ok(own)
}

/// Makes it, and gives the namespace.
pub fn make_own(own: &OwnNetwork) -> Result<Namespace, NetError> {
    let host = own.open_host()?;
    let _books = Books::take(&host)?;
    let mut outside = Netlink::open()?;
    let namespace = Namespace::new(&PathBuf::from("/proc/self/fd"))?.by_descriptor();
    let mut inside = namespace.inside(Netlink::open)?;
    let bridge = own.bridge_link(&mut outside)?;

    let (address, name) = own.take_address(&mut inside, &host)?;
    let port = links::by_name(&mut outside, &name)?.map_or(0, |link| link.index);
    links::without_ipv6(&mut outside, port, &name)?;
    outside.all([
        Change::of(port, format!("{name}: marking it"))
            .alias(&own.mark.alias())
            .request(),
        Change::of(port, format!("{name}: making it a port of the bridge"))
            .with(member_of(bridge.index))
            .request(),
        Change::of(port, format!("{name}: up")).up().request(),
    ])?;
    let link = links::by_name(&mut inside, GUEST_LINK)?.map_or(0, |link| link.index);
    inside.all([
        links::add_address(link, IpNet::V4(address), GUEST_LINK),
        Change::of(link, format!("{GUEST_LINK}: up")).up().request(),
        links::add_default_route(link, IpAddr::V4(own.bridge_address()), GUEST_LINK),
    ])?;
    if own.nat {
        nft::apply(&own.nat_rules()).map_err(NetError::kernel(NFT))?;
    }
    Ok(namespace)
}

/// Takes away the host's end of the pair, and the bridge with its NAT if nobody uses it any more.
pub fn undo_own(own: &OwnNetwork) -> Result<(), NetError> {
    let _books = Books::take(&own.open_host()?)?;
    let mut netlink = Netlink::open()?;
    let alias = own.mark.alias();
    let (mine, rest): (Vec<Link>, Vec<Link>) = links::readable(&mut netlink)?
        .into_iter()
        .partition(|link| link.alias.as_deref() == Some(&alias));
    for link in mine {
        netlink.one(links::delete(&link)).or_else(gone)?;
    }
    let Some(bridge) = rest.iter().find(|link| link.name == own.bridge()) else {
        return Ok(());
    };
    let used = rest
        .iter()
        .any(|link| link.controller == Some(bridge.index));
    if used || bridge.alias.as_deref() != Some(&own.bridge_alias()) {
        return Ok(());
    }
    let nft = || -> io::Result<()> {
        if nft::has_table(&own.table())? {
            nft::apply(&format!("delete table ip {}\n", own.table()))?;
        }
        Ok(())
    };
    nft().map_err(NetError::kernel(NFT))?;
    netlink.one(links::delete(bridge)).or_else(gone)
}

fn taken(name: &str) -> NetError {
    NetError::Taken {
        path: "/proc/self/ns/net".into(),
        name: name.to_owned(),
        by: "somebody else".to_owned(),
    }
}

impl OwnNetwork {
    fn bridge(&self) -> String {
        format!("fcpipe-{:08x}", self.pool.network().to_bits())
    }

    fn bridge_alias(&self) -> String {
        format!("fcpipe-own:{}", self.pool)
    }

    fn bridge_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.pool.network().to_bits() + 1)
    }

    fn table(&self) -> String {
        format!("fcpipe_{:08x}", self.pool.network().to_bits())
    }

    /// A descriptor of its own, so that it is the only one with the lock on it.
    fn open_host(&self) -> Result<Namespace, NetError> {
        let current = Namespace::current()?;
        if current.identity() == self.host {
            return Ok(current);
        }
        Err(NetError::Spec(
            "this network was made from another network namespace; run fcpipe there".to_owned(),
        ))
    }

    /// The bridge of the pool, which launches share: the first makes it.
    fn bridge_link(&self, netlink: &mut Netlink) -> Result<Link, NetError> {
        let name = self.bridge();
        if let Some(link) = links::by_name(netlink, &name)? {
            return Ok(link);
        }
        let unmarked = format!("fo{}", &self.mark.digits("own bridge", 0)[..12]);
        let made = Change::of(0, format!("{name}: making the bridge"))
            .kind(InfoKind::Bridge)
            .name(&unmarked);
        netlink.one(made.create())?;
        let link = links::by_name(netlink, &unmarked)?.unwrap_or_default();
        let named = Change::of(link.index, format!("{name}: naming the bridge"))
            .name(&name)
            .alias(&self.bridge_alias());
        links::without_ipv6(netlink, link.index, &name)?;
        match netlink.one(named.request()) {
            Ok(()) => {}
            // Another launch was quicker.
            Err(NetError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                netlink.one(links::delete(&link))?;
                return links::by_name(netlink, &name)?.ok_or_else(|| taken(&name));
            }
            Err(error) => return Err(error),
        }
        let net = Ipv4Net::new(self.bridge_address(), self.pool.prefix_len());
        let net = net.map_err(|e| NetError::Spec(e.to_string()))?;
        netlink.all([
            links::add_address(link.index, IpNet::V4(net), &name),
            Change::of(link.index, format!("{name}: up")).up().request(),
        ])?;
        Ok(link)
    }

    /// A veth pair whose host's end has a name that nobody has, and the address that goes with it.
    fn take_address(
        &self,
        inside: &mut Netlink,
        host: &Namespace,
    ) -> Result<(Ipv4Net, String), NetError> {
        let last = self.pool.broadcast().to_bits();
        for bits in self.pool.network().to_bits() + 2..last {
            let name = format!("fcv{bits:08x}");
            match inside.one(pair(&name, host)) {
                Ok(()) => {
                    let address = Ipv4Addr::from_bits(bits);
                    let net = Ipv4Net::new(address, self.pool.prefix_len());
                    return net
                        .map(|net| (net, name))
                        .map_err(|e| NetError::Spec(e.to_string()));
                }
                Err(NetError::Kernel { source, .. })
                    if source.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetError::Spec(format!(
            "network.pool: every address of {} is in use",
            self.pool
        )))
    }

    fn nat_rules(&self) -> String {
        let (table, pool, bridge) = (self.table(), self.pool, self.bridge());
        // Made anew as one transaction, so that a second launch changes nothing.
        format!(
            "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n chain post {{\n type nat hook postrouting priority 100;\n ip saddr {pool} oifname != \"{bridge}\" masquerade\n }}\n}}\n"
        )
    }
}

fn pair(host_name: &str, host: &Namespace) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(host_name.to_owned()),
        LinkAttribute::NetNsFd(host.fd().as_raw_fd()),
    ];
    Change::of(0, format!("{host_name}: making a veth pair"))
        .name(GUEST_LINK)
        .with(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]))
        .create()
}
