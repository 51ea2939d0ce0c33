//! Starting a launch: the order to its supervisor, and what the client does until it is done.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fcpipe_engine::Failure;
use fcpipe_proto::ExitStatus;
use fcpipe_spec::{LaunchId, LaunchSpec};
use fcpipe_supervisor::{Bond, Connection, LogLimits, Order, Reply, Request};
use fcpipe_vmm::ShimProgram;

use super::{builder, host, report, write_timings};
use crate::arguments::{Building, Global, Launching, Spec};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::{Rendering, harmless};
use crate::signals;

/// What `run` and `create` ask for.
pub(crate) struct Wanted<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) launching: &'a Launching,
    pub(crate) building: &'a Building,
    pub(crate) id: LaunchId,
    pub(crate) bond: Bond,
    /// The process reads standard input.
    pub(crate) stdin: bool,
    /// Its output goes to the launch's log.
    pub(crate) logged: bool,
}

/// How far a launch came that was started.
pub(crate) enum Came {
    /// Its guest waits for `start`.
    Created,
    /// Its process runs, and goes on.
    Started,
    /// Its process ended.
    Exited(ExitStatus),
}

/// Starts a launch and waits until it is as far as its bond says.
pub(crate) fn start(global: &Global, wanted: Wanted<'_>) -> Result<Came, Complaint> {
    let spec = super::load(wanted.spec)?;
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let bond = wanted.bond;
    let terminal = if wanted.stdin && std::io::stdin().is_terminal() {
        Some(Terminal::in_between().map_err(|e| Complaint::new(format_args!("stdin: {e}")))?)
    } else {
        None
    };
    let order = order(global, &wanted, spec, directories)?;
    let mut connection = fcpipe_supervisor::start(order)
        .map_err(|e| Complaint::new(format_args!("the supervisor can't be started: {e}")))?;
    // Before any other thread: they inherit which signals are blocked.
    let line = connection.line();
    signals::watch(move |signal| line.say(&Request::Signal { signal })).map_err(Complaint::new)?;
    if let Some(terminal) = terminal {
        terminal.copy();
    }
    follow(global, &mut connection, bond)
}

/// Shows what happens until there is an end to wait for.
fn follow(global: &Global, connection: &mut Connection, bond: Bond) -> Result<Came, Complaint> {
    let (events, rendering) = Rendering::start(global.progress);
    let end = loop {
        match connection.reply().map_err(Complaint::new)? {
            Some(Reply::Event { event }) => events.send(event),
            Some(Reply::Note { line }) => {
                let _ = writeln!(std::io::stderr().lock(), "{}", harmless(&line));
            }
            Some(Reply::Started) if bond == Bond::Attached => {}
            other => break other,
        }
    };
    drop(events);
    rendering.finish();
    match end {
        Some(Reply::Created) => Ok(Came::Created),
        Some(Reply::Started) => Ok(Came::Started),
        Some(Reply::Exited { status }) => Ok(Came::Exited(status)),
        Some(Reply::Ended { signal }) => Err(Complaint::Signal(signal)),
        Some(Reply::Failed { failed }) => Err(Failure::from(failed).into()),
        None => Err(Complaint::new("the launch's supervisor was killed")
            .hint("what it had made is taken away by the next command")),
        Some(other) => Err(Complaint::new(format_args!(
            "the supervisor said something unexpected: {other:?}"
        ))),
    }
}

fn order(
    global: &Global,
    wanted: &Wanted<'_>,
    spec: LaunchSpec,
    directories: Directories,
) -> Result<Order, Complaint> {
    let vmms = fcpipe_vmm::Host::from_env(Some(&directories.data));
    let launching = wanted.launching;
    let chosen = fcpipe_vmm::choose(&vmms, launching.vmm.into()).map_err(Complaint::of_vmm)?;
    let building = wanted.building.clone();
    let (global, timings) = (global.clone(), timings(wanted.building)?);
    let (own, file) = (directories.clone(), spec.file.clone());
    Ok(Order {
        id: wanted.id.clone(),
        bundle: bundle(&spec),
        data: directories.data.clone(),
        kernel: launching.kernel.clone(),
        builder: builder(wanted.building.builder),
        strict: wanted.spec.strict,
        vmm: chosen.vmm,
        shim: ShimProgram {
            path: "/proc/self/exe".into(),
            args: vec![crate::SHIM.to_owned()],
        },
        boot_timeout: Duration::from_secs(launching.boot_timeout.into()),
        bond: wanted.bond,
        stdin: wanted.stdin,
        logged: wanted.logged.then(LogLimits::default),
        open_host: Box::new(move |events, cancel, tell| {
            host(&global, &building, &directories, events, cancel, tell)
                .map_err(|complaint| complaint.words())
        }),
        ended: Box::new(move |launched| {
            let receipt = launched.receipt.as_ref();
            let result = match &launched.result {
                Ok(status) => format!("exit {}", status.shell_code()),
                Err(failure) => failure.to_string(),
            };
            let kept = report::keep(&own, &file, "run", result, receipt, &launched.steps);
            write_timings(timings.as_deref(), receipt).map_err(|complaint| complaint.words())?;
            kept
        }),
        spec,
    })
}

/// The supervisor's working directory is not the caller's.
fn timings(building: &Building) -> Result<Option<PathBuf>, Complaint> {
    let absolute =
        |path: &PathBuf| std::path::absolute(path).map_err(|e| Complaint::about(path, e));
    building.timings.as_ref().map(absolute).transpose()
}

/// The directory of the spec's file.
fn bundle(spec: &LaunchSpec) -> PathBuf {
    let file = std::path::absolute(&spec.file).unwrap_or_else(|_| spec.file.clone());
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A terminal is read by the client and not by the supervisor: the shell knows the client, and stops it when it may not read.
struct Terminal {
    terminal: File,
    pipe: OwnedFd,
}

impl Terminal {
    /// Puts a pipe in standard input's place, for the supervisor to inherit.
    fn in_between() -> std::io::Result<Self> {
        let terminal = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
        let (read, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::stdio::dup2_stdin(&read)?;
        Ok(Terminal {
            terminal: terminal.into(),
            pipe,
        })
    }

    /// Copies what is typed, to the end of either.
    fn copy(mut self) {
        let thread = std::thread::Builder::new().name("fc-stdin".into());
        // Without a thread the process sees the end of its input.
        let _ = thread.spawn(move || {
            let mut pipe = File::from(self.pipe);
            let _ = std::io::copy(&mut self.terminal, &mut pipe);
        });
    }
}
