//! A machine's place in a namespace: planned, made, and taken away again.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;
use serde::{Deserialize, Serialize};

use crate::bridge;
use crate::error::NetError;
use crate::filter::{Guest, Instruction, from_guest, is_no_dhcp, unfinished};
use crate::links::{self, Change, Link};
use crate::look::{self, Route, Uplink};
use crate::mark::Mark;
use crate::namespace::{Identity, Namespace};
use crate::netlink::{Netlink, Request};
use crate::sys::Tap;
use crate::tc::{self, End, Kind, Then};

/// How TAP and veth are joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Each receives what the other receives: the guest takes the veth's place.
    Redirect,
    /// By a bridge inside the namespace: the veth's place stays the namespace's, and the guest has addresses of its own.
    Bridge {
        addresses: Vec<IpNet>,
        routes: Vec<Route>,
    },
}

/// What a launch asks for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub mode: Mode,
    pub mark: Mark,
    /// What TAPs are called begins with it.
    pub tap_prefix: &'a str,
    /// Whether the guest may only send as itself.
    pub antispoof: bool,
}

/// Everything that is going to be made, and all that an undo needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub netns: PathBuf,
    identity: Identity,
    mark: Mark,
    mode: Mode,
    antispoof: bool,
    /// The user that may attach to the TAPs, where that is not this process's: a jailed VMM's.
    #[serde(default)]
    pub owner: Option<u32>,
    pub wires: Vec<Wire>,
}

/// One interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    pub tap: String,
    pub uplink: Uplink,
    /// The guest's MAC.
    pub mac: [u8; 6],
    /// The guest's addresses and routes.
    pub addresses: Vec<IpNet>,
    pub routes: Vec<Route>,
    /// The uplink's ingress had a qdisc already, which then stays.
    qdisc_stays: bool,
}

/// What was made: the TAPs by their indices, in the order of the wires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub taps: Vec<u32>,
}

/// What `tc filter show` calls that filter.
const UNFINISHED: &str = "fcpipe:unfinished";

/// A name has 15 bytes and a NUL (linux/if.h, IFNAMSIZ).
const NAME_MAX: usize = 15;

/// What the kernel lets a TAP have: 65,535 (`MAX_MTU` of drivers/net/tun.c) with the link's header. A veth end can have 14 more.
const TAP_MTU_MAX: u32 = 65_521;

/// `prefix` and as much of the id's end as fits; the second interface and later ones have a number at the end.
fn tap_name(prefix: &str, id: &str, number: usize) -> String {
    let suffix = match number {
        0 => String::new(),
        number => format!("_{number}"),
    };
    let room = NAME_MAX.saturating_sub(prefix.len() + suffix.len());
    // An id is of ASCII letters.
    let end = id.get(id.len().saturating_sub(room)..).unwrap_or_default();
    format!("{prefix}{end}{suffix}")
}

/// Looks at the namespace and decides what is to be made. Nothing is changed, but for what a dead launch of ours left
/// there: `alive` says which launches of this state directory are not dead.
pub fn plan(
    namespace: &Namespace,
    wanted: &Wanted<'_>,
    alive: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Attachment, NetError> {
    let path = namespace.path();
    if namespace.is_the_host_s() {
        return Err(NetError::Host {
            path: path.to_owned(),
        });
    }
    let not_ready = |what: String| NetError::NotReady {
        path: path.to_owned(),
        what,
    };
    let mut netlink = namespace.inside(Netlink::open)?;
    let found = links::all(&mut netlink)?;
    let uplinks = look::uplinks(&mut netlink, &found)?;
    if uplinks.is_empty() {
        let there: Vec<&str> = found.iter().map(|link| link.name.as_str()).collect();
        return Err(not_ready(format!(
            "there is no veth interface in it that is up and free (there is: {})",
            there.join(", ")
        )));
    }
    if matches!(wanted.mode, Mode::Bridge { .. }) && uplinks.len() > 1 {
        return Err(not_ready(
            "there is more than one veth interface in it, and mode `bridge` takes one".to_owned(),
        ));
    }
    let mut wires = Vec::with_capacity(uplinks.len());
    for (number, uplink) in uplinks.into_iter().enumerate() {
        let (mac, addresses, routes) = match &wanted.mode {
            Mode::Redirect => (uplink.mac, uplink.addresses.clone(), uplink.routes.clone()),
            Mode::Bridge { addresses, routes } => (
                bridge::guest_mac(&wanted.mark),
                addresses.clone(),
                routes.clone(),
            ),
        };
        if addresses.is_empty() {
            return Err(not_ready(format!("{} has no address", uplink.name)));
        }
        wires.push(Wire {
            qdisc_stays: false,
            tap: tap_name(wanted.tap_prefix, &wanted.mark.launch, number),
            uplink,
            mac,
            addresses,
            routes,
        });
    }
    let mut attachment = Attachment {
        netns: path.to_owned(),
        identity: namespace.identity(),
        mark: wanted.mark.clone(),
        mode: wanted.mode.clone(),
        antispoof: wanted.antispoof,
        owner: None,
        wires,
    };
    attachment.make_room(&mut netlink, &found, alive)?;
    // Programs are made again in `make`; here it shows whether they can be.
    for wire in &attachment.wires {
        attachment.guard(wire)?;
    }
    Ok(attachment)
}

/// Makes what was planned. If it fails, [`undo`] takes away what was made so far.
pub fn make(namespace: &Namespace, attachment: &Attachment) -> Result<Attached, NetError> {
    if namespace.identity() != attachment.identity {
        return Err(NetError::Replaced {
            path: attachment.netns.clone(),
        });
    }
    // Without an owner, whoever is in the namespace could be the guest.
    let owner = attachment.owner;
    let owner = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let (mut netlink, made) = namespace.inside(|| {
        let taps = attachment.wires.iter().map(|wire| {
            Tap::make(&wire.tap, owner).map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => attachment.taken(&wire.tap, "somebody else"),
                _ => NetError::kernel(format!("{}: making the TAP", wire.tap))(error),
            })
        });
        let taps = taps.collect::<Result<Vec<Tap>, NetError>>()?;
        Ok((Netlink::open()?, taps))
    })?;
    let unfinished = attachment.unfinished()?;
    let mut taps = Vec::with_capacity(attachment.wires.len());
    for (wire, made) in attachment.wires.iter().zip(made) {
        let tap = links::by_name(&mut netlink, &wire.tap)?;
        let index = tap.map_or(0, |tap| tap.index);
        taps.push(index);
        let unfinished = unfinished.as_ref().map(OwnedFd::as_fd);
        links::without_ipv6(&mut netlink, index, &wire.tap)?;
        let joined = netlink.all(attachment.join(wire, index, unfinished)?);
        joined.map_err(|error| attachment.too_late(wire, error))?;
        // Until now it would have gone with this process: there is never a TAP of ours for long that does not say so.
        let what = format!("{}: keeping the TAP", wire.tap);
        made.keep().map_err(NetError::kernel(what))?;
    }
    if let Mode::Bridge { .. } = attachment.mode {
        for (wire, &tap) in attachment.wires.iter().zip(&taps) {
            let made = bridge::make(&mut netlink, &attachment.mark, wire, tap);
            made.map_err(|error| attachment.too_late(wire, error))?;
        }
    }
    Ok(Attached { taps })
}

/// Takes away what [`make`] made of this plan, all of it or the part that it came to. Nothing is to be taken away where the namespace is gone.
pub fn undo(attachment: &Attachment) -> Result<(), NetError> {
    let namespace = match Namespace::open(&attachment.netns) {
        Ok(namespace) if namespace.identity() == attachment.identity => namespace,
        // Another namespace has the path, or none: what was in ours went with it.
        Ok(_) | Err(NetError::NotNamespace { .. }) => return Ok(()),
        Err(NetError::Open { source, .. }) if leads_nowhere(&source) => return Ok(()),
        Err(error) => return Err(error),
    };
    undo_inside(&namespace, attachment)
}

/// Whether nothing can be at the path: no such name, a file in the place of a folder, a loop of links, a socket.
fn leads_nowhere(error: &std::io::Error) -> bool {
    let nowhere = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::ENXIO];
    error.raw_os_error().is_some_and(|e| nowhere.contains(&e))
}

/// The same, where the namespace is still held: its path may be gone.
pub(crate) fn undo_inside(namespace: &Namespace, attachment: &Attachment) -> Result<(), NetError> {
    let mut netlink = namespace.inside(Netlink::open)?;
    let found = links::readable(&mut netlink)?;
    attachment.remove(&mut netlink, &found)
}

impl Attachment {
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The program that judges what the guest sends.
    fn guard(&self, wire: &Wire) -> Result<Vec<Instruction>, NetError> {
        if !self.antispoof {
            return Ok(is_no_dhcp());
        }
        let guest = Guest {
            mac: wire.mac,
            addresses: wire.addresses.iter().map(IpNet::addr).collect(),
        };
        from_guest(&guest)
            .map_err(|refused| NetError::Spec(format!("{}: {refused}", wire.uplink.name)))
    }

    /// The program that a frame meets before the guard, in the kernel.
    fn unfinished(&self) -> Result<Option<OwnedFd>, NetError> {
        let loaded = self.antispoof.then(unfinished::load).transpose();
        loaded.map_err(NetError::kernel(
            "bpf(2): loading the program that judges what a guest leaves unfinished (it takes Linux 5.17 with BTF; `network.antispoof: off` does without)",
        ))
    }

    /// Marks a TAP, and what lets frames pass, and which. The guard is there before the TAP is up, and the veth is let go last.
    fn join(
        &self,
        wire: &Wire,
        tap: u32,
        unfinished: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<Request>, NetError> {
        let guard = self.guard(wire)?;
        let cookie = self.mark.cookie();
        let name = wire.tap.as_str();
        let marked = Change::of(tap, format!("{name}: marking the TAP"))
            .alias(&self.mark.alias())
            // Frames do not pass by the TAP's own stack: its MTU stops none.
            .mtu(wire.uplink.mtu.min(TAP_MTU_MAX));
        let mut requests = vec![marked.request(), tc::need_qdisc(tap, &Kind::Clsact, name)];
        let passed = match self.mode {
            Mode::Redirect => Then::Redirect {
                to: wire.uplink.index,
                cookie,
            },
            Mode::Bridge { .. } => Then::Pass,
        };
        let end = End::Ingress;
        if let Some(program) = unfinished {
            requests.push(tc::add_loaded(tap, end, 1, program, UNFINISHED, name));
        }
        requests.push(tc::add_filter(tap, end, 2, &guard, &passed, name));
        requests.push(tc::drop_the_rest(tap, end, 3, name));
        match self.mode {
            Mode::Redirect => {
                requests.push(Change::of(tap, format!("{name}: up")).up().request());
                let (index, of) = (wire.uplink.index, wire.uplink.name.as_str());
                if !wire.qdisc_stays {
                    requests.push(tc::need_qdisc(index, &Kind::Ingress, of));
                }
                let then = Then::Redirect { to: tap, cookie };
                let program = is_no_dhcp();
                requests.push(tc::add_filter(index, End::Ingress, 1, &program, &then, of));
            }
            Mode::Bridge { .. } => {
                let program = is_no_dhcp();
                requests.push(tc::add_filter(
                    tap,
                    End::Egress,
                    1,
                    &program,
                    &Then::Pass,
                    name,
                ));
                requests.push(tc::drop_the_rest(tap, End::Egress, 2, name));
                requests.push(Change::of(tap, format!("{name}: up")).up().request());
            }
        }
        Ok(requests)
    }

    /// Sees to it that no name and no interface is somebody's; what a dead launch of ours left is taken away.
    fn make_room(
        &mut self,
        netlink: &mut Netlink,
        found: &[Link],
        alive: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<(), NetError> {
        let dead = |mark: &Mark| {
            mark.state == self.mark.state
                && (mark.launch == self.mark.launch || !alive(&mark.launch))
        };
        // Whatever dead launches of ours left in this namespace, whoever they were: it is in the way in any case.
        let mut names: Vec<&str> = found.iter().map(|link| link.name.as_str()).collect();
        for link in found {
            let mark = link.alias.as_deref().and_then(Mark::of_alias);
            let Some(mark) = mark.filter(dead) else {
                continue;
            };
            for wire in &self.wires {
                let (index, of) = (wire.uplink.index, wire.uplink.name.as_str());
                tc::remove_redirects(netlink, index, mark.cookie(), true, of)?;
            }
            // Another command may be undoing the same launch.
            netlink.one(links::delete(link)).or_else(gone)?;
            names.retain(|name| *name != link.name);
        }
        for wire in &self.wires {
            let name = wire.tap.as_str();
            if names.contains(&name) {
                let link = found.iter().find(|link| link.name == name);
                let mark = link.and_then(|link| Mark::of_alias(link.alias.as_deref()?));
                let by = mark.map_or("somebody else".to_owned(), |mark| {
                    format!("launch {}", mark.launch)
                });
                return Err(self.taken(name, &by));
            }
        }
        if let Mode::Bridge { .. } = self.mode {
            return Ok(());
        }
        let mut stays = Vec::new();
        for wire in &self.wires {
            let (index, name) = (wire.uplink.index, wire.uplink.name.as_str());
            stays.push(tc::qdisc(netlink, index)?.is_some());
            let filters = tc::filters(netlink, index, End::Ingress)?;
            if let Some(filter) = filters.first() {
                let by = match filter.cookies.first() {
                    Some(_) => "a machine, whose filters are at its ingress",
                    None => "somebody whose filters are at its ingress",
                };
                return Err(self.taken(name, by));
            }
        }
        for (wire, stays) in self.wires.iter_mut().zip(stays) {
            wire.qdisc_stays = stays;
        }
        Ok(())
    }

    fn remove(&self, netlink: &mut Netlink, found: &[Link]) -> Result<(), NetError> {
        let alias = self.mark.alias();
        for wire in &self.wires {
            // The veth first, so that the namespace's stack hears from it again.
            let uplink = found.iter().find(|link| link.index == wire.uplink.index);
            if let Some(uplink) = uplink.filter(|_| self.mode == Mode::Redirect) {
                let ours = !wire.qdisc_stays;
                let cookie = self.mark.cookie();
                tc::remove_redirects(netlink, uplink.index, cookie, ours, &uplink.name)?;
            }
        }
        let unmarked = bridge::unmarked_name(&self.mark);
        for link in found {
            // A name alone is nobody's property; the temporary one only we can know.
            if link.alias.as_deref() == Some(&alias) || link.name == unmarked {
                netlink.one(links::delete(link)).or_else(gone)?;
            }
        }
        Ok(())
    }

    /// Launches look before they make, so two can think that an interface is free. The kernel knows who was first.
    fn too_late(&self, wire: &Wire, error: NetError) -> NetError {
        match error {
            NetError::Kernel { source, .. } if source.raw_os_error() == Some(libc::EEXIST) => self
                .taken(
                    &wire.uplink.name,
                    "another machine, which was started at the same moment",
                ),
            error => error,
        }
    }

    fn taken(&self, name: &str, by: &str) -> NetError {
        NetError::Taken {
            path: self.netns.clone(),
            name: name.to_owned(),
            by: by.to_owned(),
        }
    }
}

/// Somebody else was quicker to delete it.
pub(crate) fn gone(error: NetError) -> Result<(), NetError> {
    match error {
        NetError::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        error => Err(error),
    }
}

/// An attribute that puts a link into a bridge.
pub(crate) fn member_of(bridge: u32) -> LinkAttribute {
    LinkAttribute::Controller(bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_has_the_prefix_and_the_end_of_the_id() {
        assert_eq!(tap_name("b9fc_", "c1", 0), "b9fc_c1");
        assert_eq!(
            tap_name("b9fc_", "sandbox-0123456789", 0),
            "b9fc_0123456789"
        );
        assert_eq!(
            tap_name("b9fc_", "sandbox-0123456789", 1),
            "b9fc_23456789_1"
        );
        assert_eq!(tap_name("b9fc_", "sandbox-0123456789", 12).len(), NAME_MAX);
    }
}
