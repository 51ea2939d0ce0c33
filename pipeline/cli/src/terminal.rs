//! The caller's terminal, while a process of a guest has it: raw, because the guest's terminal does what a terminal does; and
//! put back at the end, however that comes.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use fcpipe_proto::WindowSize;
use fcpipe_supervisor::{Line, Request};
use nix::sys::signal::Signal;
use rustix::termios::{OptionalActions, Termios};

use crate::complaint::Complaint;
use crate::signals;

/// A terminal that a process of a guest has. It is as before when this is dropped.
pub(crate) struct Terminal {
    fd: OwnedFd,
    before: Termios,
}

impl Terminal {
    /// The terminal at standard input, made raw.
    pub(crate) fn take() -> Result<Self, Complaint> {
        if !std::io::stdin().is_terminal() {
            return Err(Complaint::new("-t: standard input is no terminal")
                .hint("leave -t out where nobody sits at one"));
        }
        let failed = |e: rustix::io::Errno| Complaint::new(format_args!("the terminal: {e}"));
        let fd = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).map_err(failed)?;
        let before = rustix::termios::tcgetattr(&fd).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&fd, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Terminal { fd, before })
    }

    /// Its size.
    pub(crate) fn size(&self) -> Option<WindowSize> {
        size(&self.fd)
    }

    /// What a supervisor needs to put it back, should this program be killed.
    pub(crate) fn for_supervisor(&self) -> std::io::Result<(OwnedFd, Termios)> {
        Ok((self.fd.try_clone()?, self.before.clone()))
    }
}

/// How long a supervisor may take to read a second signal. It passes on what it has read on other threads, so it reads at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// Of a supervisor that does not.
pub(crate) const HEARS_NOTHING: &str = "error: the launch's supervisor (fcpipe-super) hears nothing, as one that is stopped; this command ends without it, and the \
                                        process ends when it goes on";

/// From here on the caller's signals, the sizes of its terminal and what is typed go to the process at the other end. Before any
/// other thread starts: they inherit which signals are blocked.
pub(crate) fn hand_over(
    terminal: Option<&Terminal>,
    typed: Option<Typed>,
    line: Line,
) -> Result<(), Complaint> {
    let mut signals = 0;
    let mut pass_on = move |line: &Line, signal: i32| {
        signals += 1;
        match signals {
            1 => line.say(&Request::Signal { signal }),
            _ => line.insist(signal, PATIENCE),
        }
    };
    match terminal {
        Some(terminal) => {
            let fd = terminal.fd.try_clone();
            let fd = fd.map_err(|e| Complaint::new(format_args!("the terminal: {e}")))?;
            signals::watch_also(&[Signal::SIGWINCH], move |signal| {
                if signal != Signal::SIGWINCH as i32 {
                    pass_on(&line, signal);
                } else if let Some(size) = size(&fd) {
                    line.say(&Request::Resize { size });
                }
            })
        }
        None => signals::watch(move |signal| pass_on(&line, signal)),
    }
    .map_err(Complaint::new)?;
    if let Some(typed) = typed {
        typed.copy();
    }
    Ok(())
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.fd, OptionalActions::Now, &self.before);
    }
}

fn size(fd: &OwnedFd) -> Option<WindowSize> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Standard input that is a terminal is read by the client, and not by a process behind it: the shell knows the client, and
/// stops it when it may not read.
pub(crate) struct Typed {
    terminal: File,
    pipe: OwnedFd,
}

impl Typed {
    /// Puts a pipe in standard input's place, for the supervisor to read; `None` where it is no terminal.
    pub(crate) fn in_between() -> std::io::Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let terminal = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
        let (read, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::stdio::dup2_stdin(&read)?;
        Ok(Some(Typed {
            terminal: terminal.into(),
            pipe,
        }))
    }

    /// Copies what is typed, to the end of either.
    pub(crate) fn copy(self) {
        let thread = std::thread::Builder::new().name("fc-stdin".into());
        // Without a thread the process sees the end of its input.
        let _ = thread.spawn(move || {
            let (mut from, mut pipe) = (self.terminal, File::from(self.pipe));
            let _ = std::io::copy(&mut from, &mut pipe);
        });
    }
}

/// The descriptors that a process's streams are made of.
pub(crate) fn with_streams<T>(
    stdin: bool,
    with: impl FnOnce(&[std::os::fd::BorrowedFd<'_>]) -> T,
) -> T {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut fds = Vec::new();
    if stdin {
        fds.push(input.as_fd());
    }
    fds.extend([output.as_fd(), error.as_fd()]);
    with(&fds)
}
