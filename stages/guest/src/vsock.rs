//! AF_VSOCK: where the host's connections come in.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use fcpipe_proto::Stream;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};

/// The host, as vsock(7) numbers it.
const HOST: u32 = 2;
/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

/// The agent's port.
pub struct Listener(OwnedFd);

impl Listener {
    /// # Errors
    /// When the kernel has no vsock transport, or the port is taken.
    pub fn bind(port: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        bind(fd.as_raw_fd(), &VsockAddr::new(ANY, port))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Listener(fd))
    }

    /// The next connection of the host, if one comes in time. A connection from inside the guest
    /// is closed at once.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn accept(&self, patience: Duration) -> io::Result<Option<VsockStream>> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(patience).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        if !matches!(poll(&mut fds, Some(&patience)), Ok(1)) {
            return Ok(None);
        }
        let fd = match accept_with(&self.0, SocketFlags::CLOEXEC) {
            Ok(fd) => fd,
            // Of this connection or this moment, not of the socket (accept(2), "Error handling").
            Err(
                Errno::INTR
                | Errno::AGAIN
                | Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::NOMEM
                | Errno::NOBUFS
                | Errno::MFILE
                | Errno::NFILE,
            ) => {
                // What is short now may not be later; the connection waits.
                thread::sleep(Duration::from_millis(5));
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        };
        // One that is gone already has no peer.
        let peer: Option<VsockAddr> = getpeername(fd.as_raw_fd()).ok();
        Ok(peer.is_some_and(is_host).then_some(VsockStream(fd)))
    }
}

/// Whether a peer is the host, and no process of this machine: those are at the loopback's number, or at the machine's own.
fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == HOST
}

/// A connection to the host.
pub struct VsockStream(OwnedFd);

impl AsFd for VsockStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for VsockStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, _) = recv(&self.0, buffer, RecvFlags::empty())?;
        Ok(read)
    }
}

impl Write for VsockStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for VsockStream {
    fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(VsockStream)
    }

    fn shutdown(&self) {
        // It fails when the connection has ended, which is what is wanted.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, timeout)?)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Send, timeout)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel without a loopback refuses the others before they are asked for.
    #[test]
    fn row_62_nobody_but_the_host_is_served() {
        let peers: [(u32, bool); 6] = [
            (0, false),
            (1, false),
            (HOST, true),
            (3, false),
            (77, false),
            (ANY, false),
        ];
        for (cid, served) in peers {
            assert_eq!(is_host(VsockAddr::new(cid, 1000)), served, "{cid}");
        }
    }
}
