//! `fcpipe exec`: runs a process beside a launch's own, in its namespaces.

use fcpipe_engine::Failure;
use fcpipe_supervisor::{ExecProcess, Reply, Request};

use super::{IT_HAS_ENDED, Outcome, reach};
use crate::arguments::{Exec, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::exit::Convention;
use crate::terminal::{HEARS_NOTHING, Terminal, Typed, hand_over, with_streams};

pub(crate) fn run(global: &Global, arguments: &Exec) -> Outcome {
    if !arguments.detach {
        return attached(global, arguments, || Ok(()));
    }
    let said = fcpipe_supervisor::in_background(|started| {
        attached(global, arguments, || {
            if let Some(path) = &arguments.pid_file {
                super::write_pid(path, std::process::id())?;
            }
            started.tell(0);
            Ok(())
        })
        .unwrap_or_else(|complaint| {
            let code = complaint.show(Convention::Run);
            started.tell(code);
            code
        })
    });
    said.map_err(|e| Complaint::new(format_args!("the process can't be detached: {e}")))
}

/// Runs it to its end. `started` is told when it runs.
fn attached(
    global: &Global,
    arguments: &Exec,
    started: impl FnOnce() -> Result<(), Complaint>,
) -> Outcome {
    let mut started = Some(started);
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let id = &arguments.id;
    let mut connection = reach(&directories, id)?.map_err(|status| {
        Complaint::new(format_args!("cannot exec in a {status} container")).hint(IT_HAS_ENDED)
    })?;
    let terminal = arguments.terminal.then(Terminal::take).transpose()?;
    let typed = match arguments.interactive {
        true => Typed::in_between().map_err(|e| Complaint::new(format_args!("stdin: {e}")))?,
        false => None,
    };
    let mut process = process(arguments)?;
    process.terminal = terminal.as_ref().and_then(Terminal::size);
    let request = Request::Exec {
        process: Box::new(process),
        stdin: arguments.interactive,
    };
    with_streams(arguments.interactive, |fds| connection.ask(&request, fds))
        .map_err(Complaint::of)?;
    hand_over(terminal.as_ref(), typed, connection.line())?;
    loop {
        match connection.reply().map_err(Complaint::of)? {
            Some(Reply::Started) => started.take().map_or(Ok(()), |started| started())?,
            Some(Reply::Note { line }) => super::note(line),
            Some(Reply::Exited { status }) => return Ok(status.shell_code()),
            Some(Reply::Failed { failed }) => return Err(Failure::from(failed).into()),
            Some(other) => {
                return Err(Complaint::new(format_args!(
                    "the supervisor said something unexpected: {other:?}"
                )));
            }
            None if let Some(signal) = connection.gave_up() => {
                super::note(HEARS_NOTHING.into());
                return Err(Complaint::Signal(signal));
            }
            None => return Err(Complaint::new("the launch has ended").hint(IT_HAS_ENDED)),
        }
    }
}

fn process(arguments: &Exec) -> Result<ExecProcess, Complaint> {
    for variable in &arguments.env {
        if variable
            .split_once('=')
            .is_none_or(|(name, _)| name.is_empty())
        {
            return Err(Complaint::new(format_args!(
                "--env: {variable:?} is not NAME=value"
            )));
        }
    }
    let whole = arguments
        .process
        .as_ref()
        .map(|file| fcpipe_spec::load_process(file))
        .transpose()?;
    if whole.is_none() && arguments.args.is_empty() {
        return Err(Complaint::new("no command: name one behind `--`"));
    }
    Ok(ExecProcess {
        whole: whole
            .as_ref()
            .map(fcpipe_supervisor::process_of)
            .transpose()?,
        args: arguments.args.clone(),
        env: arguments.env.clone(),
        cwd: arguments.cwd.clone(),
        user: arguments.user.as_deref().map(user).transpose()?,
        terminal: None,
    })
}

/// `UID` or `UID:GID`. Names are the guest's, which is not asked.
fn user(text: &str) -> Result<(u32, Option<u32>), Complaint> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number = |text: &str| {
        text.parse::<u32>().map_err(|_| {
            Complaint::new(format_args!("--user: {text:?} is no number"))
                .hint("UID or UID:GID, as numbers")
        })
    };
    Ok((number(uid)?, gid.map(number).transpose()?))
}
