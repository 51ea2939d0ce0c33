//! Which modules are kept, and in what order.

use std::collections::{BTreeMap, BTreeSet};

use fcpipe_kernel::{ImportOptions, KernelError};
use proptest::prelude::*;

use crate::make::{
    Lab, PACKINGS, Packing, RELEASE, module, module_for, pack, usual_modules, vmlinux,
};

fn order(kernel: &fcpipe_kernel::Kernel) -> Vec<&str> {
    kernel.modules.iter().map(|m| m.name.as_str()).collect()
}

/// The usual modules, some replaced and some added (by path).
fn usual_and(more: Vec<(&'static str, Vec<u8>)>) -> Vec<(&'static str, Vec<u8>)> {
    let mut files: BTreeMap<_, _> = usual_modules().into_iter().collect();
    files.extend(more);
    files.into_iter().collect()
}

#[test]
fn compressed_modules_are_stored_unpacked() {
    let fuse = module("fuse", "", &[]);
    for packing in PACKINGS {
        let name = match packing {
            Packing::Plain => "kernel/fs/fuse/fuse.ko",
            Packing::Gzip => "kernel/fs/fuse/fuse.ko.gz",
            Packing::Xz => "kernel/fs/fuse/fuse.ko.xz",
            Packing::Zstd => "kernel/fs/fuse/fuse.ko.zst",
            Packing::Lz4 => continue, // The kernel's build has no such modules.
        };
        let lab = Lab::new();
        let files = usual_and(vec![(name, pack(packing, &fuse))]);
        let kernel = lab.import_with_modules(&files).unwrap();
        let stored = kernel.modules.iter().find(|m| m.name == "fuse").unwrap();
        assert_eq!(std::fs::read(&stored.path).unwrap(), fuse, "{packing:?}");
        assert_eq!(stored.size, fuse.len() as u64);
        assert_eq!(stored.digest, blake3::hash(&fuse));
    }
}

#[test]
fn dashes_and_underscores_are_one_letter() {
    let lab = Lab::new();
    let files = usual_and(vec![
        ("kernel/drivers/md/dm-mod.ko", module("dm_mod", "", &[])),
        (
            "kernel/drivers/md/dm-bufio.ko",
            module("dm_bufio", "dm-mod", &[]),
        ),
        (
            "kernel/drivers/md/dm-snapshot.ko",
            module("dm_snapshot", "dm-mod,dm-bufio", &[]),
        ),
    ]);
    let kernel = lab.import_with_modules(&files).unwrap();
    assert!(kernel.has_module("dm_snapshot") && kernel.has_module("dm-snapshot"));
    assert!(kernel.has_module("dm_bufio"));
    assert!(order(&kernel).ends_with(&["dm_mod", "dm_bufio", "dm_snapshot"]));
}

#[test]
fn soft_dependencies_come_along_where_they_exist() {
    let lab = Lab::new();
    let files = usual_and(vec![
        (
            "kernel/fs/ext4/ext4.ko",
            module(
                "ext4",
                "jbd2",
                &["softdep=pre: crc32c nowhere post: helper"],
            ),
        ),
        (
            "kernel/crypto/crc32c_generic.ko",
            module("crc32c_generic", "", &[]),
        ),
        ("kernel/lib/helper.ko", module("helper", "", &[])),
    ]);
    let kernel = lab.import_with_modules(&files).unwrap();
    assert!(
        order(&kernel).ends_with(&["jbd2", "crc32c_generic", "ext4", "helper"]),
        "{:?}",
        order(&kernel)
    );
}

#[test]
fn a_soft_circle_is_cut_and_a_hard_one_is_an_error() {
    let lab = Lab::new();
    let files = usual_and(vec![
        (
            "kernel/fs/ext4/ext4.ko",
            module("ext4", "jbd2", &["softdep=pre: helper"]),
        ),
        ("kernel/lib/helper.ko", module("helper", "spare,ext4", &[])),
        ("kernel/lib/spare.ko", module("spare", "", &[])),
    ]);
    let kernel = lab.import_with_modules(&files).unwrap();
    assert!(
        order(&kernel).ends_with(&["jbd2", "ext4"]),
        "neither helper nor what came with it: {:?}",
        order(&kernel)
    );

    let files = usual_and(vec![(
        "kernel/fs/jbd2/jbd2.ko",
        module("jbd2", "ext4", &[]),
    )]);
    let error = Lab::new().import_with_modules(&files).unwrap_err();
    assert!(error.to_string().contains("ext4 → jbd2 → ext4"), "{error}");
}

#[test]
fn row_53_a_missing_module_is_named() {
    let lab = Lab::new();
    let mut files = usual_modules();
    files.retain(|(name, _)| !name.ends_with("/ext4.ko"));
    let error = lab.import_with_modules(&files).unwrap_err();
    let KernelError::MissingModules {
        names,
        modules_given,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (names.as_slice(), *modules_given),
        (&["ext4".to_owned()][..], true)
    );

    // Built in is as good as there, and its list decides alone.
    files.push((
        "modules.builtin",
        b"kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n".to_vec(),
    ));
    let kernel = lab.import_with_modules(&files).unwrap();
    assert_eq!(kernel.builtin, ["af_packet", "ext4"]);
    assert!(kernel.has_module("ext4") && !order(&kernel).contains(&"ext4"));

    let mut files = usual_modules();
    files.retain(|(name, _)| !name.ends_with("/jbd2.ko"));
    files.push(("modules.builtin", b"kernel/x.ko\n".to_vec()));
    let error = lab.import_with_modules(&files).unwrap_err();
    assert!(error.to_string().contains("ext4 needs jbd2"), "{error}");
}

#[test]
fn row_53_a_kernel_without_modules_says_what_to_pass() {
    let error = Lab::new()
        .import(&vmlinux(RELEASE, b"\0virtio-mmio\0ext4\0"))
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("virtio_blk, vmw_vsock_virtio_transport missing"),
        "{message}"
    );
    assert!(message.contains("--modules"), "{message}");
}

#[test]
fn row_53_a_module_of_another_kernel_is_named() {
    let files = usual_and(vec![(
        "kernel/fs/fuse/fuse.ko",
        module_for("6.8.0-other", "fuse", "", &[]),
    )]);
    let error = Lab::new().import_with_modules(&files).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("kernel/fs/fuse/fuse.ko") && message.contains("6.8.0-other"),
        "{message}"
    );
}

#[test]
fn files_that_are_no_modules_are_named() {
    for (bytes, expected) in [
        (b"text".to_vec(), "truncated"),
        (b"this is only some text".to_vec(), "not an ELF file"),
        (vmlinux(RELEASE, b""), "not a kernel module"),
        (vec![0x1f, 0x8b, 1, 2, 3], "does not unpack"),
    ] {
        let files = usual_and(vec![("kernel/fs/fuse/fuse.ko", bytes)]);
        let message = Lab::new()
            .import_with_modules(&files)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(expected) && message.contains("fuse.ko"),
            "{message}"
        );
    }
}

#[test]
fn directories_that_hold_no_modules_are_named() {
    let lab = Lab::new();
    let kernel = lab.write("vmlinux", &vmlinux(RELEASE, b""));
    let empty = lab.modules_dir(&[]);
    for (dir, expected) in [
        (empty, "no module"),
        (kernel.clone(), "not a directory"),
        (lab.path("nowhere"), "nowhere"),
    ] {
        let message = lab
            .store
            .import(&kernel, Some(&dir))
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn links_in_a_modules_directory_are_not_followed() {
    let lab = Lab::new();
    let dir = lab.modules_dir(&usual_modules());
    std::os::unix::fs::symlink(lab.path(""), dir.join("build")).unwrap();
    lab.write("elsewhere/fuse.ko", &module("fuse", "", &[]));
    std::os::unix::fs::symlink(lab.path("elsewhere/fuse.ko"), dir.join("fuse.ko")).unwrap();
    let kernel = lab.write("vmlinux", &vmlinux(RELEASE, b""));
    let kernel = lab.store.import(&kernel, Some(&dir)).unwrap();
    assert!(!kernel.has_module("fuse"));
}

#[test]
fn updates_win_over_what_came_with_the_kernel() {
    let better = module("virtio_blk", "virtio", &["version=2"]);
    let files = usual_and(vec![
        ("updates/dkms/virtio_blk.ko", better.clone()),
        (
            "extra/virtio_blk.ko",
            module("virtio_blk", "", &["version=3"]),
        ),
    ]);
    let kernel = Lab::new().import_with_modules(&files).unwrap();
    let stored = kernel
        .modules
        .iter()
        .find(|m| m.name == "virtio_blk")
        .unwrap();
    assert_eq!(stored.digest, blake3::hash(&better));
}

#[test]
fn modules_beyond_the_list_come_on_request() {
    let lab = Lab::new();
    let dir = lab.modules_dir(&usual_modules());
    let file = lab.write("vmlinux", &vmlinux(RELEASE, b""));
    let plain = lab.store.import(&file, Some(&dir)).unwrap();
    let extra = ["soundcore".to_owned()];
    let options = ImportOptions {
        modules: Some(&dir),
        extra: &extra,
    };
    let more = lab.store.import_with(&file, &options).unwrap();
    assert!(!plain.has_module("soundcore") && more.has_module("soundcore"));
    assert_ne!(plain.id, more.id);

    let extra = ["no-such".to_owned()];
    let options = ImportOptions {
        modules: Some(&dir),
        extra: &extra,
    };
    let error = lab.store.import_with(&file, &options).unwrap_err();
    assert!(error.to_string().contains("no module no-such"), "{error}");
}

#[test]
fn endless_chains_are_stopped() {
    let names: Vec<String> = (0..100).map(|n| format!("kernel/m{n}.ko")).collect();
    let mut files = usual_and(vec![("kernel/fs/fuse/fuse.ko", module("fuse", "m0", &[]))]);
    for (n, name) in names.iter().enumerate() {
        let bytes = module(&format!("m{n}"), &format!("m{}", n + 1), &[]);
        files.push((name.as_str().to_owned().leak(), bytes));
    }
    let error = Lab::new().import_with_modules(&files).unwrap_err();
    assert!(matches!(error, KernelError::TooMany { .. }), "{error}");

    let wide: Vec<String> = (0..300).map(|n| format!("w{n}")).collect();
    let mut files = usual_and(vec![(
        "kernel/fs/fuse/fuse.ko",
        module("fuse", &wide.join(","), &[]),
    )]);
    for name in &wide {
        files.push((format!("kernel/{name}.ko").leak(), module(name, "", &[])));
    }
    let error = Lab::new().import_with_modules(&files).unwrap_err();
    assert!(matches!(error, KernelError::TooMany { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any graph without circles: each module once, after all that it needs, and no more than needed;
    /// the order in which a directory lists its files does not matter.
    #[test]
    fn load_order_is_topological_minimal_and_stable(
        edges in proptest::collection::vec((0_usize..24, 0_usize..24), 0..80),
        roots in proptest::collection::vec(0_usize..24, 1..6),
        seed in any::<u64>(),
    ) {
        // Numbers are shuffled into names, so that name order and dependency order have nothing in common.
        let name = |n: usize| format!("m{:02}", (n as u64).wrapping_mul(7).wrapping_add(seed % 24) % 24);
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for n in 0..24 {
            needs.insert(name(n), BTreeSet::new());
        }
        for (a, b) in edges {
            if a > b {
                needs.get_mut(&name(a)).unwrap().insert(name(b));
            }
        }
        let mut files = usual_modules();
        for (name, deps) in &needs {
            let deps: Vec<&str> = deps.iter().map(String::as_str).collect();
            files.push((format!("kernel/{name}.ko").leak(), module(name, &deps.join(","), &[])));
        }
        let roots: Vec<String> = roots.into_iter().map(name).collect();
        let import = |files: &[(&str, Vec<u8>)]| {
            let lab = Lab::new();
            let dir = lab.modules_dir(files);
            let file = lab.write("vmlinux", &vmlinux(RELEASE, b""));
            let options = ImportOptions { modules: Some(&dir), extra: &roots };
            lab.store.import_with(&file, &options).unwrap()
        };
        let kernel = import(&files);
        let order = order(&kernel);

        let mut loaded = BTreeSet::new();
        for &module in &order {
            for need in needs.get(module).into_iter().flatten() {
                prop_assert!(loaded.contains(need.as_str()), "{module} before {need}: {order:?}");
            }
            prop_assert!(loaded.insert(module), "{module} twice: {order:?}");
        }
        let mut closure = BTreeSet::new();
        let mut stack = roots.clone();
        while let Some(next) = stack.pop() {
            stack.extend(needs[&next].iter().cloned());
            closure.insert(next);
        }
        let kept: BTreeSet<String> =
            order.iter().filter(|m| needs.contains_key(**m)).map(|m| (*m).to_owned()).collect();
        prop_assert_eq!(kept, closure);

        files.reverse();
        prop_assert_eq!(import(&files).id, kernel.id.clone());
    }
}
