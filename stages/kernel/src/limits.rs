//! Every bound on what is read from a file that somebody gave us, in one place, with its reason.
//!
//! All sizes are bytes. They are generous: the largest real values seen are named beside each, so
//! that a refusal means a hostile or a broken file and not a large kernel.

/// The file given to `import`. Debian's generic kernel package is 70 MiB, an unstripped `vmlinux`
/// with debug information about 400 MiB.
pub const MAX_FILE: u64 = 1 << 30;

/// A `vmlinux`, as given or as unpacked from a bzImage. Debian's is 51 MiB; debug information is
/// the only thing that makes one larger than 100 MiB.
pub const MAX_VMLINUX: u64 = 512 << 20;

/// What a package's `data.tar` may unpack to, wanted or not. Debian's generic kernel: 400 MiB.
pub const MAX_UNPACKED: u64 = 2 << 30;

/// What is kept on disk from a package while modules are chosen. Less than [`MAX_UNPACKED`],
/// because a package also holds documentation, symbols and device trees, which are only skipped.
pub const MAX_SPOOLED: u64 = 1 << 30;

/// Entries in a package's tar. Debian's generic kernel has 4,600.
pub const MAX_TAR_ENTRIES: u64 = 200_000;

/// One extended header (long name, PAX record) of a tar: PATH_MAX and room for others.
pub const MAX_TAR_HEADER: u64 = 64 << 10;

/// Members of the outer `ar` archive; a package has three.
pub const MAX_AR_MEMBERS: usize = 32;

/// A package's `control.tar` once unpacked (`md5sums` of a generic kernel: 0.5 MiB).
pub const MAX_CONTROL: u64 = 16 << 20;

/// One module, before and after decompression. The largest in Debian (nouveau, amdgpu with debug
/// information stripped) are below 32 MiB.
pub const MAX_MODULE: u64 = 64 << 20;

/// Modules kept for one kernel, dependencies included; the documented list resolves to about 30.
pub const MAX_MODULES_KEPT: usize = 256;

/// The sum of all modules kept: they are all unpacked into a guest's memory at every boot.
pub const MAX_MODULES_BYTES: u64 = 128 << 20;

/// How deep `depends=` may nest. depmod's own trees stay below 10.
pub const MAX_MODULE_DEPTH: usize = 64;

/// Files looked at below a modules directory, and how deep it may nest.
pub const MAX_MODULE_FILES: usize = 100_000;
/// See [`MAX_MODULE_FILES`]; `kernel/drivers/net/ethernet/mellanox/mlx5/core` is 7.
pub const MAX_MODULE_DIRS_DEPTH: usize = 16;

/// `modules.builtin` (Debian's generic: 12 KiB).
pub const MAX_BUILTIN_LIST: u64 = 4 << 20;

/// `kernel.json`, which this crate writes itself.
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Memory for an xz dictionary in KiB. `xz -9` needs 64 MiB, the kernel's own build 128 MiB.
pub const MAX_XZ_MEMORY_KIB: u32 = 256 << 10;

/// A zstd window. The kernel's `zstd -22 --ultra` of a pipe uses 128 MiB.
pub const MAX_ZSTD_WINDOW: u64 = 128 << 20;

/// The guest program. The real one is a few MiB.
pub const MAX_GUEST: usize = 256 << 20;
