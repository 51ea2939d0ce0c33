//! Starting a launch: the order to its supervisor, and what the client does until it is done.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fcpipe_engine::Failure;
use fcpipe_proto::ExitStatus;
use fcpipe_spec::{LaunchId, LaunchSpec};
use fcpipe_supervisor::{Bond, Connection, Console, LogLimits, Order, Reply};
use fcpipe_vmm::ShimProgram;
use nix::sys::signal::Signal;

use super::{builder, host, note, report, write_timings};
use crate::arguments::{Building, Global, Launching, Progress, Spec};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::Rendering;
use crate::terminal::{HEARS_NOTHING, Terminal, Typed, hand_over};

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
    /// It has the caller's terminal.
    pub(crate) terminal: bool,
    /// It has a terminal, whose host's end goes to this socket.
    pub(crate) console_socket: Option<&'a Path>,
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

/// A shell there waits for ever. Said to who sits at a terminal.
const TERMINAL_OF_NOBODY: &str = "note: the process has a terminal (process.terminal) at which nobody types: `run -it` gives it yours, \
                                  `--set process.terminal=false` none";

/// Starts a launch and waits until it is as far as its bond says.
pub(crate) fn start(global: &Global, wanted: Wanted<'_>) -> Result<Came, Complaint> {
    let spec = super::load(global, wanted.spec)?;
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let bond = wanted.bond;
    let nobody_types = spec.process.terminal && !wanted.terminal && !wanted.stdin;
    if nobody_types && bond == Bond::Attached && std::io::stdin().is_terminal() {
        note(TERMINAL_OF_NOBODY.into());
    }
    let mut order = order(global, &wanted, spec, directories)?;
    let stdin_error = |e| Complaint::new(format_args!("stdin: {e}"));
    let terminal = wanted.terminal.then(Terminal::take).transpose()?;
    if let Some(terminal) = &terminal {
        order.spec.process.terminal = true;
        order.console_size = terminal.size();
        order.terminal = Some(terminal.for_supervisor().map_err(stdin_error)?);
    }
    let typed = match wanted.stdin {
        true => Typed::in_between().map_err(stdin_error)?,
        false => None,
    };
    let mut connection = fcpipe_supervisor::start(order)
        .map_err(|e| Complaint::new(format_args!("the supervisor can't be started: {e}")))?;
    hand_over(terminal.as_ref(), typed, connection.line())?;
    let came = follow(global, &mut connection, bond);
    // Before anything is said about how it ended.
    drop(terminal);
    came
}

/// Shows what happens until there is an end to wait for.
fn follow(global: &Global, connection: &mut Connection, bond: Bond) -> Result<Came, Complaint> {
    let (events, rendering) = Rendering::start(global.progress);
    let end = loop {
        match connection.reply().map_err(Complaint::of)? {
            Some(Reply::Event { event }) => events.send(event),
            Some(Reply::Note { line }) => note(line),
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
        Some(Reply::Ended { signal }) => {
            // Of other signals the caller knows: it sent them.
            if signal == Signal::SIGKILL as i32 {
                note(
                    "error: `fcpipe delete --force` ended the launch before its process ran".into(),
                );
            }
            Err(Complaint::Signal(signal))
        }
        Some(Reply::Failed { failed }) => Err(Failure::from(failed).into()),
        None if let Some(signal) = connection.gave_up() => {
            note(HEARS_NOTHING.into());
            Err(Complaint::Signal(signal))
        }
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
    let vmms = super::monitors(global, &directories);
    let launching = wanted.launching;
    let chosen = fcpipe_vmm::choose(&vmms, launching.vmm.into()).map_err(Complaint::of_vmm)?;
    let usual = LogLimits::default();
    let limits = LogLimits {
        size: global.settings.log_size.unwrap_or(usual.size),
        files: global.settings.log_files.unwrap_or(usual.files),
    };
    let building = wanted.building.clone();
    let (global, timings) = (global.clone(), timings(wanted.building)?);
    let (own, file) = (directories.clone(), spec.file.clone());
    Ok(Order {
        id: wanted.id.clone(),
        bundle: bundle(&spec),
        data: directories.data.clone(),
        kernel: super::kernel(&global, &directories, launching.kernel.as_ref())?,
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
        logged: wanted.logged.then_some(limits),
        steps: global.progress != Progress::Quiet,
        terminal: None,
        console_size: None,
        console: console(wanted, &spec)?,
        open_host: Box::new(move |events, cancel, tell| {
            host(&global, &building, &directories, events, cancel, tell)
                .map_err(|complaint| complaint.words())
        }),
        ended: Box::new(move |launched| {
            let receipt = launched.receipt.as_ref();
            let result = match &launched.result {
                Ok(status) => format!("exit {}", status.shell_code()),
                Err(failure) => format!("{failure:#}"),
            };
            let kept = report::keep(&own, &file, "run", result, receipt, &launched.steps);
            write_timings(timings.as_deref(), receipt).map_err(|complaint| complaint.words())?;
            kept
        }),
        spec,
    })
}

/// What OCI runtimes ask for: a process with a terminal that nobody is attached to needs somebody to take it.
fn console(wanted: &Wanted<'_>, spec: &LaunchSpec) -> Result<Option<Console>, Complaint> {
    match (wanted.console_socket, spec.process.terminal) {
        (Some(socket), true) => Console::send_to(socket)
            .map(Some)
            .map_err(|e| Complaint::about(socket, e)),
        (Some(_), false) => Err(Complaint::new(
            "--console-socket: the process has no terminal (process.terminal)",
        )),
        (None, true) if wanted.bond == Bond::Created => Err(Complaint::new(
            "process.terminal needs --console-socket: `create` leaves its own terminal",
        )),
        (None, _) => Ok(None),
    }
}

/// It is written by the supervisor, whose working directory and standard streams are not the caller's: `/dev/stdout` would be another file there.
fn timings(building: &Building) -> Result<Option<PathBuf>, Complaint> {
    let Some(path) = &building.timings else {
        return Ok(None);
    };
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(Complaint::about(
            path,
            "--timings needs a file, and this is something else",
        ));
    }
    let absolute = std::path::absolute(path).map_err(|e| Complaint::about(path, e))?;
    Ok(Some(absolute))
}

/// The directory of the spec's file.
fn bundle(spec: &LaunchSpec) -> PathBuf {
    let file = std::path::absolute(&spec.file).unwrap_or_else(|_| spec.file.clone());
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}
