//! `fcpipe kill`: sends a signal to the process of a launch, or to all of its processes.

use fcpipe_supervisor::Request;
use nix::sys::signal::Signal;

use super::{Answer, Outcome, ask, note};
use crate::arguments::{Global, Kill};
use crate::complaint::Complaint;

pub(crate) fn run(global: &Global, arguments: &Kill) -> Outcome {
    let signal = number(&arguments.signal).ok_or_else(|| {
        Complaint::new(format_args!("unknown signal {:?}", arguments.signal))
            .hint("a number from 1 to 64, or a name such as TERM or SIGTERM")
    })?;
    let request = Request::Kill {
        signal,
        all: arguments.all,
    };
    match ask(global, &arguments.id, &request)? {
        Answer::Done => {}
        // As with every OCI runtime, it counts as sent.
        Answer::Dropped => note(format!(
            "note: {} was sent, but the process has no handler for it, and as process 1 of its container it does not end without one; \
             `fcpipe kill {} KILL` ends it",
            arguments.signal, arguments.id
        )),
    }
    Ok(0)
}

/// `9`, `KILL`, `SIGKILL`, `kill`, `RTMIN+3`.
fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // Real-time signals have no names of their own: as the C library counts them, 34 to 64.
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, 34, 1);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, 64, -1);
    }
    format!("SIG{name}")
        .parse::<Signal>()
        .ok()
        .map(|s| s as i32)
}

fn offset(text: &str, from: i32, direction: i32) -> Option<i32> {
    let sign = if direction > 0 { '+' } else { '-' };
    let by = match text {
        "" => 0,
        text => text.strip_prefix(sign)?.parse::<i32>().ok()?,
    };
    let number = from + by * direction;
    (34..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_number_and_name() {
        for (text, signal) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("usr1", 10),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(number(text), Some(signal), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIGNOT", "RTMIN+99", "RTMIN3"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
