//! A machine's TAP with everything around it, held by a test that is the machine, the host's end of the veth pair, and a neighbour.

use std::time::{Duration, Instant};

use fcpipe_net::{Attachment, Namespace, Service, make, undo};

use crate::ear::Ear;
use crate::tap::{Header, Machine};
use crate::world::{World, planned, sh};

pub(crate) struct Bench {
    world: World,
    attachment: Attachment,
    service: Service,
    pub(crate) machine: Machine,
    pub(crate) ear: Ear,
    pub(crate) mac: [u8; 6],
    pub(crate) bridge: [u8; 6],
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let world = World::new();
        // Nobody but the machine speaks: no link-local addresses, no reports of groups.
        for (namespace, link) in [
            (&world.host, "b9_br0"),
            (&world.host, "b9_veth_h"),
            (&world.container, "b9_veth_c"),
        ] {
            sh(&format!(
                "ip -n {namespace} link set {link} addrgenmode none
                 ip -n {namespace} -6 addr flush dev {link} scope link"
            ));
        }
        let attachment = planned(&world, "web-1").unwrap();
        let namespace = world.namespace();
        let attached = make(&namespace, &attachment).unwrap();
        let dns = ["10.0.0.53".parse().unwrap()];
        let service = Service::start(&namespace, &attachment, &attached, &dns).unwrap();
        let bridge = sh(&format!(
            "ip netns exec {} cat /sys/class/net/b9_br0/address",
            world.host
        ));
        let bridge: Vec<u8> = bridge
            .trim()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let ear = Ear::open(&world.host, "b9_veth_h");
        let bridge: [u8; 6] = bridge.try_into().unwrap();
        ear.all_from(bridge);
        Bench {
            machine: Machine::open(&namespace, "b9fc_web-1"),
            ear,
            mac: attachment.wires[0].mac,
            bridge,
            attachment,
            service,
            world,
        }
    }

    /// Another machine on the bridge, which takes no frame whose checksum is still to be finished: what it gets is final.
    pub(crate) fn neighbour(&self) -> Machine {
        let (host, [a, b, c, d, e, f]) = (&self.world.host, self.bridge);
        // A bridge without an address of its own takes its lowest port's, and netfilter would drop headers with a wrong sum in this one.
        sh(&format!(
            "ip netns exec {host} sh -c 'for rules in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $rules ] || echo 0 > $rules; done'
             ip -n {host} tuntap add neighbour mode tap vnet_hdr
             ip -n {host} link set neighbour addrgenmode none
             ip -n {host} link set b9_br0 address {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x} type bridge mcast_snooping 0
             ip -n {host} link set neighbour master b9_br0 up"
        ));
        let namespace = Namespace::open(format!("/run/netns/{host}").as_ref()).unwrap();
        let neighbour = Machine::open(&namespace, "neighbour");
        // The bridge lets it in a moment after somebody holds its other end.
        let state = "cat /sys/class/net/neighbour/brport/state";
        let forwarding = || sh(&format!("ip netns exec {host} {state}")).trim() == "3";
        let deadline = Instant::now() + Duration::from_secs(60);
        while !forwarding() {
            assert!(Instant::now() < deadline, "the bridge lets no neighbour in");
            std::thread::sleep(Duration::from_millis(5));
        }
        neighbour
    }

    pub(crate) fn end(self) {
        drop(self.machine);
        drop(self.service);
        undo(&self.attachment).unwrap();
        drop(self.world);
    }
}

impl Machine {
    /// Sends a frame with which nothing is left to be done.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.send_with(&Header::default(), frame);
    }
}
