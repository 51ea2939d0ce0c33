//! The agent's main loop: takes connections, and ends the machine when none comes.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fcpipe_proto::{ProtoError, Stream};

use crate::agent::{Agent, Outcome};
use crate::boot::reset;
use crate::console::say;

/// How long the host may be gone. A launcher that died took its VMM with it, or will not come
/// back; one that merely lost a connection dials again at once.
const ALONE: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Serves until the machine is reset, or `accept` fails.
pub fn serve<S: Stream>(agent: &Arc<Agent>, accept: impl Fn(Duration) -> io::Result<Option<S>>) {
    let mut dialled_once = false;
    loop {
        match accept(LOOK) {
            Ok(Some(stream)) => {
                dialled_once = true;
                let owned = Arc::clone(agent);
                let thread = thread::Builder::new().name("session".to_owned());
                if let Err(e) = thread.spawn(move || serve_one(&owned, stream)) {
                    say(&format!("no thread for a connection: {e}"));
                }
            }
            Ok(None) => {}
            Err(e) => {
                say(&format!("taking connections: {e}"));
                return;
            }
        }
        let patience = if dialled_once { ALONE } else { 3 * ALONE };
        if agent.alone_for().is_some_and(|alone| alone > patience) {
            say("the host is gone");
            agent.end();
            reset();
        }
    }
}

fn serve_one<S: Stream>(agent: &Arc<Agent>, stream: S) {
    match agent.serve_one(stream) {
        Outcome::Shutdown => reset(),
        Outcome::Lost(ProtoError::Closed | ProtoError::Ended | ProtoError::Busy) => {}
        Outcome::Lost(e) => say(&format!("a connection ended: {e}")),
    }
}
