//! Debian packages: made whole, made wrong, made by an enemy.

use fcpipe_kernel::KernelError;
use tar::EntryType;

use crate::make::{
    ALL_BUILTIN, CONTROL, Lab, PACKINGS, Packing, RELEASE, ar, bzimage, deb, deb_of_tar, entry_of,
    file_entry, pack, tarball, usual_modules, vmlinux,
};

type Entries = Vec<(tar::Header, Vec<u8>)>;

/// The `data.tar` of a package whose modules lie below `prefix`.
fn usual_data(prefix: &str) -> Entries {
    let mut data = vec![
        (entry_of("./", EntryType::Directory, 0), vec![]),
        file_entry(
            &format!("./boot/vmlinuz-{RELEASE}"),
            &bzimage(Packing::Lz4, &vmlinux(RELEASE, b"")),
        ),
        file_entry("./usr/share/doc/x/copyright", b"text"),
        link("./lib/modules/6.9.0-test/build", "/usr/src/linux"),
    ];
    for (name, bytes) in usual_modules() {
        data.push(file_entry(&format!("{prefix}/{RELEASE}/{name}"), &bytes));
    }
    data
}

fn link(name: &str, target: &str) -> (tar::Header, Vec<u8>) {
    let mut header = entry_of(name, EntryType::Symlink, 0);
    header.set_link_name(target).unwrap();
    header.set_cksum();
    (header, vec![])
}

/// A package that is fine but for `more`, its last entries.
fn deb_with(more: Entries) -> Vec<u8> {
    let mut data = usual_data("./lib/modules");
    data.extend(more);
    deb(Packing::Gzip, CONTROL, &data)
}

fn refused(bytes: &[u8]) -> KernelError {
    let lab = Lab::new();
    let error = lab.import(bytes).expect_err("must be refused");
    assert_eq!(
        lab.stored(),
        [".lock"],
        "a refused package leaves nothing: {error}"
    );
    assert_eq!(crate::make::names(&lab.path("")), ["data", "given"]);
    error
}

#[test]
fn a_package_in_every_compression_and_both_layouts() {
    let mut ids = Vec::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Xz, Packing::Zstd] {
        for prefix in ["./lib/modules", "./usr/lib/modules", "lib/modules"] {
            let lab = Lab::new();
            let kernel = lab
                .import(&deb(packing, CONTROL, &usual_data(prefix)))
                .unwrap();
            let names: Vec<&str> = kernel.modules.iter().map(|m| m.name.as_str()).collect();
            assert_eq!(
                names,
                [
                    "virtio",
                    "virtio_ring",
                    "virtio_pci",
                    "virtio_blk",
                    "vsock",
                    "vmw_vsock_virtio_transport",
                    "jbd2",
                    "ext4"
                ]
            );
            ids.push(kernel.id);
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "the same kernel has the same id: {ids:?}");
}

#[test]
fn a_package_and_loose_files_are_the_same_kernel() {
    let lab = Lab::new();
    let packed = lab.import(&deb_with(vec![])).unwrap();
    let dir = lab.modules_dir(&usual_modules());
    let image = lab.write("vmlinuz", &bzimage(Packing::Lz4, &vmlinux(RELEASE, b"")));
    let loose = lab.store.import(&image, Some(&dir)).unwrap();
    assert_eq!(packed, loose);
    assert_eq!(lab.store.list().unwrap().kernels.len(), 1);
}

#[test]
fn given_modules_go_before_those_of_the_package() {
    let lab = Lab::new();
    let mut files = usual_modules();
    files.push((
        "kernel/fs/overlayfs/overlay.ko",
        crate::make::module("overlay", "", &[]),
    ));
    let dir = lab.modules_dir(&files);
    let package = lab.write("a.deb", &deb_with(vec![]));
    let kernel = lab.store.import(&package, Some(&dir)).unwrap();
    assert!(kernel.has_module("overlay"));
}

#[test]
fn a_meta_package_names_what_to_import() {
    let control = "Package: linux-image-cloud-amd64\nArchitecture: amd64\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), kmod | busybox\n";
    let data = [file_entry("./usr/share/doc/readme", b"text")];
    let error = refused(&deb(Packing::Xz, control, &data));
    let message = error.to_string();
    assert!(message.contains("meta package"), "{message}");
    assert!(
        message.ends_with(": linux-image-6.1.0-56-cloud-amd64"),
        "{message}"
    );
}

#[test]
fn packages_without_a_kernel_say_what_they_are() {
    let message = refused(&deb(Packing::Gzip, "Package: \x1bhello\n", &[])).to_string();
    assert!(message.contains("package \\x1bhello") && message.ends_with("no kernel"));
    let data = [file_entry(
        "./lib/modules/6.9.0-test/kernel/fs/fuse/fuse.ko",
        &crate::make::module("fuse", "", &[]),
    )];
    let message = refused(&deb(Packing::Gzip, CONTROL, &data)).to_string();
    assert!(message.contains("only modules"), "{message}");
}

#[test]
fn row_53_a_package_for_another_processor_is_refused() {
    let control = CONTROL.replace("amd64", "arm64");
    let error = refused(&deb(Packing::Gzip, &control, &usual_data("./lib/modules")));
    assert!(matches!(&error, KernelError::WrongArch { found, .. } if found == "arm64"));
}

#[test]
fn row_53_a_package_without_what_a_guest_needs_says_which() {
    let mut data = usual_data("./lib/modules");
    data.retain(|(header, _)| {
        !header.path().unwrap().ends_with("virtio_blk.ko")
            && !header.path().unwrap().ends_with("virtio_pci.ko")
    });
    let message = refused(&deb(Packing::Gzip, CONTROL, &data)).to_string();
    assert!(
        message.contains("virtio_pci or virtio_mmio, virtio_blk missing"),
        "{message}"
    );
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../evil",
        "./../evil",
        "./boot/../../evil",
        "/etc/passwd",
        "./lib/modules/6.9.0-test/../../../x.ko",
        "..",
    ] {
        let error = refused(&deb_with(vec![file_entry(name, b"x")]));
        let KernelError::UnsafeArchive { entry, .. } = &error else {
            panic!("{name}: {error}");
        };
        assert_eq!(entry, name);
    }
}

#[test]
fn long_names_that_lead_out_are_refused_too() {
    let gnu = vec![
        (
            entry_of("././@LongLink", EntryType::GNULongName, 8),
            b"../evil\0".to_vec(),
        ),
        file_entry("./innocent", b"x"),
    ];
    let record = b"16 path=../evil\n";
    let pax = vec![
        (
            entry_of("./x", EntryType::XHeader, record.len() as u64),
            record.to_vec(),
        ),
        file_entry("./innocent", b"x"),
    ];
    for more in [gnu, pax] {
        let error = refused(&deb_with(more));
        assert!(
            matches!(&error, KernelError::UnsafeArchive { entry, .. } if entry == "../evil"),
            "{error}"
        );
    }
    let record = b"10 size=1\n";
    let size = (
        entry_of("./x", EntryType::XHeader, record.len() as u64),
        record.to_vec(),
    );
    let error = refused(&deb_with(vec![size]));
    assert!(error.to_string().contains("extended header"), "{error}");
}

#[test]
fn a_long_name_is_read() {
    let deep = format!("./lib/modules/{RELEASE}/kernel/{}/fuse.ko", "d".repeat(120));
    let mut long = deep.clone().into_bytes();
    long.push(0);
    let content = crate::make::module("fuse", "", &[]);
    let more = vec![
        (
            entry_of("././@LongLink", EntryType::GNULongName, long.len() as u64),
            long,
        ),
        file_entry("./lib/modules/cut-off", &content),
    ];
    let kernel = Lab::new().import(&deb_with(more)).unwrap();
    assert!(kernel.has_module("fuse"));
}

#[test]
fn links_and_devices_in_place_of_files_are_refused() {
    let kernel = format!("./boot/vmlinuz-{RELEASE}");
    let module = format!("./lib/modules/{RELEASE}/kernel/x.ko");
    for name in [kernel.as_str(), module.as_str()] {
        for kind in [
            EntryType::Link,
            EntryType::Symlink,
            EntryType::Char,
            EntryType::Fifo,
        ] {
            let mut data = usual_data("./lib/modules");
            data.remove(1);
            let mut header = entry_of(name, kind, 0);
            header.set_link_name("/etc/shadow").unwrap();
            header.set_cksum();
            data.push((header, vec![]));
            let error = refused(&deb(Packing::Gzip, CONTROL, &data));
            assert!(
                matches!(error, KernelError::UnsafeArchive { .. }),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn promises_of_gigantic_sizes_cost_nothing() {
    let kernel = format!("./boot/vmlinuz-{RELEASE}");
    for (name, size) in [
        (kernel.as_str(), 1 << 40),
        ("./lib/modules/6.9.0-test/kernel/x.ko", 1 << 33),
        ("./lib/modules/6.9.0-test/modules.builtin", 1 << 30),
    ] {
        let data = vec![(entry_of(name, EntryType::Regular, size), vec![])];
        let error = refused(&deb(Packing::Gzip, CONTROL, &data));
        assert!(
            matches!(error, KernelError::TooLarge { .. }),
            "{name}: {error}"
        );
    }
    let name = vec![(
        entry_of("././@LongLink", EntryType::GNULongName, 1 << 34),
        vec![],
    )];
    let error = refused(&deb_with(name));
    assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");

    // A file that nobody wants may be as large as it likes, if it is there.
    let big = vec![(
        entry_of("./usr/share/doc/x", EntryType::Regular, u64::MAX / 2),
        vec![],
    )];
    let error = refused(&deb_with(big));
    assert!(error.to_string().contains("unexpected EOF"), "{error}");
}

#[test]
fn a_package_that_unpacks_without_end_is_stopped() {
    // 3 GiB of zeros: one gzip member of 64 MiB, again and again.
    let header = entry_of("./usr/share/doc/zeros", EntryType::Regular, 3 << 30);
    let mut data = pack(Packing::Gzip, header.as_bytes());
    let zeros = pack(Packing::Gzip, &vec![0; 64 << 20]);
    for _ in 0..48 {
        data.extend(&zeros);
    }
    let control = pack(
        Packing::Gzip,
        &tarball(&[file_entry("./control", CONTROL.as_bytes())]),
    );
    let bomb = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", &control),
        ("data.tar.gz", &data),
    ]);
    let error = refused(&bomb);
    assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
}

#[test]
fn two_kernels_in_one_package_are_refused() {
    let second = file_entry("./boot/vmlinuz-6.9.1", &vmlinux("6.9.1", ALL_BUILTIN));
    let error = refused(&deb_with(vec![second]));
    assert!(
        error.to_string().contains("more than one kernel"),
        "{error}"
    );
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let mut data = usual_data("./lib/modules");
    data.truncate(2);
    data.push(file_entry(
        "./lib/modules/6.9.1-other/kernel/fs/fuse/fuse.ko",
        &crate::make::module_for("6.9.1-other", "fuse", "", &[]),
    ));
    let error = refused(&deb(Packing::Gzip, CONTROL, &data));
    assert!(matches!(error, KernelError::WrongRelease { .. }), "{error}");
}

#[test]
fn a_package_cut_anywhere_is_refused() {
    for packing in PACKINGS {
        if packing == Packing::Lz4 {
            continue; // dpkg has no such packages.
        }
        let whole = deb(packing, CONTROL, &usual_data("./lib/modules"));
        for cut in (70..whole.len() - 1).step_by(whole.len() / 40) {
            let error = refused(&whole[..cut]);
            assert!(
                matches!(error, KernelError::Truncated { .. }),
                "{cut}: {error}"
            );
        }
    }
}

#[test]
fn damage_behind_the_last_file_is_noticed() {
    let mut data = tarball(&usual_data("./lib/modules"));
    data.extend([0; 9 << 10]);
    let mut stream = pack(Packing::Gzip, &data);
    let end = stream.len();
    stream[end - 8] ^= 1; // gzip's CRC32.
    let control = tarball(&[file_entry("./control", CONTROL.as_bytes())]);
    let package = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control),
        ("data.tar.gz", &stream),
    ]);
    assert!(matches!(refused(&package), KernelError::Corrupt { .. }));
}

#[test]
fn broken_outer_archives_are_refused() {
    let control = tarball(&[file_entry("./control", CONTROL.as_bytes())]);
    let no_data = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control)]);
    assert!(refused(&no_data).to_string().contains("no data.tar"));
    let many = vec![("debian-binary", &b"2.0\n"[..]); 40];
    assert!(matches!(refused(&ar(&many)), KernelError::TooMany { .. }));
    let mut bad_size = no_data.clone();
    bad_size[8 + 48..8 + 58].copy_from_slice(b"-1        ");
    assert!(refused(&bad_size).to_string().contains("no size"));
    let mut no_mark = no_data;
    no_mark[8 + 58] = b'x';
    assert!(refused(&no_mark).to_string().contains("end mark"));
    let bzip2 = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control),
        ("data.tar.bz2", b"BZh91AY&SY"),
    ]);
    assert!(refused(&bzip2).to_string().contains("bzip2"));
    let broken = deb_of_tar(Packing::Gzip, CONTROL, &[b'x'; 2048]);
    assert!(matches!(refused(&broken), KernelError::Corrupt { .. }));
}
