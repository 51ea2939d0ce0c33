//! Guarantee 6 and rows 50, 51: whose children live how long, and with what.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fcpipe_vmm::{Nic, ProcessMark, Vmm, VmmError};
use tempfile::tempdir;

use crate::bench::{
    Held, LONG, NEVER, assert_gone, config, connect_fails_at_once, eventually, go, is_root, qemu,
    start,
};

const HELPER_DIR: &str = "FCPIPE_VMM_TEST_DIR";

#[test]
fn killing_ends_and_waits_for_every_process() {
    let dir = tempdir().unwrap();
    let mut machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let marks = machine.processes();
    assert_eq!(marks.len(), 2);
    machine.kill();
    assert!(marks.iter().all(|mark| !mark.is_alive()));
    assert!(machine.processes().is_empty());
    machine.kill();
    let exit = machine.wait_exit(Duration::ZERO).unwrap();
    assert_eq!(exit.signal, Some(9));
    assert_eq!(exit.cause, None);
}

#[test]
fn a_prepared_machine_that_is_dropped_leaves_nothing() {
    let dir = tempdir().unwrap();
    let prepared = qemu("qemu-hangs", "device-serves")
        .prepare(&config(dir.path()), NEVER)
        .unwrap();
    let marks = prepared.processes();
    drop(prepared);
    assert_gone(&marks);
}

#[test]
fn row_50_when_the_vmm_is_killed_connecting_fails() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    assert!(machine.processes()[0].kill(LONG).unwrap());
    let error = connect_fails_at_once(&*machine);
    assert!(
        matches!(&error, VmmError::Exited { program: "qemu", status, .. } if status == "signal 9"),
        "{error:?}"
    );
}

#[test]
fn row_50_when_the_vsock_device_ends_the_vmm_goes_too() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-dies-later")).unwrap();
    let marks = machine.processes();
    go(dir.path());
    let exit = machine.wait_exit(LONG).unwrap();
    assert_eq!(exit.cause.as_deref(), Some("vhost-device-vsock ended"));
    assert!(!exit.is_clean());
    assert_gone(&marks);
    let error = connect_fails_at_once(&*machine);
    assert!(
        matches!(&error, VmmError::Exited { program: "vhost-device-vsock", status, .. } if status == "status 7"),
        "{error:?}"
    );
}

/// Not a test: what the next one kills. Does nothing unless it is told a directory.
#[test]
fn helper_that_holds_a_machine() {
    let Some(dir) = std::env::var_os(HELPER_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    // From a thread that ends, as a launch's scheduler has them: the children must outlive it.
    let machine = std::thread::scope(|scope| {
        let started = scope.spawn(|| start(dir, &qemu("qemu-hangs", "device-serves")).unwrap());
        started.join().unwrap()
    });
    std::thread::sleep(Duration::from_millis(200));
    let marks = machine.processes();
    for mark in &marks {
        println!("\nmark {} {}", mark.pid, mark.start_time);
    }
    println!("\nready {}", marks.len());
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn row_50_sigkill_of_the_parent_leaves_no_child() {
    let dir = tempdir().unwrap();
    let helper = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "processes::helper_that_holds_a_machine",
            "--nocapture",
        ])
        .env(HELPER_DIR, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut helper = Held(helper);
    let mut marks = Vec::new();
    let mut lines = BufReader::new(helper.0.stdout.take().unwrap()).lines();
    let count = loop {
        let line = lines.next().expect("the helper said nothing").unwrap();
        if let Some(rest) = line.strip_prefix("mark ") {
            let (pid, start_time) = rest.split_once(' ').unwrap();
            marks.push(ProcessMark {
                pid: pid.parse().unwrap(),
                start_time: start_time.parse().unwrap(),
            });
        } else if let Some(count) = line.strip_prefix("ready ") {
            break count.parse::<usize>().unwrap();
        }
    };
    assert_eq!(count, 2);
    assert!(marks.iter().all(ProcessMark::is_alive));
    drop(helper);
    assert_gone(&marks);
}

#[test]
fn a_child_has_its_own_session_and_only_what_it_was_given() {
    let dir = tempdir().unwrap();
    let leaked = fs::File::open("/proc/version").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let lease: Arc<OwnedFd> = Arc::new(fs::File::open("/proc/uptime").unwrap().into());
    let mut config = config(dir.path());
    config.inherit.push(lease);
    let machine = qemu("qemu-looks", "device-serves")
        .start(&config, &[], NEVER)
        .unwrap();
    let seen = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    eventually("the fake has looked", || {
        dir.path().join("seen.files.done").exists()
    });

    let files = seen("seen.files.done");
    assert!(files.contains("/uptime"), "{files}");
    assert!(!files.contains("/version"), "{files}");

    assert_eq!(seen("seen.stdin").trim(), "/dev/null");
    let environment = seen("seen.env");
    assert!(environment.contains("FCPIPE_MACHINE_DIR="));
    // Cargo sets it for tests.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!environment.contains("CARGO_MANIFEST_DIR"));

    for mark in machine.processes() {
        let stat = fs::read_to_string(format!("/proc/{}/stat", mark.pid)).unwrap();
        // After the name: state, parent, group, session.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        assert_eq!(fields[2], mark.pid.to_string(), "group");
        assert_eq!(fields[3], mark.pid.to_string(), "session");
    }
}

#[test]
fn needs_root_every_process_runs_in_the_machine_s_network_namespace() {
    if !is_root() {
        return;
    }
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    let mut holder = Command::new("unshare");
    let holder = Held(holder.args(["--net", "sleep", "600"]).spawn().unwrap());
    let path = format!("/proc/{}/ns/net", holder.0.id());
    let namespace = || fs::read_link(&path).unwrap();
    eventually("there is a namespace", || namespace() != here);

    let dir = tempdir().unwrap();
    let mut config = config(dir.path());
    config.netns = Some(Arc::new(fs::File::open(&path).unwrap().into()));
    let machine = qemu("qemu-hangs", "device-serves")
        .start(&config, &[], NEVER)
        .unwrap();
    let marks = machine.processes();
    assert_eq!(marks.len(), 2);
    for mark in marks {
        let its = fs::read_link(format!("/proc/{}/ns/net", mark.pid)).unwrap();
        assert_eq!(its, namespace());
    }
    assert_eq!(fs::read_link("/proc/self/ns/net").unwrap(), here);
}

#[test]
fn a_name_that_is_no_tap_s_is_refused() {
    let dir = tempdir().unwrap();
    for tap in ["", "a,b", "sixteen-letters-", "a b", "a/b"] {
        let mut config = config(dir.path());
        config.nics.push(Nic {
            tap: tap.to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        });
        let refused = qemu("qemu-hangs", "device-serves").start(&config, &[], NEVER);
        assert!(matches!(refused, Err(VmmError::Config { .. })), "{tap:?}");
    }
}

#[test]
fn row_51_many_machines_at_once() {
    let root = tempdir().unwrap();
    std::thread::scope(|scope| {
        for number in 0..50 {
            let dir = root.path().join(number.to_string());
            fs::create_dir(&dir).unwrap();
            scope.spawn(move || {
                let machine = start(&dir, &qemu("qemu-hangs", "device-serves")).unwrap();
                let marks = machine.processes();
                assert_eq!(marks.len(), 2);
                assert!(marks.iter().all(ProcessMark::is_alive));
                // Its sockets have names in its own directory, where it is.
                let told = fs::read_to_string(dir.join("seen.device.args")).unwrap();
                assert!(told.contains("sock") && !told.contains('/'), "{told}");
                drop(machine);
                assert_gone(&marks);
            });
        }
    });
}
