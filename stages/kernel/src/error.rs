//! What can go wrong, each with the file or the name that it is about.

use std::io;
use std::path::PathBuf;

/// How to come by a kernel and import it.
pub const HOW_TO_IMPORT: &str = "`apt-cache depends linux-image-cloud-amd64` names Debian's newest kernel for virtual machines: \
     `apt-get download` that one, then `fcpipe kernel import FILE.deb`";

/// Why a kernel could not be imported, found or packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `open`, `read`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is {found}; a kernel is a bzImage (vmlinuz), an ELF vmlinux or a Debian package that holds one", path.display())]
    NotAKernel {
        /// The file given.
        path: PathBuf,
        /// What it looks like, with its article.
        found: String,
    },
    /// A kernel, a package or a module for another processor.
    #[error("{} is for {found}, but guests are x86-64", path.display())]
    WrongArch {
        /// The file.
        path: PathBuf,
        /// The architecture found.
        found: String,
    },
    /// The file ends early.
    #[error("{} is truncated: {what}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is not there.
        what: String,
    },
    /// The file contradicts itself or its format.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A bound of [`crate::limits`] was met.
    #[error("{}: {what} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// The bound, in bytes.
        limit: u64,
    },
    /// More pieces than a bound of [`crate::limits`] allows.
    #[error("{} has more than {limit} {what}", path.display())]
    TooMany {
        /// The file or directory.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A compression that kernels may use and this crate does not read.
    #[error("{}: {what} is compressed with {codec}; gzip, xz, lz4 and zstd are understood", path.display())]
    UnsupportedCompression {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// The name of the compression.
        codec: String,
    },
    /// An archive entry that no kernel package has and that is used to attack unpackers.
    #[error("{}: refused archive entry \"{entry}\": {why}", path.display())]
    UnsafeArchive {
        /// The package.
        path: PathBuf,
        /// The entry's name, escaped.
        entry: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// A package without a kernel; a meta package names the one that has it.
    #[error("package {package} ({}) holds no kernel{}", path.display(), package_hint(depends, *has_modules))]
    NoKernelInPackage {
        /// The file.
        path: PathBuf,
        /// Its `Package:` field.
        package: String,
        /// The kernel packages it depends on.
        depends: Vec<String>,
        /// Whether it has modules.
        has_modules: bool,
    },
    /// The directory given as modules is not `lib/modules/<release>`.
    #[error("{} is no modules directory: {why}", path.display())]
    BadModulesDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// What a guest cannot do without is neither a module nor built in.
    #[error("kernel {release} cannot boot a guest: {} missing{}", names.join(", "), missing_hint(*modules_given))]
    MissingModules {
        /// The kernel's release.
        release: String,
        /// What is missing; alternatives are written `a or b`.
        names: Vec<String>,
        /// Whether modules came with the kernel.
        modules_given: bool,
    },
    /// A module that the caller asked for beyond the list.
    #[error("kernel {release} has no module {name}")]
    NoSuchModule {
        /// The kernel's release.
        release: String,
        /// The name as it was asked for.
        name: String,
    },
    /// A module asks for one that is nowhere.
    #[error("module {module} needs {dependency}, which is neither a file in {} nor built in", path.display())]
    MissingDependency {
        /// The module.
        module: String,
        /// What it needs.
        dependency: String,
        /// Where was looked.
        path: PathBuf,
    },
    /// A module built for another kernel.
    #[error("module {} was built for kernel {found}, not for {release}", path.display())]
    WrongRelease {
        /// The module's file.
        path: PathBuf,
        /// The first word of its `vermagic`.
        found: String,
        /// The kernel's release.
        release: String,
    },
    /// Modules that need each other can't be loaded in any order.
    #[error("modules depend on each other in a circle: {}", names.join(" → "))]
    ModuleCycle {
        /// The circle.
        names: Vec<String>,
    },
    /// No such kernel in the store.
    #[error("no imported kernel is called {name:?}{}", known_hint(known))]
    NotFound {
        /// What was asked for.
        name: String,
        /// The ids that there are.
        known: Vec<String>,
    },
    /// A prefix that several kernels share.
    #[error("{name:?} means more than one kernel: {}", ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What it could be.
        ids: Vec<String>,
    },
    /// The store is empty.
    #[error("no kernel has been imported yet in {}", path.display())]
    NoKernels {
        /// The store's directory.
        path: PathBuf,
    },
    /// A kernel in the store is not what was imported; importing it again repairs it.
    #[error("imported kernel {} is damaged: {why}; import it again", path.display())]
    DamagedStore {
        /// The kernel's directory or file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The initrd's stream did not take what was written.
    #[error("cannot write the initrd")]
    Initrd(#[source] io::Error),
    /// The guest program can't be an init.
    #[error("the guest program cannot be packed: {0}")]
    BadGuest(&'static str),
}

fn package_hint(depends: &[String], has_modules: bool) -> String {
    if has_modules {
        ", only modules: unpack it, and import the kernel with --modules".to_owned()
    } else if depends.is_empty() {
        String::new()
    } else {
        format!(
            ": it is a meta package, import the package it depends on: {}",
            depends.join(" or ")
        )
    }
}

fn missing_hint(modules_given: bool) -> &'static str {
    if modules_given {
        " (neither a module nor built in)"
    } else {
        " in the kernel image, and no modules were given: pass the matching lib/modules/<release> with --modules, or import the distribution's package"
    }
}

fn known_hint(known: &[String]) -> String {
    if known.is_empty() {
        "; none has been imported".to_owned()
    } else {
        format!("; there are: {}", known.join(", "))
    }
}

/// Shorthand for `map_err` on file operations.
pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.into();
    move |source| KernelError::Io {
        action,
        path,
        source,
    }
}
