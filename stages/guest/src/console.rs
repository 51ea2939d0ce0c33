//! What the agent says on the VM's console: little.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::OnceLock;

static KERNEL_LOG: OnceLock<Option<std::fs::File>> = OnceLock::new();

/// The kernel's level "error": shown on the console of a kernel started with `quiet`.
const ERROR: &str = "<3>";

/// Says a line on the console, by way of the kernel's log, so that lines of the kernel and of the
/// agent don't run into each other and a flood is limited there.
pub fn say(line: &str) {
    let log = KERNEL_LOG.get_or_init(|| OpenOptions::new().write(true).open("/dev/kmsg").ok());
    let written = std::process::id() == 1
        && log.as_ref().is_some_and(|mut log| {
            // One write is one record.
            log.write_all(format!("{ERROR}fcpipe: {line}\n").as_bytes())
                .is_ok()
        });
    if !written {
        // No kernel log, or no VM at all: standard error is the console there.
        let _ = writeln!(std::io::stderr(), "fcpipe: {line}");
    }
}
