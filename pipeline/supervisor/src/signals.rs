//! SIGINT, SIGTERM and SIGHUP sent to the supervisor itself are as those sent to whoever started it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};

use crate::life::Life;

/// Blocks them in this thread, and in those that it starts.
pub(crate) fn block() -> std::io::Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    let mut also = set;
    // For whoever waits for it: see `console.rs`.
    also.add(Signal::SIGWINCH);
    also.thread_block()?;
    Ok(set)
}

/// Has a program begin with no signal blocked. It inherits what is here otherwise, and so does whatever it leaves behind: a daemon that a hook
/// starts would hear of no SIGTERM.
#[allow(
    unsafe_code,
    reason = "what is done between fork and exec has no safe form"
)]
pub(crate) fn unblock_in(command: &mut Command) {
    // SAFETY: between fork and exec one system call is made, which takes no lock and no memory.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
}

/// Takes them on a thread of its own.
pub(crate) fn follow(set: SigSet, life: Arc<Life>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || {
        while let Ok(signal) = set.wait() {
            pass_on(&life, signal as i32);
        }
    })?;
    Ok(())
}

/// Passes a signal on, beside the calling thread: an agent that is slow to answer must not keep a second signal waiting.
pub(crate) fn pass_on(life: &Arc<Life>, signal: i32) {
    let passed = Arc::clone(life);
    let thread = std::thread::Builder::new().name("signal".to_owned());
    let spawned = thread.spawn(move || {
        passed.signal(signal);
    });
    if spawned.is_err() {
        // There is no room for anything: the launch ends.
        life.cancel().cancel();
    }
}
