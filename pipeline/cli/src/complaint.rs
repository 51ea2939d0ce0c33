//! What a person is told when a command fails: what, about which input, why, and what to do next.

use std::io::Write as _;
use std::path::PathBuf;

use fcpipe_engine::{Failure, NotUndone, chain};
use fcpipe_spec::SpecError;
use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceOffset, SourceSpan,
};

use crate::exit::Convention;
use crate::render::harmless;

/// Why a command did not do what it was asked.
pub(crate) enum Complaint {
    /// The spec is wrong.
    Spec(Box<SpecError>),
    /// A step of a launch failed.
    Failure(Box<Failure>),
    /// A launch was ended by this signal before its process could take it.
    Signal(i32),
    /// Something about the command itself.
    Other { what: String, hint: Option<String> },
}

impl From<SpecError> for Complaint {
    fn from(error: SpecError) -> Self {
        Complaint::Spec(Box::new(error))
    }
}

impl From<Failure> for Complaint {
    fn from(failure: Failure) -> Self {
        Complaint::Failure(Box::new(failure))
    }
}

impl Complaint {
    pub(crate) fn new(what: impl std::fmt::Display) -> Self {
        Complaint::Other {
            what: what.to_string(),
            hint: None,
        }
    }

    /// An error of a library, with what caused it.
    pub(crate) fn of(error: impl std::error::Error) -> Self {
        Complaint::new(chain(&error))
    }

    /// An error about a file or directory of the command's own.
    pub(crate) fn about(path: impl Into<PathBuf>, error: impl std::fmt::Display) -> Self {
        Complaint::new(format_args!("{}: {error}", path.into().display()))
    }

    pub(crate) fn of_vmm(error: fcpipe_vmm::VmmError) -> Self {
        let hint = error.hint().map(str::to_owned);
        let complaint = Complaint::of(error);
        match hint {
            Some(hint) => complaint.hint(hint),
            None => complaint,
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Complaint::Other { what, .. } => Complaint::Other {
                what,
                hint: Some(hint.into()),
            },
            other => other,
        }
    }

    /// It in one line, for somebody else to say.
    pub(crate) fn words(&self) -> String {
        match self {
            Complaint::Spec(error) => error.to_string(),
            Complaint::Failure(failure) => format!("{failure:#}"),
            Complaint::Signal(number) => format!("ended by signal {number}"),
            Complaint::Other { what, .. } => what.clone(),
        }
    }

    /// Says it on stderr and gives the exit code.
    pub(crate) fn show(&self, convention: Convention) -> u8 {
        let message = match self {
            Complaint::Spec(error) => Message::of_spec(error),
            Complaint::Failure(failure) => Message {
                // The whole chain of causes in one sentence: the last link is often the useful one.
                what: harmless(&format!("{failure:#}")),
                hint: failure.hint.as_deref().map(harmless),
                source: None,
            },
            Complaint::Signal(number) => {
                return 128u8.saturating_add(u8::try_from(*number).unwrap_or(127));
            }
            Complaint::Other { what, hint } => Message {
                what: harmless(what),
                hint: hint.as_deref().map(harmless),
                source: None,
            },
        };
        message.print();
        match self {
            Complaint::Spec(_) => convention.wrong_spec(),
            Complaint::Failure(failure) => convention.failure(failure),
            Complaint::Signal(_) | Complaint::Other { .. } => convention.failed(),
        }
    }
}

/// Says something that stops nothing.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "warning: {}", harmless(text));
}

/// What a launch could not take away, in a line.
pub(crate) fn not_undone(left: &NotUndone) -> String {
    format!("warning: {left}")
}

/// No spec is larger.
const MOST_SHOWN: u64 = 8 << 20;

/// A complaint in the form that is drawn.
#[derive(Debug)]
struct Message {
    what: String,
    hint: Option<String>,
    source: Option<(NamedSource<String>, SourceSpan)>,
}

impl Message {
    /// With the line of the spec that is at fault, where it can be read again.
    fn of_spec(error: &SpecError) -> Self {
        let source = || {
            let (file, line, column) = (error.file()?, error.line()?, error.column()?);
            // A pipe that was read is empty now, and would be waited for.
            let text = fcpipe_engine::read_file(file, MOST_SHOWN).ok()?;
            let text = String::from_utf8(text).ok()?;
            // One character for another, so that columns stay what they are.
            let disturbs = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
            let text = text.replace(disturbs, "\u{fffd}");
            let offset = SourceOffset::from_location(&text, line, column);
            let span = SourceSpan::new(offset, 1);
            let name = harmless(&file.display().to_string());
            Some((NamedSource::new(name, text), span))
        };
        Message {
            what: harmless(&error.to_string()),
            hint: error.hint().map(|hint| harmless(&hint)),
            source: source(),
        }
    }

    fn print(&self) {
        use std::io::IsTerminal as _;
        let mut stderr = std::io::stderr().lock();
        let mut text = String::new();
        if stderr.is_terminal() {
            let handler = GraphicalReportHandler::new_themed(GraphicalTheme::default());
            if handler.render_report(&mut text, self).is_ok() {
                let _ = stderr.write_all(text.as_bytes());
                return;
            }
        }
        // In a log or a pipe one line that can be searched for is worth more than a drawing.
        let _ = writeln!(stderr, "error: {}", self.what);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "  hint: {}", hint.replace('\n', "\n  "));
        }
    }
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Message {}

impl Diagnostic for Message {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as _)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|(source, _)| source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let (_, span) = self.source.as_ref()?;
        let label = miette::LabeledSpan::new_with_span(Some("here".to_owned()), *span);
        Some(Box::new(std::iter::once(label)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_1_a_spec_that_came_through_a_pipe_is_not_waited_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let path = fifo.clone();
        std::thread::spawn(move || {
            let error = fcpipe_spec::load(&path, &fcpipe_spec::LoadOptions::default());
            let _ = tell.send(Message::of_spec(&error.unwrap_err()));
        });
        std::fs::write(fifo, "{\"version\": 1,\n\"bad").unwrap();
        let told = told.recv_timeout(std::time::Duration::from_secs(60));
        let message = told.expect("it is waited for");
        assert!(message.what.contains("fifo:2:1") && message.source.is_none());
    }

    #[test]
    fn row_15_a_line_of_a_spec_that_is_drawn_cannot_disturb_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("spec.json");
        std::fs::write(&file, "{\"version\": 1,\n\"\u{1b}[2J\": }").unwrap();
        let error = fcpipe_spec::load(&file, &fcpipe_spec::LoadOptions::default()).unwrap_err();
        let message = Message::of_spec(&error);
        assert!(message.source.is_some());
        let mut drawn = String::new();
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .render_report(&mut drawn, &message)
            .unwrap();
        assert!(!drawn.contains('\u{1b}'), "{drawn:?}");
    }
}
