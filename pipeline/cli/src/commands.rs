//! One file a command, and what several of them share.

pub(crate) mod build;
pub(crate) mod cache;
pub(crate) mod doctor;
pub(crate) mod kernel;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod validate;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use fcpipe_engine::{CacheMode, CancelToken, EventSender, Receipt, Store, recover};
use fcpipe_launch::Host;
use fcpipe_spec::{LaunchSpec, LoadOptions};

use crate::arguments::{Builder, Building, Cache, Global, Spec};
use crate::complaint::{self, Complaint};
use crate::directories::{Directories, make_private};
use crate::render::harmless;

/// What a command gives back: its exit code, or why there is none.
pub(crate) type Outcome = Result<u8, Complaint>;

fn load(spec: &Spec) -> Result<LaunchSpec, Complaint> {
    let options = LoadOptions {
        overrides: spec.set.clone(),
        strict: spec.strict,
        ..LoadOptions::default()
    };
    let spec = fcpipe_spec::load(&spec.path, &options)?;
    for warning in &spec.warnings {
        let _ = writeln!(std::io::stderr().lock(), "warning: {}", harmless(warning));
    }
    Ok(spec)
}

/// Opens the store and, first of all, takes away what dead launches left.
fn host(
    global: &Global,
    building: &Building,
    directories: &Directories,
    events: EventSender,
    cancel: CancelToken,
) -> Result<Host, Complaint> {
    clean_up(directories)?;
    make_private(&directories.cache).map_err(|e| Complaint::about(&directories.cache, e))?;
    let store = Store::open(&directories.cache).map_err(Complaint::new)?;
    let threads = global
        .threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, usize::from);
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
        threads,
        events,
        cancel,
    })
}

/// Undoes what launches left whose process is gone.
fn clean_up(directories: &Directories) -> Result<(), Complaint> {
    make_private(&directories.state).map_err(|e| Complaint::about(&directories.state, e))?;
    let recovered =
        recover(&directories.state, &fcpipe_launch::undo_table()).map_err(Complaint::new)?;
    for launch in &recovered.launches {
        let _ = writeln!(
            std::io::stderr().lock(),
            "note: cleaned up after launch {}, which had ended without doing so",
            harmless(launch)
        );
    }
    complaint::not_undone(&recovered.left);
    Ok(())
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
    std::fs::write(path, text).map_err(|e| Complaint::about(path, e))
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
