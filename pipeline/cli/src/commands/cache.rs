//! `fcpipe cache`: what is kept for reuse.

mod archive;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fcpipe_engine::store::{Collect, Collected, Entry, Finding, Survey, Unusable, Usage, Verified};
use fcpipe_engine::{CancelToken, Store, StoreError};
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::{Outcome, clean_up, note, print, threads};
use crate::amounts::ago;
use crate::arguments::{CacheCommand, Format, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::harmless;
use crate::signals;

/// How long the collector waits for others to let go of the store.
const WAIT: Duration = Duration::from_secs(10);

/// How many digits of a key are shown to people: enough to name it.
const DIGITS: usize = 16;

pub(crate) fn run(global: &Global, command: &CacheCommand) -> Outcome {
    let cancel = CancelToken::new().map_err(Complaint::of)?;
    // Before any other thread: they inherit which signals are blocked.
    let ended = signals::cancel(cancel.clone()).map_err(Complaint::new)?;
    let done = dispatch(global, command, &cancel);
    match (done, ended.signal()) {
        (Err(_), Some(signal)) => Err(Complaint::Signal(signal)),
        (done, _) => done,
    }
}

fn dispatch(global: &Global, command: &CacheCommand, cancel: &CancelToken) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    if let CacheCommand::Export(export) = command {
        return archive::export(global, export, &directories, cancel);
    }
    let store = open(&directories)?;
    let mut code = 0;
    let text = match command {
        CacheCommand::Ls => list(&store.survey().map_err(broken)?, global.format),
        CacheCommand::Du => usage(&store.survey().map_err(broken)?, global.format),
        CacheCommand::Gc { max_size, max_age } => {
            // What dead launches hold is let go of first.
            clean_up(&directories, &mut note)?;
            let what = Collect {
                max_size: max_size.map(|size| size.0),
                max_age: max_age.map(|age| age.0),
                wait: WAIT,
            };
            let gone = store.collect(&what).map_err(broken)?;
            collected(&gone, global.format)
        }
        CacheCommand::Verify => {
            let verified = store.verify(threads(global), &|| cancel.cancelled());
            let verified = verified
                .map_err(broken)?
                .ok_or_else(|| Complaint::new("cancelled"))?;
            code = u8::from(verified.findings.iter().any(Finding::is_damage));
            checked(&verified, global.format)
        }
        CacheCommand::Import { file, digest } => {
            archive::import(&store, file, *digest, global.format, cancel)?
        }
        CacheCommand::Export(_) => unreachable!("answered above"),
    };
    print(&text)?;
    Ok(code)
}

fn open(directories: &Directories) -> Result<Store, Complaint> {
    Store::open(&directories.cache).map_err(broken)
}

fn broken(error: StoreError) -> Complaint {
    let hint = match &error {
        StoreError::InUse { .. } => {
            Some("a build or the start of a launch is at work: try again when it is done")
        }
        StoreError::Full { .. } => Some("free some space, or choose another directory"),
        _ => None,
    };
    let complaint = Complaint::of(error);
    match hint {
        Some(hint) => complaint.hint(hint),
        None => complaint,
    }
}

fn list(survey: &Survey, format: Format) -> String {
    let mut text = String::new();
    for entry in &survey.entries {
        match format {
            Format::Json => text += &format!("{}\n", entry_json(entry)),
            Format::Human => {
                let (node, stage) = names(entry);
                let used = entry.used.elapsed().unwrap_or_default();
                let _ = writeln!(
                    text,
                    "{}  {:<8} {:<12} {:>12}  {:<11} {}",
                    &entry.key.to_string()[..DIGITS],
                    harmless(stage),
                    harmless(node),
                    BinaryBytes(entry.whole().disk).to_string(),
                    ago(used),
                    state(entry),
                );
            }
        }
    }
    text
}

fn names(entry: &Entry) -> (&str, &str) {
    match &entry.record {
        Ok(record) => (&record.node, &record.stage),
        Err(_) => ("-", "-"),
    }
}

fn state(entry: &Entry) -> String {
    match &entry.record {
        Err(why) => format!("no hit: {why}"),
        Ok(_) if entry.leased() => "in use".to_owned(),
        Ok(record) if !record.synced => "this boot only".to_owned(),
        Ok(_) => "ready".to_owned(),
    }
}

fn entry_json(entry: &Entry) -> Value {
    let objects: Vec<Value> = entry
        .objects
        .iter()
        .map(|object| {
            json!({
                "id": object.id,
                "size": object.usage.bytes,
                "disk": object.usage.disk,
                "content": object.content.map(|digest| format!("blake3-pieces:{digest}")),
                "in_use": object.leased,
            })
        })
        .collect();
    let mut line = json!({
        "key": entry.key,
        "used": seconds(entry.used),
        "disk": entry.whole().disk,
        "usable": entry.record.is_ok(),
        "in_use": entry.leased(),
        "objects": objects,
    });
    match &entry.record {
        Ok(record) => {
            line["node"] = json!(record.node);
            line["stage"] = json!(record.stage);
            line["version"] = json!(record.version);
            line["made"] = json!(record.made);
            line["synced"] = json!(record.synced);
        }
        Err(why) => line["why"] = json!(why.to_string()),
    }
    line
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn usage(survey: &Survey, format: Format) -> String {
    let mut parts = vec![("records", Usage::default()), ("objects", Usage::default())];
    for entry in &survey.entries {
        parts[0].1 += entry.usage;
        for object in &entry.objects {
            parts[1].1 += object.usage;
        }
    }
    let mut orphans = Usage::default();
    for orphan in &survey.orphans {
        orphans += orphan.usage;
    }
    parts.extend([
        ("orphans", orphans),
        ("notes", survey.notes),
        ("scans", survey.scans),
        ("temporary", survey.temporary),
        ("total", survey.total()),
    ]);
    match format {
        Format::Json => {
            let figures = |usage: &Usage| json!({"files": usage.files, "size": usage.bytes, "disk": usage.disk});
            let mut all: serde_json::Map<String, Value> = parts
                .iter()
                .map(|(name, usage)| ((*name).to_owned(), figures(usage)))
                .collect();
            all.insert("other_versions".to_owned(), json!(survey.other_versions));
            format!("{}\n", Value::from(all))
        }
        Format::Human => {
            let mut text = String::new();
            for (name, usage) in parts {
                let disk = BinaryBytes(usage.disk).to_string();
                let size = BinaryBytes(usage.bytes).to_string();
                let files = usage.files;
                let _ = writeln!(
                    text,
                    "{name:<10} {files:>6} files {disk:>12} ({size} with holes)"
                );
            }
            for version in &survey.other_versions {
                let _ = writeln!(text, "{version}: of another version of fcpipe, left alone");
            }
            text
        }
    }
}

fn collected(gone: &Collected, format: Format) -> String {
    match format {
        Format::Json => format!(
            "{}\n",
            json!({
                "records": gone.records,
                "unusable": gone.unusable,
                "orphans": gone.orphans,
                "notes": gone.notes,
                "scans": gone.scans,
                "leftovers": gone.leftovers,
                "freed": gone.freed,
                "left": gone.left,
                "in_use": gone.in_use,
            })
        ),
        Format::Human => {
            let mut text = format!(
                "freed {}: {} outputs by age or size, {} of no more use, {} objects without a record, \
                 {} notes, {} scans, {} leftovers\n{} left\n",
                BinaryBytes(gone.freed),
                gone.records,
                gone.unusable,
                gone.orphans,
                gone.notes,
                gone.scans,
                gone.leftovers,
                BinaryBytes(gone.left),
            );
            if gone.in_use > 0 {
                let _ = writeln!(
                    text,
                    "{} outputs stay, because machines use them",
                    gone.in_use
                );
            }
            text
        }
    }
}

fn checked(verified: &Verified, format: Format) -> String {
    let findings = verified.findings.iter().map(described);
    match format {
        Format::Json => {
            let findings: Vec<Value> = findings
                .map(
                    |(kind, subject, what)| json!({"kind": kind, "subject": subject, "what": what}),
                )
                .collect();
            let damaged = verified.findings.iter().filter(|f| f.is_damage()).count();
            format!(
                "{}\n",
                json!({
                    "records": verified.records,
                    "objects": verified.objects,
                    "bytes": verified.bytes,
                    "damaged": damaged,
                    "orphans": verified.orphans.files,
                    "findings": findings,
                })
            )
        }
        Format::Human => {
            let mut text = String::new();
            for (kind, subject, what) in findings {
                let _ = writeln!(
                    text,
                    "{kind}: {}: {}: dropped",
                    harmless(&subject),
                    harmless(&what)
                );
            }
            let _ = writeln!(
                text,
                "{} records and {} objects ({}) checked, {} findings",
                verified.records,
                verified.objects,
                BinaryBytes(verified.bytes),
                verified.findings.len(),
            );
            if verified.orphans.files > 0 {
                let _ = writeln!(
                    text,
                    "{} objects without a record ({}): `fcpipe cache gc` removes them",
                    verified.orphans.files,
                    BinaryBytes(verified.orphans.disk),
                );
            }
            text
        }
    }
}

/// What sort of finding, about what, and what is wrong.
fn described(finding: &Finding) -> (&'static str, String, String) {
    match finding {
        Finding::Record { key, why } => {
            let kind = match why {
                Unusable::OtherBoot => "stale",
                _ => "damaged",
            };
            (kind, format!("records/{key}"), why.to_string())
        }
        Finding::Object { id, node } => (
            "damaged",
            format!("objects/{id}"),
            format!("it does not hold what {node} put there"),
        ),
        Finding::Unproven { id, node } => (
            "unproven",
            format!("objects/{id}"),
            format!("nobody has looked at it since {node} made it"),
        ),
        Finding::Borrowed { id, node } => (
            "borrowed",
            format!("objects/{id}"),
            format!("{node} needs it, and it has been dropped"),
        ),
        Finding::Note { name } => (
            "damaged",
            format!("notes/{name}"),
            "it fails its own check".to_owned(),
        ),
    }
}
