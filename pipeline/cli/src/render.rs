//! What people and programs see while a command works, all of it on stderr.

mod bars;
mod lines;

use std::io::IsTerminal as _;
use std::thread::JoinHandle;

use fcpipe_engine::{Event, EventSender, event_channel};

use crate::arguments::Progress;

/// Takes a command's events, one at a time, on a thread of its own.
trait Renderer: Send {
    fn event(&mut self, event: &Event);
    /// No more events will come.
    fn end(&mut self) {}
}

/// The renderer of one command. Ends when every sender is gone.
pub(crate) struct Rendering {
    thread: Option<JoinHandle<()>>,
}

impl Rendering {
    /// Starts the renderer that `--progress` asks for.
    pub(crate) fn start(progress: Progress) -> (EventSender, Rendering) {
        let mut renderer: Box<dyn Renderer> = match progress {
            Progress::Auto if std::io::stderr().is_terminal() => Box::new(bars::Bars::new()),
            Progress::Tty => Box::new(bars::Bars::new()),
            Progress::Auto | Progress::Plain => Box::new(lines::Plain),
            Progress::Json => Box::new(lines::Json),
            Progress::Quiet => Box::new(lines::Quiet),
        };
        let (sender, receiver) = event_channel();
        let thread = std::thread::Builder::new()
            .name("fc-render".into())
            .spawn(move || {
                for event in receiver {
                    renderer.event(&event);
                }
                renderer.end();
            })
            // Without a thread to draw it there is no progress, and nothing else is lost.
            .ok();
        (sender, Rendering { thread })
    }

    /// Waits until everything that was sent has been shown.
    pub(crate) fn finish(mut self) {
        if let Some(thread) = self.thread.take() {
            // A renderer that panicked has nothing left to show.
            let _ = thread.join();
        }
    }
}

/// A text with whatever could disturb a terminal made visible.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_15_escape_codes_in_names_are_made_harmless() {
        assert_eq!(harmless("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\nc");
    }
}
