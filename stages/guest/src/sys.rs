//! The few system calls for which neither the standard library nor rustix has a safe face.

#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; each has its reason"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use fcpipe_proto::confine::Instruction;
use nix::libc;

/// Gives every signal its default action and blocks none. The Rust runtime ignores SIGPIPE, and
/// an ignored signal stays ignored across execve(2).
pub fn reset_signals() {
    // `struct sigaction` as the kernel has it on 64-bit machines: handler (0 is SIG_DFL), flags,
    // restorer, mask. The C library's own call refuses the signals that it uses itself, and those
    // can be inherited as ignored, too.
    let default = [0_u64; 4];
    for signal in 1..=64_i32 {
        // SAFETY: no handler is installed; the kernel reads 32 bytes and is told the true size of
        // the mask. It refuses KILL and STOP, which have their default action anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    // SAFETY: the set is a plain bit field, valid when zeroed and initialised by sigemptyset; both
    // pointers are to live local memory or null, which sigprocmask allows.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Marks all descriptors from 3 on to be closed by execve(2).
///
/// # Errors
/// On a kernel older than 5.11.
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now; only a flag of descriptors changes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends any signal, real-time ones too, to the process of a pidfd.
///
/// # Errors
/// `ESRCH` when it has ended and been waited for.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: u8) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; no memory is passed (a null siginfo is allowed).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::c_int::from(signal),
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Filters the system calls of this process from now on.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN or "no new privileges"; `EINVAL` for a program that the kernel does not take.
pub fn seccomp(flags: u32, program: &[Instruction]) -> io::Result<()> {
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|&Instruction(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the structure and `len` instructions, which live until the call returns, and writes
    // nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the execution domain (personality(2)).
///
/// # Errors
/// Those of the kernel.
pub fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: only a number is passed.
    match unsafe { libc::personality(libc::c_ulong::from(persona)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the command's program find itself in another root, with no signal blocked: init blocks one, and nobody has reset that yet.
pub fn spawn_in_root(command: &mut std::process::Command, root: OwnedFd) {
    let enter = move || {
        reset_signals();
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(c".")?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, which take no lock and no memory.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, enter);
    }
}

/// The most bytes [`credit_entropy`] takes.
pub const MAX_ENTROPY: usize = 512;

/// Mixes bytes into the kernel's random pool and counts them as random (random(4),
/// `RNDADDENTROPY`).
///
/// # Errors
/// When `random` is not the random device, or the caller may not.
pub fn credit_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    /// `struct rand_pool_info` of `linux/random.h`, with room for the bytes.
    #[repr(C)]
    struct Pool {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; MAX_ENTROPY],
    }
    /// `_IOW('R', 0x03, int [2])`
    const RNDADDENTROPY: u32 = 0x4008_5203;
    let len = bytes.len().min(MAX_ENTROPY);
    let mut pool = Pool {
        // At most 512 bytes, 4,096 bits.
        entropy_count: len as libc::c_int * 8,
        buf_size: len as libc::c_int,
        buf: [0; MAX_ENTROPY],
    };
    pool.buf[..len].copy_from_slice(&bytes[..len]);
    // SAFETY: the kernel reads the two counts and `buf_size` bytes after them, all inside `pool`.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What an ioctl of device mapper takes and gives: `struct dm_ioctl` of `linux/dm-ioctl.h`, and behind it room for one
/// `struct dm_target_spec` and its parameters.
#[repr(C)]
pub(crate) struct DmIoctl {
    pub(crate) version: [u32; 3],
    /// Of all of this, bytes.
    pub(crate) data_size: u32,
    /// Where the target is, bytes from the beginning.
    pub(crate) data_start: u32,
    pub(crate) target_count: u32,
    pub(crate) open_count: i32,
    pub(crate) flags: u32,
    pub(crate) event_nr: u32,
    pub(crate) padding: u32,
    /// The mapped device's number, as `huge_encode_dev` writes it.
    pub(crate) dev: u64,
    /// NUL-terminated.
    pub(crate) name: [u8; 128],
    pub(crate) uuid: [u8; 129],
    pub(crate) data: [u8; 7],
    pub(crate) target: DmTarget,
    /// The target's own words, NUL-terminated.
    pub(crate) parameters: [u8; 128],
}

/// `struct dm_target_spec`.
#[repr(C)]
pub(crate) struct DmTarget {
    /// In units of 512 bytes.
    pub(crate) sector_start: u64,
    pub(crate) length: u64,
    pub(crate) status: i32,
    /// Bytes from this target to the next.
    pub(crate) next: u32,
    pub(crate) target_type: [u8; 16],
}

impl DmIoctl {
    /// `sizeof(struct dm_ioctl)`, which is part of the requests' numbers.
    pub(crate) const HEADER: usize = std::mem::offset_of!(DmIoctl, target);
}

/// Asks device mapper for something; the answer is in `request`.
pub(crate) fn device_mapper(
    control: BorrowedFd<'_>,
    command: u8,
    request: &mut DmIoctl,
) -> io::Result<()> {
    const _: () = assert!(DmIoctl::HEADER == 312 && size_of::<DmTarget>() == 40);
    /// `_IOWR(0xfd, 0, struct dm_ioctl)`
    const DM_IOCTL: u32 = 3 << 30 | (DmIoctl::HEADER as u32) << 16 | 0xfd << 8;
    // The kernel copies that many bytes in, and at most as many out.
    request.data_size = size_of::<DmIoctl>() as u32;
    let number = DM_IOCTL | u32::from(command);
    // SAFETY: the kernel reads and writes `data_size` bytes, which is the size of `request`; every field is an
    // integer, so whatever it writes is valid.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), number as _, &raw mut *request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
