//! Row 43: what can this host run?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fcpipe_vmm::{Accelerator, Host, KvmState, State, VmmChoice, VmmError, VmmKind, choose};
use rustix::thread::{CapabilitySet, CapabilitySets};
use tempfile::tempdir;

use crate::bench::fake;

/// A host with both programs and no KVM.
fn host(root: &Path) -> Host {
    Host {
        kvm_device: root.join("kvm"),
        modules: root.join("modules"),
        kvm: None,
        firecracker: None,
        jailer: None,
        qemu: Some(fake("qemu-hangs")),
        vhost_vsock: Some(fake("device-serves")),
        directories: Vec::new(),
    }
}

fn assert_emulated(host: &Host, because: &str) {
    let chosen = choose(host, VmmChoice::Auto).unwrap();
    assert_eq!(chosen.vmm.kind(), VmmKind::Qemu);
    assert_eq!(chosen.accelerator, Accelerator::Tcg);
    let reasons = chosen.reasons.join("\n");
    assert!(reasons.contains(because), "{reasons}");
    let findings = host.probe().findings();
    let kvm = findings
        .iter()
        .find(|finding| finding.what == "kvm")
        .unwrap();
    assert_eq!(kvm.state, State::Degraded);
    assert!(kvm.hint.is_some());
}

#[test]
fn row_43_no_kvm() {
    let root = tempdir().unwrap();
    assert_emulated(&host(root.path()), "there is no /dev/kvm");
}

#[test]
fn row_43_kvm_that_may_not_be_opened() {
    let root = tempdir().unwrap();
    let host = host(root.path());
    fs::write(&host.kvm_device, "").unwrap();
    fs::set_permissions(&host.kvm_device, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may open everything, but for a thread without its capabilities.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            assert_eq!(host.probe().kvm, KvmState::Denied);
            assert_emulated(&host, "may not open /dev/kvm");
        });
    });
}

#[test]
fn row_43_something_that_is_not_kvm() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    fs::write(&host.kvm_device, "").unwrap();
    assert_emulated(&host, "KVM_GET_API_VERSION");
    host.kvm_device = "/dev/null".into();
    assert_emulated(&host, "KVM_GET_API_VERSION");
    host.kvm_device = root.path().to_owned();
    assert_emulated(&host, "cannot run guests");
}

#[test]
fn row_43_kvm_pvm_answers_like_kvm_and_is_refused_needs_dev_kvm() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    host.kvm_device = "/dev/kvm".into();
    let kvm = host.probe().kvm;
    let busy = matches!(&kvm, KvmState::Unusable(why) if why.starts_with("KVM_CREATE_VM"));
    if busy || matches!(kvm, KvmState::Missing | KvmState::Denied) {
        println!("skipped: {kvm}");
        return;
    }
    assert_eq!(
        choose(&host, VmmChoice::Auto).unwrap().accelerator,
        Accelerator::Kvm
    );
    fs::create_dir_all(host.modules.join("kvm_pvm")).unwrap();
    assert_emulated(&host, "KVM-PVM");
}

#[test]
fn row_43_firecracker_is_refused_with_what_to_do() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    host.firecracker = Some(fake("qemu-hangs"));
    let error = choose(&host, VmmChoice::Firecracker).err().unwrap();
    assert!(
        error.to_string().contains("there is no /dev/kvm"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--vmm"));
    assert_emulated(&host, "firecracker needs KVM, and there is no /dev/kvm");
}

#[test]
fn row_44_a_firecracker_that_is_missing_is_named_with_what_to_do() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    host.kvm = Some(true);
    host.firecracker = Some(root.path().join("missing"));
    let error = choose(&host, VmmChoice::Firecracker).err().unwrap();
    assert!(error.to_string().contains("FCPIPE_FIRECRACKER="), "{error}");
    assert!(error.hint().unwrap().contains("FCPIPE_FIRECRACKER"));
    let chosen = choose(&host, VmmChoice::Auto).unwrap();
    assert_eq!(chosen.vmm.kind(), VmmKind::Qemu);
    assert_eq!(chosen.accelerator, Accelerator::Kvm);
    assert!(chosen.reasons[0].contains("firecracker was not found"));
}

#[test]
fn row_43_firecracker_comes_first_where_kvm_works() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    host.firecracker = Some(fake("qemu-hangs"));
    host.kvm = Some(true);
    let chosen = choose(&host, VmmChoice::Auto).unwrap();
    assert_eq!(chosen.vmm.kind(), VmmKind::Firecracker);
    assert!(chosen.reasons[0].contains("/dev/kvm works"));
    let asked = choose(&host, VmmChoice::Qemu).unwrap();
    assert_eq!(asked.vmm.kind(), VmmKind::Qemu);
    // Then nothing of QEMU's is needed.
    host.qemu = None;
    host.vhost_vsock = None;
    let findings = host.probe().findings();
    assert!(
        findings
            .iter()
            .all(|finding| finding.state != State::Missing)
    );
    let auto = findings.iter().find(|f| f.what == "--vmm auto").unwrap();
    assert!(auto.detail.starts_with("firecracker"), "{}", auto.detail);
    // A jailer that was named is used, or nothing runs.
    host.jailer = Some(root.path().join("missing"));
    let error = choose(&host, VmmChoice::Auto).err().unwrap();
    assert!(error.to_string().contains("FCPIPE_JAILER="), "{error}");
    host.jailer = Some(fake("qemu-hangs"));
    let reasons = choose(&host, VmmChoice::Auto).unwrap().reasons;
    assert!(reasons[1].starts_with("jailed: by "), "{reasons:?}");
    // And what the user says counts.
    host.kvm = Some(false);
    assert!(choose(&host, VmmChoice::Auto).is_err());
}

#[test]
fn row_44_missing_programs_are_named_with_what_to_do() {
    let root = tempdir().unwrap();
    let mut no_qemu = host(root.path());
    no_qemu.qemu = None;
    no_qemu.directories = vec![root.path().to_owned()];
    let error = choose(&no_qemu, VmmChoice::Qemu).err().unwrap();
    assert!(matches!(error, VmmError::NotFound { .. }), "{error:?}");
    assert!(
        error.to_string().contains(&*root.path().to_string_lossy()),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("apt install"));

    let mut no_device = host(root.path());
    no_device.vhost_vsock = Some(root.path().join("missing"));
    let error = choose(&no_device, VmmChoice::Auto).err().unwrap();
    assert!(error.to_string().contains("FCPIPE_VHOST_VSOCK="), "{error}");
    assert!(error.hint().unwrap().contains("cargo xtask setup"));

    let findings = no_device.probe().findings();
    let automatic = findings.last().unwrap();
    assert!(
        automatic
            .hint
            .as_ref()
            .unwrap()
            .contains("vhost-device-vsock"),
        "{automatic:?}"
    );
    let states: Vec<State> = findings.iter().map(|finding| finding.state).collect();
    assert_eq!(
        states,
        [
            State::Degraded,
            State::Degraded,
            State::Ok,
            State::Ok,
            State::Missing,
            State::Missing
        ]
    );
}

#[test]
fn programs_are_found_in_the_directories_in_their_order() {
    let root = tempdir().unwrap();
    let mut host = host(root.path());
    host.vhost_vsock = None;
    let dirs = ["a", "b", "c"].map(|name| root.path().join(name));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    // In `a` a file that cannot be executed.
    fs::write(dirs[0].join("vhost-device-vsock"), "").unwrap();
    for dir in &dirs[1..] {
        std::os::unix::fs::symlink(fake("device-serves"), dir.join("vhost-device-vsock")).unwrap();
    }
    host.directories = dirs.to_vec();
    assert_eq!(
        host.probe().vhost_vsock,
        Some(dirs[1].join("vhost-device-vsock"))
    );
}
