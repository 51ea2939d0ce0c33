//! The network of a launch: the namespace that its processes run in, and the TAP that its guest hangs on.
//!
//! Both are effects, and neither waits for the image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fcpipe_engine::{Cx, Effect, Failure, FailureKind, KeyWriter, Node, Run, UndoError};
use fcpipe_net::{
    Attachment, Dns, Mark, Mode, Namespace, NetError, News, OwnNetwork, Route, Service, Wanted,
};
use fcpipe_proto::{GuestAddress, GuestInterface, GuestNetwork, GuestRoute, ResolvConf};
use fcpipe_spec::{Antispoof, LaunchSpec, Network, NetworkMode};
use fcpipe_vmm::{Nic, Vmm};
use serde::{Deserialize, Serialize};

use crate::machine::launch_dir;

/// The container's file that its resolver reads.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Adds what the spec asks for; nothing for a guest without a network.
pub(crate) fn add(
    run: &Run,
    spec: &LaunchSpec,
    id: &str,
    state: &Path,
    vmm: &Arc<dyn Vmm>,
) -> Option<Node<Wired>> {
    if spec.network.decided() == NetworkMode::None {
        return None;
    }
    let mark = Mark::new(id, state);
    let namespace = run.effect(
        "netns",
        EnterNamespace {
            network: spec.network.clone(),
            mark: mark.clone(),
        },
    );
    let resolvers_mounted = spec
        .mounts
        .iter()
        .any(|mount| Path::new(RESOLV_CONF).starts_with(&mount.destination));
    Some(run.effect(
        "tap",
        MakeTap {
            namespace,
            network: spec.network.clone(),
            mark,
            state: state.to_owned(),
            write_resolvers: !resolvers_mounted,
            vmm: Arc::clone(vmm),
        },
    ))
}

/// Opens the namespace that the platform has made, or makes one.
pub(crate) struct EnterNamespace {
    network: Network,
    mark: Mark,
}

/// What was made, if it was: a platform's namespace is only opened.
#[derive(Serialize, Deserialize)]
pub(crate) struct NamespaceEntry {
    own: Option<OwnNetwork>,
}

/// Held until everything of the launch is undone.
pub(crate) struct Place(Namespace);

impl Effect for EnterNamespace {
    const NAME: &'static str = "netns";
    type Entry = NamespaceEntry;
    type Output = Place;

    fn inputs(&self, _: &mut KeyWriter<'_>) {}

    fn intend(&self, cx: &Cx) -> Result<NamespaceEntry, Failure> {
        let own = match self.network.decided() {
            NetworkMode::Own => {
                let own = fcpipe_net::plan_own(&self.mark, self.network.pool, self.network.nat);
                Some(own.map_err(|e| failure(cx, "the network", e))?)
            }
            _ => None,
        };
        Ok(NamespaceEntry { own })
    }

    fn make(&self, entry: &NamespaceEntry, cx: &Cx) -> Result<Place, Failure> {
        let made = match (&entry.own, &self.network.netns) {
            (Some(own), _) => fcpipe_net::make_own(own),
            (None, Some(path)) => Namespace::open(path),
            (None, None) => Err(NetError::Spec("no network namespace is named".to_owned())),
        };
        made.map(Place).map_err(|e| failure(cx, "network.netns", e))
    }

    fn undo(entry: &NamespaceEntry) -> Result<(), UndoError> {
        match &entry.own {
            Some(own) => Ok(fcpipe_net::undo_own(own)?),
            None => Ok(()),
        }
    }
}

/// Puts a TAP beside each veth end of the namespace, and joins them.
pub(crate) struct MakeTap {
    namespace: Node<Place>,
    network: Network,
    mark: Mark,
    /// In which the launches are that are not dead.
    state: PathBuf,
    write_resolvers: bool,
    /// Whose TAPs they will be.
    vmm: Arc<dyn Vmm>,
}

/// The guest's network, made.
pub(crate) struct Wired {
    pub(crate) namespace: Namespace,
    pub(crate) nics: Vec<Nic>,
    pub(crate) guest: GuestNetwork,
    /// What happens to it while the machine runs.
    pub(crate) news: News,
    _service: Service,
}

impl Effect for MakeTap {
    const NAME: &'static str = "tap";
    type Entry = Attachment;
    type Output = Wired;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.after(&self.namespace);
    }

    fn intend(&self, cx: &Cx) -> Result<Attachment, Failure> {
        let place = cx.get(&self.namespace)?;
        let mode = match self.network.decided() {
            NetworkMode::Bridge => Mode::Bridge {
                addresses: self.network.addresses.clone(),
                routes: self
                    .network
                    .gateways
                    .iter()
                    .map(|gateway| Route::default_by(*gateway))
                    .collect(),
            },
            _ => Mode::Redirect,
        };
        let wanted = Wanted {
            mode,
            mark: self.mark.clone(),
            tap_prefix: &self.network.tap_prefix,
            antispoof: self.network.antispoof == Antispoof::On,
        };
        // What dead launches left was undone when this command began: a directory that is still there is somebody's.
        let alive = |launch: &str| self.state.join(launch).exists();
        let mut attachment = fcpipe_net::plan(&place.0, &wanted, &alive)
            .map_err(|e| failure(cx, "the network", e))?;
        let dir = launch_dir(cx)?;
        let owner = self.vmm.user(&dir);
        attachment.owner = owner.map_err(|e| cx.fail(FailureKind::Host, dir.display(), e))?;
        Ok(attachment)
    }

    fn make(&self, attachment: &Attachment, cx: &Cx) -> Result<Wired, Failure> {
        let namespace = &cx.get(&self.namespace)?.0;
        let failed = |e| failure(cx, "the network", e);
        let attached = fcpipe_net::make(namespace, attachment).map_err(failed)?;
        let dns = match &self.network.dns {
            Some(servers) => Dns {
                servers: servers.clone(),
                search: self.network.search.clone(),
            },
            None => {
                let mut dns = fcpipe_net::resolvers(self.network.netns.as_deref());
                if !self.network.search.is_empty() {
                    dns.search.clone_from(&self.network.search);
                }
                dns
            }
        };
        let service = Service::start(namespace, attachment, &attached, &dns.servers);
        let service = service.map_err(failed)?;
        let nics = attachment
            .wires
            .iter()
            .map(|wire| Nic {
                tap: wire.tap.clone(),
                mac: wire.mac,
                mtu: u16::try_from(wire.uplink.mtu).unwrap_or(u16::MAX),
            })
            .collect();
        Ok(Wired {
            namespace: namespace.clone(),
            nics,
            guest: guest(attachment, self.resolv_conf(&dns)),
            news: service.news(),
            _service: service,
        })
    }

    fn undo(attachment: &Attachment) -> Result<(), UndoError> {
        Ok(fcpipe_net::undo(attachment)?)
    }
}

impl MakeTap {
    /// The image's own file counts more than the host's resolvers, and the spec's more than the image's.
    fn resolv_conf(&self, dns: &Dns) -> Option<ResolvConf> {
        if dns.servers.is_empty() || !self.write_resolvers {
            return None;
        }
        let mut text = String::new();
        for server in &dns.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !dns.search.is_empty() {
            text.push_str(&format!("search {}\n", dns.search.join(" ")));
        }
        Some(ResolvConf {
            text,
            keep: self.network.dns.is_none(),
        })
    }
}

/// The same network in the guest's words.
fn guest(attachment: &Attachment, resolv_conf: Option<ResolvConf>) -> GuestNetwork {
    let address = |net: &ipnet::IpNet| GuestAddress {
        address: net.addr(),
        prefix: net.prefix_len(),
    };
    let interfaces = attachment.wires.iter().map(|wire| GuestInterface {
        mac: wire.mac,
        name: wire.uplink.name.clone(),
        mtu: wire.uplink.mtu,
        addresses: wire.addresses.iter().map(address).collect(),
        routes: wire
            .routes
            .iter()
            .map(|route| GuestRoute {
                destination: address(&route.destination),
                gateway: route.gateway,
                source: route.source,
                metric: route.metric,
                mtu: route.mtu,
                onlink: route.onlink,
            })
            .collect(),
    });
    GuestNetwork {
        interfaces: interfaces.collect(),
        resolv_conf,
    }
}

fn failure(cx: &Cx, subject: &str, error: NetError) -> Failure {
    let kind = match &error {
        NetError::Spec(_) => FailureKind::Spec,
        _ => FailureKind::Host,
    };
    let hint = error.hint();
    let failure = cx.fail(kind, subject, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
