//! Rows 44, 45, 53, 54: a VMM or a guest that does not do what it should.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fcpipe_vmm::{Prepared, Vmm, VmmError};
use tempfile::tempdir;

use crate::bench::{
    LONG, NEVER, assert_gone, assert_says, config, connect_fails_at_once, eventually, go, qemu,
    soon, start,
};

#[test]
fn row_44_qemu_exits_at_once() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-exits", "device-serves")).unwrap();
    let error = connect_fails_at_once(&*machine);
    assert!(
        matches!(&error, VmmError::Exited { program: "qemu", status, .. } if status == "status 1"),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("qemu: -machine: no such thing"),
        "{error}"
    );
    assert!(
        error
            .logs()
            .unwrap()
            .to_string()
            .contains("--- end of qemu ---")
    );
}

#[test]
fn row_44_qemu_hangs() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let marks = machine.processes();
    assert_eq!(marks.len(), 2);
    assert_says(&*machine, "booting, slowly");
    let error = machine.connect(1000, soon(300), NEVER).unwrap_err();
    assert!(
        matches!(error, VmmError::NoAnswer { port: 1000, .. }),
        "{error:?}"
    );
    assert!(
        error
            .logs()
            .unwrap()
            .to_string()
            .contains("booting, slowly")
    );
    drop(machine);
    assert!(marks.iter().all(|mark| !mark.is_alive()));
}

#[test]
fn row_44_the_vsock_device_exits_at_once() {
    let dir = tempdir().unwrap();
    let error = start(dir.path(), &qemu("qemu-hangs", "device-exits"))
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            VmmError::Exited {
                program: "vhost-device-vsock",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("cannot bind"), "{error}");
}

#[test]
fn row_44_the_vsock_device_makes_no_socket() {
    let dir = tempdir().unwrap();
    let mut qemu = qemu("qemu-hangs", "device-silent");
    qemu.device_timeout = Duration::from_millis(300);
    let prepared = qemu.prepare(&config(dir.path()), NEVER).unwrap();
    let marks = prepared.processes();
    let log = dir.path().join("vhost-device-vsock.log");
    eventually("it thinks", || {
        std::fs::read_to_string(&log).unwrap() == "device: thinking\n"
    });
    let error = prepared.boot(&[], NEVER).err().unwrap();
    assert!(matches!(error, VmmError::NotReady { .. }), "{error:?}");
    assert!(error.to_string().contains("device: thinking"), "{error}");
    assert_gone(&marks);
}

#[test]
fn row_44_a_program_is_missing() {
    let dir = tempdir().unwrap();
    let error = start(dir.path(), &qemu("no-such-qemu", "device-serves"))
        .err()
        .unwrap();
    assert!(
        matches!(&error, VmmError::Spawn { program, .. } if program.ends_with("no-such-qemu")),
        "{error:?}"
    );
}

#[test]
fn row_44_a_socket_that_an_earlier_machine_left_is_not_taken_for_this_ones() {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("vhost-vsock.sock"), "").unwrap();
    std::fs::write(dir.path().join("vsock.sock"), "").unwrap();
    let mut qemu = qemu("qemu-hangs", "device-silent");
    qemu.device_timeout = Duration::from_millis(200);
    let error = start(dir.path(), &qemu).err().unwrap();
    assert!(matches!(error, VmmError::NotReady { .. }), "{error:?}");
    assert!(!dir.path().join("vsock.sock").exists());
}

#[test]
fn row_45_the_guests_kernel_panics() {
    for fake in ["qemu-panics", "qemu-panics-and-reboots"] {
        let dir = tempdir().unwrap();
        let machine = start(dir.path(), &qemu(fake, "device-serves")).unwrap();
        let error = connect_fails_at_once(&*machine);
        assert!(
            matches!(&error, VmmError::Panic { line, .. } if line.starts_with("Kernel panic - not syncing: ")),
            "{fake}: {error:?}"
        );
        assert!(error.logs().unwrap().to_string().contains("end of console"));
    }
}

#[test]
fn row_45_a_panic_after_the_start_is_told_by_the_exit() {
    let dir = tempdir().unwrap();
    let machine = start(
        dir.path(),
        &qemu("qemu-panics-and-reboots", "device-serves"),
    )
    .unwrap();
    let exit = machine.wait_exit(LONG).unwrap();
    assert_eq!(exit.code, Some(0));
    assert!(!exit.is_clean());
    assert!(
        exit.to_string().contains("Attempted to kill init"),
        "{exit}"
    );
}

#[test]
fn a_guest_that_reboots_is_a_clean_exit() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-reboots", "device-serves")).unwrap();
    assert_eq!(machine.wait_exit(Duration::ZERO), None);
    go(dir.path());
    let exit = machine.wait_exit(LONG).unwrap();
    assert!(exit.is_clean(), "{exit}");
    assert_eq!(machine.wait_exit(Duration::ZERO), Some(exit));
    assert_eq!(machine.console_tail(), b"reboot: Restarting system\n");
}

#[test]
fn row_49_cancelling_ends_the_waiting() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let begun = Instant::now();
    let after = Duration::from_millis(100);
    let error = machine.connect(1000, soon(30_000), &|| begun.elapsed() > after);
    assert!(matches!(error, Err(VmmError::Cancelled)));
}

#[test]
fn row_49_cancelling_ends_the_waiting_for_the_vsock_device() {
    let dir = tempdir().unwrap();
    let mut qemu = qemu("qemu-hangs", "device-silent");
    qemu.device_timeout = LONG;
    let prepared = qemu.prepare(&config(dir.path()), NEVER).unwrap();
    let marks = prepared.processes();
    let begun = Instant::now();
    let after = Duration::from_millis(100);
    let error = prepared.boot(&[], &|| begun.elapsed() > after);
    assert!(matches!(error, Err(VmmError::Cancelled)));
    assert_gone(&marks);
}

#[test]
fn row_53_no_kernel_that_qemu_can_start() {
    let dir = tempdir().unwrap();
    let vmlinux = dir.path().join("vmlinux");
    std::fs::write(&vmlinux, "not a kernel at all").unwrap();
    let mut config = config(dir.path());
    config.kernel.vmlinux = vmlinux.clone();
    config.kernel.bzimage = None;
    let error = qemu("qemu-hangs", "device-serves")
        .prepare(&config, NEVER)
        .err()
        .unwrap();
    assert!(
        matches!(&error, VmmError::Kernel { path, .. } if *path == vmlinux),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("fcpipe kernel import"));
}

#[test]
fn row_54_a_machine_that_cannot_be() {
    let dir = tempdir().unwrap();
    let refused = |change: fn(&mut fcpipe_vmm::MachineConfig)| {
        let mut config = config(dir.path());
        change(&mut config);
        let error = qemu("qemu-hangs", "device-serves")
            .prepare(&config, NEVER)
            .err()
            .unwrap();
        assert!(matches!(error, VmmError::Config { .. }), "{error:?}");
    };
    refused(|config| config.vcpus = 0);
    refused(|config| config.vcpus = 33);
    refused(|config| config.memory_mib = 0);
    refused(|config| config.vsock_cid = 2);
    refused(|config| config.cmdline_extra = "a\nb".into());
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir: PathBuf = "/no/such/launch".into();
    let error = start(&dir, &qemu("qemu-hangs", "device-serves"))
        .err()
        .unwrap();
    assert!(
        matches!(&error, VmmError::Io { path, .. } if *path == dir),
        "{error:?}"
    );
}

/// The types that threads of a supervisor share.
#[test]
fn machines_can_be_shared() {
    fn shared<T: Send + Sync + ?Sized>() {}
    fn sent<T: Send + ?Sized>() {}
    shared::<dyn fcpipe_vmm::Machine>();
    shared::<dyn Vmm>();
    sent::<dyn Prepared>();
}
