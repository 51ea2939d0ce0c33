//! What only a real Firecracker and its jailer have, where the tests' machines are theirs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use crate::network::{self, Platform, assert_same, skip_without_namespaces};
use crate::world::{
    Leftovers, World, assert_code, skip_even_in_ci, skip_without_machine, with_firecracker,
};

/// The key that a VMM has: the agent takes it, ends the container and resets.
#[test]
fn needs_firecracker_ctrl_alt_del_ends_a_machine_in_order() {
    let other = (!with_firecracker()).then(|| "FCPIPE_TEST_VMM is not firecracker".to_owned());
    if skip_even_in_ci(other) || skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh", "-c", "echo up; sleep 1000"], &[]);
    let mut child = world
        .with_kernel()
        // The API is not in a jail then.
        .env_remove("FCPIPE_JAILER")
        .args(["--progress", "quiet", "run", "--id", "cad"])
        .arg(bundle)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    if let Err(error) = child.stdout.as_mut().unwrap().read_exact(&mut up) {
        panic!("{error}: {:?}", child.wait_with_output());
    }
    let dir = fs::File::open(world.path("state/cad")).unwrap();
    let socket = format!("/proc/self/fd/{}/api.sock", dir.as_raw_fd());
    let mut api = UnixStream::connect(socket).unwrap();
    let body = r#"{"action_type":"SendCtrlAltDel"}"#;
    write!(
        api,
        "PUT /actions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    // The process's own end (SIGKILL) was told before the machine reset. Had it not been, there would be no status, and 125.
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 137);
    Leftovers::of(&world).assert_none();
}

/// In its jail a machine is another user, sees what it was given and no more, and leaves nothing; nothing of the store is its.
#[test]
fn row_37_50_needs_jailer_a_jailed_machine_owns_nothing_of_the_host_and_leaves_nothing() {
    let jailer = std::env::var_os("FCPIPE_JAILER").is_some() && with_firecracker();
    let none = (!jailer).then(|| "FCPIPE_JAILER names none".to_owned());
    if skip_without_machine() || skip_even_in_ci(none) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh", "-c", "echo up; sleep 1000"], &[]);
    let mut child = world
        .with_kernel()
        .args(["--progress", "quiet", "run"])
        .arg(bundle)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");

    let jailed = jailed(&world);
    assert_eq!(jailed.len(), 1, "{jailed:?}");
    let process = &jailed[0];
    let user = fs::metadata(process).unwrap().uid();
    assert!(user >= 0x7000_0000, "{user}");
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (what, place, options) = (words[3], words[4], words[5]);
        let own = what.contains("/state/");
        assert!(own || options.starts_with("ro,"), "{line}");
        assert!(place == "/" || place.matches('/').count() == 1, "{line}");
    }
    assert!(mounts.contains(" /vmlinux ro,"), "{mounts}");
    for object in objects(&world) {
        let meta = fs::metadata(&object).unwrap();
        assert_eq!((meta.uid(), meta.nlink()), (0, 1), "{}", object.display());
    }

    child.kill().unwrap();
    child.wait().unwrap();
    let next = world.with_kernel().arg("doctor").output().unwrap();
    assert_code(&next, 0);
    Leftovers::of(&world).assert_none();
    assert_eq!(self::jailed(&world), Vec::<PathBuf>::new());
}

/// The network of a jailed machine works though its TAP is its user's alone.
#[test]
fn needs_jailer_a_jailed_machine_reaches_the_bridge_by_a_tap_of_its_own() {
    let jailer = std::env::var_os("FCPIPE_JAILER").is_some() && with_firecracker();
    let none = (!jailer).then(|| "FCPIPE_JAILER names none".to_owned());
    if skip_without_machine() || skip_without_namespaces() || skip_even_in_ci(none) {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let before = platform.container_state(0);
    let bundle = network::bundle(&world, &platform.path(0), &["sleep", "1000"], &[]);
    let fcpipe = |words: &[&str]| {
        let mut command = world.with_kernel();
        command.args(["--progress", "quiet"]).args(words);
        command
    };
    let started = fcpipe(&["run", "--detach", "--id", "a-1"])
        .arg(bundle)
        .output();
    assert_code(&started.unwrap(), 0);
    let jailed = jailed(&world);
    assert_eq!(jailed.len(), 1, "{jailed:?}");
    let user = fs::metadata(&jailed[0]).unwrap().uid();
    let taps = platform.must(&platform.containers[0], "ip tuntap show");
    assert!(
        taps.trim_end().ends_with(&format!(" user {user}")),
        "{taps}"
    );
    let ping = "busybox ping -c 1 -W 5 192.168.1.1";
    let pinged = fcpipe(&["exec", "a-1", "--", "sh", "-c", ping]).output();
    assert_code(&pinged.unwrap(), 0);
    let ended = fcpipe(&["delete", "--force", "a-1"]).output();
    assert_code(&ended.unwrap(), 0);
    assert_same(&platform.container_state(0), &before, "");
    Leftovers::of(&world).assert_none();
}

/// `/proc/PID` of the processes whose root is in this world.
fn jailed(world: &World) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|entry| entry.path())
        .filter(|process| world.is_jailed(process))
        .collect()
}

/// The files of the store's objects.
fn objects(world: &World) -> Vec<PathBuf> {
    let keys = fs::read_dir(world.path("cache/v1/objects"))
        .unwrap()
        .flatten();
    let files: Vec<PathBuf> = keys
        .flat_map(|key| fs::read_dir(key.path()).unwrap().flatten())
        .map(|file| file.path())
        .collect();
    assert!(!files.is_empty());
    files
}
