//! Launches by Firecracker, where the fake one takes its place: it keeps the API's rules, and breaks them where it is told
//! to. No machine runs, so no KVM and no QEMU is needed; but a kernel and root file systems are the real ones. A fake jailer jails it.

mod real;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use fcpipe_treegen::count;
use serde_json::Value;

use crate::network::{self, Platform, assert_same, skip_without_namespaces};
use crate::world::{
    Leftovers, World, assert_code, not_root, skip, skip_without_kernel, with_input,
};

/// A world whose Firecracker does what `control` says.
pub(crate) fn fake(control: &str) -> World {
    let world = World::new();
    fcpipe_fake_firecracker::install(world.dir.path(), control).unwrap();
    world
}

pub(crate) fn run(world: &World, args: &[&str]) -> Command {
    let mut command = fcpipe(world);
    command.args(["run", "--vmm", "firecracker"]);
    command.arg(world.bundle(args, &[]));
    command
}

/// The program, in a world whose Firecracker is the fake one.
pub(crate) fn fcpipe(world: &World) -> Command {
    let mut command = world.with_kernel();
    command
        .env("FCPIPE_FIRECRACKER", world.path("firecracker"))
        .env_remove("FCPIPE_JAILER")
        // The fake needs none, and this host may have none.
        .env("FCPIPE_KVM", "on");
    command
}

/// Whether in a jail, and what makes it so; as far as can be here.
fn jails() -> Vec<(bool, Option<PathBuf>)> {
    let mut jails = vec![(false, None)];
    if !skip(not_root()) {
        jails.push((true, Some(fcpipe_fake_firecracker::jailer())));
    }
    jails
}

fn output(world: &World, args: &[&str]) -> Output {
    run(world, args).output().unwrap()
}

/// Of one spec, in one state directory: each has its own process, its own input and its own output.
#[test]
fn row_51_many_launches_at_once_share_nothing_by_mistake() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let many = count("FCPIPE_SOAK_LAUNCHES", 20);
    let bundle = world.bundle(&["cat"], &[]);
    // The kernel is imported with the first.
    drop(fcpipe(&world));
    let begun = Instant::now();
    let mut launches: Vec<_> = (0..many)
        .map(|_| {
            let mut command = fcpipe(&world);
            command.args(["--progress", "quiet", "run", "-i", "--vmm", "firecracker"]);
            command.arg(&bundle).stdin(Stdio::piped());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    // All of them run: none has the end of its input.
    for (number, launch) in launches.iter_mut().enumerate() {
        let stdin = launch.stdin.as_mut().unwrap();
        // One that has failed has closed it, and says below why.
        let _ = writeln!(stdin, "{number}");
        let mut line = String::new();
        let mut stdout = BufReader::new(launch.stdout.as_mut().unwrap());
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut said = String::new();
            let stderr = launch.stderr.as_mut().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            panic!("{number}: {said}");
        }
        assert_eq!(line, format!("{number}\n"));
    }
    let ps = fcpipe(&world).args(["--format", "json", "ps"]).output();
    let running = String::from_utf8(ps.unwrap().stdout).unwrap();
    assert_eq!(running.lines().count() as u64, many, "{running}");
    let all = begun.elapsed();
    launches
        .iter_mut()
        .for_each(|launch| drop(launch.stdin.take()));
    for launch in launches {
        assert_code(&launch.wait_with_output().unwrap(), 0);
    }
    println!(
        "{many} launches ran after {all:?}, all was over after {:?}",
        begun.elapsed()
    );
    Leftovers::of(&world).assert_none();
}

#[test]
fn a_launch_runs_from_its_beginning_to_its_end() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    for (jailed, jailer) in jails() {
        let mut run = run(&world, &["echo", "jailed", &jailed.to_string()]);
        run.envs(jailer.iter().map(|jailer| ("FCPIPE_JAILER", jailer)));
        let output = run.output().unwrap();
        assert_code(&output, 0);
        assert_eq!(output.stdout, format!("jailed {jailed}\n").as_bytes());
        Leftovers::of(&world).assert_none();
    }
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

/// Each request of a launch, refused or with the process dead of it; and each other way of going wrong once (each at each is
/// tested in `stages/vmm`, where it takes seconds). In a jail and not.
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
    for (jailed, jailer) in jails() {
        for (control, said) in &cases {
            // Deadlines are the same there.
            if jailed && ["no answer", "half an answer", "was not ready"].contains(said) {
                continue;
            }
            fcpipe_fake_firecracker::install(world.dir.path(), control).unwrap();
            let mut run = run(&world, &["true"]);
            run.envs(jailer.iter().map(|jailer| ("FCPIPE_JAILER", jailer)));
            let output = run.output().unwrap();
            let stderr = String::from_utf8(output.stderr.clone()).unwrap();
            let case = format!("{control}, jailed {jailed}: {stderr}");
            assert_code(&output, 125);
            assert!(stderr.contains(said), "{case}");
            assert_eq!(stderr.matches("error:").count(), 1, "{case}");
            assert_eq!(Leftovers::of(&world), Leftovers::default(), "{case}");
        }
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

/// Nobody but the jailed machine may attach to it, whoever else is in that namespace.
#[test]
fn needs_root_a_jailed_machine_s_tap_is_its_user_s() {
    if skip_without_kernel() || skip_without_namespaces() {
        return;
    }
    let world = fake("");
    let platform = Platform::new();
    let before = platform.container_state(0);
    let bundle = network::bundle(&world, &platform.path(0), &["sleep", "1000"], &[]);
    let jailed = |command: &mut Command| {
        let command = command.env("FCPIPE_JAILER", fcpipe_fake_firecracker::jailer());
        assert_code(&command.output().unwrap(), 0);
    };
    jailed(
        fcpipe(&world)
            .args(["run", "--detach", "--id", "a-1"])
            .args(["--vmm", "firecracker"])
            .arg(bundle),
    );
    let processes = world.process_ids("fake-firecracker");
    assert_eq!(processes.len(), 1, "{processes:?}");
    let user = fs::metadata(format!("/proc/{}", processes[0]))
        .unwrap()
        .uid();
    assert!(user >= 0x7000_0000, "{user}");
    let taps = platform.must(&platform.containers[0], "ip tuntap show");
    assert!(taps.starts_with("b9fc_a-1: "), "{taps}");
    assert!(
        taps.trim_end().ends_with(&format!(" user {user}")),
        "{taps}"
    );
    jailed(fcpipe(&world).args(["delete", "--force", "a-1"]));
    assert_same(&platform.container_state(0), &before, "");
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
