//! Boot images and ELF kernels, whole, wrong and cut short.

use fcpipe_kernel::KernelError;

use crate::make::{
    ALL_BUILTIN, Lab, PACKINGS, Packing, RELEASE, bzimage, bzimage_around, module, oracle, pack,
    vmlinux, vmlinux_for,
};

/// A kernel of several LZ4 blocks with some structure, so that every decoder has work to do.
fn large_vmlinux() -> Vec<u8> {
    let mut strings = ALL_BUILTIN.to_vec();
    for n in 0..1_500_000_u32 {
        strings.extend(n.wrapping_mul(n).to_le_bytes());
        strings.extend((n / 7).to_le_bytes());
    }
    vmlinux(RELEASE, &strings)
}

#[test]
fn every_compression_gives_back_the_kernel() {
    let inside = large_vmlinux();
    for packing in PACKINGS {
        let lab = Lab::new();
        let image = bzimage(packing, &inside);
        let kernel = lab.import(&image).unwrap();
        assert_eq!(kernel.release, RELEASE, "{packing:?}");
        assert!(
            std::fs::read(&kernel.vmlinux).unwrap() == inside,
            "{packing:?}"
        );
        let stored = std::fs::read(kernel.bzimage.unwrap()).unwrap();
        assert!(
            stored == image,
            "{packing:?}: the boot image is kept as given"
        );
    }
}

#[test]
fn every_compression_as_the_kernels_own_build_calls_it() {
    let inside = large_vmlinux();
    let ways: [(&str, &[&str]); 4] = [
        ("gzip", &["-n", "-9", "-c"]),
        (
            "xz",
            &["--check=crc32", "--x86", "--lzma2=dict=128MiB", "-c"],
        ),
        ("lz4", &["-l", "-9", "-c"]),
        ("zstd", &["-22", "--ultra", "-c"]),
    ];
    for (program, args) in ways {
        let Some(output) = oracle(program, args, &inside) else {
            continue;
        };
        assert!(output.status.success(), "{program}");
        let mut payload = output.stdout;
        if program != "gzip" {
            payload.extend((inside.len() as u32).to_le_bytes());
        }
        let lab = Lab::new();
        let kernel = lab.import(&bzimage_around(&payload, RELEASE)).unwrap();
        assert!(
            std::fs::read(kernel.vmlinux).unwrap() == inside,
            "{program}"
        );
    }
}

#[test]
fn an_elf_kernel_is_taken_as_it_is() {
    let lab = Lab::new();
    let given = vmlinux("5.10.1", ALL_BUILTIN);
    let kernel = lab.import(&given).unwrap();
    assert_eq!(kernel.release, "5.10.1");
    assert_eq!(kernel.bzimage, None);
    assert_eq!(std::fs::read(&kernel.vmlinux).unwrap(), given);
    assert!(kernel.has_module("virtio-blk") && kernel.has_module("ext4"));
    assert!(!kernel.has_module("dm_snapshot") && !kernel.has_module(""));
    assert!(kernel.absent.iter().any(|n| n == "dm_snapshot"));
}

fn message(lab: &Lab, bytes: &[u8]) -> String {
    let error = lab.import(bytes).expect_err("must be refused");
    assert_eq!(
        lab.stored(),
        [".lock"],
        "a refused file leaves nothing: {error}"
    );
    error.to_string()
}

#[test]
fn row_53_other_kinds_of_files_are_named() {
    let lab = Lab::new();
    let mut ext4 = vec![0; 4096];
    ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    let mut tar = vec![b'x'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let mut sector = vec![0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let cases: [(&[u8], &str); 11] = [
        (b"", "an empty file"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file"),
        (&[0xed, 0xab, 0xee, 0xdb, 0], "an RPM package"),
        (b"070701000000", "a cpio archive"),
        (b"!<arch>\nfoo.o/          ", "no Debian package"),
        (&ext4, "an ext4 image"),
        (&tar, "a tar archive"),
        (&sector, "a boot sector"),
        (&[1, 2, 3, 200], "of a kind that is not known"),
        (&pack(Packing::Gzip, b"x"), "a compressed file"),
    ];
    for (bytes, expected) in cases {
        let message = message(&lab, bytes);
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("given"), "{message} names the file");
    }
}

#[test]
fn row_53_elf_files_that_are_no_kernel_are_named() {
    let lab = Lab::new();
    let plain_program = vmlinux("no digit", b"");
    assert!(message(&lab, &plain_program).contains("no Linux kernel"));
    assert!(message(&lab, &module("foo", "", &[])).contains("a kernel module?"));
    let mut shared = vmlinux(RELEASE, ALL_BUILTIN);
    shared[16] = 3;
    assert!(message(&lab, &shared).contains("shared library"));
    let mut nothing_to_load = vmlinux(RELEASE, ALL_BUILTIN);
    nothing_to_load[64] = 4; // PT_NOTE
    assert!(message(&lab, &nothing_to_load).contains("nothing to load"));
}

#[test]
fn row_53_other_processors_are_named() {
    let lab = Lab::new();
    for (machine, name) in [(183, "arm64"), (3, "32-bit x86"), (243, "RISC-V")] {
        let message = message(&lab, &vmlinux_for(machine, RELEASE, ALL_BUILTIN));
        assert!(
            message.contains(name) && message.contains("x86-64"),
            "{message}"
        );
    }
    // EI_CLASS and EI_DATA, elf(5).
    for (at, name) in [(4, "x32"), (5, "big-endian")] {
        let mut other = vmlinux(RELEASE, ALL_BUILTIN);
        other[at] ^= 3;
        assert!(message(&lab, &other).contains(name), "{name}");
    }
    let inside = vmlinux_for(183, RELEASE, ALL_BUILTIN);
    assert!(message(&lab, &bzimage(Packing::Gzip, &inside)).contains("arm64"));

    let mut image = vec![0; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(message(&lab, &image).contains("arm64"));

    let mut old = bzimage(Packing::Lz4, &vmlinux(RELEASE, ALL_BUILTIN));
    old[0x236] = 0;
    assert!(message(&lab, &old).contains("32-bit x86"));
    old[0x206..0x208].copy_from_slice(&0x0209u16.to_le_bytes());
    assert!(message(&lab, &old).contains("2.09"));
}

#[test]
fn row_53_a_boot_image_cut_anywhere_is_refused() {
    let lab = Lab::new();
    let inside = vmlinux(RELEASE, ALL_BUILTIN);
    for packing in PACKINGS {
        let image = bzimage(packing, &inside);
        let signature = b"a signature may follow".len();
        for cut in (0..image.len() - signature).step_by(97) {
            let error = lab.import(&image[..cut]).expect_err("cut short");
            if cut > 0x250 {
                assert!(
                    matches!(error, KernelError::Truncated { .. }),
                    "{cut}: {error}"
                );
            }
        }
    }
}

#[test]
fn row_53_an_elf_kernel_cut_short_is_refused() {
    let lab = Lab::new();
    let whole = vmlinux(RELEASE, ALL_BUILTIN);
    for cut in (5..whole.len()).step_by(13) {
        let error = lab.import(&whole[..cut]).expect_err("cut short");
        if cut >= 120 {
            assert!(
                matches!(error, KernelError::Truncated { .. }),
                "{cut}: {error}"
            );
        }
    }
}

#[test]
fn a_payload_of_another_size_than_it_says_is_refused() {
    let lab = Lab::new();
    let inside = vmlinux(RELEASE, ALL_BUILTIN);
    for packing in [Packing::Xz, Packing::Lz4, Packing::Zstd] {
        for wrong in [-1_i64, 1] {
            let mut payload = pack(packing, &inside);
            let size = inside.len() as i64 + wrong;
            payload.extend((size as u32).to_le_bytes());
            let image = bzimage_around(&payload, RELEASE);
            assert!(
                message(&lab, &image).contains("kernel inside"),
                "{packing:?}"
            );
        }
        let mut payload = pack(packing, &inside);
        payload.extend(u32::MAX.to_le_bytes());
        let error = lab.import(&bzimage_around(&payload, RELEASE)).unwrap_err();
        assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn damage_inside_a_payload_is_noticed() {
    let lab = Lab::new();
    let inside = large_vmlinux();
    // LZ4's legacy frame has no checksum: there only the size can tell.
    for packing in [Packing::Gzip, Packing::Xz, Packing::Zstd] {
        let mut image = bzimage(packing, &inside);
        let middle = image.len() / 2;
        image[middle] ^= 0x10;
        assert!(
            message(&lab, &image).contains("does not unpack"),
            "{packing:?}"
        );
    }
}

#[test]
fn compressions_that_are_not_read_are_named() {
    let lab = Lab::new();
    for (magic, name) in [(&b"BZh91AY"[..], "bzip2"), (&[0x5d, 0, 0, 0, 4], "lzma")] {
        let mut payload = magic.to_vec();
        payload.extend([0; 16]);
        assert!(message(&lab, &bzimage_around(&payload, RELEASE)).contains(name));
    }
    let unknown = bzimage_around(&[7; 32], RELEASE);
    assert!(message(&lab, &unknown).contains("magic number"));
}

#[test]
fn a_release_that_would_leave_the_directory_is_refused() {
    let lab = Lab::new();
    for release in [
        "../../../etc",
        "6.1/../..",
        ".6",
        "6.1\u{1b}[31m",
        "6.1%s",
        "",
    ] {
        let payload = pack(Packing::Gzip, &vmlinux(RELEASE, ALL_BUILTIN));
        let image = bzimage_around(&payload, release);
        assert!(
            message(&lab, &image).contains("no version string"),
            "{release:?}"
        );
    }
}

#[test]
fn what_is_no_regular_file_is_not_read() {
    let lab = Lab::new();
    let fifo = lab.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for path in [fifo, lab.path("data"), "/dev/null".into()] {
        let error = lab.store.import(&path, None).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel { .. }), "{error}");
    }
    let error = lab.store.import(&lab.path("nothing"), None).unwrap_err();
    assert!(error.to_string().contains("cannot open"), "{error}");
}
