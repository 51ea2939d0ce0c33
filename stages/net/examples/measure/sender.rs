//! Frames with few system calls.
#![allow(
    unsafe_code,
    reason = "sendmmsg, which the standard library has no face for"
)]

use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::sockets::packet_socket;

/// Sends one frame many times with each system call, and hears nothing.
pub(crate) struct Sender {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Sender {
    /// With each call.
    pub(crate) const FRAMES: usize = 64;

    pub(crate) fn open(namespace: &str, interface: &str, frame: &[u8]) -> Sender {
        Sender {
            socket: packet_socket(namespace, interface, 0),
            frame: frame.to_vec(),
        }
    }

    /// How many were sent.
    pub(crate) fn send(&self) -> usize {
        let mut part = libc::iovec {
            iov_base: self.frame.as_ptr().cast_mut().cast(),
            iov_len: self.frame.len(),
        };
        // SAFETY: integers and pointers, valid when zeroed.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; Self::FRAMES];
        let count = Self::FRAMES as libc::c_uint;
        // SAFETY: the messages, their one part and the frame, which is only read, live through the call.
        let sent =
            unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        // A full queue of the socket takes none; whoever counts will see.
        usize::try_from(sent).unwrap_or(0)
    }
}
