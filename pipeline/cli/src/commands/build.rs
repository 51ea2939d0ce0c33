//! `fcpipe build`: a spec's root file system as an ext4 image. Needs no root, mount or loop device.

use fcpipe_engine::CancelToken;
use fcpipe_launch::{BuildRequest, Built};
use fcpipe_spec::LaunchId;
use serde_json::json;

use super::{Outcome, builder, host, load, note, print, write_timings};
use crate::arguments::{Build, Format, Global};
use crate::complaint::{self, Complaint};
use crate::directories::Directories;
use crate::render::Rendering;
use crate::signals;

pub(crate) fn run(global: &Global, arguments: &Build) -> Outcome {
    let cancel = CancelToken::new().map_err(Complaint::of)?;
    // Before any other thread: they inherit which signals are blocked.
    let ended = signals::cancel(cancel.clone()).map_err(Complaint::new)?;
    let spec = load(global, &arguments.spec)?;
    let id = LaunchId::random().map_err(Complaint::of)?;
    let output = std::path::absolute(&arguments.output)
        .map_err(|e| Complaint::about(&arguments.output, e))?;
    let directories = Directories::resolve(global).map_err(Complaint::new)?;

    let (events, rendering) = Rendering::start(global.progress);
    let built = host(
        global,
        &arguments.building,
        &directories,
        events,
        cancel,
        &mut note,
    )
    .map(|host| {
        let request = BuildRequest {
            id,
            output,
            builder: builder(arguments.building.builder),
            digest: arguments.digest,
            strict: arguments.spec.strict,
        };
        fcpipe_launch::build(&spec, request, &host)
    });
    rendering.finish();
    let built = built?;
    for left in &built.not_undone {
        note(complaint::not_undone(left));
    }
    write_timings(
        arguments.building.timings.as_deref(),
        built.receipt.as_ref(),
    )?;
    let result = match &built.result {
        Ok(_) => "done".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let (receipt, steps) = (built.receipt.as_ref(), &built.steps);
    super::report::keep(&directories, &spec.file, "build", result, receipt, steps)
        .unwrap_or_else(|why| complaint::warn(&why));
    match (built.result, ended.signal()) {
        (Ok(built), _) => {
            print(&show(&built, global.format))?;
            Ok(0)
        }
        (Err(_), Some(signal)) => Err(Complaint::Signal(signal)),
        (Err(failure), None) => Err(failure.into()),
    }
}

fn show(built: &Built, format: Format) -> String {
    let outcome = if built.hit { "hit" } else { "ran" };
    match format {
        Format::Json => {
            let mut result = json!({
                "image": built.path.display().to_string(),
                "size": built.size,
                "outcome": outcome,
            });
            if let Some(digest) = &built.digest {
                result["digest"] = json!(digest);
            }
            format!("{result}\n")
        }
        Format::Human => {
            let what = if built.hit { "unchanged" } else { "built" };
            let digest = built
                .digest
                .as_ref()
                .map(|d| format!("{d}\n"))
                .unwrap_or_default();
            let size = indicatif::BinaryBytes(built.size);
            format!("{what} {} ({size})\n{digest}", built.path.display())
        }
    }
}
