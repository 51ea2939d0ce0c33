//! Launches by Firecracker, where the fake one takes its place: it keeps the API's rules, and breaks them where it is told
//! to. No machine runs, so no KVM and no QEMU is needed; but a kernel and root file systems are the real ones.

use std::process::{Command, Output};

use serde_json::Value;

use crate::world::{Leftovers, World, assert_code, skip_without_kernel, with_input};

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
