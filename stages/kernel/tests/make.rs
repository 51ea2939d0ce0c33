//! Makers of small kernels, modules and packages, and a place to import them into.

use std::io::Write;
use std::path::{Path, PathBuf};

use fcpipe_kernel::{Kernel, KernelError, KernelStore};

/// The release of everything made here unless said otherwise.
pub(crate) const RELEASE: &str = "6.9.0-test";

/// What a kernel contains that has everything required built in.
pub(crate) const ALL_BUILTIN: &[u8] =
    b"\0virtio-pci\0virtio_blk\0vmw_vsock_virtio_transport\0ext4\0";

/// A data directory, and a place for files to import.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) store: KernelStore,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let dir = tempfile::Builder::new()
            .prefix("fcpipe-kernel-")
            .tempdir()
            .unwrap();
        let store = KernelStore::open(&dir.path().join("data")).unwrap();
        Lab { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn import(&self, bytes: &[u8]) -> Result<Kernel, KernelError> {
        self.store.import(&self.write("given", bytes), None)
    }

    /// Imports an ELF kernel with nothing built in and a modules directory of `files`
    /// (path below `lib/modules/<release>`, content).
    pub(crate) fn import_with_modules(
        &self,
        files: &[(&str, Vec<u8>)],
    ) -> Result<Kernel, KernelError> {
        let dir = self.modules_dir(files);
        let kernel = self.write("vmlinux-given", &vmlinux(RELEASE, b""));
        self.store.import(&kernel, Some(&dir))
    }

    /// A fresh `lib/modules/<release>`.
    pub(crate) fn modules_dir(&self, files: &[(&str, Vec<u8>)]) -> PathBuf {
        let dir = self.path("modules-given");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in files {
            self.write(&format!("modules-given/{name}"), bytes);
        }
        dir
    }

    /// The names in the store's directory, sorted.
    pub(crate) fn stored(&self) -> Vec<String> {
        names(self.store.dir())
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An ELF header for x86-64 with `phnum` program and `shnum` section headers behind it.
fn elf_header(e_type: u16, machine: u16, phnum: u16, shoff: u64, shnum: u16) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.resize(16, 0);
    elf.extend(e_type.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    elf.extend(0x100_0000u64.to_le_bytes()); // e_entry
    elf.extend(if phnum > 0 { 64u64 } else { 0 }.to_le_bytes());
    elf.extend(shoff.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    elf.extend(64u16.to_le_bytes());
    elf.extend(56u16.to_le_bytes());
    elf.extend(phnum.to_le_bytes());
    elf.extend(64u16.to_le_bytes());
    elf.extend(shnum.to_le_bytes());
    elf.extend(shnum.saturating_sub(1).to_le_bytes());
    elf
}

/// An ELF kernel: one segment with a banner and `strings` in it.
pub(crate) fn vmlinux(release: &str, strings: &[u8]) -> Vec<u8> {
    vmlinux_for(62, release, strings)
}

/// The same for another `e_machine`.
pub(crate) fn vmlinux_for(machine: u16, release: &str, strings: &[u8]) -> Vec<u8> {
    let mut content = format!("Linux version {release} (test@test) #1 SMP\n\0").into_bytes();
    content.extend(strings);
    let mut elf = elf_header(2, machine, 1, 0, 0);
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes());
    for field in [120, 0x100_0000, 0x100_0000] {
        elf.extend(u64::to_le_bytes(field));
    }
    for _ in 0..2 {
        elf.extend((content.len() as u64).to_le_bytes());
    }
    elf.extend(4096u64.to_le_bytes());
    assert_eq!(elf.len(), 120);
    elf.extend(content);
    elf
}

/// A module: an ELF object with nothing but `.modinfo`.
pub(crate) fn module(name: &str, depends: &str, more: &[&str]) -> Vec<u8> {
    module_for(RELEASE, name, depends, more)
}

/// The same for another release.
pub(crate) fn module_for(release: &str, name: &str, depends: &str, more: &[&str]) -> Vec<u8> {
    let mut info = String::from("license=GPL\0");
    for line in more {
        info.push_str(&format!("{line}\0"));
    }
    info.push_str(&format!(
        "depends={depends}\0name={name}\0vermagic={release} SMP mod_unload \0"
    ));
    let strings = b"\0.modinfo\0.shstrtab\0";
    let info_at = 64;
    let strings_at = info_at + info.len() as u64;
    let headers_at = (strings_at + strings.len() as u64).next_multiple_of(8);
    let mut elf = elf_header(1, 62, 0, headers_at, 3);
    elf.extend(info.as_bytes());
    elf.extend(strings);
    elf.resize(headers_at as usize, 0);
    let mut section = |name: u32, kind: u32, at: u64, len: u64| {
        elf.extend(name.to_le_bytes());
        elf.extend(kind.to_le_bytes());
        for field in [0, 0, at, len, 0, 1, 0] {
            // flags addr offset size link+info align entsize
            elf.extend(u64::to_le_bytes(field));
        }
    };
    section(0, 0, 0, 0);
    section(1, 1, info_at, info.len() as u64);
    section(10, 3, strings_at, strings.len() as u64);
    elf
}

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Xz,
    Lz4,
    Zstd,
}

pub(crate) const PACKINGS: [Packing; 5] = [
    Packing::Plain,
    Packing::Gzip,
    Packing::Xz,
    Packing::Lz4,
    Packing::Zstd,
];

pub(crate) fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Packing::Xz => {
            // As the kernel's scripts/xz_wrap.sh does: CRC32 and the x86 filter.
            let mut options = lzma_rust2::XzOptions::with_preset(0);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
            let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        }
        Packing::Lz4 => {
            let mut out = vec![0x02, 0x21, 0x4c, 0x18];
            for block in bytes.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                out.extend((packed.len() as u32).to_le_bytes());
                out.extend(packed);
            }
            out
        }
        Packing::Zstd => {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

/// A boot image around `payload`, which must be packed and have its size behind it already.
pub(crate) fn bzimage_around(payload: &[u8], release: &str) -> Vec<u8> {
    const SETUP_SECTS: usize = 3;
    const PAYLOAD_OFFSET: usize = 100;
    let start = (SETUP_SECTS + 1) * 512 + PAYLOAD_OFFSET;
    let mut image = vec![0; start];
    image[0..2].copy_from_slice(b"MZ");
    image[0x1f1] = SETUP_SECTS as u8;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&(PAYLOAD_OFFSET as u32).to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let version = format!("{release} (test@test) #1 SMP\0");
    image[0x400..0x400 + version.len()].copy_from_slice(version.as_bytes());
    image.extend(payload);
    image.extend(b"a signature may follow");
    image
}

/// A boot image with `vmlinux` packed inside.
pub(crate) fn bzimage(packing: Packing, vmlinux: &[u8]) -> Vec<u8> {
    let mut payload = pack(packing, vmlinux);
    if !matches!(packing, Packing::Gzip | Packing::Plain) {
        payload.extend((vmlinux.len() as u32).to_le_bytes());
    }
    bzimage_around(&payload, RELEASE)
}

/// An entry for [`tarball`].
pub(crate) fn file_entry(name: &str, content: &[u8]) -> (tar::Header, Vec<u8>) {
    let mut header = entry_of(name, tar::EntryType::Regular, content.len() as u64);
    header.set_cksum();
    (header, content.to_vec())
}

/// A header with a name that `tar::Builder` would refuse to write.
pub(crate) fn entry_of(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

pub(crate) fn tarball(entries: &[(tar::Header, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (header, content) in entries {
        tar.extend(header.as_bytes());
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// An outer archive of `members`.
pub(crate) fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        out.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100644,
                content.len()
            )
            .as_bytes(),
        );
        out.extend(*content);
        if content.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

pub(crate) const CONTROL: &str = "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nDepends: kmod,\n linux-base (>= 4)\n";

/// A package with `control` and the entries of its `data.tar`.
pub(crate) fn deb(packing: Packing, control: &str, data: &[(tar::Header, Vec<u8>)]) -> Vec<u8> {
    deb_of_tar(packing, control, &tarball(data))
}

/// A package around a ready `data.tar`.
pub(crate) fn deb_of_tar(packing: Packing, control: &str, data: &[u8]) -> Vec<u8> {
    let control = tarball(&[file_entry("./control", control.as_bytes())]);
    let suffix = match packing {
        Packing::Plain => "",
        Packing::Gzip => ".gz",
        Packing::Xz => ".xz",
        Packing::Lz4 => ".lz4",
        Packing::Zstd => ".zst",
    };
    ar(&[
        ("debian-binary", b"2.0\n"),
        (&format!("control.tar{suffix}"), &pack(packing, &control)),
        (&format!("data.tar{suffix}"), &pack(packing, data)),
    ])
}

/// The modules of a kernel that has nothing built in: path below the release, and content.
pub(crate) fn usual_modules() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("kernel/drivers/virtio/virtio.ko", module("virtio", "", &[])),
        (
            "kernel/drivers/virtio/virtio_ring.ko",
            module("virtio_ring", "virtio", &[]),
        ),
        (
            "kernel/drivers/virtio/virtio_pci.ko",
            module("virtio_pci", "virtio_ring,virtio", &[]),
        ),
        (
            "kernel/drivers/block/virtio_blk.ko",
            module("virtio_blk", "virtio,virtio_ring", &[]),
        ),
        ("kernel/net/vmw_vsock/vsock.ko", module("vsock", "", &[])),
        (
            "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko",
            module("vmw_vsock_virtio_transport", "vsock,virtio_ring", &[]),
        ),
        ("kernel/fs/ext4/ext4.ko", module("ext4", "jbd2", &[])),
        ("kernel/fs/jbd2/jbd2.ko", module("jbd2", "", &[])),
        // In a package, and wanted by nobody.
        ("kernel/sound/soundcore.ko", module("soundcore", "", &[])),
    ]
}

/// Runs a program that checks or makes something; `None`, with a line that says so, if it is not
/// installed. With CI=true that is a failure.
pub(crate) fn oracle(program: &str, args: &[&str], input: &[u8]) -> Option<std::process::Output> {
    use std::process::{Command, Stdio};
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            skip(&format!("{program}: {e}"));
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    Some(output)
}

/// Says why a test did nothing. With CI=true it must not come to that.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "CI must not skip: {why}"
    );
    println!("skipped: {why}");
}
