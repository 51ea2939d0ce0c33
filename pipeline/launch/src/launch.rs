//! The two graphs there are: `build` makes an image, `run` boots one. A process is added to the second when it is
//! to start: a graph only grows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fcpipe_engine::{
    CacheMode, CancelToken, EventSender, Explained, Failure, Finished, LaunchDir, Node, NotUndone,
    OutputFile, Receipt, Row, Run, Settings, Store,
};
use fcpipe_kernel::KernelStore;
use fcpipe_proto::host::RunningProcess;
use fcpipe_proto::{ExitStatus, Process};
use fcpipe_spec::{LaunchId, LaunchSpec};
use fcpipe_vmm::{ShimProgram, Vmm};

use crate::cgroup::MakeCgroup;
use crate::disk::{ChooseWrites, PrivateDisk, Writes};
use crate::group::{ChooseGroup, Grouping, IMAGES};
use crate::guest;
use crate::image::{Image, MakeImage};
use crate::kernel::{ChosenKernel, FindKernel, GUEST_DIGEST, Initrd, MakeInitrd};
use crate::machine::{Boot, Booted, Guest, PrepareMachine, RunProcess, Streams};
use crate::near::Lineage;
use crate::network;
use crate::output::{self, WriteImage};
use crate::plan::{Assembly, Builder, Part, PlanImage};
use crate::scan::{self, Scanned};
use crate::stock::{Renewal, settle};
use crate::tuning;

/// The step whose start hands the terminal over to the guest's process.
pub const PROCESS: &str = "process";

/// What a launch needs of the host it runs on.
pub struct Host {
    pub store: Arc<Store>,
    /// fcpipe's own directories, which never go into an image.
    pub own: Vec<PathBuf>,
    /// The state directory, in which launches have theirs.
    pub state: PathBuf,
    pub cache: CacheMode,
    /// How many steps may work at once, and how many threads a step may use.
    pub threads: usize,
    pub events: EventSender,
    pub cancel: CancelToken,
}

impl Host {
    pub(crate) fn settings(
        &self,
        id: &str,
        spec: &LaunchSpec,
        launch: Option<LaunchDir>,
    ) -> Settings {
        Settings {
            id: id.to_owned(),
            scope: spec.file.display().to_string(),
            threads: self.threads,
            cache: self.cache,
            plan: false,
            store: Arc::clone(&self.store),
            launch,
            events: self.events.clone(),
            cancel: self.cancel.clone(),
        }
    }
}

/// What `build` is asked for.
pub struct BuildRequest {
    /// For the receipt.
    pub id: LaunchId,
    /// Absolute.
    pub output: PathBuf,
    pub builder: Builder,
    /// Also hash the whole image.
    pub digest: bool,
    /// A missing mount source is an error.
    pub strict: bool,
}

/// An image that was built, or found built.
#[derive(Debug)]
pub struct Built {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Whether the image was there already.
    pub hit: bool,
    /// `blake3:…`, if it was asked for.
    pub digest: Option<String>,
}

/// What `run` is asked for.
pub struct RunRequest {
    pub id: LaunchId,
    pub builder: Builder,
    pub strict: bool,
    pub kernels: KernelStore,
    /// A release or an id; the default kernel where none is named.
    pub kernel: Option<String>,
    pub vmm: Arc<dyn Vmm>,
    /// What the machine's processes are to end with.
    pub shim: Option<ShimProgram>,
    pub boot_timeout: Duration,
}

/// What a launch would do.
#[derive(Debug)]
pub struct Planned {
    /// Every step, in the order of adding.
    pub steps: Vec<Explained>,
    /// The rows that a receipt would have.
    pub rows: Vec<Row>,
    /// Where its writes would go.
    pub writes: Writes,
    /// How many images it would have.
    pub group: Grouping,
}

/// How a launch ended.
pub struct Launched<T> {
    /// What it did, and when; there unless it could not begin.
    pub receipt: Option<Receipt>,
    /// Every step, and what was not as before.
    pub steps: Vec<Explained>,
    pub result: Result<T, Failure>,
    /// What could not be taken away; the next command tries again.
    pub not_undone: Vec<NotUndone>,
    /// The launch's directory, still claimed. Dropped, it is left to the next command.
    pub launch: Option<LaunchDir>,
}

impl<T> Launched<T> {
    pub(crate) fn failed(failure: Failure) -> Self {
        Launched {
            receipt: None,
            steps: Vec::new(),
            result: Err(failure),
            not_undone: Vec::new(),
            launch: None,
        }
    }

    pub(crate) fn ended(result: Result<T, Failure>, finished: Finished) -> Self {
        Launched {
            receipt: Some(finished.receipt),
            steps: finished.explained,
            // The run's own failure is the first; waiting may have seen one that followed from it.
            result: finished.result.and(result),
            not_undone: finished.not_undone,
            launch: finished.launch,
        }
    }
}

/// Compiles a spec's root file system into an image file.
pub fn build(spec: &LaunchSpec, request: BuildRequest, host: &Host) -> Launched<Built> {
    let run = match Run::start(host.settings(request.id.as_str(), spec, None)) {
        Ok(run) => run,
        Err(failure) => return Launched::failed(failure),
    };
    let mut own = host.own.clone();
    own.push(request.output.clone());
    let parts = scan_sources(&run, spec, request.strict, own);
    // One file, and its bytes are promised: it is laid out from nothing, with everything in it.
    let plan = run.stage("layout", plan_of(spec, request.builder, Arc::clone(&parts)));
    let image = run.stage(
        "output",
        WriteImage {
            plan,
            parts,
            journal: spec.disk.journal,
            path: request.output,
        },
    );
    let mut result = run.wait(&image).map(|built| Built {
        path: built.path.clone(),
        size: built.size,
        hit: false,
        digest: None,
    });
    if request.digest
        && let Ok(built) = &mut result
    {
        match output::digest(&built.path) {
            Ok(digest) => built.digest = Some(format!("blake3:{digest}")),
            Err(error) => {
                let kind = fcpipe_engine::FailureKind::Host;
                let subject = built.path.display().to_string();
                result = Err(Failure::new("digest", kind, subject, Some(error.into())));
            }
        }
    }
    if let Ok(built) = &result {
        let file = OutputFile {
            path: built.path.clone(),
            size: built.size,
            digest: built.digest.clone(),
        };
        run.output("image", file);
    }
    let mut launched = Launched::ended(result, run.finish());
    if let (Ok(built), Some(receipt)) = (&mut launched.result, &launched.receipt) {
        let seal = receipt.stages.iter().find(|row| row.id == "seal");
        built.hit = seal.is_some_and(|row| row.outcome == fcpipe_engine::Outcome::Hit);
    }
    launched
}

/// Boots a spec, and has `lead` say what its machine does until the launch ends. Nothing is left on the host but the
/// store and the launch's directory.
///
/// `launch` is claimed for this launch alone.
pub fn run(
    spec: &LaunchSpec,
    request: RunRequest,
    launch: LaunchDir,
    host: &Host,
    lead: impl FnOnce(&Live<'_>) -> Result<ExitStatus, Failure>,
) -> Launched<ExitStatus> {
    let run = match Run::start(host.settings(request.id.as_str(), spec, Some(launch))) {
        Ok(run) => run,
        Err(failure) => return Launched::failed(failure),
    };
    let (builder, strict) = (request.builder, request.strict);
    let graph = match graph_of_run(&run, spec, request, host) {
        Ok(graph) => graph,
        Err(failure) => return Launched::ended(Err(failure), run.finish()),
    };
    let live = Live {
        run: &run,
        booted: graph.booted,
    };
    let renewal = Renewal {
        spec,
        builder,
        strict,
        host,
        room: graph.room,
        images: &graph.images,
    };
    let result = settle(&run, &graph.booted, &renewal, || lead(&live));
    if let Err(failure) = &result {
        // What `lead` gave up for is no failure of a step: whatever still works is to end too.
        run.cancel(&failure.subject);
    }
    Launched::ended(result, run.finish())
}

/// A launch whose machine boots or has booted, as its leader sees it.
pub struct Live<'a> {
    run: &'a Run,
    booted: Node<Booted>,
}

impl Live<'_> {
    /// Waits until the guest can run processes. What was only needed to get there is forgotten then.
    pub fn booted(&self) -> Result<Guest, Failure> {
        let booted = self.run.wait(&self.booted)?;
        self.run.forget_values();
        Ok(Guest::new(booted))
    }

    /// Runs the container's first process to its end, then has the guest write everything back and power off. `started` is told when
    /// the process runs.
    pub fn process(
        &self,
        process: Process,
        streams: Streams,
        started: impl FnOnce(&Arc<RunningProcess>) + Send + 'static,
    ) -> Result<ExitStatus, Failure> {
        let start = Some((streams, Box::new(started) as _));
        let process = RunProcess::new(self.booted, process, start);
        let node = self.run.effect(PROCESS, process);
        self.run.wait(&node).map(|status| *status)
    }

    /// Whether the launch is to end.
    pub fn cancelled(&self) -> bool {
        self.run.cancel_token().cancelled()
    }
}

/// What [`run()`] would do now: the sources are looked at, records are read, nothing is made.
pub fn plan(spec: &LaunchSpec, request: RunRequest, host: &Host) -> Result<Planned, Failure> {
    let mut settings = host.settings(request.id.as_str(), spec, None);
    settings.plan = true;
    let process = guest::process_of(&spec.process)?;
    let run = Run::start(settings)?;
    let graph = match graph_of_run(&run, spec, request, host) {
        Ok(graph) => graph,
        // What failed first is what the run ended with.
        Err(failure) => return Err(run.finish().result.err().unwrap_or(failure)),
    };
    let process = RunProcess::new(graph.booted, process, None);
    run.effect(PROCESS, process);
    let writes = run.wait(&graph.writes);
    let finished = run.finish();
    finished.result?;
    Ok(Planned {
        writes: Writes::clone(&*writes?),
        group: Grouping::clone(&graph.group),
        steps: finished.explained,
        rows: finished.receipt.stages,
    })
}

/// The nodes of a launch that somebody waits for.
struct Graph {
    writes: Node<Writes>,
    group: Arc<Grouping>,
    /// For how many images there is room.
    room: usize,
    images: Vec<Node<Image>>,
    booted: Node<Booted>,
}

/// The one graph of a launch, whether it is done or only planned. It grows: how many images there are is known when the sources
/// have been looked at, while the machine is started already.
fn graph_of_run(
    run: &Run,
    spec: &LaunchSpec,
    request: RunRequest,
    host: &Host,
) -> Result<Graph, Failure> {
    // The machine's way is the longest where sources are small, and takes little of a processor where they are not: it goes first.
    let cgroup = run.effect(
        "cgroup",
        MakeCgroup::of(spec, request.id.as_str(), request.vmm.kind()),
    );
    let kernel = run.probe(
        "kernel",
        FindKernel {
            store: request.kernels,
            name: request.kernel,
        },
    );
    let (writes, initrd) = initrd(run, spec, kernel, host);
    let network = network::add(run, spec, request.id.as_str(), &host.state, &request.vmm);
    let vmm = Arc::clone(&request.vmm);
    let machine = run.effect(
        "machine",
        PrepareMachine {
            vmm: request.vmm,
            cgroup,
            shim: request.shim,
            kernel,
            initrd,
            network,
            id: request.id.as_str().to_owned(),
            boot_id: request.id.as_str().to_owned(),
            vcpus: spec.machine.vcpus,
            memory_mib: spec.machine.memory >> 20,
            tuning: tuning::of(spec),
        },
    );
    let parts = scan_sources(run, spec, request.strict, host.own.clone());
    let nics = network.map_or(0, |network| {
        // A plan makes none, and takes it that there is one.
        run.wait(&network).map_or(1, |wired| wired.nics.len())
    });
    // Each image may be two drives.
    let room = (vmm.drive_slots(nics, &tuning::of(spec)) / 2).min(IMAGES);
    let group = choose_group(run, spec, request.builder, &parts, room)?;
    let images = images(run, spec, request.builder, &parts, &group, Anew::Never);
    let disks = run.effect(
        "disk",
        PrivateDisk {
            images: images.clone(),
            writes,
        },
    );
    let booted = run.effect(
        "boot",
        Boot {
            machine,
            disks,
            network,
            boot_id: request.id.as_str().to_owned(),
            config: guest::config(spec, request.id.as_str(), &group),
            timeout: request.boot_timeout,
        },
    );
    Ok(Graph {
        writes,
        group,
        room,
        images,
        booted,
    })
}

/// How many images there will be, up to `room`, and which source is in which. Waits for the scans.
pub(crate) fn choose_group(
    run: &Run,
    spec: &LaunchSpec,
    builder: Builder,
    parts: &Arc<[Part]>,
    room: usize,
) -> Result<Arc<Grouping>, Failure> {
    let group = run.probe(
        "group",
        ChooseGroup {
            wanted: spec.disk.group,
            native: builder == Builder::Native,
            room,
            parts: Arc::clone(parts),
        },
    );
    run.wait(&group)
}

/// Whether images are laid out from nothing though there is one that they could be near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anew {
    Never,
    /// To be the next base. It has a key of its own.
    Base,
    /// To leave the store: it must not need another.
    Whole,
}

/// The images of a launch, the root's first.
pub(crate) fn images(
    run: &Run,
    spec: &LaunchSpec,
    builder: Builder,
    parts: &Arc<[Part]>,
    group: &Grouping,
    anew: Anew,
) -> Vec<Node<Image>> {
    let image = |members: &Vec<usize>| {
        if members.is_empty() {
            return None;
        }
        let root = members.first() == Some(&0);
        let subject = match (group.is_per_source(), &members[..]) {
            (false, _) => String::new(),
            (true, [source]) => format!(":{}", parts[*source].destination.display()),
            (true, _) => ":small mounts".to_owned(),
        };
        let parts: Arc<[Part]> = members
            .iter()
            .map(|&source| parts[source].clone())
            .collect();
        let lineage = (anew != Anew::Whole).then(|| Lineage::new(&subject));
        let plan = PlanImage {
            assembly: if root {
                Assembly::Mounted
            } else {
                Assembly::Gathered
            },
            // A size is the root's.
            size: spec.disk.size.filter(|_| root),
            lineage: lineage.clone(),
            anew: anew == Anew::Base,
            ..plan_of(spec, builder, Arc::clone(&parts))
        };
        let plan = run.stage(format!("layout{subject}"), plan);
        let image = MakeImage {
            plan,
            parts,
            journal: spec.disk.journal,
            lineage,
        };
        Some(run.stage(format!("image{subject}"), image))
    };
    group.members().iter().filter_map(image).collect()
}

/// Decides where writes go, and makes an initrd with what the guest needs for that.
pub(crate) fn initrd(
    run: &Run,
    spec: &LaunchSpec,
    kernel: Node<ChosenKernel>,
    host: &Host,
) -> (Node<Writes>, Node<Initrd>) {
    let writes = run.probe(
        "writes",
        ChooseWrites {
            wanted: spec.disk.writes,
            kernel,
            state: host.state.clone(),
        },
    );
    let guest = blake3::Hash::from_bytes(*GUEST_DIGEST).into();
    let initrd = run.stage(
        "initrd",
        MakeInitrd {
            kernel,
            guest,
            writes,
        },
    );
    (writes, initrd)
}

/// What all graphs begin with: a scan for each source.
pub(crate) fn scan_sources(
    run: &Run,
    spec: &LaunchSpec,
    strict: bool,
    own: Vec<PathBuf>,
) -> Arc<[Part]> {
    let leave_out: Arc<[PathBuf]> = own.into();
    scan::sources(spec, strict, &leave_out)
        .into_iter()
        .map(|source| {
            let id = format!("scan:{}", source.destination.display());
            let content = source.probe.content.clone();
            let from = source.probe.source.clone();
            let scan: Node<Scanned> = run.probe(id, source.probe);
            Part {
                destination: source.destination,
                source: from,
                content,
                scan,
            }
        })
        .collect()
}

/// The plan of an image with all of these sources in it.
fn plan_of(spec: &LaunchSpec, builder: Builder, parts: Arc<[Part]>) -> PlanImage {
    PlanImage {
        builder,
        assembly: Assembly::Mounted,
        parts,
        size: spec.disk.size,
        journal: spec.disk.journal,
        lineage: None,
        anew: false,
    }
}
