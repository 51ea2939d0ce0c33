//! A packet socket on any interface of any namespace.
#![allow(
    unsafe_code,
    reason = "an address family that the standard library has no face for"
)]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use fcpipe_net::Namespace;

/// A packet socket on an interface. With `ETH_P_ALL` it hears everything there, with 0 nothing.
pub(crate) fn packet_socket(namespace: &str, interface: &str, protocol: libc::c_int) -> OwnedFd {
    let namespace = Namespace::open(format!("/run/netns/{namespace}").as_ref()).unwrap();
    let socket = namespace.inside(|| {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let protocol = (protocol as u16).to_be();
        // SAFETY: no memory is passed; the descriptor is nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        };
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: integers; the name is a C string that lives through the call.
        let address = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            address
        };
        let size = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address has the size that is said.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        assert_eq!(bound, 0);
        Ok(socket)
    });
    socket.unwrap()
}
