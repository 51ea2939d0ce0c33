//! The TAP as the tests hold it: as a VMM has it.
#![allow(
    unsafe_code,
    reason = "an ioctl that the standard library has no face for"
)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use fcpipe_net::Namespace;

/// `struct virtio_net_hdr` of linux/virtio_net.h, which goes before every frame.
const VNET: usize = 10;

/// What a machine says with a frame; by default that there is nothing to be done.
#[derive(Default)]
pub(crate) struct Header(pub(crate) [u8; VNET]);

/// The TAP as a VMM has it.
pub(crate) struct Machine(File);

impl Machine {
    pub(crate) fn open(namespace: &Namespace, tap: &str) -> Machine {
        let machine = namespace
            .inside(|| Ok(attach(tun(), tap).unwrap()))
            .unwrap();
        rustix::io::ioctl_fionbio(&machine.0, true).unwrap();
        machine
    }

    /// Sends a frame with a header of its own.
    pub(crate) fn send_with(&self, header: &Header, frame: &[u8]) {
        let bytes = [&header.0, frame].concat();
        // What the kernel refuses at once (too short to be a frame, a header that cannot be) has reached nobody.
        let _ = (&self.0).write(&bytes);
    }

    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        let read = (&self.0).read(&mut buffer).ok()?;
        Some(buffer[VNET..read].to_vec())
    }
}

pub(crate) fn tun() -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    file.unwrap()
}

pub(crate) fn attach(tun: File, tap: &str) -> io::Result<Machine> {
    // SAFETY: integers, valid when zeroed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0 => Ok(Machine(tun)),
        _ => Err(io::Error::last_os_error()),
    }
}
