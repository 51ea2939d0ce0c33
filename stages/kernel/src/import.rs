//! From the file that was given to the parts of a kernel, in memory and checked. Writes nothing but
//! a package's modules into the spool directory.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::bzimage;
use crate::deb;
use crate::elf;
use crate::error::{KernelError, io_error};
use crate::limits::{MAX_FILE, MAX_VMLINUX};
use crate::modules::{self, Chosen, ModuleTree, read_file};
use crate::release::Release;
use crate::sniff::{HEAD, Kind, sniff};
use crate::store::ImportOptions;

/// A kernel that can be stored.
pub(crate) struct Parts {
    pub(crate) release: Release,
    pub(crate) vmlinux: Vec<u8>,
    pub(crate) bzimage: Option<Vec<u8>>,
    pub(crate) modules: Vec<Chosen>,
    pub(crate) builtin: Vec<String>,
    pub(crate) absent: Vec<String>,
}

impl Parts {
    /// Reads `path` and chooses modules; `spool` is an empty directory.
    pub(crate) fn read(
        path: &Path,
        options: &ImportOptions<'_>,
        spool: &Path,
    ) -> Result<Parts, KernelError> {
        // Non-blocking, so that a FIFO is refused below and not waited for.
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(io_error("open", path))?;
        let meta = file.metadata().map_err(io_error("examine", path))?;
        if !meta.is_file() {
            let found = if meta.is_dir() {
                "a directory"
            } else {
                "a socket, pipe or device"
            };
            return Err(not_a_kernel(path, found));
        }
        if meta.len() > MAX_FILE {
            return Err(KernelError::TooLarge {
                path: path.to_owned(),
                what: "the file",
                limit: MAX_FILE,
            });
        }
        let given = options.modules.map(ModuleTree::scan).transpose()?;
        let kind = sniff(&head(path, &file)?);
        let (image, trees) = match kind {
            Kind::Deb => {
                let package = deb::read(path, &file, spool)?;
                (Image::read(path, package.kernel)?, package.trees)
            }
            Kind::BzImage | Kind::Elf => {
                let bytes = read_file(path, &file, MAX_VMLINUX, "the kernel")?;
                (Image::read(path, bytes)?, Vec::new())
            }
            Kind::OtherArch(arch) => {
                return Err(KernelError::WrongArch {
                    path: path.to_owned(),
                    found: arch.to_owned(),
                });
            }
            Kind::Other(found) => return Err(not_a_kernel(path, found)),
        };
        let tree = match given {
            Some(tree) => Some(tree),
            None => own_tree(path, &image.release, trees)?,
        };
        let choice = modules::choose(tree.as_ref(), &image.release, &image.vmlinux, options.extra)?;
        Ok(Parts {
            release: image.release,
            vmlinux: image.vmlinux,
            bzimage: image.bzimage,
            modules: choice.modules,
            builtin: choice.builtin,
            absent: choice.absent,
        })
    }
}

/// A kernel without its modules.
struct Image {
    release: Release,
    vmlinux: Vec<u8>,
    bzimage: Option<Vec<u8>>,
}

impl Image {
    fn read(path: &Path, bytes: Vec<u8>) -> Result<Image, KernelError> {
        match sniff(&bytes[..bytes.len().min(HEAD)]) {
            Kind::BzImage => {
                let image = bzimage::unpack(path, &bytes)?;
                elf::check_vmlinux(path, &image.vmlinux)?;
                Ok(Image {
                    release: image.release,
                    vmlinux: image.vmlinux,
                    bzimage: Some(bytes),
                })
            }
            Kind::Elf => Ok(Image {
                release: elf::vmlinux_release(path, &bytes)?,
                vmlinux: bytes,
                bzimage: None,
            }),
            Kind::OtherArch(arch) => Err(KernelError::WrongArch {
                path: path.to_owned(),
                found: arch.to_owned(),
            }),
            // Only reached for the vmlinuz inside a package.
            Kind::Deb => Err(not_a_kernel(path, "a package within a package")),
            Kind::Other(found) => Err(not_a_kernel(path, found)),
        }
    }
}

/// The package's modules for `release`. Modules for other kernels only are an error.
fn own_tree(
    path: &Path,
    release: &Release,
    mut trees: Vec<(Vec<u8>, ModuleTree)>,
) -> Result<Option<ModuleTree>, KernelError> {
    if trees.is_empty() {
        return Ok(None);
    }
    let at = trees
        .iter()
        .position(|(have, _)| have == release.as_str().as_bytes());
    match at {
        Some(at) => Ok(Some(trees.swap_remove(at).1)),
        None => Err(KernelError::WrongRelease {
            path: path.to_owned(),
            found: trees[0].0.escape_ascii().to_string(),
            release: release.to_string(),
        }),
    }
}

fn head(path: &Path, file: &File) -> Result<Vec<u8>, KernelError> {
    use std::os::unix::fs::FileExt;
    let mut head = vec![0; HEAD];
    let mut have = 0;
    while have < HEAD {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_error("read", path)(e)),
        }
    }
    head.truncate(have);
    Ok(head)
}

fn not_a_kernel(path: &Path, found: &str) -> KernelError {
    KernelError::NotAKernel {
        path: path.to_owned(),
        found: found.to_owned(),
    }
}
