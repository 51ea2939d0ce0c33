//! Launches by Firecracker, where the fake one takes its place: it keeps the API's rules, and breaks them where it is told
//! to. No machine runs, so no KVM and no QEMU is needed; but a kernel and root file systems are the real ones.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::world::{
    Leftovers, World, assert_code, skip_even_in_ci, skip_without_kernel, skip_without_machine,
    with_firecracker, with_input,
};

/// A world whose Firecracker does what `control` says.
fn fake(control: &str) -> World {
    let world = World::new();
    fcpipe_fake_firecracker::install(world.dir.path(), control).unwrap();
    world
}

fn run(world: &World, args: &[&str]) -> Command {
    let bundle = world.bundle(args, &[]);
    let mut command = world.with_kernel();
    command
        .env("FCPIPE_FIRECRACKER", world.path("firecracker"))
        // The fake needs none, and this host may have none.
        .env("FCPIPE_KVM", "on")
        .args(["run", "--vmm", "firecracker"])
        .arg(bundle);
    command
}

fn output(world: &World, args: &[&str]) -> Output {
    run(world, args).output().unwrap()
}

#[test]
fn a_launch_runs_from_its_beginning_to_its_end() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let hello = output(&world, &["echo", "hello", "from the fake"]);
    assert_code(&hello, 0);
    assert_eq!(hello.stdout, b"hello from the fake\n");
    assert_code(&output(&world, &["exit", "7"]), 7);
    assert_code(&output(&world, &["no-such-program"]), 127);
    let cat = with_input(run(&world, &["cat"]).arg("-i"), b"back and forth\n");
    assert_code(&cat, 0);
    assert_eq!(cat.stdout, b"back and forth\n");
    Leftovers::of(&world).assert_none();
}

/// Each request of a launch, refused or with the process dead of it; and each other way of going wrong once.
#[test]
fn row_44_every_failure_is_one_error_with_the_log_and_leaves_nothing() {
    if skip_without_kernel() {
        return;
    }
    let requests = [
        "GET /version",
        "PUT /metrics",
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /serial",
        "PUT /drives/drive0",
        "PUT /actions",
    ];
    let mut cases: Vec<(String, &str)> = Vec::new();
    for request in requests {
        cases.push((format!("{request} refuse"), "told to refuse"));
        cases.push((format!("{request} die"), "told to end"));
    }
    for (fault, said) in [
        ("fail", "(500)"),
        ("hang", "no answer"),
        ("half", "half an answer"),
        ("cut", "hung up, after half an answer"),
        ("garbage", "not HTTP"),
        ("flood", "headers"),
        ("die-after", "told to end"),
    ] {
        cases.push((format!("PUT /vsock {fault}"), said));
    }
    for (control, said) in [
        ("start exit", "told to exit"),
        ("start silent", "was not ready"),
        ("version 1.7.0", "1.8.0"),
        ("guest panic", "panicked: Kernel panic"),
        ("guest dies", "ended (status 0)"),
        ("guest babble", "the guest"),
    ] {
        cases.push((control.to_owned(), said));
    }
    let world = fake("");
    for (control, said) in cases {
        fcpipe_fake_firecracker::install(world.dir.path(), &control).unwrap();
        let output = output(&world, &["true"]);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        assert_code(&output, 125);
        assert!(stderr.contains(said), "{control}: {stderr}");
        assert_eq!(stderr.matches("error:").count(), 1, "{control}: {stderr}");
        let left = Leftovers::of(&world);
        assert_eq!(left, Leftovers::default(), "{control}");
    }
}

#[test]
fn row_45_an_agent_that_never_calls_is_an_error_with_the_console() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("guest mute");
    let output = run(&world, &["true"])
        .args(["--boot-timeout", "1"])
        .output()
        .unwrap();
    assert_code(&output, 125);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("did not answer"), "{stderr}");
    assert!(stderr.contains("booting without an agent"), "{stderr}");
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_47_an_agent_that_lies_is_hung_up_on_and_its_launch_fails() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    for (lie, said) in [
        ("length", "4294967295 bytes"),
        ("stream", "process 77"),
        ("exit", "process 77"),
        ("credit", "broke the protocol"),
        ("json", "a control message that is none"),
        ("twice", "a start of process 1"),
        ("silent", "neither comes nor ends"),
    ] {
        let control = format!("guest lie-{lie}");
        fcpipe_fake_firecracker::install(world.dir.path(), &control).unwrap();
        // Slowly read, so that credit is scarce.
        let mut child = run(&world, &["true"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(125), "{lie}: {stderr}");
        assert!(stderr.contains(said), "{lie}: {stderr}");
        let left = Leftovers::of(&world);
        assert_eq!(left, Leftovers::default(), "{lie}");
    }
}

#[test]
fn row_43_doctor_and_plan_say_which_machine_and_why() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let said = |kvm: &str| {
        let output = world
            .with_kernel()
            .env("FCPIPE_FIRECRACKER", world.path("firecracker"))
            .env("FCPIPE_KVM", kvm)
            .args(["doctor", "--format", "json"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let findings = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let auto = findings
            .filter(|finding: &Value| finding["what"] == "--vmm auto")
            .map(|finding| finding["detail"].as_str().unwrap().to_owned());
        auto.collect::<Vec<String>>().join("\n")
    };
    assert!(said("on").starts_with("firecracker"), "{}", said("on"));
    assert!(said("off").contains("FCPIPE_KVM=off"), "{}", said("off"));
    let bundle = world.bundle(&["true"], &[]);
    let plan = world
        .with_kernel()
        .env("FCPIPE_FIRECRACKER", world.path("firecracker"))
        .env("FCPIPE_KVM", "on")
        .arg("plan")
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&plan, 0);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("machine: firecracker: "), "{plan}");
    let output = world
        .with_kernel()
        .env("FCPIPE_FIRECRACKER", world.path("firecracker"))
        .env("FCPIPE_KVM", "off")
        .args(["run", "--vmm", "firecracker"])
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&output, 125);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("firecracker needs KVM"), "{stderr}");
}

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
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
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
    // The process was killed, and that was told, before the machine reset: at a reset alone the guest would just be gone.
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

#[test]
fn a_worker_s_configuration_names_the_monitor_and_the_state_directory() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let config = world.path("worker.yaml");
    let root = world.path("microvm");
    let text = format!(
        "pool: x\nruntime:\n  type: firecracker\n  firecracker_bin: {}\n  microvm_root: {}\n  initrd: /boot/initrd\n  default_cpus: 1\n  default_mem_mib: 256\n",
        world.path("firecracker").display(),
        root.display()
    );
    fs::write(&config, text).unwrap();
    let bundle = world.bundle(&["echo", "configured"], &[]);
    let run = |file: &std::path::Path| {
        let mut command = world.with_kernel();
        command
            .env_remove("FCPIPE_STATE_DIR")
            .env_remove("FCPIPE_FIRECRACKER")
            .env("FCPIPE_KVM", "on")
            .arg("--config")
            .arg(file)
            .args(["run", "--vmm", "firecracker"])
            .arg(&bundle);
        command.output().unwrap()
    };
    let output = run(&config);
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"configured\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("runtime.initrd"), "{said}");
    assert!(root.join(".lock").exists());
    // fcpipe's own form refuses what it does not know.
    fs::write(&config, "stat_dir: /s\n").unwrap();
    let output = run(&config);
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("stat_dir"), "{said}");
}
