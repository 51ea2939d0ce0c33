//! What a launch is: an OCI bundle, its `config.json`, or a launch file, read into one [`LaunchSpec`].
//!
//! ```no_run
//! let options = fcpipe_spec::LoadOptions {
//!     overrides: vec!["machine.memory=1GiB".to_owned()],
//!     ..Default::default()
//! };
//! let spec = fcpipe_spec::load("./bundle".as_ref(), &options)?;
//! # Ok::<(), fcpipe_spec::SpecError>(())
//! ```
//!
//! The way of a spec through this crate:
//!
//! 1. `text`: bytes to a tree of values that know where they stand, JSON and YAML alike, within
//!    limits that no input passes.
//! 2. `oci`, `launch_file`: the fields there are, as plain serde structs; `values` and `addresses` have those with a
//!    syntax of their own. Nothing has a default yet.
//! 3. `layers`: an OCI config, its `dev.fcpipe.*` annotations, a launch file, `--set`: in this order, the
//!    later over the earlier, into a `draft`; `mounts` reads one mount.
//!    `linux` reads what the guest enforces, into the types of `confine`.
//! 4. `draft`, `machine`: defaults, clamps, and what only the whole can tell, into the [`LaunchSpec`].
//!
//! Begin with [`load`], then `layers.rs`. What each field means to people is in docs/launch-file.md.
//!
//! Architecture invariant: this crate reads the spec's files, stats the root, and asks the kernel how many
//! CPUs and how much memory there are; nothing else on the host is touched. A mount's source is not even
//! looked at, for it may be on a file system that hangs. What a spec contains is never trusted to be
//! small, shallow, printable or right.
//!
//! Architecture invariant: an error has a place. Code that refuses a value holds the document and the
//! [field path](SpecError::field) it came from.

mod addresses;
mod config;
mod confine;
mod draft;
mod error;
mod host;
mod id;
mod launch_file;
mod layers;
mod linux;
mod machine;
mod model;
mod mounts;
mod oci;
mod schema;
mod suggest;
mod text;
mod values;

use std::path::Path;

pub use config::{Config, load_config};
pub use confine::{
    Capabilities, ConsoleSize, Device, DeviceKind, Hook, Hooks, Linux, Personality, Propagation,
    Rlimit, Seccomp, SeccompAction, SeccompArch, SeccompArg, SeccompFlag, SeccompOp, SeccompRule,
};
pub use error::{Place, SpecError};
pub use host::Host;
pub use id::{IdError, LaunchId};
pub use machine::{MAX_VCPUS, MIN_MEMORY};
pub use model::*;
pub use schema::launch_file_schema;

use draft::Draft;
use text::de::Unknown;
use text::{Doc, FieldPath};

/// The largest spec that is read, bytes. Real ones have some 20 KiB; those of Kubernetes pods with
/// thousands of mounts stay below 1 MiB.
pub const MAX_SPEC: u64 = 8 << 20;

/// What to read a spec with.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// `KEY=VALUE` each, the key dotted as in `machine.memory`; over everything in the files. Relative paths in
    /// them are relative to the current directory.
    pub overrides: Vec<String>,
    /// What would be a warning is [`SpecError::Strict`].
    pub strict: bool,
    /// What a spec has that says nothing about CPUs, or about memory.
    pub vcpus: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// What CPUs and memory are held against; `None` asks this host.
    pub host: Option<Host>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpecFormat {
    Oci,
    LaunchFile,
}

/// Reads a spec: the directory of an OCI bundle, an OCI `config.json`, or a launch file.
///
/// A file is JSON or YAML by its name (`.json`, `.yaml`, `.yml`), otherwise by how it begins. JSON with an
/// `ociVersion` is an OCI config.
///
/// # Errors
/// [`SpecError`], with the place in the file where there is one.
pub fn load(path: &Path, options: &LoadOptions) -> Result<LaunchSpec, SpecError> {
    let opened = layers::open(path)?;
    let mut draft = Draft::default();
    let mut root_field = "root";
    match opened.format {
        SpecFormat::Oci => layers::oci(&mut draft, &opened)?,
        SpecFormat::LaunchFile => {
            root_field = "rootfs";
            launch_file(&mut draft, &opened)?;
        }
    }
    if !options.overrides.is_empty() {
        let (doc, file) = layers::overrides(&options.overrides)?;
        let base = std::env::current_dir().map_err(|source| SpecError::Read {
            file: ".".into(),
            source,
        })?;
        draft.launch_file(&doc, &base, file)?;
    }
    let host = options.host.unwrap_or_else(Host::probe);
    draft.machine.usual = (options.vcpus, options.memory);
    draft.finish(
        opened.file.clone(),
        &opened.doc,
        root_field,
        host,
        options.strict,
    )
}

/// Reads an OCI `process` object that stands alone in a file.
///
/// # Errors
/// As for [`load`].
pub fn load_process(path: &Path) -> Result<Process, SpecError> {
    let doc = layers::open(path)?.doc.within("process");
    let file: launch_file::ProcessFile = doc.read(Unknown::Ignore)?;
    let mut draft = Draft::default();
    draft.process(&doc, file.process)?;
    draft.finish_process(&doc)
}

fn launch_file(draft: &mut Draft, opened: &layers::Opened) -> Result<(), SpecError> {
    let doc: &Doc = &opened.doc;
    let mut file: launch_file::LaunchFile = doc.read(Unknown::Refuse)?;
    layers::check_version(doc, &file)?;
    if let Some(bundle) = file.bundle.take() {
        let path = bundle.below(opened.base());
        let field = FieldPath::new("bundle");
        let bundle = layers::open(&path).map_err(|error| match error {
            SpecError::Read { file, source } => SpecError::Host {
                place: Box::new(doc.place(&field)),
                path: file,
                problem: format!("cannot be read: {source}"),
            },
            other => other,
        })?;
        if bundle.format != SpecFormat::Oci {
            return Err(doc.invalid(&field, "leads to a launch file, not to an OCI bundle"));
        }
        layers::oci(draft, &bundle)?;
    }
    draft.launch_file(doc, opened.base(), file)
}
