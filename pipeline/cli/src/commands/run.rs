//! `fcpipe run`: boots a spec, gives the process's output as its own, and its exit status.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use fcpipe_engine::{CancelToken, LaunchDir};
use fcpipe_kernel::KernelStore;
use fcpipe_launch::{Control, RunRequest, Streams};
use fcpipe_spec::LaunchId;

use super::{Outcome, builder, host, load, write_timings};
use crate::arguments::{Global, Run};
use crate::complaint::{self, Complaint};
use crate::directories::Directories;
use crate::render::Rendering;
use crate::signals;

pub(crate) fn run(global: &Global, arguments: &Run) -> Outcome {
    let cancel = CancelToken::new().map_err(Complaint::new)?;
    let control = Control::new(cancel.clone());
    // Before any other thread: they inherit which signals are blocked.
    let ended = signals::watch(control.clone()).map_err(Complaint::new)?;

    let spec = load(&arguments.spec)?;
    let id = match &arguments.id {
        Some(id) => LaunchId::parse(id).map_err(|e| Complaint::new(format_args!("--id: {e}")))?,
        None => LaunchId::random().map_err(Complaint::new)?,
    };
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let vmms = fcpipe_vmm::Host::from_env(Some(&directories.data));
    let chosen = fcpipe_vmm::choose(&vmms, arguments.vmm.into()).map_err(Complaint::of_vmm)?;

    let (events, rendering) = Rendering::start(global.progress);
    let launched = (|| -> Result<_, Complaint> {
        let host = host(global, &arguments.building, &directories, events, cancel)?;
        let launch = LaunchDir::claim(&directories.state, id.as_str()).map_err(Complaint::new)?;
        let kernels = KernelStore::open(&directories.data).map_err(Complaint::new)?;
        let request = RunRequest {
            id,
            builder: builder(arguments.building.builder),
            strict: arguments.spec.strict,
            kernels,
            kernel: arguments.kernel.clone(),
            vmm: chosen.vmm.into(),
            boot_timeout: Duration::from_secs(arguments.boot_timeout.into()),
            streams: Streams {
                stdin: standard_input(arguments.interactive)?,
                stdout: Box::new(std::io::stdout()),
                stderr: Box::new(std::io::stderr()),
            },
            control,
        };
        let launched = fcpipe_launch::run(&spec, request, launch, &host);
        // What the launch built is made safe against a power cut behind it.
        if let Err(error) = host.store.sync_pending() {
            return Err(Complaint::new(error));
        }
        Ok(launched)
    })();
    rendering.finish();
    let launched = launched?;
    complaint::not_undone(&launched.not_undone);
    write_timings(
        arguments.building.timings.as_deref(),
        launched.receipt.as_ref(),
    )?;
    let result = match &launched.result {
        Ok(status) => format!("exit {}", status.shell_code()),
        Err(failure) => failure.to_string(),
    };
    let (receipt, steps) = (launched.receipt.as_ref(), &launched.steps);
    super::report::keep(&directories, &spec, "run", result, receipt, steps);
    match (launched.result, ended.signal()) {
        (Ok(status), _) => Ok(status.shell_code()),
        (Err(_), Some(signal)) => Err(Complaint::Signal(signal)),
        (Err(failure), None) => Err(failure.into()),
    }
}

/// A descriptor of our own for standard input.
fn standard_input(interactive: bool) -> Result<Option<File>, Complaint> {
    if !interactive {
        return Ok(None);
    }
    let fd = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| Complaint::new(format_args!("stdin: {e}")))?;
    Ok(Some(File::from(fd)))
}
