//! `fcpipe cache export` and `import`.

use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;

use fcpipe_engine::store::archive::{ArchiveError, Exported, Imported};
use fcpipe_engine::{CancelToken, Key, Store};
use fcpipe_kernel::KernelStore;
use fcpipe_launch::StockRequest;
use indicatif::BinaryBytes;
use serde_json::json;

use super::super::{Outcome, builder, host, load, note, print, threads};
use super::{broken, open};
use crate::amounts::FileDigest;
use crate::arguments::{Building, Cache, Export, Format, Global, Spec};
use crate::complaint::{self, Complaint};
use crate::directories::Directories;
use crate::render::{Rendering, harmless};

/// Fewer digits than these name no key: a file of such a name is more likely to be meant.
const FEWEST_DIGITS: usize = 6;

pub(super) fn export(
    global: &Global,
    arguments: &Export,
    directories: &Directories,
    cancel: &CancelToken,
) -> Outcome {
    let output = std::path::absolute(&arguments.output)
        .map_err(|e| Complaint::about(&arguments.output, e))?;
    let exported = match key_of(arguments, directories)? {
        Some((store, key)) => write(&store, &[key], &output, global, cancel)?,
        None => {
            let (store, keys) = outputs(global, arguments, &output, directories, cancel)?;
            let exported = write(&store, &keys, &output, global, cancel)?;
            // What was made on the way is as good as a launch's.
            store.sync_pending().map_err(broken)?;
            exported
        }
    };
    let text = match global.format {
        Format::Json => format!(
            "{}\n",
            json!({
                "file": output.display().to_string(),
                "records": exported.records,
                "objects": exported.objects,
                "size": exported.bytes,
                "digest": format!("blake3:{}", exported.digest),
            })
        ),
        Format::Human => format!(
            "{}: {} records, {} objects, {}\nblake3:{}\n",
            output.display(),
            exported.records,
            exported.objects,
            BinaryBytes(exported.bytes),
            exported.digest,
        ),
    };
    print(&text)?;
    Ok(0)
}

fn write(
    store: &Store,
    keys: &[Key],
    output: &Path,
    global: &Global,
    cancel: &CancelToken,
) -> Result<Exported, Complaint> {
    store
        .export(keys, output, threads(global), &|| cancel.cancelled())
        .map_err(complaint)
}

/// The one key that begins with the digits that were given; `None` if they name a file.
fn key_of(
    arguments: &Export,
    directories: &Directories,
) -> Result<Option<(Store, Key)>, Complaint> {
    let digits = arguments.what.to_str().filter(|text| {
        let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (FEWEST_DIGITS..=64).contains(&text.len()) && text.bytes().all(hexadecimal)
    });
    let Some(digits) = digits.filter(|_| !arguments.what.exists()) else {
        return Ok(None);
    };
    let store = open(directories)?;
    let survey = store.survey().map_err(broken)?;
    let mut keys = survey
        .entries
        .iter()
        .map(|entry| entry.key)
        .filter(|key| key.to_string().starts_with(digits));
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(Some((store, key))),
        (None, _) => Err(Complaint::new(format_args!(
            "{digits}: no such file, and no key begins like this"
        ))
        .hint("`fcpipe cache ls` shows keys")),
        (Some(_), Some(_)) => Err(Complaint::new(format_args!(
            "{digits}: several keys begin like this"
        ))
        .hint("give more digits")),
    }
}

/// Makes what a launch of the spec needs, or finds it, and gives the records' keys.
fn outputs(
    global: &Global,
    arguments: &Export,
    output: &Path,
    directories: &Directories,
    cancel: &CancelToken,
) -> Result<(std::sync::Arc<Store>, Vec<Key>), Complaint> {
    let spec = load(
        global,
        &Spec {
            path: arguments.what.clone(),
            set: arguments.set.clone(),
            strict: arguments.strict,
        },
    )?;
    let building = Building {
        builder: arguments.builder,
        cache: Cache::Auto,
        timings: None,
    };
    let kernels = KernelStore::open(&directories.data).map_err(Complaint::of)?;
    let kernel = match (&arguments.kernel, kernels.default()) {
        (Some(name), _) => Some((kernels, Some(name.clone()))),
        (None, Ok(_)) => Some((kernels, None)),
        (None, Err(error)) => {
            let _ = writeln!(
                std::io::stderr().lock(),
                "note: the file will have no initrd in it: {error}"
            );
            None
        }
    };
    let (events, rendering) = Rendering::start(global.progress);
    let stocked = host(
        global,
        &building,
        directories,
        events,
        cancel.clone(),
        &mut note,
    )
    .map(|mut host| {
        // It must not go into the image that it holds.
        host.own.push(output.to_path_buf());
        let request = StockRequest {
            builder: builder(arguments.builder),
            strict: arguments.strict,
            kernel,
        };
        let stocked = fcpipe_launch::stock(&spec, request, &host);
        (host.store, stocked)
    });
    rendering.finish();
    let (store, stocked) = stocked?;
    for left in &stocked.not_undone {
        note(complaint::not_undone(left));
    }
    Ok((store, stocked.result?))
}

pub(super) fn import(
    store: &Store,
    file: &Path,
    digest: Option<FileDigest>,
    format: Format,
    cancel: &CancelToken,
) -> Result<String, Complaint> {
    let archive: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(file).map_err(|e| Complaint::about(file, e))?)
    };
    let expected = digest.map(|digest| digest.0);
    let imported = store
        .import(archive, file, expected, cancel)
        .map_err(complaint)?;
    // Other than a build's outputs, it can't be made again from what is here: wait for the disk.
    store.sync_pending().map_err(broken)?;
    Ok(show(&imported, format))
}

fn show(imported: &Imported, format: Format) -> String {
    match format {
        Format::Json => {
            let records: Vec<_> = imported
                .records
                .iter()
                .map(|(key, node)| json!({"key": key, "node": node}))
                .collect();
            format!(
                "{}\n",
                json!({
                    "records": records,
                    "present": imported.present,
                    "bytes": imported.bytes,
                    "digest": format!("blake3:{}", imported.digest),
                })
            )
        }
        Format::Human => {
            let nodes = imported.records.iter();
            let names: Vec<String> = nodes.map(|(_, node)| harmless(node)).collect();
            let names = match names.as_slice() {
                [] => String::new(),
                names => format!(" ({})", names.join(", ")),
            };
            format!(
                "imported {} records{names}, {}; {} were there already\nblake3:{}\n",
                imported.records.len(),
                BinaryBytes(imported.bytes),
                imported.present,
                imported.digest,
            )
        }
    }
}

fn complaint(error: ArchiveError) -> Complaint {
    let hint = match &error {
        ArchiveError::Refused { .. } => Some("nothing was imported; export it again"),
        ArchiveError::NotPortable { .. } => {
            Some("export the spec: its image is made in the cache then")
        }
        _ => None,
    };
    let complaint = Complaint::of(error);
    match hint {
        Some(hint) => complaint.hint(hint),
        None => complaint,
    }
}
