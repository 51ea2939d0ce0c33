//! `fcpipe plan` and `fcpipe explain`: what a launch would do, and why; nothing is made.

use std::fmt::Write as _;
use std::time::Duration;

use fcpipe_engine::{CancelToken, EventSender};
use fcpipe_kernel::KernelStore;
use fcpipe_launch::{Planned, RunRequest};
use fcpipe_spec::LaunchId;
use serde_json::json;

use super::{Outcome, builder, host, load, note, print};
use crate::arguments::{Explain, Format, Global, Plan, Planning};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::harmless;
use crate::why::{Reason, Verdict, Would, verdicts};

pub(crate) fn plan(global: &Global, arguments: &Plan) -> Outcome {
    let (planned, machine) = look(global, &arguments.planning)?;
    let verdicts = verdicts(&planned.steps);
    let text = match global.format {
        Format::Human => {
            let machine = harmless(&format!("machine: {}", machine.join("; ")));
            format!("{}{}{machine}\n", table(&verdicts), disk(&planned))
        }
        Format::Json => {
            let mut json = as_json(&verdicts);
            json["machine"] = json!({"why": machine});
            json["disk"] = json!({
                "writes": planned.writes.way(),
                "why": planned.writes.why(),
                "group": planned.group.way(),
                "images": planned.group.images(),
                "why_group": planned.group.why(),
            });
            format!("{json:#}\n")
        }
    };
    print(&text)?;
    Ok(0)
}

/// `disk: writes by snapshot: /var/lib/fcpipe/state is on ext4, which …`, and how many images.
fn disk(planned: &Planned) -> String {
    let (writes, group) = (&planned.writes, &planned.group);
    let images = match group.images() {
        1 => "one image".to_owned(),
        images => format!("{images} images"),
    };
    let lines = [
        format!("disk: writes by {}: {}", writes.way(), writes.why()),
        format!("disk: {} ({images}): {}", group.way(), group.why()),
    ];
    lines.map(|line| format!("{}\n", harmless(&line))).concat()
}

pub(crate) fn explain(global: &Global, arguments: &Explain) -> Outcome {
    let (planned, _) = look(global, &arguments.planning)?;
    let mut verdicts = verdicts(&planned.steps);
    if let Some(name) = &arguments.stage {
        verdicts.retain(|v| v.step.id == *name || v.step.rows.iter().any(|row| row == name));
        if verdicts.is_empty() {
            let ids: Vec<&str> = planned.steps.iter().map(|step| step.id.as_str()).collect();
            return Err(
                Complaint::new(format_args!("{name}: no stage of this launch"))
                    .hint(format!("it has: {}", ids.join(", "))),
            );
        }
    }
    let text = match global.format {
        Format::Human => reasons(&verdicts, arguments.stage.is_some()),
        Format::Json => format!("{:#}\n", as_json(&verdicts)),
    };
    print(&text)?;
    Ok(0)
}

/// The plan of a run of this spec, and why it would have the machine that it would have.
fn look(global: &Global, planning: &Planning) -> Result<(Planned, Vec<String>), Complaint> {
    let spec = load(global, &planning.spec)?;
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let vmms = super::monitors(global, &directories);
    let chosen = fcpipe_vmm::choose(&vmms, planning.vmm.into()).map_err(Complaint::of_vmm)?;
    let cancel = CancelToken::new().map_err(Complaint::of)?;
    let host = host(
        global,
        &planning.building,
        &directories,
        EventSender::none(),
        cancel,
        &mut note,
    )?;
    let request = RunRequest {
        id: LaunchId::random().map_err(Complaint::of)?,
        builder: builder(planning.building.builder),
        strict: planning.spec.strict,
        kernels: KernelStore::open(&directories.data).map_err(Complaint::of)?,
        kernel: super::kernel(global, &directories, planning.kernel.as_ref())?,
        vmm: chosen.vmm.into(),
        shim: None,
        boot_timeout: Duration::ZERO,
    };
    let planned = fcpipe_launch::plan(&spec, request, &host)?;
    Ok((planned, chosen.reasons))
}

fn table(verdicts: &[Verdict<'_>]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let first = verdict.why.first().map(Reason::words).unwrap_or_default();
        let more = match verdict.why.len() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let line = format!(
            "{:12} {:22} {}{more}",
            verdict.would.word(),
            verdict.step.id,
            first
        );
        let _ = writeln!(text, "{}", harmless(line.trim_end()));
    }
    text
}

/// For each step that would run: the first difference; all of them where one stage is asked about.
fn reasons(verdicts: &[Verdict<'_>], all: bool) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let id = &verdict.step.id;
        match verdict.would {
            Would::Hit if all => {
                let _ = writeln!(text, "{}: unchanged", harmless(id));
            }
            Would::Always if all => {
                let _ = writeln!(
                    text,
                    "{}: done at each launch: it makes what this launch alone has",
                    harmless(id)
                );
            }
            Would::Hit | Would::Always => {}
            Would::New | Would::Changed | Would::Run => {
                let shown = if all { verdict.why.len() } else { 1 };
                for reason in verdict.why.iter().take(shown) {
                    let _ = writeln!(text, "{}", harmless(&format!("{id}: {}", reason.words())));
                }
            }
        }
    }
    if text.is_empty() {
        text.push_str("unchanged: every build stage is a hit\n");
    }
    text
}

fn as_json(verdicts: &[Verdict<'_>]) -> serde_json::Value {
    let stages: Vec<_> = verdicts
        .iter()
        .map(|verdict| {
            let why: Vec<_> = verdict.why.iter().map(Reason::words).collect();
            json!({
                "id": verdict.step.id,
                "would": verdict.would,
                "key": verdict.step.key.map(|key| key.to_string()).unwrap_or_default(),
                "why": why,
                "deps": verdict.step.deps,
                "rows": verdict.step.rows,
            })
        })
        .collect();
    json!({"schema": "fcpipe.plan/1", "stages": stages})
}
