//! Guest kernels: taking them in, keeping them, and packing the initrd they boot with.
//!
//! A distribution's kernel is enough. [`KernelStore::import`] reads a Debian package (without dpkg),
//! a bzImage or an ELF vmlinux, takes the ELF kernel out of the boot image (Firecracker before 1.17
//! wants it), picks the few modules that a guest needs ([`WANTED`]), finds what those need and an
//! order to load them in, and stores all of that under `<data_dir>/kernels/v1/<id>/`. [`initrd`]
//! packs the guest program and those of the modules that a launch needs, in that order, into an uncompressed cpio.
//!
//! ```no_run
//! # fn main() -> Result<(), fcpipe_kernel::KernelError> {
//! use fcpipe_kernel::{KernelStore, initrd};
//! let store = KernelStore::open("/var/lib/fcpipe".as_ref())?;
//! let kernel = store.import("linux-image-cloud.deb".as_ref(), None)?;
//! let mut out = Vec::new();
//! let info = initrd(&kernel, b"\x7fELF...", &["dm_snapshot"], &mut out)?;
//! assert_eq!(info.size, out.len() as u64);
//! # Ok(()) }
//! ```
//!
//! Architecture invariant: the file given to `import` is an enemy's until it is stored. Every read of
//! it is bounded by [`limits`], every decoder is Rust without `unsafe` of ours, no name in it becomes
//! a path on the host, and no byte in it makes this crate panic.
//!
//! Architecture invariant: imported kernels are data, not cache. Nothing here deletes or changes a
//! good one; an import is there in full and on the disk, or it is not there.
//!
//! Architecture invariant: the same kernel, guest program and names of modules give the same initrd, byte for byte, and
//! the same kernel gives the same id, whether it came as a package or as loose files.
//!
//! Begin reading at `store.rs` (what is kept), then `import.rs` (how it comes in), `modules.rs` (which
//! modules and in what order) and `initrd.rs` (what a guest gets).

mod bzimage;
mod cpio;
mod deb;
mod decompress;
mod elf;
mod error;
mod import;
mod initrd;
pub mod limits;
mod manifest;
mod modules;
mod release;
mod sniff;
mod store;
mod wanted;

pub use error::{HOW_TO_IMPORT, KernelError};
pub use initrd::{INITRD_VERSION, InitrdInfo, initrd};
pub use store::{ImportOptions, Kernel, KernelStore, Listing, Module};
pub use wanted::{Need, WANTED, Wanted, When};
