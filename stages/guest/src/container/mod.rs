//! A container process before it is the program that was asked for.
//!
//! The agent runs this program again, in a new PID namespace for the container's first process
//! and in the container's for the others. Here is no other thread, so that namespaces, ids and
//! limits can be changed for the whole process by plain calls. Whatever fails is reported to the
//! agent ([`crate::handoff`]) and ends the process; the order of the steps is runc's.

mod copyup;
mod devices;
mod exec;
mod hooks;
mod mounts;
mod options;
mod paths;
mod privileges;
pub mod resolve;
mod sysctl;
pub(crate) mod terminal;
mod user;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use fcpipe_proto::{Failure, FailureKind, GuestConfig, Process};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_remount, unmount,
};
use rustix::process::{fchdir, pivot_root, umask};
use rustix::thread::set_no_new_privs;

use crate::handoff::{self, Container, Orders, Report};
use crate::sys;
use terminal::Terminal;

/// The argument that makes this program a container process.
pub const ARGUMENT: &str = "container-process";

/// A container process's life, as far as it is ours.
#[must_use]
pub fn main() -> ExitCode {
    // The agent's socket is moved out of the way of standard input, and closes on execve(2).
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut control = UnixStream::from(control);
    let Ok(Some((orders, fds))) = handoff::receive::<Orders>(&mut control) else {
        return ExitCode::FAILURE;
    };
    let Err(failure) = become_program(orders, fds, &mut control);
    let code = failure.shell_code();
    // Without an agent nobody wants to know. Where a filter of system calls forbids it, the exit code says it.
    let _ = handoff::send(&mut control, &Report::Failed(failure), &[]);
    ExitCode::from(code)
}

fn become_program(
    orders: Orders,
    fds: Vec<OwnedFd>,
    control: &mut UnixStream,
) -> Result<std::convert::Infallible, Failure> {
    let Orders { process, container } = orders;
    let mut fds = fds.into_iter();
    let init = match container {
        Some(_) => None,
        None => Some(fds.next().ok_or_else(|| setup("no container to join"))?),
    };
    // While /proc is the agent's. It is inherited, and the agent's is the lowest there is.
    let score = process.oom_score_adj.unwrap_or(0).to_string();
    fs::write("/proc/self/oom_score_adj", score).map_err(|e| failed(None, "its OOM score", e))?;
    let terminal = match (&container, &init) {
        (Some(container), _) => enter_new(container, &process)?,
        (None, Some(init)) => enter_running(init, &process)?,
        (None, None) => None,
    };
    rustix::process::setsid().map_err(|e| failed(None, "a new session", e))?;
    let [stdin, stdout, stderr] = match &terminal {
        Some(terminal) => {
            terminal.control()?;
            let report = handoff::send(control, &Report::Terminal, &[terminal.master.as_fd()]);
            report.map_err(|e| failed(None, "handing the terminal over", e))?;
            [&terminal.peer; 3].map(AsFd::as_fd)
        }
        None => {
            let streams = fds.as_slice().iter().map(AsFd::as_fd);
            let streams: Vec<BorrowedFd<'_>> = streams.collect();
            <[BorrowedFd<'_>; 3]>::try_from(streams)
                .map_err(|_| setup("its standard streams did not come"))?
        }
    };
    rustix::stdio::dup2_stdin(stdin).map_err(|e| failed(None, "standard input", e))?;
    rustix::stdio::dup2_stdout(stdout).map_err(|e| failed(None, "standard output", e))?;
    rustix::stdio::dup2_stderr(stderr).map_err(|e| failed(None, "standard error", e))?;
    // What makes system calls of its own comes before any filter of them.
    sys::reset_signals();
    sys::close_on_exec_from_3().map_err(|e| failed(None, "closing descriptors", e))?;
    if let Some(persona) = process.personality {
        sys::personality(persona).map_err(|e| failed(None, "its personality", e))?;
    }
    user::limit(&process)?;
    let filter = process.seccomp.as_ref();
    if process.no_new_privileges {
        set_no_new_privs(true).map_err(|e| failed(None, "no new privileges", e))?;
    } else if let Some(filter) = filter {
        // While it is privileged enough for that.
        privileges::filter(filter)?;
    }
    let home = user::become_user(&process)?;
    let program = exec::Program::find(&process, &home)?;
    if let Some(Container { config, .. }) = &container {
        let hooks = &config.hooks;
        hooks::run(
            &hooks.start_container,
            hooks.state.as_ref(),
            "created",
            None,
        )?;
    }
    // An agent that is gone has taken the machine with it. The filter may keep us from saying it later.
    let _ = handoff::send(control, &Report::Exec, &[]);
    if let Some(filter) = filter.filter(|_| process.no_new_privileges) {
        privileges::filter(filter)?;
    }
    program.exec()
}

/// Makes the container around this process, its PID 1.
fn enter_new(container: &Container, process: &Process) -> Result<Option<Terminal>, Failure> {
    let Container { root, config } = container;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|e| failed(None, "new namespaces", e))?;
    set_names(config)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| failed(Some("/"), "making mounts private", e))?;

    let root_fd = open_root(root)?;
    // Modes of what is made here are meant as they are written.
    umask(Mode::empty());
    // Before anything is mounted above them.
    let base = root.parent().unwrap_or(root);
    let places = mounts::places(base, root_fd.as_fd(), &config.mounts)?;
    for (mount, place) in config.mounts.iter().zip(&places) {
        mounts::make(root_fd.as_fd(), mount, place.as_ref())?;
    }
    devices::make(root_fd.as_fd(), config)?;
    devices::make_named(root_fd.as_fd(), &config.confinement.devices)?;
    let terminal = terminal::open(root_fd.as_fd(), process)?;
    if let Some(terminal) = &terminal {
        terminal.make_console(root_fd.as_fd())?;
    }
    resolve::make_dir(root_fd.as_fd(), &process.cwd)
        .map_err(|e| failed(Some(&process.cwd), "the working directory", e))?;
    let root_place = Some(root_fd.as_fd());
    let state = config.hooks.state.as_ref();
    hooks::run(
        &config.hooks.create_container,
        state,
        "creating",
        root_place,
    )?;

    mounts::finish(root_fd.as_fd(), &config.mounts)?;
    let confinement = &config.confinement;
    sysctl::apply(&confinement.sysctl)?;
    paths::readonly(root_fd.as_fd(), &confinement.readonly_paths)?;
    paths::mask(root_fd.as_fd(), &confinement.masked_paths)?;
    if config.root.readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(resolve::path_of(root_fd.as_fd()), flags, c"")
            .map_err(|e| failed(Some("/"), "making the root read-only", e))?;
    }
    fchdir(&root_fd).map_err(|e| failed(Some("/"), "entering the root", e))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root lies on top of the new one, and is
    // taken away from there.
    pivot_root(".", ".").map_err(|e| failed(Some("/"), "changing the root", e))?;
    unmount(".", UnmountFlags::DETACH)
        .map_err(|e| failed(Some("/"), "leaving the agent's root", e))?;
    std::env::set_current_dir("/").map_err(|e| failed(Some("/"), "entering the root", e))?;
    paths::propagate(confinement.root_propagation)?;
    Ok(terminal)
}

/// Joins the container of the process of `init`. The PID namespace is joined already.
fn enter_running(init: &OwnedFd, process: &Process) -> Result<Option<Terminal>, Failure> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    setns(init, namespaces).map_err(|e| failed(None, "joining the container", e))?;
    let root = open_root(Path::new("/"))?;
    terminal::open(root.as_fd(), process)
}

fn open_root(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| failed(Some("/"), "opening the root", e))
}

fn set_names(config: &GuestConfig) -> Result<(), Failure> {
    if let Some(name) = &config.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| failed(Some(name), "the host name", e))?;
    }
    if let Some(name) = &config.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|e| failed(Some(name), "the domain name", e))?;
    }
    Ok(())
}

fn setup(why: &str) -> Failure {
    Failure::new(FailureKind::Setup, None, why)
}

fn failed(path: Option<&str>, what: &str, error: impl Into<io::Error>) -> Failure {
    let error: io::Error = error.into();
    Failure::new(FailureKind::Setup, path, format!("{what}: {error}"))
}
