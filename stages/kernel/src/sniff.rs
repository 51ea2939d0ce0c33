//! What a file is, told by its content. Names are never asked: `vmlinuz` is a bzImage on one system
//! and a gzip file on another.

use crate::decompress::Codec;

/// How much of a file [`sniff`] wants to see; less is fine if the file is shorter.
pub(crate) const HEAD: usize = 4096;

/// The kinds that `import` takes, and the rest with a name for the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An `ar` archive whose first member is `debian-binary`.
    Deb,
    /// An x86 boot image with a setup header.
    BzImage,
    /// Any ELF file; [`crate::elf`] looks closer.
    Elf,
    /// A boot image of another processor.
    OtherArch(&'static str),
    /// None of these, with its article: `an RPM package`.
    Other(&'static str),
}

/// Tells what the file that begins with `head` is.
pub(crate) fn sniff(head: &[u8]) -> Kind {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..offset + magic.len())
            .is_some_and(|found| found == magic)
    };
    if head.is_empty() {
        return Kind::Other("an empty file");
    }
    if at(0, b"!<arch>\n") {
        return if at(8, b"debian-binary") {
            Kind::Deb
        } else {
            Kind::Other("an ar archive, but no Debian package")
        };
    }
    if at(0, b"\x7fELF") {
        return Kind::Elf;
    }
    // The kernel's Documentation/arch/x86/boot.rst: boot_flag and header magic.
    if at(0x1fe, &[0x55, 0xaa]) && at(0x202, b"HdrS") {
        return Kind::BzImage;
    }
    // Documentation/arch/arm64/booting.rst and riscv/boot-image-header.rst.
    if at(0x38, b"ARM\x64") {
        return Kind::OtherArch("arm64");
    }
    if at(0x38, b"RSC\x05") {
        return Kind::OtherArch("RISC-V");
    }
    if at(0, b"MZ") && at(4, b"zimg") {
        return Kind::Other("an EFI zboot image, which x86-64 kernels do not come as");
    }
    if Codec::sniff(head).is_some() || Codec::sniff_unsupported(head).is_some() {
        return Kind::Other("a compressed file (unpack it first)");
    }
    let others: [(usize, &[u8], &'static str); 12] = [
        (0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package"),
        (0, b"070701", "a cpio archive (an initrd?)"),
        (0, b"070702", "a cpio archive (an initrd?)"),
        (257, b"ustar", "a tar archive"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"hsqs", "a squashfs image"),
        (0x438, &[0x53, 0xef], "an ext4 image"),
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0, &[0x27, 0x05, 0x19, 0x56], "a U-Boot image"),
        (
            0,
            b"MZ",
            "an EFI or Windows program without a Linux setup header",
        ),
        (0, b"#!", "a script"),
        (
            0x1fe,
            &[0x55, 0xaa],
            "a boot sector or disk image without a Linux setup header",
        ),
    ];
    for (offset, magic, name) in others {
        if at(offset, magic) {
            return Kind::Other(name);
        }
    }
    if head
        .iter()
        .all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~'))
    {
        return Kind::Other("a text file");
    }
    Kind::Other("of a kind that is not known")
}
