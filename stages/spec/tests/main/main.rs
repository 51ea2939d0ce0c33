//! Specs from files to [`fcpipe_spec::LaunchSpec`], through the public face of the crate.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod confine;
mod document;
mod hostile;
mod launch_files;
mod machine;
mod mounts;
mod oci;
mod places;
mod schema;

use std::fs;
use std::path::{Path, PathBuf};

use fcpipe_spec::{Bind, Host, LaunchSpec, LoadOptions, MountKind, SpecError, load};
use serde_json::{Value, json};

/// A host that is large enough for every test and the same everywhere.
pub(crate) const HOST: Host = Host {
    cpus: 64,
    memory: 64 << 30,
};

/// A directory of its own with an empty `rootfs` in it.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        Bench { dir }
    }

    /// The directory, its symlinks followed.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn load(&self, name: &str, text: impl AsRef<[u8]>) -> Result<LaunchSpec, SpecError> {
        load(&self.write(name, text), &options())
    }

    /// Loads an OCI config, written on one line.
    pub(crate) fn oci(&self, config: &Value) -> Result<LaunchSpec, SpecError> {
        self.load("config.json", config.to_string())
    }
}

pub(crate) fn options() -> LoadOptions {
    LoadOptions {
        host: Some(HOST),
        ..LoadOptions::default()
    }
}

/// The least that is an OCI config.
pub(crate) fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/"},
    })
}

/// That config with one value more, or another; `pointer` is an RFC 6901 pointer to an object's
/// member.
pub(crate) fn with(pointer: &str, value: Value) -> Value {
    let mut config = config();
    set(&mut config, pointer, value);
    config
}

pub(crate) fn set(config: &mut Value, pointer: &str, value: Value) {
    let mut node = config;
    for key in pointer.trim_start_matches('/').split('/') {
        node = match key.parse::<usize>() {
            Ok(index) if node.is_array() => &mut node[index],
            _ => &mut node[key],
        };
    }
    *node = value;
}

pub(crate) fn with_mount(mount: Value) -> Value {
    with("/mounts", json!([mount]))
}

pub(crate) fn bind(spec: &LaunchSpec, index: usize) -> &Bind {
    match &spec.mounts[index].kind {
        MountKind::Bind(bind) => bind,
        other => panic!("{other:?}"),
    }
}

/// Checks an error's place and that its sentence begins with it.
#[track_caller]
pub(crate) fn at(error: &SpecError, file: &Path, line: usize, column: usize, field: &str) {
    assert_eq!(
        (error.file(), error.line(), error.column()),
        (Some(file), Some(line), Some(column)),
        "{error}"
    );
    assert_eq!(error.field().unwrap_or_default(), field, "{error}");
    let begins = match field {
        "" => format!("{}:{line}:{column}: ", file.display()),
        field => format!("{}:{line}:{column}: {field}: ", file.display()),
    };
    assert!(error.to_string().starts_with(&begins), "{error}");
}
