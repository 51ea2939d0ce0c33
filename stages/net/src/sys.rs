//! The system calls that rustix has no safe face for.
#![allow(
    unsafe_code,
    reason = "ioctls and socket options without a safe wrapper; each has its reason"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::filter::Instruction;
use crate::filter::layout::{Function, Layout, Relocation};
use crate::filter::unfinished::Program;

/// Moves the calling thread to a network namespace of its own.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: no memory is passed; only this thread's namespace changes, and it holds no descriptor that depends on it.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// `NS_GET_NSTYPE` of ioctl_ns(2): the `CLONE_NEW…` constant of a namespace.
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<i32> {
    /// `_IO(0xb7, 3)`
    const NS_GET_NSTYPE: u32 = 0xb703;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })
}

/// A TAP in the making: it goes with this, unless it is kept.
#[derive(Debug)]
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// One queue, no packet information, and headers with offloads (vnet_hdr), as VMMs take it. It belongs to the namespace of
    /// the calling thread.
    ///
    /// Nobody but its `owner` may attach to it, and who has CAP_NET_ADMIN there.
    ///
    /// # Errors
    /// EBUSY where the name is taken.
    pub(crate) fn make(name: &str, owner: u32) -> io::Result<Tap> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        // SAFETY: the structure is of integers and valid when zeroed.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() || name.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        request.ifr_ifru.ifru_flags = wanted as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
        let tap = Tap(tun);
        tap.set(libc::TUNSETOWNER as _, owner.into())?;
        Ok(tap)
    }

    /// From now on it stays until it is deleted, and this process lets go of it.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.set(libc::TUNSETPERSIST as _, 1)
    }

    fn set(&self, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: both requests that are made here take their argument by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, value) }).map(drop)
    }
}

/// A raw packet socket on one interface of the calling thread's namespace that hears what the interface receives and `filter` accepts,
/// before tc sees it, and whose own frames no qdisc sees.
pub(crate) fn packet_socket(index: u32, filter: &[Instruction]) -> io::Result<OwnedFd> {
    let every = libc::ETH_P_ALL as u16;
    // Deaf until it is bound: what came before the filter was there would have to be thrown away.
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the kernel has just given this descriptor, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    attach_filter(socket.as_fd(), filter)?;
    let on: libc::c_int = 1;
    for option in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_QDISC_BYPASS] {
        set_option(socket.as_fd(), libc::SOL_PACKET, option, &on)?;
    }
    // SAFETY: as above: integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every.to_be();
    address.sll_ifindex = index as libc::c_int;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` lives through the call and has the size that is said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(socket)
}

/// Has the kernel drop what arrives at a socket unless `filter` returns more than 0.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, filter: &[Instruction]) -> io::Result<()> {
    let mut program: Vec<libc::sock_filter> = filter
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_mut_ptr(),
    };
    // The kernel copies the instructions before it returns.
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Has the kernel check and compile a program of tc, in extended BPF.
pub(crate) fn load_classifier(program: &Program) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    /// The beginning of `union bpf_attr` of linux/bpf.h, as it is for BPF_PROG_LOAD.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
        layout: u32,
        function_size: u32,
        functions: u64,
        function_count: u32,
        line_size: u32,
        lines: u64,
        line_count: u32,
        attach_to: u32,
        attach_program: u32,
        relocation_count: u32,
        descriptors: u64,
        relocations: u64,
        relocation_size: u32,
        /// The kernel refuses what it does not know unless it is 0, and so padding must be.
        rest: u32,
    }
    let layout = load_layout(&program.layout)?;
    let function = Layout::function();
    let attributes = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: program.code.len() as u32,
        instructions: address(program.code.as_ptr()),
        // linux/license.h knows no Apache: the rights beyond the GPL's are those of our own licence.
        license: address(c"GPL and additional rights".as_ptr()),
        name: *b"unfinished\0\0\0\0\0\0",
        layout: layout.as_raw_fd() as u32,
        function_size: size_of::<Function>() as u32,
        functions: address(&raw const function),
        function_count: 1,
        relocation_count: program.relocations.len() as u32,
        relocations: address(program.relocations.as_ptr()),
        relocation_size: size_of::<Relocation>() as u32,
        ..Load::default()
    };
    // SAFETY: the structure has no padding; what it points to is only read, has the sizes that are said, and outlives the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

/// Gives the kernel a description of types (BTF).
fn load_layout(described: &[u8]) -> io::Result<OwnedFd> {
    const BPF_BTF_LOAD: libc::c_int = 18;
    /// As above, for BPF_BTF_LOAD.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        described: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        rest: u32,
    }
    let attributes = Load {
        described: address(described.as_ptr()),
        size: described.len() as u32,
        ..Load::default()
    };
    // SAFETY: the structure has no padding; the description is only read, has the size that is said, and outlives the call.
    unsafe { bpf(BPF_BTF_LOAD, &attributes) }
}

fn address<T>(at: *const T) -> u64 {
    at as usize as u64
}

/// A command of bpf(2) that makes something.
///
/// # Safety
/// The attributes must be such a command's, without padding, and what they point to must be there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let at: *const T = attributes;
    // SAFETY: the structure has the size that is said; the rest is the caller's to see to.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of::<T>()) as libc::c_int })?;
    // SAFETY: the kernel has just given this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: the kernel reads `size` bytes of `value`, and for a filter the instructions that it points to; all outlive the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.cast(),
            size,
        )
    })
    .map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
