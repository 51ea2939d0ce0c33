//! Ctrl-Alt-Del: what a VMM presses when nobody answers on the connection any more. The machine then ends in order.

use std::io;
use std::sync::Arc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use rustix::system::{RebootCommand, reboot};

use crate::agent::Agent;
use crate::boot::reset;
use crate::console::say;

/// Has the kernel tell init (by SIGINT, reboot(2)) and not reset at once; init must have called [`block`] before.
///
/// # Errors
/// When there can be no thread, or this is no init.
pub(crate) fn listen(agent: &Arc<Agent>) -> io::Result<()> {
    let agent = Arc::clone(agent);
    let thread = thread::Builder::new().name("keys".to_owned());
    thread.spawn(move || {
        // It fails only for a set that has none.
        if interrupt().wait().is_ok() {
            say("Ctrl-Alt-Del: the machine ends");
            agent.end_unasked();
            reset();
        }
    })?;
    reboot(RebootCommand::CadOff)?;
    Ok(())
}

/// Keeps the signal for the thread that waits for it. Before there are other threads: they inherit it. A container's
/// processes begin with nothing blocked.
///
/// # Errors
/// None that a right set could have.
pub(crate) fn block() -> io::Result<()> {
    Ok(interrupt().thread_block()?)
}

fn interrupt() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set
}
