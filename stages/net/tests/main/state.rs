//! What a launch could leave changed.

use crate::world::{World, sh};

impl World {
    /// Everything about the container's namespace that a launch could leave changed.
    pub(crate) fn state(&self) -> String {
        let name = &self.container;
        sh(&format!(
            "ip -n {name} -d link show | sed 's/ qlen .*//'; ip -n {name} addr show scope global
             ip -n {name} route show; ip -n {name} -6 route show | grep -v fe80
             ip -n {name} neigh show nud permanent
             tc -n {name} qdisc show; tc -n {name} filter show dev b9_veth_c ingress
             ip netns exec {name} nft list ruleset 2>/dev/null || true"
        ))
    }
}
