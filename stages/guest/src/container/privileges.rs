//! What the process may: its capabilities, and the filter of its system calls.

use fcpipe_proto::{Capabilities, Failure, Seccomp};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::failed;
use crate::sys;

/// Takes out of the bounding set what is not in it: no program can get it any more. Before the user is changed, while
/// CAP_SETPCAP is there for certain.
pub(super) fn bound(wanted: &Capabilities) -> Result<(), Failure> {
    for one in each(!wanted.bounding) {
        match remove_capability_from_bounding_set(one) {
            // Numbers above the kernel's last.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(failed(None, "the bounding set of capabilities", e)),
        }
    }
    Ok(())
}

/// The process's own sets, once the user is who it will be.
pub(super) fn take(wanted: &Capabilities) -> Result<(), Failure> {
    // capset(2) ignores what the kernel does not have.
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    let why = |e| failed(None, "its capabilities", e);
    set_capabilities(None, sets).map_err(why)?;
    clear_ambient_capability_set().map_err(why)?;
    // Any other is refused (capabilities(7), "Ambient"), and runc goes on without it.
    for one in each(wanted.ambient & wanted.permitted & wanted.inheritable) {
        match configure_capability_in_ambient_set(one, true) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(failed(None, "its ambient capabilities", e)),
        }
    }
    Ok(())
}

fn each(set: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .map(|n| 1 << n)
        .filter(move |bit| set & bit != 0)
        .map(CapabilitySet::from_bits_retain)
}

pub(super) fn filter(seccomp: &Seccomp) -> Result<(), Failure> {
    sys::seccomp(seccomp.flags, &seccomp.program)
        .map_err(|e| failed(None, "the filter of system calls (seccomp)", e))
}
