//! `fcpipe metrics`: what launches use, in the text form of Prometheus, or as JSON; and `fcpipe events --stats`.

use fcpipe_supervisor::{Reply, Request, Stats, Status, connect, look_at_all, prometheus_types};
use serde_json::json;

use super::{IT_HAS_ENDED, Outcome, clean_up, existing, note, print};
use crate::arguments::{Format, Global, Metrics};
use crate::complaint::Complaint;
use crate::directories::Directories;

/// Of one launch, or of all that have a machine.
pub(crate) fn run(global: &Global, arguments: &Metrics) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    let ids = match &arguments.id {
        Some(id) => vec![existing(&directories, id)?.id],
        None => look_at_all(&directories.state, &mut note)
            .map_err(Complaint::of)?
            .into_iter()
            .filter(|record| matches!(record.status, Status::Created | Status::Running))
            .map(|record| record.id)
            .collect(),
    };
    let mut text = String::new();
    for id in &ids {
        let stats = match stats(&directories, id) {
            Ok(stats) => stats,
            // One of many that ends meanwhile is no error.
            Err(complaint) if arguments.id.is_some() => return Err(complaint),
            Err(_) => continue,
        };
        match global.format {
            Format::Json => text += &format!("{}\n", json!({"id": id, "stats": stats})),
            Format::Human => text += &stats.prometheus(id),
        }
    }
    if global.format == Format::Human {
        text = prometheus_types(&text) + &text;
    }
    print(&text)?;
    Ok(0)
}

/// One event of the figures, now.
pub(crate) fn event(directories: &Directories, id: &str) -> Outcome {
    let stats = stats(directories, id)?;
    let event = json!({"type": "stats", "id": id, "data": stats});
    print(&format!("{event}\n"))?;
    Ok(0)
}

fn stats(directories: &Directories, id: &str) -> Result<Stats, Complaint> {
    let gone = || Complaint::new("container not running").hint(IT_HAS_ENDED);
    let mut connection = connect(&directories.state, id)
        .map_err(Complaint::of)?
        .ok_or_else(gone)?;
    connection
        .ask(&Request::Stats, &[])
        .map_err(Complaint::of)?;
    match connection.reply().map_err(Complaint::of)? {
        Some(Reply::Stats { stats }) => Ok(*stats),
        Some(Reply::Failed { failed }) => Err(fcpipe_engine::Failure::from(failed).into()),
        _ => Err(gone()),
    }
}
