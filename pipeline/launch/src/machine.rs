//! The effects of a launch but its disk: its machine, its process. Each is in the journal before it is made.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fcpipe_engine::{Cx, Effect, Failure, FailureKind, KeyWriter, Node, UndoError, UndoTable};
use fcpipe_net::News;
use fcpipe_proto::host::{OutputError, RunningProcess, Session, Stdio};
use fcpipe_proto::{
    AGENT_PORT, BOOT_ID_ARGUMENT, ExitStatus, GuestConfig, Process, ProtoError, WallClock,
};
use fcpipe_vmm::{
    Cage, Cgroup, CgroupUsage, KernelFiles, Machine, MachineConfig, Prepared, ProcessMark,
    ShimProgram, Tuning, Vmm, VmmError, VmmKind,
};
use serde::{Deserialize, Serialize};

use crate::cgroup::MakeCgroup;
use crate::disk::{Disks, PrivateDisk};
use crate::guest;
use crate::kernel::{ChosenKernel, Initrd};
use crate::network::{EnterNamespace, MakeTap, Wired};

/// Every effect of a launch, for undoing what a dead one left.
pub fn undo_table() -> UndoTable {
    UndoTable::new()
        .with::<PrivateDisk>()
        .with::<MakeCgroup>()
        .with::<EnterNamespace>()
        .with::<MakeTap>()
        .with::<PrepareMachine>()
        .with::<Boot>()
        .with::<RunProcess>()
}

pub(crate) fn launch_dir(cx: &Cx) -> Result<PathBuf, Failure> {
    cx.launch_dir().map(Path::to_path_buf).ok_or_else(|| {
        cx.fail(
            FailureKind::Internal,
            "the launch's directory",
            "there is none",
        )
    })
}

/// Starts what the machine needs before its drives are there.
pub(crate) struct PrepareMachine {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) cgroup: Node<Option<Cgroup>>,
    /// What its processes end with.
    pub(crate) shim: Option<ShimProgram>,
    pub(crate) kernel: Node<ChosenKernel>,
    pub(crate) initrd: Node<Initrd>,
    /// `None`: the guest has none.
    pub(crate) network: Option<Node<Wired>>,
    pub(crate) id: String,
    pub(crate) boot_id: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) tuning: Tuning,
}

/// What a machine's processes are found by.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineEntry {
    /// In the environment of each.
    dir: PathBuf,
    /// The control groups that all of them are born in; none where there are none to be had.
    #[serde(default)]
    groups: Vec<PathBuf>,
    /// Who starts them: its number and start time.
    #[serde(default)]
    by: (u32, u64),
}

/// This process.
fn own_mark(cx: &Cx) -> Result<(u32, u64), Failure> {
    let mark = ProcessMark::of(std::process::id())
        .map_err(|e| cx.fail(FailureKind::Host, "/proc/self/stat", e))?;
    Ok((mark.pid, mark.start_time))
}

/// A machine that lacks its drives, and what it is in.
pub(crate) struct Ready {
    /// Taken once.
    prepared: Mutex<Option<Box<dyn Prepared>>>,
    cage: Cage,
    cgroup: Option<Cgroup>,
}

impl Effect for PrepareMachine {
    const NAME: &'static str = "machine";
    type Entry = MachineEntry;
    type Output = Ready;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.node("kernel", &self.kernel);
        k.node("initrd", &self.initrd);
        k.after(&self.cgroup);
        if let Some(network) = &self.network {
            k.after(network);
        }
    }

    fn intend(&self, cx: &Cx) -> Result<MachineEntry, Failure> {
        let cgroup = cx.get(&self.cgroup)?;
        Ok(MachineEntry {
            dir: launch_dir(cx)?,
            groups: cgroup
                .as_ref()
                .as_ref()
                .map_or_else(Vec::new, Cgroup::paths),
            by: own_mark(cx)?,
        })
    }

    fn make(&self, entry: &MachineEntry, cx: &Cx) -> Result<Ready, Failure> {
        let kernel = cx.get(&self.kernel)?;
        let initrd = cx.get(&self.initrd)?;
        let network = self.network.as_ref().map(|n| cx.get(n)).transpose()?;
        // The machine itself holds it until it ends, whoever started it.
        let lease = cx.lease(initrd.object())?;
        let cgroup = Option::clone(&*cx.get(&self.cgroup)?);
        let cage = self
            .cage(cgroup.as_ref(), &entry.dir)
            .map_err(|e| cx.fail(FailureKind::Host, "the machine's shim", e))?;
        let config = MachineConfig {
            id: self.id.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel: KernelFiles {
                bzimage: kernel.0.bzimage.clone(),
                vmlinux: kernel.0.vmlinux.clone(),
            },
            initrd: initrd.object().path.clone(),
            cmdline_extra: format!("{BOOT_ID_ARGUMENT}={}", self.boot_id),
            // Each machine has a vsock device of its own: the number need not differ.
            vsock_cid: 3,
            dir: entry.dir.clone(),
            inherit: vec![Arc::new(lease.file.into())],
            cage: cage.clone(),
            netns: network.as_ref().map(|network| network.namespace.fd()),
            nics: network.map_or_else(Vec::new, |network| network.nics.clone()),
            tuning: self.tuning.clone(),
        };
        for setting in self.vmm.ignores(&config) {
            let kind = self.vmm.kind();
            cx.warn(format_args!(
                "{setting}: {kind} has no such thing, so the machine runs without it"
            ));
        }
        let prepared = self
            .vmm
            .prepare(&config, &|| cx.cancelled())
            .map_err(|e| machine_failure(cx, e))?;
        Ok(Ready {
            prepared: Mutex::new(Some(prepared)),
            cage,
            cgroup,
        })
    }

    /// A process is in its groups from its first moment on. Looking through all of the host's processes as well takes some
    /// milliseconds, and is done where there are no groups, or where somebody else started them, and may have been killed at any
    /// point: between a fork and an entrance on a kernel where no process can be born in a group.
    fn undo(entry: &MachineEntry) -> Result<(), UndoError> {
        fcpipe_vmm::kill_in_groups(&entry.groups)?;
        let (pid, start_time) = entry.by;
        let own = pid == std::process::id()
            && ProcessMark::of(pid).is_ok_and(|mark| mark.start_time == start_time);
        if entry.groups.is_empty() || !own {
            fcpipe_vmm::kill_by_mark(&entry.dir)?;
        }
        Ok(())
    }
}

impl PrepareMachine {
    fn cage(
        &self,
        cgroup: Option<&Cgroup>,
        dir: &Path,
    ) -> Result<Cage, Box<dyn std::error::Error + Send + Sync>> {
        let entrances = cgroup.map(Cgroup::entrances).transpose()?;
        let cage = Cage::new(entrances.unwrap_or_default(), self.shim.as_ref(), dir)?;
        Ok(cage)
    }
}

/// Gives the machine its disk, boots it, and configures its guest.
pub(crate) struct Boot {
    pub(crate) machine: Node<Ready>,
    pub(crate) disks: Node<Disks>,
    pub(crate) network: Option<Node<Wired>>,
    pub(crate) boot_id: String,
    pub(crate) config: GuestConfig,
    pub(crate) timeout: Duration,
}

/// A guest that is ready to run processes.
pub(crate) struct Booted {
    // In the order in which they are to end: the machine before its shim, or its end would look like a crash.
    machine: Box<dyn Machine>,
    session: Session,
    cage: Cage,
    cgroup: Option<Cgroup>,
    /// Kept: its server answers while the machine runs.
    network: Option<Arc<Wired>>,
}

impl Effect for Boot {
    const NAME: &'static str = "boot";
    const WAITS: bool = true;
    type Entry = NoEntry;
    type Output = Booted;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.after(&self.machine);
        k.after(&self.disks);
        if let Some(network) = &self.network {
            k.after(network);
        }
    }

    fn intend(&self, _: &Cx) -> Result<NoEntry, Failure> {
        Ok(NoEntry {})
    }

    fn make(&self, _: &NoEntry, cx: &Cx) -> Result<Booted, Failure> {
        let ready = cx.get(&self.machine)?;
        let prepared = ready
            .prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let prepared = prepared.ok_or_else(|| {
            cx.fail(
                FailureKind::Internal,
                "the machine",
                "it was booted already",
            )
        })?;
        let disks = cx.get(&self.disks)?;
        let cancelled = || cx.cancelled();
        let machine = prepared
            .boot(&disks.drives, &cancelled)
            .map_err(|e| machine_failure(cx, e))?;

        let deadline = Instant::now() + self.timeout;
        let session = loop {
            let stream = machine
                .connect(AGENT_PORT, deadline, &cancelled)
                .map_err(|e| machine_failure(cx, e))?;
            let token = cx.cancel_token().clone();
            let cancelled = move || token.cancelled();
            match Session::connect_unless(stream, &self.boot_id, deadline, cancelled) {
                Ok(session) => break session,
                // The agent was not listening yet, or still holds an attempt that we gave up.
                Err(ProtoError::Closed | ProtoError::Busy | ProtoError::Io { .. })
                    if Instant::now() < deadline =>
                {
                    cx.sleep(Duration::from_millis(10))?;
                }
                Err(error) => return Err(guest_failure(cx, &*machine, error)),
            }
        };
        let mut config = self.config.clone();
        disks.describe(&mut config.root);
        config.wall_clock = Some(WallClock::now());
        config.entropy = guest::entropy();
        let network = self.network.as_ref().map(|n| cx.get(n)).transpose()?;
        config.network = network.as_ref().map(|network| network.guest.clone());
        session
            .configure(&config, deadline)
            .map_err(|e| guest_failure(cx, &*machine, e))?;
        Ok(Booted {
            machine,
            session,
            cage: ready.cage.clone(),
            cgroup: ready.cgroup.clone(),
            network,
        })
    }

    /// A machine is only booted where it was prepared, and that is undone after this.
    fn undo(_: &NoEntry) -> Result<(), UndoError> {
        Ok(())
    }
}

/// A guest that is ready to run processes, for whoever talks to it. Clones are the same guest.
#[derive(Clone)]
pub struct Guest(Arc<Booted>);

impl Guest {
    pub(crate) fn new(booted: Arc<Booted>) -> Self {
        Guest(booted)
    }

    /// The connection to its agent.
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// The machine's processes that run; the first is the monitor's.
    pub fn processes(&self) -> Vec<ProcessMark> {
        self.0.machine.processes()
    }

    /// The process that they end with.
    pub fn shim(&self) -> Option<ProcessMark> {
        self.0.cage.shim()
    }

    /// What they have used, where they are in a control group.
    pub fn usage(&self) -> Option<CgroupUsage> {
        self.0.cgroup.as_ref().map(Cgroup::usage)
    }

    /// Which monitor runs it.
    pub fn vmm(&self) -> VmmKind {
        self.0.machine.kind()
    }

    /// Starts a process beside the spec's own.
    pub fn exec(&self, process: &Process, streams: Streams) -> Result<RunningProcess, ProtoError> {
        self.0
            .session
            .start(process, streams.into(), Instant::now() + ANSWER)
    }

    /// The end of what the guest wrote to its console. The guest wrote it: never trust it.
    pub fn console_tail(&self) -> Vec<u8> {
        self.0.machine.console_tail()
    }
}

/// Where a process's standard streams go.
pub struct Streams {
    /// `None`: the process reads from nothing.
    pub stdin: Option<File>,
    pub stdout: Box<dyn io::Write + Send>,
    pub stderr: Box<dyn io::Write + Send>,
}

impl From<Streams> for Stdio {
    fn from(streams: Streams) -> Self {
        Stdio {
            stdin: streams.stdin.map(Into::into),
            stdout: streams.stdout,
            stderr: streams.stderr,
        }
    }
}

/// Is told once that the process runs.
type Started = Box<dyn FnOnce(&Arc<RunningProcess>) + Send>;

/// Runs the spec's process to its end, then has the guest write everything back and power off.
pub(crate) struct RunProcess {
    booted: Node<Booted>,
    process: Process,
    /// Taken once; nothing in a plan.
    start: Mutex<Option<(Streams, Started)>>,
}

impl RunProcess {
    pub(crate) fn new(
        booted: Node<Booted>,
        process: Process,
        start: Option<(Streams, Started)>,
    ) -> Self {
        RunProcess {
            booted,
            process,
            start: Mutex::new(start),
        }
    }
}

/// What leaves nothing on the host that the machine's own effect does not cover.
#[derive(Serialize, Deserialize)]
pub(crate) struct NoEntry {}

/// How long a guest may take to answer that a process has started, and to write everything back.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the last output of processes beside the launch's own may take. They have been killed with it.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a machine may take to end once its guest has powered off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How often a wait looks whether the launch is cancelled.
const STEP: Duration = Duration::from_millis(50);

impl Effect for RunProcess {
    const NAME: &'static str = "process";
    const WAITS: bool = true;
    type Entry = NoEntry;
    type Output = ExitStatus;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.after(&self.booted);
    }

    fn intend(&self, _: &Cx) -> Result<NoEntry, Failure> {
        Ok(NoEntry {})
    }

    fn make(&self, _: &NoEntry, cx: &Cx) -> Result<ExitStatus, Failure> {
        let booted = cx.get(&self.booted)?;
        let Booted {
            machine,
            session,
            network,
            ..
        } = &*booted;
        let start = self.start.lock();
        let start = start.unwrap_or_else(PoisonError::into_inner).take();
        let (streams, started) = start.ok_or_else(|| {
            cx.fail(
                FailureKind::Internal,
                "the process",
                "it was started already",
            )
        })?;
        let process = session
            .start(&self.process, streams.into(), Instant::now() + ANSWER)
            .map_err(|e| guest_failure(cx, &**machine, e))?;
        let process = Arc::new(process);
        started(&process);
        let status = wait(cx, &process, network.as_ref().map(|n| &n.news))
            .map_err(|e| e.unwrap_or_else(|e| guest_failure(cx, &**machine, e)))?;
        let errors = process.output_errors();
        for complaint in errors.iter().filter_map(OutputError::complaint) {
            cx.warn(complaint);
        }
        if session.oom_kills() > 0 {
            cx.warn(format_args!(
                "the guest had too little memory ({} killed by its kernel): more is machine.memory, or linux.resources.memory.limit",
                session.oom_kills()
            ));
        }
        // What is not read by then is lost, and whoever waits for it is told.
        session.settle(Instant::now() + SETTLE);
        power_off(cx, booted.as_ref());
        Ok(status)
    }

    fn undo(_: &NoEntry) -> Result<(), UndoError> {
        Ok(())
    }
}

/// Waits for the process and its output. The error is the run's own end, or the connection's.
fn wait(
    cx: &Cx,
    process: &RunningProcess,
    news: Option<&News>,
) -> Result<ExitStatus, Result<Failure, ProtoError>> {
    loop {
        if let Some(status) = process.wait(Some(Instant::now() + STEP)).map_err(Err)? {
            return Ok(status);
        }
        for event in news.map(News::take).unwrap_or_default() {
            cx.warn(event);
        }
        cx.check().map_err(Ok)?;
    }
}

/// An orderly end. The disk is thrown away after it, so what goes wrong here is no failure of the run: the
/// machine is ended by its undo in any case.
fn power_off(cx: &Cx, booted: &Booted) {
    match booted.session.shutdown(Instant::now() + ANSWER) {
        Ok(true) => {
            booted.machine.wait_exit(POWER_OFF);
        }
        Ok(false) => cx.warn("the guest could not unmount its root"),
        // Nobody waits for an orderly end any more.
        Err(_) if cx.cancelled() => {}
        Err(error) => {
            cx.warn(format_args!(
                "the guest did not shut down in order: {error}"
            ));
            // Its init may still hear a key, where there is one to press.
            if booted.machine.ctrl_alt_del().is_ok() {
                booted.machine.wait_exit(POWER_OFF);
            }
        }
    }
}

fn machine_failure(cx: &Cx, error: VmmError) -> Failure {
    let kind = match &error {
        VmmError::Cancelled => FailureKind::Cancelled,
        VmmError::Kernel { .. } => FailureKind::Kernel,
        VmmError::Panic { .. } | VmmError::NoAnswer { .. } => FailureKind::Guest,
        _ => FailureKind::Vmm,
    };
    let hint = match (error.hint(), error.logs()) {
        (Some(hint), _) => Some(hint.to_owned()),
        (None, Some(logs)) => Some(logs.to_string()),
        (None, None) => None,
    };
    let failure = cx.fail(kind, "the machine", error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn guest_failure(cx: &Cx, machine: &dyn Machine, error: ProtoError) -> Failure {
    use fcpipe_proto::FailureKind as Kind;
    // Then nobody waited for what the guest might have said.
    if let Err(cancelled) = cx.check() {
        return cancelled;
    }
    let kind = match &error {
        ProtoError::Failed(failure) => match failure.kind {
            Kind::NotFound => FailureKind::CommandNotFound,
            Kind::NotExecutable => FailureKind::CommandNotExecutable,
            Kind::Setup | Kind::Protocol => FailureKind::Guest,
        },
        _ => FailureKind::Guest,
    };
    let failed = matches!(error, ProtoError::Failed(_));
    let failure = cx.fail(kind, "the guest", error);
    if failed {
        // The guest said what was wrong; its console has nothing to add.
        return failure;
    }
    let console = machine.console_tail();
    let end = bstr::BStr::new(&console[console.len().saturating_sub(CONSOLE_SHOWN)..]);
    failure.hint(format_args!("the end of the guest's console:\n{end}"))
}

/// How much of a console an error shows, bytes.
const CONSOLE_SHOWN: usize = 2048;
