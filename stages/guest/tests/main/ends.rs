//! Ends: of the container, of a connection.

use std::process::Command;

use fcpipe_proto::{ProcessId, ProtoError};

use crate::agent::{AWAKE, Guest, config, sh, soon};

#[test]
fn what_was_written_is_on_the_disk_after_the_end_as_root() {
    let Some(mut guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let init = guest
        .start(&sh("echo kept > /kept; echo up; exec sleep 1000"), None)
        .unwrap();
    init.out.wait_for("up");
    // With the process still running: the end ends it.
    assert!(guest.shutdown());
    let image = guest.image();
    let checked = Command::new("e2fsck")
        .arg("-fn")
        .arg(&image)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let read = Command::new("debugfs")
        .args(["-R", "cat /kept"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(read.stdout, b"kept\n");
}

#[test]
fn one_host_at_a_time_and_the_next_one_finds_what_runs_as_root() {
    let Some(mut guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let init = guest
        .start(&sh("trap '' PIPE; echo up; exec sleep 1000"), None)
        .unwrap();
    init.out.wait_for("up");
    assert_eq!(guest.connect().err(), Some(ProtoError::Busy));
    drop(guest.session.take());
    let session = guest.reconnect();
    assert!(session.guest().configured);
    assert_eq!(session.guest().running, [ProcessId::INIT]);
    assert!(session.configure(&config(), soon()).is_err());
    guest.session = Some(session);
    let beside = guest.sh(&format!("{AWAKE}; cat /proc/1/cmdline"));
    assert_eq!(beside.out, "sleep\x001000\0");
    // The exit of a process that an earlier host started is no offence.
    assert!(guest.shutdown());
}
