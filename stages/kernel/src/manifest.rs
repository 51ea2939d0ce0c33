//! `kernel.json`: what an imported kernel consists of. Written once, read often, never edited.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::elf::module_name;
use crate::error::{KernelError, io_error};
use crate::limits::MAX_MANIFEST;
use crate::modules::read_file;
use crate::release::Release;

/// The value of `schema`. A reader refuses any other.
const SCHEMA: &str = "fcpipe.kernel/1";
/// The only architecture there is a guest for.
const ARCH: &str = "x86_64";
/// Raise it if the same files shall get another id.
const DIGEST_CONTEXT: &str = "fcpipe kernel v1";

/// The content of `kernel.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    schema: String,
    pub(crate) release: String,
    arch: String,
    /// Of everything below but names of sources and times: see [`Manifest::content_digest`].
    #[serde(with = "hex_digest")]
    pub(crate) digest: blake3::Hash,
    pub(crate) vmlinux: ManifestFile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bzimage: Option<ManifestFile>,
    /// In the order of loading.
    pub(crate) modules: Vec<ManifestModule>,
    pub(crate) builtin: Vec<String>,
    pub(crate) absent: Vec<String>,
    pub(crate) source: String,
    pub(crate) imported_ns: u64,
}

/// Length in bytes and blake3 of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    pub(crate) size: u64,
    #[serde(with = "hex_digest")]
    pub(crate) digest: blake3::Hash,
}

/// A module, in `modules/<name>.ko`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ManifestModule {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) file: ManifestFile,
}

impl Manifest {
    /// The file's name in a kernel's directory.
    pub(crate) const FILE: &str = "kernel.json";

    pub(crate) fn new(
        release: &Release,
        vmlinux: ManifestFile,
        bzimage: Option<ManifestFile>,
        modules: Vec<ManifestModule>,
        (builtin, absent): (Vec<String>, Vec<String>),
        source: &Path,
    ) -> Manifest {
        let imported = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let source = source.file_name().unwrap_or_default().as_encoded_bytes();
        let mut manifest = Manifest {
            schema: SCHEMA.to_owned(),
            release: release.to_string(),
            arch: ARCH.to_owned(),
            digest: blake3::Hash::from_bytes([0; 32]),
            vmlinux,
            bzimage,
            modules,
            builtin,
            absent,
            source: source.escape_ascii().to_string(),
            // 2554 is far enough for u64 nanoseconds.
            imported_ns: imported.map_or(0, |d| d.as_nanos() as u64),
        };
        manifest.digest = manifest.content_digest();
        manifest
    }

    /// blake3 over release, image digests, modules in order and what is known to be built in: what
    /// decides how a guest boots.
    /// How the kernel came here (package or loose files, when, under what name) does not count.
    fn content_digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(self.release.as_bytes());
        field(self.vmlinux.digest.as_bytes());
        match &self.bzimage {
            Some(file) => field(file.digest.as_bytes()),
            None => field(b""),
        }
        field(&(self.modules.len() as u64).to_le_bytes());
        for module in &self.modules {
            field(module.name.as_bytes());
            field(module.file.digest.as_bytes());
        }
        for name in &self.builtin {
            field(name.as_bytes());
        }
        hasher.finalize()
    }

    /// The kernel's name in the store.
    pub(crate) fn id(&self) -> String {
        format!("{}-{}", self.release, &self.digest.to_hex()[..12])
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("strings, integers and lists always serialize");
        bytes.push(b'\n');
        bytes
    }

    /// Reads and checks `dir/kernel.json`. What it says is used to build paths, so names are
    /// checked; and it must belong to the directory it lies in.
    pub(crate) fn read(dir: &Path) -> Result<Manifest, KernelError> {
        let path = dir.join(Manifest::FILE);
        let damaged = |why: String| KernelError::DamagedStore {
            path: path.clone(),
            why,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("it is not there".to_owned()));
            }
            Err(e) => return Err(io_error("open", &path)(e)),
        };
        let bytes = read_file(&path, &file, MAX_MANIFEST, "kernel.json")?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if manifest.schema != SCHEMA {
            return Err(damaged(format!(
                "its schema is {:?}, this program knows {SCHEMA:?}",
                manifest.schema
            )));
        }
        if manifest.arch != ARCH {
            return Err(damaged(format!("it is for {:?}", manifest.arch)));
        }
        if Release::parse(manifest.release.as_bytes()).is_none() {
            return Err(damaged("its release is no release".to_owned()));
        }
        if let Some(module) = manifest
            .modules
            .iter()
            .find(|m| module_name(m.name.as_bytes()).as_deref() != Some(m.name.as_str()))
        {
            return Err(damaged(format!("{:?} is no module's name", module.name)));
        }
        if manifest.content_digest() != manifest.digest {
            return Err(damaged("its digest does not fit its content".to_owned()));
        }
        if dir
            .file_name()
            .is_none_or(|name| name != manifest.id().as_str())
        {
            return Err(damaged(format!(
                "its directory should be {}",
                manifest.id()
            )));
        }
        Ok(manifest)
    }
}

/// Digests as `blake3:<64 hexadecimal digits>`.
mod hex_digest {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &blake3::Hash, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&format!("blake3:{}", hash.to_hex()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<blake3::Hash, D::Error> {
        let text = String::deserialize(input)?;
        text.strip_prefix("blake3:")
            .and_then(|hex| blake3::Hash::from_hex(hex).ok())
            .ok_or_else(|| D::Error::custom("not a blake3 digest"))
    }
}
