//! A child that borrows its parent's memory until it becomes another program, as vfork(2) makes it, with a stack of its own.
//!
//! fork(2) copies the tables of all pages, and after it each page that either side writes to is copied on its first touch: in a
//! supervisor that is more than half of the time which starting a program takes. posix_spawn(3) does without, but knows neither
//! namespaces nor control groups.
#![allow(
    unsafe_code,
    reason = "a child in its parent's memory has no safe form; each step has its reason"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::process::Pid;

/// Far more than the child's few system calls take.
const STACK: usize = 64 << 10;
/// The lowest part of it, that nothing may touch.
const GUARD: usize = 4 << 10;

const FLAGS: libc::c_int = libc::CLONE_VM | libc::CLONE_VFORK;

/// Makes a child that calls `be`, and waits until that has become another program or has ended. With a `group`, of version 2 of
/// control groups, the child is born in it; where that cannot be, `None`, and another way may tell why.
///
/// # Safety
/// `be` runs in this process's memory while all of its other threads go on. It may allocate nothing, take no lock, and must not
/// unwind; what it writes to must be its own, or be made for several threads. It need not come back: it may execve(2).
pub(crate) unsafe fn child<F: Fn()>(
    group: Option<BorrowedFd<'_>>,
    be: &F,
) -> io::Result<Option<Pid>> {
    let stack = Stack::new()?;
    let quiet = Quiet::begin()?;
    let arg: *const F = be;
    let pid = match group {
        // SAFETY: `entry` takes what `arg` points to, which outlives the child's use of it: this thread goes on after that.
        // The stack is the child's until then, and nobody else's.
        None => unsafe {
            let top = stack.at.add(STACK);
            let flags = FLAGS | libc::SIGCHLD;
            let pid = libc::clone(entry_of_clone::<F>, top, flags, arg.cast_mut().cast());
            if pid < 0 {
                return Err(io::Error::last_os_error());
            }
            i64::from(pid)
        },
        // SAFETY: as above.
        Some(group) => unsafe { clone_into(group, &stack, entry::<F>, arg.cast_mut().cast()) },
    };
    drop(quiet);
    // A negative number is an error of the other way.
    Ok(i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw))
}

/// The child: it ends here if it has not become another program.
extern "C" fn entry<F: Fn()>(be: *mut libc::c_void) -> ! {
    // SAFETY: it is what `child` was given, and lives until the parent goes on.
    let be = unsafe { &*be.cast::<F>() };
    be();
    // SAFETY: it ends this process, and runs nothing of its parent's.
    unsafe { libc::_exit(127) }
}

extern "C" fn entry_of_clone<F: Fn()>(be: *mut libc::c_void) -> libc::c_int {
    entry::<F>(be)
}

/// linux/sched.h; libc's constant of that name is too narrow for its value.
#[cfg(target_arch = "x86_64")]
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// clone3(2), which the C library has no function for. What it gives back is a number of a process or a negative error.
///
/// # Safety
/// As for `child`.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_into(
    group: BorrowedFd<'_>,
    stack: &Stack,
    entry: extern "C" fn(*mut libc::c_void) -> !,
    arg: *mut libc::c_void,
) -> i64 {
    let wanted = libc::clone_args {
        flags: CLONE_INTO_CGROUP | FLAGS as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::from(group.as_raw_fd().unsigned_abs()),
        stack: stack.at as u64,
        stack_size: STACK as u64,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
    };
    let mut pid = libc::SYS_clone3;
    // SAFETY: the structure is of the size that is told. The child begins behind the system call with an empty stack, aligned to
    // 16 bytes as a call takes it, and calls `entry`, which does not return; it changes no register of the parent's.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") pid,
            in("rdi") &raw const wanted,
            in("rsi") size_of_val(&wanted),
            in("r12") entry,
            in("r13") arg,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    pid
}

/// Not written for this processor: the child enters the group after it is born, and waits for the kernel's grace period.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone_into(
    _: BorrowedFd<'_>,
    _: &Stack,
    _: extern "C" fn(*mut libc::c_void) -> !,
    _: *mut libc::c_void,
) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// Memory for a child's stack.
struct Stack {
    at: *mut libc::c_void,
}

impl Stack {
    fn new() -> io::Result<Self> {
        let usual = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::STACK | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a place where nothing is.
        let at = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), STACK, usual, flags) }?;
        let stack = Stack { at };
        // SAFETY: it was mapped right above, and nothing is in it yet.
        unsafe { rustix::mm::mprotect(at, GUARD, MprotectFlags::empty()) }?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, and the child that used it has another memory by now. If this fails it stays.
        let _ = unsafe { rustix::mm::munmap(self.at, STACK) };
    }
}

/// While it lives no signal reaches this thread: a handler of this program would run in the child as well, in the same memory.
struct Quiet {
    before: libc::sigset_t,
}

impl Quiet {
    fn begin() -> io::Result<Self> {
        // SAFETY: sets of signals are bits, and valid when zeroed; both live through the calls.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) {
                0 => Ok(Quiet { before }),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the set was written by `begin`. It cannot fail with these arguments.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    fn ended(pid: Pid) -> i32 {
        let flags = rustix::process::WaitOptions::empty();
        let (_, status) = rustix::process::waitpid(Some(pid), flags).unwrap().unwrap();
        status.as_raw()
    }

    #[test]
    fn a_child_writes_into_its_parent_s_memory_and_ends_alone() {
        let word = AtomicI32::new(0);
        let be = || {
            word.store(
                rustix::process::getpid().as_raw_nonzero().get(),
                Ordering::SeqCst,
            )
        };
        // SAFETY: it makes one system call and writes to an atomic number.
        let pid = unsafe { child(None, &be) }.unwrap().unwrap();
        assert_eq!(word.load(Ordering::SeqCst), pid.as_raw_nonzero().get());
        assert_eq!(ended(pid), 127 << 8);
    }

    #[test]
    fn signals_are_as_before_afterwards() {
        let blocked = || {
            let quiet = Quiet::begin().unwrap();
            // SAFETY: the set was written by `begin`.
            unsafe { libc::sigismember(&raw const quiet.before, libc::SIGTERM) }
        };
        assert_eq!(blocked(), 0);
        // SAFETY: it does nothing.
        ended(unsafe { child(None, &|| {}) }.unwrap().unwrap());
        assert_eq!(blocked(), 0);
    }
}
