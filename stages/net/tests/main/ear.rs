//! What is heard at an interface.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::sockets::packet_socket;

/// Hears everything at an interface.
pub(crate) struct Ear(OwnedFd);

impl Ear {
    pub(crate) fn open(namespace: &str, interface: &str) -> Ear {
        Ear(packet_socket(namespace, interface, libc::ETH_P_ALL))
    }

    pub(crate) fn hear(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        let flags = rustix::net::RecvFlags::empty();
        let (read, _) = rustix::net::recv(&self.0, &mut buffer[..], flags).ok()?;
        Some(buffer[..read].to_vec())
    }

    /// Frames from the container's side until there has been none for a while.
    pub(crate) fn all_from(&self, others: [u8; 6]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(200) {
            match self.hear() {
                // What the bridge itself sends is heard here as well.
                Some(frame) if frame[6..12] == others || is_chatter(&frame) => {}
                Some(frame) => {
                    heard.push(frame);
                    quiet = Instant::now();
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        heard
    }

    pub(crate) fn drain(&self, others: [u8; 6]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        while let Some(frame) = self.hear() {
            if frame[6..12] != others {
                heard.push(frame);
            }
        }
        heard
    }
}

/// What the namespace's own stack says from the veth, which has the machine's MAC: reports of groups, and whether an address is free.
pub(crate) fn is_chatter(frame: &[u8]) -> bool {
    let report = frame.get(54..62) == Some(&[58, 0, 5, 2, 0, 0, 1, 0]);
    let detection = frame.get(20) == Some(&58) && frame.get(54) == Some(&135);
    frame[12..14] == [0x86, 0xdd] && (report || detection)
}
