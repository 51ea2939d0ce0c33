//! The guest's network, as the host has worked it out: nothing is left for the guest to find.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Interfaces with what belongs to them, and resolvers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestNetwork {
    pub interfaces: Vec<GuestInterface>,
    #[serde(default)]
    pub resolv_conf: Option<ResolvConf>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInterface {
    /// By which it is found.
    pub mac: [u8; 6],
    /// What it is called from then on; 1 to 15 bytes.
    pub name: String,
    pub mtu: u32,
    pub addresses: Vec<GuestAddress>,
    /// In this order: a gateway comes after the route that leads to it.
    pub routes: Vec<GuestRoute>,
}

/// An address and how many of its bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    pub address: IpAddr,
    pub prefix: u8,
}

/// A route through the interface that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRoute {
    pub destination: GuestAddress,
    /// `None`: the destination is on the link.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The address to send from.
    #[serde(default)]
    pub source: Option<IpAddr>,
    #[serde(default)]
    pub metric: Option<u32>,
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The gateway is on the link though no address says so.
    #[serde(default)]
    pub onlink: bool,
}

/// `/etc/resolv.conf` of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvConf {
    pub text: String,
    /// One that the image has, and that is not empty, stays.
    pub keep: bool,
}
