//! What the store keeps, finds and survives.

use std::os::unix::fs::PermissionsExt;

use fcpipe_kernel::KernelError;

use crate::make::{ALL_BUILTIN, Lab, Packing, bzimage, usual_modules, vmlinux};

/// Imports a kernel that differs from others by its release.
fn import(lab: &Lab, release: &str) -> fcpipe_kernel::Kernel {
    lab.import(&vmlinux(release, ALL_BUILTIN)).unwrap()
}

#[test]
fn importing_twice_changes_nothing() {
    let lab = Lab::new();
    let first = lab.import_with_modules(&usual_modules()).unwrap();
    let json = std::fs::read(first.vmlinux.with_file_name("kernel.json")).unwrap();
    let second = lab.import_with_modules(&usual_modules()).unwrap();
    assert_eq!(first, second);
    assert_eq!(
        std::fs::read(second.vmlinux.with_file_name("kernel.json")).unwrap(),
        json
    );
    assert_eq!(lab.stored(), [".lock", first.id.as_str()]);
    first.verify().unwrap();
}

#[test]
fn equal_kernels_have_equal_ids_in_all_stores() {
    let ids: Vec<String> = (0..2)
        .map(|_| Lab::new().import_with_modules(&usual_modules()).unwrap().id)
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert!(ids[0].starts_with("6.9.0-test-") && ids[0].len() == "6.9.0-test-".len() + 12);
    let other = Lab::new()
        .import(&vmlinux("6.9.0-test", ALL_BUILTIN))
        .unwrap();
    assert_ne!(other.id, ids[0]);
}

#[test]
fn kernels_are_found_by_id_release_and_prefix() {
    let lab = Lab::new();
    let error = lab.store.default().unwrap_err();
    assert!(matches!(error, KernelError::NoKernels { .. }), "{error}");
    let old = import(&lab, "6.1.0-a");
    let new = import(&lab, "6.1.0-b");
    assert_eq!(lab.store.find(&old.id).unwrap(), old);
    assert_eq!(lab.store.find("6.1.0-a").unwrap(), old);
    assert_eq!(lab.store.find(&new.id[..new.id.len() - 5]).unwrap(), new);
    let error = lab.store.find("6.1").unwrap_err();
    assert!(
        matches!(&error, KernelError::Ambiguous { ids, .. } if ids.len() == 2),
        "{error}"
    );
    for nothing in ["7", "", "../v1", "/"] {
        let error = lab.store.find(nothing).unwrap_err();
        assert!(
            error.to_string().contains(&old.id),
            "{error} lists what there is"
        );
    }
}

#[test]
fn the_default_is_the_newest_that_can_be_used() {
    let lab = Lab::new();
    let a = import(&lab, "6.1.0-b");
    let b = import(&lab, "6.1.0-a");
    assert_eq!(lab.store.list().unwrap().kernels, [b.clone(), a.clone()]);
    assert_eq!(lab.store.default().unwrap(), b);
    std::fs::remove_file(&b.vmlinux).unwrap();
    assert_eq!(lab.store.default().unwrap(), a);
    std::fs::remove_file(&a.vmlinux).unwrap();
    let error = lab.store.default().unwrap_err();
    assert!(matches!(error, KernelError::DamagedStore { .. }), "{error}");
}

#[test]
fn a_damaged_kernel_is_reported_and_repaired_by_importing_it_again() {
    let lab = Lab::new();
    let good = import(&lab, "6.1.0-good");
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let victim = kernel.modules[0].path.clone();
    let json = kernel.vmlinux.with_file_name("kernel.json");
    let damages: [&dyn Fn(); 6] = [
        &|| std::fs::remove_file(&victim).unwrap(),
        &|| {
            std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o644)).unwrap();
            std::fs::write(&victim, b"short").unwrap();
        },
        &|| std::fs::remove_file(&json).unwrap(),
        &|| {
            let text = std::fs::read_to_string(&json).unwrap();
            std::fs::remove_file(&json).unwrap();
            std::fs::write(&json, text.replace("virtio_ring", "../virtio_ring")).unwrap();
        },
        &|| {
            let text = std::fs::read_to_string(&json).unwrap();
            std::fs::remove_file(&json).unwrap();
            std::fs::write(&json, text.replace("jbd2", "jbd3")).unwrap();
        },
        // All files are as they were, only the order of loading is not.
        &|| {
            let mut value: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
            value["modules"].as_array_mut().unwrap().reverse();
            std::fs::remove_file(&json).unwrap();
            std::fs::write(&json, value.to_string()).unwrap();
        },
    ];
    for (n, damage) in damages.iter().enumerate() {
        damage();
        let listing = lab.store.list().unwrap();
        assert_eq!(listing.kernels, std::slice::from_ref(&good), "damage {n}");
        assert_eq!(listing.damaged.len(), 1);
        let error = lab.store.find(&kernel.id).unwrap_err();
        assert!(
            error.to_string().contains("import it again"),
            "damage {n}: {error}"
        );
        let again = lab.import_with_modules(&usual_modules()).unwrap();
        assert_eq!(again.id, kernel.id);
        again.verify().unwrap();
        assert_eq!(lab.store.list().unwrap().damaged.len(), 0);
        assert_eq!(
            lab.stored().len(),
            3,
            "nothing is left aside: {:?}",
            lab.stored()
        );
    }
}

#[test]
fn content_that_changed_in_place_is_found_by_verify_and_by_importing() {
    let lab = Lab::new();
    let kernel = lab
        .import(&bzimage(Packing::Xz, &vmlinux("6.1.0", ALL_BUILTIN)))
        .unwrap();
    let path = kernel.bzimage.clone().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let error = kernel.verify().unwrap_err();
    assert!(
        matches!(&error, KernelError::DamagedStore { path: p, .. } if *p == path),
        "{error}"
    );
    let again = lab
        .import(&bzimage(Packing::Xz, &vmlinux("6.1.0", ALL_BUILTIN)))
        .unwrap();
    again.verify().unwrap();
}

#[test]
fn a_kernel_in_a_renamed_directory_is_damaged() {
    let lab = Lab::new();
    let kernel = import(&lab, "6.1.0");
    let dir = lab.store.dir();
    std::fs::rename(dir.join(&kernel.id), dir.join("6.1.0-other")).unwrap();
    let listing = lab.store.list().unwrap();
    assert!(listing.kernels.is_empty());
    assert!(listing.damaged[0].to_string().contains(&kernel.id));
}

#[test]
fn what_a_killed_import_left_is_cleared_by_the_next() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.store.dir().join(".tmp-dead/modules")).unwrap();
    assert!(lab.store.list().unwrap().kernels.is_empty());
    lab.import(b"no kernel").unwrap_err();
    assert_eq!(lab.stored(), [".lock"], "even if that fails");
    let kernel = import(&lab, "6.1.0");
    assert_eq!(lab.stored(), [".lock", kernel.id.as_str()]);
}

#[test]
fn importers_at_the_same_time_agree() {
    let lab = Lab::new();
    let file = lab.write(
        "given",
        &bzimage(Packing::Zstd, &vmlinux("6.1.0", ALL_BUILTIN)),
    );
    let kernels: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| lab.store.import(&file, None).unwrap()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(kernels.iter().all(|k| *k == kernels[0]));
    assert_eq!(lab.stored().len(), 2);
}

#[test]
fn row_15_a_name_with_escape_codes_is_stored_harmless() {
    let lab = Lab::new();
    let file = lab.write("\u{1b}[31mred\n", &vmlinux("6.1.0", ALL_BUILTIN));
    let kernel = lab.store.import(&file, None).unwrap();
    assert_eq!(kernel.source, "\\x1b[31mred\\n");
}

#[test]
fn files_are_readable_by_all_and_writable_by_none() {
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&kernel.vmlinux), 0o444);
    assert_eq!(mode(&kernel.modules[0].path), 0o444);
    assert_eq!(mode(kernel.vmlinux.parent().unwrap()), 0o755);
    assert_eq!(mode(kernel.modules[0].path.parent().unwrap()), 0o755);
}
