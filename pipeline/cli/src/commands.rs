//! One file a command, and what several of them share.

pub(crate) mod build;
pub(crate) mod cache;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
mod imported;
pub(crate) mod kernel;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod metrics;
mod order;
pub(crate) mod plan;
pub(crate) mod ps;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod start;
pub(crate) mod validate;
pub(crate) mod wait;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fcpipe_engine::{CacheMode, CancelToken, EventSender, Failure, Receipt, Store};
use fcpipe_launch::Host;
use fcpipe_spec::{LaunchSpec, LoadOptions};
use fcpipe_supervisor::{Connection, Record, Reply, Request, Status, connect, look};

use crate::arguments::{Builder, Building, Cache, Global, Spec};
use crate::complaint::{self, Complaint};
use crate::directories::{Directories, make_private};
use crate::render::harmless;

/// What a command gives back: its exit code, or why there is none.
pub(crate) type Outcome = Result<u8, Complaint>;

fn load(global: &Global, spec: &Spec) -> Result<LaunchSpec, Complaint> {
    let options = LoadOptions {
        overrides: spec.set.clone(),
        strict: spec.strict,
        vcpus: global.settings.vcpus,
        memory: global.settings.memory,
        ..LoadOptions::default()
    };
    let spec = fcpipe_spec::load(&spec.path, &options)?;
    for warning in &spec.warnings {
        let _ = writeln!(std::io::stderr().lock(), "warning: {}", harmless(warning));
    }
    Ok(spec)
}

/// Reads the file of `--config`. What the command line and the environment say counts more.
pub(crate) fn configure(global: &mut Global) -> Result<(), Complaint> {
    let Some(path) = &global.config else {
        return Ok(());
    };
    let settings = fcpipe_spec::load_config(path)?;
    for ignored in &settings.ignored {
        complaint::warn(ignored);
    }
    for (option, said) in [
        (&mut global.cache_dir, &settings.cache_dir),
        (&mut global.data_dir, &settings.data_dir),
        (&mut global.state_dir, &settings.state_dir),
    ] {
        if option.is_none() {
            option.clone_from(said);
        }
    }
    global.settings = settings;
    Ok(())
}

/// Where monitors are looked for.
fn monitors(global: &Global, directories: &Directories) -> fcpipe_vmm::Host {
    let mut host = fcpipe_vmm::Host::from_env(Some(&directories.data));
    let settings = &global.settings;
    host.firecracker = host.firecracker.or_else(|| settings.firecracker.clone());
    host.jailer = host.jailer.or_else(|| settings.jailer.clone());
    host
}

/// The kernel that is asked for, or the configuration's, which is imported where it is not yet. `None`: the store's default.
fn kernel(
    global: &Global,
    directories: &Directories,
    asked: Option<&String>,
) -> Result<Option<String>, Complaint> {
    let (None, Some(image)) = (asked, &global.settings.kernel_image) else {
        return Ok(asked.cloned());
    };
    let store = fcpipe_kernel::KernelStore::open(&directories.data).map_err(Complaint::of)?;
    let id = imported::id_of(image, &store, &directories.data)?;
    Ok(Some(id))
}

/// Opens the store and, first of all, takes away what dead launches left.
fn host(
    global: &Global,
    building: &Building,
    directories: &Directories,
    events: EventSender,
    cancel: CancelToken,
    tell: &mut dyn FnMut(String),
) -> Result<Host, Complaint> {
    clean_up(directories, tell)?;
    // Also for a plan: what can be cloned into it decides where writes go. A launch judges it before it is used.
    make_private(&directories.state).map_err(|e| Complaint::about(&directories.state, e))?;
    let store = Store::open(&directories.cache)
        .map_err(|e| Complaint::of(e).hint("`--cache-dir` names another directory"))?;
    Ok(Host {
        store: Arc::new(store),
        own: vec![
            directories.cache.clone(),
            directories.state.clone(),
            directories.data.clone(),
        ],
        state: directories.state.clone(),
        cache: match building.cache {
            Cache::Auto => CacheMode::Auto,
            Cache::Require => CacheMode::Require,
            Cache::Off => CacheMode::Off,
        },
        threads: threads(global),
        events,
        cancel,
    })
}

fn threads(global: &Global) -> usize {
    global
        .threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, usize::from)
}

/// Undoes what launches left whose supervisor is gone, and tells of it.
fn clean_up(directories: &Directories, tell: &mut dyn FnMut(String)) -> Result<(), Complaint> {
    let recovered = fcpipe_supervisor::clean_up(&directories.state, tell)
        .map_err(|e| Complaint::of(e).hint("`--state-dir` names another directory"))?;
    for launch in &recovered.launches {
        tell(format!(
            "note: cleaned up after launch {launch}, which had ended without doing so"
        ));
    }
    for left in &recovered.left {
        tell(complaint::not_undone(left));
    }
    Ok(())
}

/// A line for the user, who sees it on stderr.
fn note(line: String) {
    let _ = writeln!(std::io::stderr().lock(), "{}", harmless(&line));
}

fn builder(builder: Builder) -> fcpipe_launch::Builder {
    match builder {
        Builder::Native => fcpipe_launch::Builder::Native,
        Builder::Mke2fs => fcpipe_launch::Builder::Mke2fs,
    }
}

fn write_timings(path: Option<&Path>, receipt: Option<&Receipt>) -> Result<(), Complaint> {
    let (Some(path), Some(receipt)) = (path, receipt) else {
        return Ok(());
    };
    let mut text = serde_json::to_string_pretty(receipt).map_err(|e| Complaint::about(path, e))?;
    text.push('\n');
    fcpipe_engine::write_file(path, text.as_bytes()).map_err(|e| Complaint::about(path, e))
}

/// Writes a process id, whole or not at all.
fn write_pid(path: &Path, pid: u32) -> Result<(), Complaint> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, pid.to_string())
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|e| Complaint::about(path, e))
}

/// Writes a result to stdout. A reader that has gone away wanted no more of it.
fn print(text: &str) -> Result<(), Complaint> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Complaint::new(format_args!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// What is known of a launch, which there must be.
fn existing(directories: &Directories, id: &str) -> Result<Record, Complaint> {
    look(&directories.state, id)
        .map_err(Complaint::of)?
        .ok_or_else(|| missing(id))
}

/// There is no launch of that name: runc's words, which other programs look for.
fn missing(id: &str) -> Complaint {
    Complaint::new(format_args!("container {id:?} does not exist"))
        .hint("`fcpipe ps` lists those of this user (sudo has others) and `--state-dir`")
}

/// How long a launch may look alive that nobody looks after any more: while its supervisor ends, or while another command takes away what
/// a dead one left.
const BETWEEN: Duration = Duration::from_secs(2);

/// Connects to the supervisor of a launch, which there must be. Where none answers: how far the launch is.
fn reach(directories: &Directories, id: &str) -> Result<Result<Connection, Status>, Complaint> {
    let end = Instant::now() + BETWEEN;
    loop {
        let status = existing(directories, id)?.status;
        if let Some(connection) = connect(&directories.state, id).map_err(Complaint::of)? {
            return Ok(Ok(connection));
        }
        let settled = matches!(status, Status::Creating | Status::Stopped);
        if settled || Instant::now() >= end {
            return Ok(Err(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a supervisor answers that refuses nothing.
enum Answer {
    Done,
    /// The process takes no notice of the signal.
    Dropped,
}

/// Asks the supervisor of a launch for something that is done or refused.
fn ask(global: &Global, id: &str, request: &Request) -> Result<Answer, Complaint> {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let mut connection = match reach(&directories, id)? {
        Ok(connection) => connection,
        Err(status) => return Err(not_running(request, status)),
    };
    connection.ask(request, &[]).map_err(Complaint::of)?;
    match connection.reply().map_err(Complaint::of)? {
        Some(Reply::Done) => Ok(Answer::Done),
        Some(Reply::Dropped) => Ok(Answer::Dropped),
        Some(Reply::Failed { failed }) => Err(Failure::from(failed).into()),
        // It has ended meanwhile.
        _ => Err(not_running(request, Status::Stopped)),
    }
}

fn not_running(request: &Request, status: Status) -> Complaint {
    let complaint = match request {
        Request::Start => Complaint::new(format_args!(
            "cannot start a container in the {status} state"
        )),
        _ => Complaint::new("container not running"),
    };
    complaint.hint(IT_HAS_ENDED)
}

/// What can be done about a launch that nobody looks after any more.
const IT_HAS_ENDED: &str = "`fcpipe state` says how it ended, `fcpipe logs` what it wrote; `fcpipe delete` takes away the rest";
