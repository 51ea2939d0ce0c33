//! The supervisor itself: from the order to the launch's end.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use fcpipe_engine::{
    CancelToken, Event, EventSender, Failure, FailureKind, LaunchDir, LaunchDirError, chain,
    event_channel,
};
use fcpipe_kernel::KernelStore;
use fcpipe_launch::{Builder, Guest, Host, Launched, Live, RunRequest, Streams};
use fcpipe_proto::{ExitStatus, WindowSize};
use fcpipe_spec::{LaunchId, LaunchSpec};
use fcpipe_vmm::{ShimProgram, Vmm};
use rustix::termios::Termios;

use crate::console::Console;
use crate::events::Events;
use crate::hooks::Hook;
use crate::life::Life;
use crate::log::{Log, LogLimits};
use crate::message::{Failed, Reply, Request};
use crate::output::Output;
use crate::record::Record;
use crate::server::Clients;
use crate::wire::{Receiver, send};
use crate::{fork, hooks, server, signals};

/// How a launch belongs to whoever starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// It ends with its caller, and leaves nothing.
    Attached,
    /// It goes on without, and stays, stopped, until it is deleted. The caller waits for its start.
    Detached,
    /// The same, and it waits for `start`. The caller waits for its creation.
    Created,
}

/// Opens the store and takes away what dead launches left; its words go to the user.
pub type OpenHost =
    Box<dyn FnOnce(EventSender, CancelToken, &mut dyn FnMut(String)) -> Result<Host, String>>;
/// Sees how a launch ended; what it can't do goes to the user.
pub type Ended = Box<dyn FnOnce(&Launched<ExitStatus>) -> Result<(), String>>;

/// Everything that a supervisor is asked for.
pub struct Order {
    pub id: LaunchId,
    pub spec: LaunchSpec,
    /// Where the spec is from, for the state.
    pub bundle: PathBuf,
    /// Imported kernels.
    pub data: PathBuf,
    pub kernel: Option<String>,
    pub builder: Builder,
    pub strict: bool,
    pub vmm: Box<dyn Vmm>,
    /// What the machine's processes end with.
    pub shim: ShimProgram,
    pub boot_timeout: Duration,
    pub bond: Bond,
    /// The caller wants to hear of each step, and not of warnings alone.
    pub steps: bool,
    /// The process reads the caller's standard input.
    pub stdin: bool,
    /// Its output goes to the launch's log, and not to the caller's streams.
    pub logged: Option<LogLimits>,
    /// The caller's terminal and its settings, which are put back where the caller is killed before it could.
    pub terminal: Option<(OwnedFd, Termios)>,
    /// The size of the process's terminal.
    pub console_size: Option<WindowSize>,
    /// A terminal of the host's that the process's is joined to, in place of the caller's streams.
    pub console: Option<Console>,
    pub open_host: OpenHost,
    pub ended: Ended,
}

/// The way to whoever started the launch: one thread writes, so that nothing here waits for it.
#[derive(Clone)]
struct Owner(Sender<Reply>);

impl Owner {
    fn start(stream: UnixStream) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = unbounded::<Reply>();
        let thread = std::thread::Builder::new()
            .name("owner-out".to_owned())
            .spawn(move || {
                let mut there = true;
                for reply in receiver {
                    // Events of a launch whose caller has gone are nobody's.
                    there = there && send(&stream, &reply, &[]).is_ok();
                }
            })?;
        Ok((Owner(sender), thread))
    }

    fn tell(&self, reply: Reply) {
        // The thread takes everything until the last sender is gone.
        let _ = self.0.send(reply);
    }

    fn note(&self, line: String) {
        self.tell(Reply::Note { line });
    }

    /// Passes a launch's events on. What it warns of is among the events that are kept, once `life` is there to keep them: a machine's
    /// network can go long after its caller has.
    fn follow(&self, life: Arc<OnceLock<Arc<Life>>>, steps: bool) -> std::io::Result<EventSender> {
        let (sender, receiver) = event_channel();
        let owner = self.clone();
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                for event in receiver {
                    if let (Event::Warning { node, message }, Some(life)) = (&event, life.get()) {
                        let data = serde_json::json!({"node": node, "message": message});
                        life.event("warning", data);
                    }
                    if steps || matches!(event, Event::Warning { .. }) {
                        owner.tell(Reply::Event { event });
                    }
                }
            })?;
        Ok(sender)
    }
}

/// How long clients may take for their last answers once the launch has ended: one of `exec`, for the output that is under way.
const FAREWELL: Duration = Duration::from_secs(5);

/// Is the supervisor, in its own process, until the launch has ended.
pub(crate) fn supervise(order: Order, channel: UnixStream) {
    let mut keep = vec![channel.as_raw_fd()];
    keep.extend(order.terminal.iter().map(|(fd, _)| fd.as_raw_fd()));
    keep.extend(order.console.iter().map(|console| console.as_raw_fd()));
    let streams = fork::detach(&keep);
    // Before any other thread: they inherit which signals are blocked.
    let set = signals::block();
    few_arenas();
    let Ok(reading) = channel.try_clone() else {
        return;
    };
    let Ok((owner, writer)) = Owner::start(channel) else {
        return;
    };
    let clients = Clients::default();
    let last = streams
        .and_then(|streams| Ok((streams, set?)))
        .map_err(|e| Failed::new(FailureKind::Host, format_args!("the supervisor: {e}")))
        .and_then(|(streams, set)| lead(order, &owner, &clients, reading, streams, set));
    owner.tell(last.unwrap_or_else(|failed| Reply::Failed { failed }));
    drop(owner);
    // Until the caller has its answer, or has gone. The threads that pass events on end with their senders, which are gone.
    let _ = writer.join();
    // The launch is let go by now: who waits for it, or for a process in it, does not hold it.
    clients.wait(FAREWELL);
}

/// Memory that is let go of should go back to the system, and not wait in one of a dozen arenas.
#[allow(unsafe_code, reason = "there is no safe form of mallopt")]
fn few_arenas() {
    // SAFETY: it only sets a number, and there is no other thread yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives back to the system what was needed for building.
#[allow(unsafe_code, reason = "there is no safe form of malloc_trim")]
fn give_back() {
    // SAFETY: it has no arguments to be wrong and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn lead(
    order: Order,
    owner: &Owner,
    clients: &Clients,
    channel: UnixStream,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    set: nix::sys::signal::SigSet,
) -> Result<Reply, Failed> {
    let host_failed = |what: &str, error: &dyn std::fmt::Display| {
        Failed::new(FailureKind::Host, format_args!("{what}: {error}"))
    };
    let cancel = CancelToken::new().map_err(|e| host_failed("the launch", &e))?;
    let keeper = Arc::new(OnceLock::new());
    let events = owner
        .follow(Arc::clone(&keeper), order.steps)
        .map_err(|e| host_failed("the launch", &e))?;
    let mut note = |line| owner.note(line);
    let host = (order.open_host)(events, cancel.clone(), &mut note)
        .map_err(|why| Failed::new(FailureKind::Host, why))?;
    let kernels =
        KernelStore::open(&order.data).map_err(|e| Failed::new(FailureKind::Kernel, chain(&e)))?;
    let mut own = fcpipe_launch::process_of(&order.spec.process).map_err(|e| Failed::from(&e))?;
    own.console_size = order.console_size.or(own.console_size);
    let in_state = |what: &str, error: Box<dyn std::error::Error + Send + Sync>| {
        in_state(&host.state, what, error)
    };
    let launch = LaunchDir::claim(&host.state, order.id.as_str()).map_err(|e| match e {
        LaunchDirError::InUse { .. } => Failed {
            hint: Some("`fcpipe ps` lists those in use; `fcpipe delete` frees one".into()),
            ..Failed::new(FailureKind::Host, e)
        },
        e => in_state("the launch's directory", e.into()),
    })?;
    let dir = launch.path().to_owned();
    let mut claimed = Claimed(Some(launch));

    let keep = order.bond != Bond::Attached;
    let mut record = Record::new(
        order.id.as_str(),
        &order.bundle,
        keep,
        order.logged.is_some(),
    );
    record.annotations = order.spec.annotations.clone();
    let told = Events::open(&dir, order.id.as_str()).map_err(|e| in_state("events", e.into()))?;
    let life = Arc::new(Life::new(dir.clone(), record, told, own, cancel));
    // Set here alone.
    let _ = keeper.set(Arc::clone(&life));
    signals::follow(set, Arc::clone(&life)).map_err(|e| host_failed("signals", &e))?;
    server::listen(&dir, Arc::clone(&life), clients.clone())
        .map_err(|e| in_state("the control socket", e.into()))?;
    listen_to_owner(channel, Arc::clone(&life), order.bond, order.terminal)
        .map_err(|e| host_failed("the caller's thread", &e))?;

    let log = order
        .logged
        .map(|limits| Log::start(&dir, limits))
        .transpose()
        .map_err(|e| in_state("the log", e.into()))?;
    let output = |name: &'static str, fd: OwnedFd| -> Box<dyn Write + Send> {
        match &log {
            Some(log) => Box::new(log.stream(name)),
            None => Box::new(Output::new(fd)),
        }
    };
    let console = order.console;
    if let Some(console) = &console {
        console
            .follow(Arc::clone(&life))
            .map_err(|e| host_failed("the console", &e))?;
    }
    let streams = match console {
        Some(console) => {
            // Somebody may wait for their end.
            drop((stdin, stdout, stderr));
            console
                .streams()
                .map_err(|e| host_failed("the console", &e))?
        }
        None => Streams {
            stdin: order.stdin.then(|| File::from(stdin)),
            stdout: output("stdout", stdout),
            stderr: output("stderr", stderr),
        },
    };
    let request = RunRequest {
        id: order.id,
        builder: order.builder,
        strict: order.strict,
        kernels,
        kernel: order.kernel,
        vmm: order.vmm.into(),
        shim: Some(order.shim),
        boot_timeout: order.boot_timeout,
    };
    let course = Course {
        life: &life,
        owner,
        bond: order.bond,
        hooks: Hooks::of(&order.spec),
    };
    let Some(launch) = claimed.0.take() else {
        return Err(Failed::new(FailureKind::Internal, "the launch's directory"));
    };
    let mut launched = fcpipe_launch::run(&order.spec, request, launch, &host, |live| {
        course.run(live, streams)
    });
    // What it was cancelled for says more than that it was: a hook after the start.
    if let Err(failure) = &launched.result
        && failure.kind == FailureKind::Cancelled
        && let Some(cause) = life.failure()
    {
        launched.result = Err(cause.into());
    }
    if let Some(log) = log {
        let lost = log.finish();
        if lost > 0 {
            life.event("error", serde_json::json!({"message": format!("{lost} bytes of output found no room in the log")}));
        }
    }
    // What the launch built is made safe against a power cut.
    if let Err(error) = host.store.sync_pending() {
        owner.note(format!("warning: {error}"));
    }
    for left in &launched.not_undone {
        owner.note(format!("warning: {left}"));
    }
    if let Err(why) = (order.ended)(&launched) {
        owner.note(format!("warning: {why}"));
    }
    let reply = match (&launched.result, life.ended_by()) {
        (Ok(status), _) => Reply::Exited { status: *status },
        (Err(_), Some(signal)) => Reply::Ended { signal },
        (Err(failure), None) => Reply::Failed {
            failed: Failed::from(failure),
        },
    };
    let error = match &reply {
        Reply::Failed { .. } => launched.result.as_ref().err().map(|f| format!("{f:#}")),
        _ => None,
    };
    if let Err(failure) = &launched.result {
        life.failed(Failed::from(failure));
    }
    life.over(launched.result.as_ref().ok().copied(), error);
    // One that never came to its start has nothing to be looked at; a detached one stays.
    if let Some(launch) = launched.launch.take()
        && !(keep && course.was_created())
    {
        crate::catalogue::end(launch, &life.record(), &mut |line| owner.note(line));
    }
    Ok(reply)
}

/// A launch's directory before there is a launch: it goes where none comes of it.
struct Claimed(Option<LaunchDir>);

impl Drop for Claimed {
    fn drop(&mut self) {
        // What can't be taken away now is by the next command.
        let _ = self.0.take().map(LaunchDir::remove);
    }
}

/// What went wrong in the state directory, which a launch has not by chance: if it is full, that is said.
fn in_state(state: &Path, what: &str, error: Box<dyn std::error::Error + Send + Sync>) -> Failed {
    let failure = Failure::new("", FailureKind::Host, what, Some(error));
    Failed::from(&match failure.kind {
        FailureKind::Space => failure.hint(format_args!(
            "the state directory {} is full: free some space there, or name another one by `--state-dir`",
            state.display()
        )),
        _ => failure,
    })
}

/// The hooks that are run on the host.
struct Hooks {
    create: Vec<(&'static str, Vec<Hook>)>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

impl Hooks {
    fn of(spec: &LaunchSpec) -> Self {
        let list = |hooks: &[fcpipe_spec::Hook]| {
            let hook = |hook: &fcpipe_spec::Hook| Hook {
                path: hook.path.clone().into(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook.timeout.map(u64::from),
            };
            hooks.iter().map(hook).collect::<Vec<_>>()
        };
        let hooks = &spec.hooks;
        Hooks {
            create: vec![
                ("prestart", list(&hooks.prestart)),
                ("createRuntime", list(&hooks.create_runtime)),
            ],
            poststart: list(&hooks.poststart),
            poststop: list(&hooks.poststop),
        }
    }
}

/// The way of a launch from its boot to its end.
struct Course<'a> {
    life: &'a Arc<Life>,
    owner: &'a Owner,
    bond: Bond,
    hooks: Hooks,
}

impl Course<'_> {
    fn run(&self, live: &Live<'_>, streams: Streams) -> Result<ExitStatus, Failure> {
        let guest = live.booted()?;
        self.life.booted(&guest);
        if !self.hooks.poststop.is_empty() {
            self.life.set_poststop(self.hooks.poststop.clone());
        }
        for (point, hooks) in &self.hooks.create {
            let state = self.life.record().oci_state();
            hooks::run(point, hooks, &state, Some(self.life.cancel())).map_err(hook_failure)?;
        }
        self.life.created(&guest);
        watch_memory(guest, Arc::clone(self.life));
        if self.bond == Bond::Created {
            self.owner.tell(Reply::Created);
            match self.life.wait_for_start() {
                Ok(()) => {}
                Err(Some(status)) => return Ok(status),
                Err(None) => return Err(self.lost()),
            }
        }
        let (life, owner) = (Arc::clone(self.life), self.owner.clone());
        let poststart = self.hooks.poststart.clone();
        let bond = self.bond;
        let process = self.life.own_process().clone();
        live.process(process, streams, move |process| {
            life.running(process);
            if !poststart.is_empty() {
                after_start(&life, &poststart);
            }
            if bond != Bond::Created {
                owner.tell(Reply::Started);
            }
        })
        .inspect_err(|failure| {
            let usage = self.life.guest_now().and_then(|guest| guest.usage());
            if let Some(kills @ 1..) = usage.and_then(|usage| usage.oom_kills) {
                self.life
                    .event("oom", serde_json::json!({"where": "host", "kills": kills}));
            }
            self.life.failed(failure.into());
        })
    }

    fn was_created(&self) -> bool {
        self.life.came_to_creation()
    }

    /// The launch ended while it waited for its start.
    fn lost(&self) -> Failure {
        let lost = self.life.guest_now().and_then(|g| g.session().ended());
        let why = lost.map_or_else(|| "cancelled".to_owned(), |e| e.to_string());
        Failure::new("boot", FailureKind::Guest, "the guest", Some(why.into()))
    }
}

/// How long the guest runs before its launch's memory is given back: while it starts, that would hold up who needs memory.
const SETTLED: Duration = Duration::from_secs(1);

/// Gives back what was needed for building, and tells of processes that the guest's kernel kills for want of memory. Ends with the
/// guest.
fn watch_memory(guest: Guest, life: Arc<Life>) {
    let thread = std::thread::Builder::new().name("guest-memory".to_owned());
    // Without a thread an event is missing, and nothing else.
    let _ = thread.spawn(move || {
        let mut seen = 0;
        let mut settled = Some(Instant::now() + SETTLED);
        while let Ok(kills) = guest.session().wait_oom(seen, settled) {
            match kills {
                Some(kills) => {
                    seen = kills;
                    life.event("oom", serde_json::json!({"where": "guest", "kills": kills}));
                }
                None => {
                    settled = None;
                    give_back();
                }
            }
        }
    });
}

/// Hooks that fail here end the launch: so says OCI since 1.1, and so does runc.
fn after_start(life: &Arc<Life>, hooks: &[Hook]) {
    let state = life.record().oci_state();
    if let Err(error) = hooks::run("poststart", hooks, &state, Some(life.cancel())) {
        life.failed(Failed::new(FailureKind::Host, error));
        life.cancel().cancel();
    }
}

fn hook_failure(error: hooks::HookError) -> Failure {
    Failure::new("", FailureKind::Host, error, None)
}

/// What whoever started the launch has to say; its end is the launch's, where it is attached.
fn listen_to_owner(
    channel: UnixStream,
    life: Arc<Life>,
    bond: Bond,
    terminal: Option<(OwnedFd, Termios)>,
) -> std::io::Result<()> {
    let mut receiver = Receiver::new(channel);
    let thread = std::thread::Builder::new().name("owner-in".to_owned());
    thread.spawn(move || {
        while let Ok(Some((request, _))) = receiver.receive::<Request>() {
            match request {
                // Beside this thread: an agent that is slow to answer must not keep a second signal waiting.
                Request::Signal { signal } => signals::pass_on(&life, signal),
                Request::End => life.cancel().cancel(),
                other => {
                    if let Some(process) = life.process() {
                        server::pass_on(&other, &process);
                    }
                }
            }
        }
        let ends = match bond {
            Bond::Attached => true,
            // A caller that does not wait for what it ordered no longer wants it.
            Bond::Detached | Bond::Created => !life.came_to_creation(),
        };
        if ends {
            life.cancel().cancel();
        }
        if let Some((fd, settings)) = terminal
            && !life.is_over()
        {
            // Killed, and so its terminal is as the process had it. One that has ended by itself has put it back, and it
            // may be another's by now.
            let when = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(fd, when, &settings);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn events_reach_the_owner_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let (owner, writer) = Owner::start(a).unwrap();
        let node: Arc<str> = "scan:/".into();
        owner.tell(Reply::Event {
            event: Event::Started { node: node.clone() },
        });
        owner.note("hello".to_owned());
        drop(owner);
        writer.join().unwrap();
        let mut receiver = Receiver::new(b);
        let (first, _) = receiver.receive::<Reply>().unwrap().unwrap();
        assert!(matches!(first, Reply::Event { event: Event::Started { node: n } } if n == node));
        let (second, _) = receiver.receive::<Reply>().unwrap().unwrap();
        assert!(matches!(second, Reply::Note { line } if line == "hello"));
        assert!(receiver.receive::<Reply>().unwrap().is_none());
    }
}
