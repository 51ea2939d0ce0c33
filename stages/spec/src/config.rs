//! The configuration file of `--config`: fcpipe's own, or that of a worker that ran Firecracker before, with its settings
//! under `runtime`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::SpecError;
use crate::layers;
use crate::text::de::Unknown;
use crate::values::{ByteSize, HostPath, Text};

/// What a configuration says; all of it may be left out. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub cache_dir: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub firecracker: Option<PathBuf>,
    pub jailer: Option<PathBuf>,
    /// A kernel to import and boot where none is asked for by name.
    pub kernel_image: Option<PathBuf>,
    /// Of a spec that says nothing about CPUs.
    pub vcpus: Option<u32>,
    /// Bytes: of a spec that says nothing about memory.
    pub memory: Option<u64>,
    /// Bytes of a detached launch's log after which a new file begins.
    pub log_size: Option<u64>,
    /// How many files of such a log there are at most.
    pub log_files: Option<u32>,
    /// What was read and means nothing here, in words for the user.
    pub ignored: Vec<String>,
}

/// fcpipe's own form.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct File {
    version: Option<u64>,
    cache_dir: Option<HostPath>,
    data_dir: Option<HostPath>,
    state_dir: Option<HostPath>,
    firecracker: Option<HostPath>,
    jailer: Option<HostPath>,
    kernel_image: Option<HostPath>,
    vcpus: Option<u32>,
    memory: Option<ByteSize>,
    log: Option<Log>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Log {
    size: Option<ByteSize>,
    files: Option<u32>,
}

/// A shorter file would be rotated at every line.
const LEAST_LOG: u64 = 64 << 10;
/// Each is renamed at every rotation.
const MOST_LOGS: u32 = 1000;

/// A worker's form.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Worker {
    runtime: Option<Runtime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct Runtime {
    #[serde(rename = "type")]
    kind: Option<Text>,
    firecracker_bin: Option<HostPath>,
    jailer_bin: Option<HostPath>,
    microvm_root: Option<HostPath>,
    kernel_image: Option<HostPath>,
    initrd: Option<HostPath>,
    default_cpus: Option<u32>,
    default_mem_mib: Option<u64>,
}

/// Reads a configuration, JSON or YAML. Of a worker's file only `runtime` is read; in fcpipe's own an unknown field is an error.
///
/// # Errors
/// As for [`crate::load`].
pub fn load_config(path: &Path) -> Result<Config, SpecError> {
    let opened = layers::open(path)?;
    let (doc, base) = (&opened.doc, opened.base());
    let at = |path: Option<HostPath>| path.map(|path| path.below(base));
    if !doc.root.has("runtime") {
        let file: File = doc.read(Unknown::Refuse)?;
        if let Some(version @ (0 | 2..)) = file.version {
            let field = crate::text::FieldPath::new("version");
            return Err(doc.invalid(&field, format!("{version} is not known here, 1 is")));
        }
        let log = file.log.unwrap_or_default();
        let log_size = log.size.map(|size| size.0);
        if log_size.is_some_and(|size| size < LEAST_LOG) {
            let field = crate::text::FieldPath::new("log.size");
            return Err(doc.invalid(&field, "is less than 64 KiB"));
        }
        if log
            .files
            .is_some_and(|files| !(1..=MOST_LOGS).contains(&files))
        {
            let field = crate::text::FieldPath::new("log.files");
            return Err(doc.invalid(&field, format!("is not 1 to {MOST_LOGS}")));
        }
        return Ok(Config {
            cache_dir: at(file.cache_dir),
            data_dir: at(file.data_dir),
            state_dir: at(file.state_dir),
            firecracker: at(file.firecracker),
            jailer: at(file.jailer),
            kernel_image: at(file.kernel_image),
            vcpus: file.vcpus,
            memory: file.memory.map(|size| size.0),
            log_size,
            log_files: log.files,
            ignored: Vec::new(),
        });
    }
    let runtime = doc
        .read::<Worker>(Unknown::Ignore)?
        .runtime
        .unwrap_or_default();
    if let Some(Text(kind)) = runtime.kind.filter(|kind| kind.0 != "firecracker") {
        let field = crate::text::FieldPath::new("runtime.type");
        return Err(doc.invalid(
            &field,
            format!("{kind} is another runtime, not firecracker"),
        ));
    }
    let mut ignored = Vec::new();
    if let Some(initrd) = at(runtime.initrd) {
        ignored.push(format!(
            "runtime.initrd: {} is not used: the initrd that fcpipe makes has its agent",
            initrd.display()
        ));
    }
    Ok(Config {
        state_dir: at(runtime.microvm_root),
        firecracker: at(runtime.firecracker_bin),
        jailer: at(runtime.jailer_bin),
        kernel_image: at(runtime.kernel_image),
        vcpus: runtime.default_cpus,
        memory: runtime.default_mem_mib.map(|mib| mib << 20),
        ignored,
        ..Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, SpecError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        load_config(&file)
    }

    #[test]
    fn a_worker_s_configuration_is_taken_as_it_is() {
        let config = read(
            "pool: {name: a}\nruntime:\n  type: firecracker\n  firecracker_bin: /usr/bin/firecracker\n  jailer_bin: /usr/bin/jailer\n  microvm_root: /var/lib/microvm\n  kernel_image: /k/vmlinux\n  initrd: /k/initrd\n  default_cpus: 2\n  default_mem_mib: 1024\n  other: 1\n",
        )
        .unwrap();
        assert_eq!(
            config.firecracker.as_deref(),
            Some(Path::new("/usr/bin/firecracker"))
        );
        assert_eq!(config.jailer.as_deref(), Some(Path::new("/usr/bin/jailer")));
        assert_eq!(
            config.state_dir.as_deref(),
            Some(Path::new("/var/lib/microvm"))
        );
        assert_eq!(
            config.kernel_image.as_deref(),
            Some(Path::new("/k/vmlinux"))
        );
        assert_eq!((config.vcpus, config.memory), (Some(2), Some(1 << 30)));
        assert_eq!(config.ignored.len(), 1);
        assert!(read("runtime: {type: gvisor}").is_err());
    }

    #[test]
    fn our_own_refuses_what_it_does_not_know() {
        let config = read("version: 1\nstate_dir: /s\nmemory: 1GiB\n").unwrap();
        assert_eq!(
            (config.state_dir, config.memory),
            (Some("/s".into()), Some(1 << 30))
        );
        assert!(read("stat_dir: /s\n").is_err());
        let config = read("log: {size: 1MiB, files: 5}\n").unwrap();
        assert_eq!(
            (config.log_size, config.log_files),
            (Some(1 << 20), Some(5))
        );
        for wrong in ["size: 1", "files: 0", "files: 1001", "count: 3"] {
            let said = read(&format!("log: {{{wrong}}}\n"))
                .unwrap_err()
                .to_string();
            assert!(said.contains("log"), "{said}");
        }
        assert!(read("version: 2\n").is_err());
    }
}
