//! `fcpipe kernel`: what microVMs boot.

use fcpipe_kernel::{HOW_TO_IMPORT, KernelError, KernelStore};
use serde_json::json;

use super::{Outcome, note, print};
use crate::arguments::{Format, Global, Kernel};
use crate::complaint::Complaint;
use crate::directories::Directories;

pub(crate) fn run(global: &Global, arguments: &Kernel) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let store = KernelStore::open(&directories.data).map_err(Complaint::of)?;
    let text = match arguments {
        Kernel::Import { file, modules } => {
            let kernel = store.import(file, modules.as_deref()).map_err(complaint)?;
            match global.format {
                Format::Human => format!(
                    "imported {} ({} modules)\n",
                    kernel.id,
                    kernel.modules.len()
                ),
                Format::Json => {
                    format!("{}\n", json!({"id": kernel.id, "release": kernel.release}))
                }
            }
        }
        Kernel::Ls => list(&store, global.format)?,
    };
    print(&text)?;
    Ok(0)
}

fn list(store: &KernelStore, format: Format) -> Result<String, Complaint> {
    let listing = store.list().map_err(complaint)?;
    let default = store.default().ok().map(|kernel| kernel.id);
    let mut text = String::new();
    for kernel in &listing.kernels {
        let is_default = default.as_deref() == Some(&kernel.id);
        text += &match format {
            Format::Human => {
                let mark = if is_default { '*' } else { ' ' };
                format!(
                    "{mark} {}  {} modules, from {}\n",
                    kernel.id,
                    kernel.modules.len(),
                    kernel.source
                )
            }
            Format::Json => format!(
                "{}\n",
                json!({
                    "id": kernel.id,
                    "release": kernel.release,
                    "default": is_default,
                    "modules": kernel.modules.iter().map(|m| &m.name).collect::<Vec<_>>(),
                    "source": kernel.source,
                })
            ),
        };
    }
    if text.is_empty() && listing.damaged.is_empty() {
        note(format!("no kernel is imported: {HOW_TO_IMPORT}"));
    }
    match listing.damaged.into_iter().next() {
        Some(error) => Err(complaint(error)),
        None => Ok(text),
    }
}

fn complaint(error: KernelError) -> Complaint {
    Complaint::of(error)
}
