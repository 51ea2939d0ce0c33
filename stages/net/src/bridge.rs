//! Mode `bridge`: veth end and TAP are ports of a bridge inside the namespace.
//!
//! The guest is a neighbour of the namespace's address there, with a MAC and addresses of its own. The veth keeps its addresses, but what arrives at
//! it goes to the bridge, and the bridge is without ARP: the namespace's own stack is as deaf as in mode `redirect`.

use netlink_packet_route::link::InfoKind;

use crate::attach::{Wire, member_of};
use crate::error::NetError;
use crate::links::{self, Change};
use crate::mark::Mark;
use crate::netlink::Netlink;

/// The guest's MAC on a bridge: locally administered, and the same whenever the launch has the same id.
pub(crate) fn guest_mac(mark: &Mark) -> [u8; 6] {
    let hash = blake3::hash(mark.digits("mac", 0).as_bytes());
    let mut mac = [0; 6];
    mac.copy_from_slice(&hash.as_bytes()[..6]);
    // IEEE 802: the bit for "administered locally" set, that for "group" not.
    mac[0] = (mac[0] | 2) & !1;
    mac
}

pub(crate) fn unmarked_name(mark: &Mark) -> String {
    format!("fb{}", &mark.digits("bridge", 0)[..12])
}

/// An interface is a port of one bridge: of two launches that want it, the second finds the name taken.
fn name(wire: &Wire) -> String {
    format!("fcbr_{}", wire.uplink.index)
}

pub(crate) fn make(
    netlink: &mut Netlink,
    mark: &Mark,
    wire: &Wire,
    tap: u32,
) -> Result<(), NetError> {
    let unmarked = unmarked_name(mark);
    let bridge = Change::of(0, "making the bridge")
        .kind(InfoKind::Bridge)
        .name(&unmarked)
        .mtu(wire.uplink.mtu);
    netlink.one(bridge.create())?;
    let index = links::by_name(netlink, &unmarked)?.map_or(0, |link| link.index);
    let named = Change::of(index, "naming the bridge")
        .name(&name(wire))
        .alias(&mark.alias());
    let port = |link: u32, of: &str| {
        Change::of(link, format!("{of}: making it a port of the bridge"))
            .with(member_of(index))
            .request()
    };
    netlink.one(named.request())?;
    links::without_ipv6(netlink, index, "the bridge")?;
    netlink.all([
        Change::of(index, "the bridge: up").no_arp().up().request(),
        port(tap, &wire.tap),
        port(wire.uplink.index, &wire.uplink.name),
    ])
}
