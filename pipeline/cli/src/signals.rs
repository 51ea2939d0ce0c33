//! SIGINT, SIGTERM and SIGHUP, on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use fcpipe_engine::CancelToken;
use nix::sys::signal::{SigSet, Signal};

/// The first signal that ended a command; 0 for none.
#[derive(Clone, Default)]
pub(crate) struct Ended(Arc<AtomicI32>);

impl Ended {
    pub(crate) fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            number => Some(number),
        }
    }
}

/// Has a write beyond the caller's limit on a file's size (`ulimit -f`) be an error that names the file, and not this program's death. Before there
/// are threads, which inherit it.
pub(crate) fn block_file_size() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGXFSZ);
    // It fails only for a set that has no such signal.
    let _ = set.thread_block();
}

/// Has the signals end a command that works by itself.
pub(crate) fn cancel(cancel: CancelToken) -> Result<Ended, String> {
    let ended = Ended::default();
    let noted = ended.clone();
    watch(move |signal| {
        // The first one decides the exit code.
        let _ = noted
            .0
            .compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        cancel.cancel();
    })?;
    Ok(ended)
}

/// Calls `on` for each. Call this before any other thread starts, so that they all leave these signals to it.
pub(crate) fn watch(on: impl FnMut(i32) + Send + 'static) -> Result<(), String> {
    watch_also(&[], on)
}

/// The same with other signals too.
pub(crate) fn watch_also(
    also: &[Signal],
    mut on: impl FnMut(i32) + Send + 'static,
) -> Result<(), String> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .iter()
        .chain(also)
    {
        set.add(*signal);
    }
    set.thread_block()
        .map_err(|e| format!("blocking signals: {e}"))?;
    std::thread::Builder::new()
        .name("fc-signals".into())
        .spawn(move || {
            while let Ok(signal) = set.wait() {
                on(signal as i32);
            }
        })
        .map_err(|e| format!("starting the signal thread: {e}"))?;
    Ok(())
}
