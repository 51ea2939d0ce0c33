//! Both ends of a wire as the tests hold them: the TAP as a VMM has it, and a packet socket on any interface.
#![allow(
    unsafe_code,
    dead_code,
    reason = "a TAP and packet sockets, which the standard library has no face for; the measuring example uses a part"
)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use fcpipe_net::Namespace;

/// `struct virtio_net_hdr`, which goes before every frame.
const VNET: usize = 10;

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

    /// The same as another user, without capabilities.
    pub(crate) fn open_as(namespace: &Namespace, tap: &str, user: u32) -> io::Result<Machine> {
        let opened = namespace.inside(|| {
            // A jail has a node of its own; the host's may be root's alone.
            let tun = tun();
            let user = rustix::fs::Uid::from_raw(user);
            // Of this thread alone, which ends with this. Capabilities go with root.
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            Ok(attach(tun, tap))
        });
        opened.unwrap()
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let mut bytes = vec![0; VNET];
        bytes.extend_from_slice(frame);
        // What the kernel refuses at once (too short to be a frame) has reached nobody.
        let _ = (&self.0).write(&bytes);
    }

    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        let read = (&self.0).read(&mut buffer).ok()?;
        Some(buffer[VNET..read].to_vec())
    }
}

fn tun() -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    file.unwrap()
}

fn attach(tun: File, tap: &str) -> io::Result<Machine> {
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

/// A packet socket on an interface. With `ETH_P_ALL` it hears everything there, with 0 nothing.
fn packet_socket(namespace: &str, interface: &str, protocol: libc::c_int) -> OwnedFd {
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
