//! SIGINT, SIGTERM and SIGHUP: passed on to the process, or the end of the launch; the second one ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use fcpipe_launch::{Control, Delivered};
use nix::sys::signal::{SigSet, Signal};

/// The first signal that ended the launch rather than reaching its process; 0 for none.
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

/// Takes the signals on a thread of its own. Call it before any other thread starts, so that they all leave
/// these signals to it.
pub(crate) fn watch(control: Control) -> Result<Ended, String> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()
        .map_err(|e| format!("blocking signals: {e}"))?;
    let ended = Ended::default();
    let noted = ended.clone();
    std::thread::Builder::new()
        .name("fc-signals".into())
        .spawn(move || {
            let mut seen = 0;
            while let Ok(signal) = set.wait() {
                seen += 1;
                if seen > 1 {
                    noted.note(signal);
                    control.end();
                    continue;
                }
                let (control, noted) = (control.clone(), noted.clone());
                // Beside this thread: an agent that is slow to answer must not keep a second signal waiting.
                let passing =
                    std::thread::Builder::new()
                        .name("fc-signal".into())
                        .spawn(move || {
                            if control.signal(signal as i32) == Delivered::Ending {
                                noted.note(signal);
                            }
                        });
                // The thread only fails to start where there is no room for anything: end the launch then.
                if passing.is_err() {
                    std::process::abort();
                }
            }
        })
        .map_err(|e| format!("starting the signal thread: {e}"))?;
    Ok(ended)
}

impl Ended {
    fn note(&self, signal: Signal) {
        // The first one decides the exit code.
        let _ = self
            .0
            .compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
    }
}
