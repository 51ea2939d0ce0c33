//! Which resolvers the host has.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a guest's resolver is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

/// Where systemd-resolved keeps the true resolvers, when /etc/resolv.conf names only itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// More than the three that resolvers ask.
const MAX_SERVERS: usize = 8;

/// The resolvers for what runs in the namespace at `netns`: its own file, as `ip netns` has it (ip-netns(8)), else the host's. Those on
/// the loopback are left out, for the guest has another loopback.
pub fn resolvers(netns: Option<&Path>) -> Dns {
    let own = netns
        .and_then(Path::file_name)
        .map(|name: &OsStr| Path::new("/etc/netns").join(name).join("resolv.conf"));
    let files = own
        .into_iter()
        .chain([PathBuf::from("/etc/resolv.conf"), RESOLVED.into()]);
    let read = files.filter_map(|file| fs::read_to_string(file).ok());
    let mut found = Dns::default();
    for text in read {
        found = parse(&text);
        if !found.servers.is_empty() {
            break;
        }
    }
    found
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                dns.servers.extend(server.filter(|ip| !ip.is_loopback()));
            }
            // The last one counts (resolv.conf(5)).
            Some("search" | "domain") => dns.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns.servers.truncate(MAX_SERVERS);
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_the_loopback_is_of_no_use_to_a_guest() {
        let dns = parse(
            "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nsearch a.example b.example\noptions edns0\n",
        );
        assert_eq!(dns.servers, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(dns.search, ["a.example", "b.example"]);
    }
}
