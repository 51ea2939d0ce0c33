//! A real distribution kernel: the package named by `FCPIPE_TEST_KERNEL_DEB`, or one that
//! `cargo xtask setup` put into `target/setup`.

use std::path::{Path, PathBuf};

use fcpipe_kernel::{Kernel, KernelError, initrd};

use crate::make::{Lab, oracle, skip};

/// The package; `None`, with a line that says so, if there is none.
fn package() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FCPIPE_TEST_KERNEL_DEB") {
        return Some(path.into());
    }
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/setup");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&setup)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // The meta package is called the same, without a version in its name.
            name.ends_with(".deb")
                && name
                    .strip_prefix("linux-image-")
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        skip("no kernel package: FCPIPE_TEST_KERNEL_DEB is not set, and target/setup has none");
    }
    found.pop()
}

fn index(kernel: &Kernel, name: &str) -> usize {
    kernel
        .modules
        .iter()
        .position(|m| m.name == name)
        .unwrap_or_else(|| panic!("{name} is not there"))
}

#[test]
fn a_distribution_package_is_imported_and_packed() {
    let Some(package) = package() else { return };
    let lab = Lab::new();
    let kernel = lab.store.import(&package, None).unwrap();
    kernel.verify().unwrap();
    for name in [
        "virtio_pci",
        "virtio_mmio",
        "virtio_blk",
        "virtio_net",
        "vmw_vsock_virtio_transport",
        "ext4",
        "overlay",
        "fuse",
        "dm_snapshot",
        "af_packet",
    ] {
        assert!(kernel.has_module(name), "{name}");
    }
    assert!(!kernel.has_module("tun") && !kernel.has_module("kvm"));
    for (before, after) in [
        ("virtio_ring", "virtio_pci"),
        ("virtio", "virtio_blk"),
        ("net_failover", "virtio_net"),
        ("vsock", "vmw_vsock_virtio_transport_common"),
        (
            "vmw_vsock_virtio_transport_common",
            "vmw_vsock_virtio_transport",
        ),
        ("dm_mod", "dm_bufio"),
        ("dm_bufio", "dm_snapshot"),
    ] {
        assert!(
            index(&kernel, before) < index(&kernel, after),
            "{before} {after}"
        );
    }
    assert!(kernel.modules.len() < 40);

    let mut archive = Vec::new();
    let all = ["overlay", "fuse", "virtiofs", "dm_mod", "dm_snapshot"];
    let info = initrd(&kernel, b"\x7fELF", &all, &mut archive).unwrap();
    assert_eq!(info.modules, kernel.modules.len());
    let count = |asked: &[&str]| {
        let info = initrd(&kernel, b"\x7fELF", asked, &mut std::io::sink());
        info.unwrap().modules
    };
    // fuse is what virtiofs stands on.
    let least = kernel.modules.len() - 6;
    assert_eq!(count(&[]), least);
    assert_eq!(count(&["overlay"]), least + 1);
    assert_eq!(count(&["dm_snapshot"]), least + 3);
    assert_eq!(count(&["virtiofs"]), least + 2);
    assert!(
        info.size < 16 << 20,
        "{} bytes are unpacked at each boot",
        info.size
    );
    if let Some(output) = oracle("cpio", &["-it", "--quiet"], &archive) {
        assert!(output.status.success(), "{output:?}");
    }

    // The same by hand: its boot image without modules is refused, the ELF kernel inside too.
    for image in [kernel.bzimage.as_ref().unwrap(), &kernel.vmlinux] {
        let error = lab.store.import(image, None).unwrap_err();
        let KernelError::MissingModules { names, .. } = &error else {
            panic!("{error}");
        };
        assert!(names.contains(&"virtio_blk".to_owned()), "{error}");
    }

    // modinfo (kmod) reads the same dependencies.
    let module = &kernel.modules[index(&kernel, "vmw_vsock_virtio_transport")];
    let path = module.path.to_str().unwrap();
    if let Some(output) = oracle("/sbin/modinfo", &["-F", "depends", path], &[]) {
        let depends = String::from_utf8(output.stdout).unwrap();
        for name in depends.trim().split(',') {
            let needed = index(&kernel, &name.replace('-', "_"));
            assert!(
                needed < index(&kernel, "vmw_vsock_virtio_transport"),
                "{name}"
            );
        }
    }
}
