//! The kernels that were imported: `<data_dir>/kernels/v1/<id>/`.
//!
//! | file | what |
//! |---|---|
//! | `kernel.json` | schema, release, digests, order of modules ([`crate::manifest`]) |
//! | `vmlinux` | the ELF kernel, for Firecracker |
//! | `bzImage` | the boot image as it was given, for QEMU; absent if an ELF kernel was given |
//! | `modules/<name>.ko` | the modules kept, unpacked |
//!
//! Beside them: `.lock` (held by importers) and, while an import runs, a directory `.tmp-…`. A kernel's
//! directory appears by one rename and is never changed afterwards.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{KernelError, io_error};
use crate::import::Parts;
use crate::limits::{MAX_MANIFEST, MAX_VMLINUX};
use crate::manifest::{Manifest, ManifestFile, ManifestModule};
use crate::modules::read_file;

/// The directory of imported kernels. Cheap to open; reads the disk at every call.
#[derive(Clone, Debug)]
pub struct KernelStore {
    dir: PathBuf,
}

/// An imported kernel, complete as far as names and sizes of its files tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `<release>-<first 12 digits of the digest>`; also its directory's name.
    pub id: String,
    /// As `uname -r` prints it in the guest.
    pub release: String,
    /// blake3 over the digests of images and modules, in order, and over what is built in.
    pub digest: blake3::Hash,
    /// The boot image as given; `None` if a `vmlinux` was imported.
    pub bzimage: Option<PathBuf>,
    /// The ELF kernel.
    pub vmlinux: PathBuf,
    /// What a guest loads, in this order.
    pub modules: Vec<Module>,
    /// Names of [`crate::WANTED`] that the kernel has built in, sorted.
    pub builtin: Vec<String>,
    /// Names of [`crate::WANTED`] that this kernel does not have at all, sorted.
    pub absent: Vec<String>,
    /// The name of the file that was imported, escaped for printing.
    pub source: String,
    /// When it was imported: nanoseconds since 1970.
    pub imported_ns: u64,
}

/// A module of an imported kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// With `_` where the file may have had `-`.
    pub name: String,
    /// The unpacked module.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// blake3 of its bytes.
    pub digest: blake3::Hash,
}

impl Kernel {
    /// Whether a guest of this kernel has the wanted module `name` (`-` counts as `_`), loaded from
    /// the initrd or built in. Names that nobody wanted are not known here, even if built in.
    pub fn has_module(&self, name: &str) -> bool {
        let same = |have: &str| {
            have.len() == name.len()
                && have
                    .bytes()
                    .zip(name.bytes())
                    .all(|(h, n)| h == n || (h == b'_' && n == b'-'))
        };
        self.modules.iter().any(|m| same(&m.name)) || self.builtin.iter().any(|b| same(b))
    }

    /// Reads every file again and compares it with what was imported.
    ///
    /// # Errors
    /// [`KernelError::DamagedStore`] for the first file that differs.
    pub fn verify(&self) -> Result<(), KernelError> {
        let dir = self.vmlinux.parent().unwrap_or(&self.vmlinux);
        let manifest = Manifest::read(dir)?;
        for (path, file) in manifest.files(dir) {
            let bytes = read_stored(&path)?;
            if bytes.len() as u64 != file.size || blake3::hash(&bytes) != file.digest {
                return Err(KernelError::DamagedStore {
                    path,
                    why: "its content is not what was imported".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// What [`KernelStore::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// The newest import first.
    pub kernels: Vec<Kernel>,
    /// Entries that cannot be used, each with the reason.
    pub damaged: Vec<KernelError>,
}

/// Choices for [`KernelStore::import_with`].
#[derive(Clone, Debug, Default)]
pub struct ImportOptions<'a> {
    /// A `lib/modules/<release>` directory; goes before what a package brings along.
    pub modules: Option<&'a Path>,
    /// Modules to keep beyond [`crate::WANTED`]; the import fails if one is not there.
    pub extra: &'a [String],
}

impl KernelStore {
    /// The store below `data_dir`, which is made (0700) if it is not there. Whether others can write to it is for the caller to
    /// judge.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub fn open(data_dir: &Path) -> Result<KernelStore, KernelError> {
        let dir = data_dir.join("kernels").join("v1");
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&dir).map_err(io_error("create", &dir))?;
        Ok(KernelStore { dir })
    }

    /// The directory that holds the kernels.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes a kernel in: a Debian package, a bzImage or an ELF vmlinux, told apart by content.
    /// `modules` is a `lib/modules/<release>` directory. Importing what is there already changes
    /// nothing, except that a damaged copy is replaced.
    ///
    /// # Errors
    /// See [`KernelError`]; whatever happens, the store is left as it was.
    pub fn import(&self, file: &Path, modules: Option<&Path>) -> Result<Kernel, KernelError> {
        self.import_with(
            file,
            &ImportOptions {
                modules,
                extra: &[],
            },
        )
    }

    /// [`KernelStore::import`] with all its choices.
    ///
    /// # Errors
    /// As [`KernelStore::import`].
    pub fn import_with(
        &self,
        file: &Path,
        options: &ImportOptions<'_>,
    ) -> Result<Kernel, KernelError> {
        let lock = self.lock()?;
        self.sweep()?;
        let temp = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir_in(&self.dir)
            .map_err(io_error("create a directory in", &self.dir))?;
        let spool = temp.path().join("spool");
        fs::create_dir(&spool).map_err(io_error("create", &spool))?;
        let parts = Parts::read(file, options, &spool)?;
        fs::remove_dir_all(&spool).map_err(io_error("remove", &spool))?;

        let manifest = write_kernel(temp.path(), file, &parts)?;
        let id = manifest.id();
        let target = self.dir.join(&id);
        if let Ok(kernel) = self.load(&id)
            && kernel.verify().is_ok()
        {
            return Ok(kernel);
        }
        // Only a damaged copy is still in the way. Its files may be open elsewhere: they stay
        // readable there after this.
        if fs::symlink_metadata(&target).is_ok() {
            let aside = self.dir.join(format!("{TEMP_PREFIX}damaged-{id}"));
            fs::rename(&target, &aside).map_err(io_error("move aside", &target))?;
        }
        let temp = temp.keep();
        fs::rename(&temp, &target).map_err(io_error("rename", &temp))?;
        sync_dir(&self.dir)?;
        self.sweep()?;
        drop(lock);
        self.load(&id)
    }

    /// All kernels; those that cannot be used do not hide the others.
    ///
    /// # Errors
    /// If the store itself cannot be read.
    pub fn list(&self) -> Result<Listing, KernelError> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            if !is_dir || name.starts_with(b".") {
                continue;
            }
            match load_kernel(&entry.path()) {
                Ok(kernel) => listing.kernels.push(kernel),
                Err(e) => listing.damaged.push(e),
            }
        }
        listing
            .kernels
            .sort_by(|a, b| (b.imported_ns, &b.id).cmp(&(a.imported_ns, &a.id)));
        listing.damaged.sort_by_key(ToString::to_string);
        Ok(listing)
    }

    /// The kernel called `name`: an id, a release (its newest import), or the beginning of one id.
    ///
    /// # Errors
    /// [`KernelError::NotFound`], [`KernelError::Ambiguous`], or why that kernel cannot be used.
    pub fn find(&self, name: &str) -> Result<Kernel, KernelError> {
        let mut kernels = self.list()?.kernels;
        if let Some(at) = kernels
            .iter()
            .position(|k| k.id == name)
            .or_else(|| kernels.iter().position(|k| k.release == name))
        {
            return Ok(kernels.swap_remove(at));
        }
        let known: Vec<String> = kernels.iter().map(|k| k.id.clone()).collect();
        kernels.retain(|k| !name.is_empty() && k.id.starts_with(name));
        match kernels.len() {
            1 => Ok(kernels.remove(0)),
            // A damaged kernel asked for by its id: say what is wrong with it.
            0 if is_id(name) && self.dir.join(name).is_dir() => self.load(name),
            0 => Err(KernelError::NotFound {
                name: name.to_owned(),
                known,
            }),
            _ => Err(KernelError::Ambiguous {
                name: name.to_owned(),
                ids: kernels.into_iter().map(|k| k.id).collect(),
            }),
        }
    }

    /// The kernel that boots where none is named: the newest import.
    ///
    /// # Errors
    /// [`KernelError::NoKernels`] in an empty store; where there are none but damaged ones, what is wrong with one.
    pub fn default(&self) -> Result<Kernel, KernelError> {
        let mut listing = self.list()?;
        if listing.kernels.is_empty() {
            let no_kernels = || KernelError::NoKernels {
                path: self.dir.clone(),
            };
            return Err(listing.damaged.pop().unwrap_or_else(no_kernels));
        }
        Ok(listing.kernels.swap_remove(0))
    }

    fn load(&self, id: &str) -> Result<Kernel, KernelError> {
        load_kernel(&self.dir.join(id))
    }

    /// Importers take turns, so that whoever holds the lock may clear what a killed one left.
    fn lock(&self) -> Result<File, KernelError> {
        let path = self.dir.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    /// Removes the temporary directories of imports that did not end. Only under the lock.
    fn sweep(&self) -> Result<(), KernelError> {
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMP_PREFIX.as_bytes())
                && entry.file_type().is_ok_and(|t| t.is_dir())
            {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

const TEMP_PREFIX: &str = ".tmp-";
const BZIMAGE: &str = "bzImage";
const VMLINUX: &str = "vmlinux";

/// Whether `name` could be an id, and so is safe to join to a path.
fn is_id(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_digit()) && !name.contains('/') && !name.contains('\0')
}

/// Writes all files of a kernel into `dir` and makes them durable.
fn write_kernel(dir: &Path, source: &Path, parts: &Parts) -> Result<Manifest, KernelError> {
    let vmlinux = write_stored(&dir.join(VMLINUX), &parts.vmlinux)?;
    let bzimage = match &parts.bzimage {
        Some(bytes) => Some(write_stored(&dir.join(BZIMAGE), bytes)?),
        None => None,
    };
    let modules_dir = dir.join("modules");
    fs::create_dir(&modules_dir).map_err(io_error("create", &modules_dir))?;
    let mut modules = Vec::new();
    for module in &parts.modules {
        let path = modules_dir.join(format!("{}.ko", module.name));
        modules.push(ManifestModule {
            name: module.name.clone(),
            file: write_stored(&path, &module.bytes)?,
        });
    }
    let manifest = Manifest::new(
        &parts.release,
        vmlinux,
        bzimage,
        modules,
        (parts.builtin.clone(), parts.absent.clone()),
        source,
    );
    write_stored(&dir.join(Manifest::FILE), &manifest.to_bytes())?;
    for (path, mode) in [(&modules_dir, 0o755), (&dir.to_owned(), 0o755)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("chmod", path))?;
        sync_dir(path)?;
    }
    Ok(manifest)
}

/// Writes one file, read-only, and waits until it is on the disk.
fn write_stored(path: &Path, bytes: &[u8]) -> Result<ManifestFile, KernelError> {
    let write = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))?;
    Ok(ManifestFile {
        size: bytes.len() as u64,
        digest: blake3::hash(bytes),
    })
}

fn read_stored(path: &Path) -> Result<Vec<u8>, KernelError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    read_file(path, &file, MAX_VMLINUX.max(MAX_MANIFEST), "a stored file")
}

fn sync_dir(path: &Path) -> Result<(), KernelError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", path))
}

/// Reads `dir/kernel.json` and checks that every file it names is there in full length.
fn load_kernel(dir: &Path) -> Result<Kernel, KernelError> {
    let manifest = Manifest::read(dir)?;
    for (path, file) in manifest.files(dir) {
        let why = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == file.size => continue,
            Ok(meta) => format!("it has {} bytes instead of {}", meta.len(), file.size),
            Err(e) => e.to_string(),
        };
        return Err(KernelError::DamagedStore { path, why });
    }
    Ok(manifest.into_kernel(dir))
}

impl Manifest {
    /// The files of a kernel in `dir`, `kernel.json` itself aside.
    fn files(&self, dir: &Path) -> Vec<(PathBuf, &ManifestFile)> {
        let mut files = vec![(dir.join(VMLINUX), &self.vmlinux)];
        files.extend(self.bzimage.as_ref().map(|f| (dir.join(BZIMAGE), f)));
        for module in &self.modules {
            let path = dir.join("modules").join(format!("{}.ko", module.name));
            files.push((path, &module.file));
        }
        files
    }

    fn into_kernel(self, dir: &Path) -> Kernel {
        Kernel {
            id: self.id(),
            digest: self.digest,
            bzimage: self.bzimage.is_some().then(|| dir.join(BZIMAGE)),
            vmlinux: dir.join(VMLINUX),
            modules: self
                .modules
                .into_iter()
                .map(|m| Module {
                    path: dir.join("modules").join(format!("{}.ko", m.name)),
                    name: m.name,
                    size: m.file.size,
                    digest: m.file.digest,
                })
                .collect(),
            builtin: self.builtin,
            absent: self.absent,
            source: self.source,
            imported_ns: self.imported_ns,
            release: self.release,
        }
    }
}
