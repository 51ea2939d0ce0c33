//! The life of a launch that its caller does not wait for: create, start, exec, kill, logs, wait, delete, and what each is
//! refused for.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{
    Leftovers, World, assert_code, machine_program, not_root, skip, skip_without_machine,
    with_firecracker, with_input,
};

fn fcpipe(world: &World, arguments: &[&str]) -> Output {
    world.with_kernel().args(arguments).output().unwrap()
}

#[track_caller]
fn done(world: &World, arguments: &[&str]) -> String {
    let output = fcpipe(world, arguments);
    assert_code(&output, 0);
    String::from_utf8(output.stdout).unwrap()
}

/// The command is refused, with these words.
#[track_caller]
fn refused(world: &World, arguments: &[&str], words: &str) {
    let output = fcpipe(world, arguments);
    assert_code(&output, 1);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(words), "{said}");
}

fn state(world: &World, id: &str) -> Value {
    serde_json::from_str(&done(world, &["state", id])).unwrap()
}

/// Boots a launch that goes on without its caller.
fn detached(world: &World, id: &str, script: &str) {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    let output = world
        .with_kernel()
        .args(["--progress", "quiet", "run", "--detach", "--id", id])
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{id}\n"));
}

fn create(world: &World, id: &str) -> Command {
    let mut command = world.with_kernel();
    command.args(["--progress", "quiet", "create", id, "--bundle"]);
    command.arg(world.path("bundle"));
    command
}

#[test]
fn row_55_qemu_create_start_kill_and_delete_follow_oci_s_rules() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    for command in [
        &["start", "c1"][..],
        &["state", "c1"],
        &["kill", "c1"],
        &["exec", "c1", "true"],
        &["delete", "c1"],
        &["wait", "c1"],
        &["logs", "c1"],
        &["events", "c1"],
    ] {
        let output = fcpipe(&world, command);
        let code = if command[0] == "exec" { 125 } else { 1 };
        assert_code(&output, code);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("does not exist"), "{said}");
    }
    done(&world, &["delete", "--force", "c1"]);

    world.bundle(
        &[
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done",
        ],
        &[],
    );
    let pid_file = world.path("pid");
    let output = create(&world, "c1")
        .arg("--log")
        .arg("--pid-file")
        .arg(&pid_file)
        .output();
    assert_code(&output.unwrap(), 0);
    let created = state(&world, "c1");
    assert_eq!(created["status"], "created");
    assert_eq!(created["ociVersion"], "1.2.0");
    assert_eq!(created["bundle"], json!(world.path("bundle")));
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(created["pid"].to_string(), pid);
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert!(machine_program().starts_with(program.trim()), "{program}");
    if rustix::process::geteuid().is_root() {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups.contains("/fcpipe/c1."), "{groups}");
    }
    assert_code(&create(&world, "c1").output().unwrap(), 1);
    let output = fcpipe(&world, &["exec", "c1", "true"]);
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot exec in a created container"),
        "{said}"
    );
    refused(&world, &["delete", "c1"], "not stopped");

    done(&world, &["start", "c1"]);
    assert_eq!(state(&world, "c1")["status"], "running");
    refused(
        &world,
        &["start", "c1"],
        "cannot start a container in the running state",
    );
    refused(&world, &["delete", "c1"], "not stopped");
    refused(&world, &["kill", "c1", "NOT"], "unknown signal");
    // PID 1 ignores what it has no handler for.
    until(|| done(&world, &["logs", "c1"]) == "ready\n");
    done(&world, &["kill", "c1", "TERM"]);
    assert_eq!(done(&world, &["wait", "c1"]), "3\n");
    let stopped = state(&world, "c1");
    assert_eq!(
        (&stopped["status"], &stopped["exitCode"]),
        (&json!("stopped"), &json!(3))
    );
    assert_eq!(stopped.get("pid"), None);
    refused(&world, &["kill", "c1"], "container not running");
    refused(
        &world,
        &["start", "c1"],
        "cannot start a container in the stopped state",
    );
    let output = fcpipe(&world, &["exec", "c1", "true"]);
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot exec in a stopped container"),
        "{said}"
    );
    assert_eq!(done(&world, &["wait", "c1"]), "3\n");
    done(&world, &["delete", "c1"]);
    refused(&world, &["state", "c1"], "does not exist");
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_55_qemu_a_created_launch_can_be_killed_and_one_that_runs_be_deleted_by_force() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    world.bundle(&["sleep", "1000"], &[]);
    assert_code(&create(&world, "c1").arg("--log").output().unwrap(), 0);
    // A process that does nothing about it is not ended by it.
    done(&world, &["kill", "c1", "WINCH"]);
    assert_eq!(state(&world, "c1")["status"], "created");
    done(&world, &["kill", "c1", "KILL"]);
    assert_eq!(done(&world, &["wait", "c1"]), "137\n");
    done(&world, &["delete", "c1"]);

    assert_code(&create(&world, "c2").arg("--log").output().unwrap(), 0);
    done(&world, &["start", "c2"]);
    let output = fcpipe(&world, &["kill", "c2"]);
    assert_code(&output, 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`fcpipe kill c2 KILL` ends it"), "{said}");
    assert_eq!(state(&world, "c2")["status"], "running");
    done(&world, &["delete", "--force", "c2"]);
    assert_eq!(done(&world, &["--format", "json", "ps"]), "");
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_the_streams_of_create_are_the_process_s() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    world.bundle(&["sh", "-c", "cat; echo err >&2"], &[]);
    let (out, err) = (world.path("out"), world.path("err"));
    fs::write(world.path("in"), "typed\n").unwrap();
    let status = create(&world, "c1")
        .stdin(fs::File::open(world.path("in")).unwrap())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(&out).unwrap(), "");
    done(&world, &["start", "c1"]);
    assert_eq!(done(&world, &["wait", "c1"]), "0\n");
    assert_eq!(fs::read_to_string(&out).unwrap(), "typed\n");
    assert_eq!(fs::read_to_string(&err).unwrap(), "err\n");
    refused(&world, &["logs", "c1"], "has no log");
    done(&world, &["delete", "c1"]);
}

#[test]
fn qemu_a_detached_launch_keeps_a_log_and_events_and_ps_lists_it() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    detached(
        &world,
        "d1",
        "echo out; echo err >&2; printf half; while ! test -e /tmp/go; do sleep 0.1; done; echo; exit 4",
    );
    let listed: Value = serde_json::from_str(&done(&world, &["--format", "json", "ps"])).unwrap();
    assert_eq!(
        (&listed["id"], &listed["status"]),
        (&json!("d1"), &json!("running"))
    );
    let mut follower = world
        .with_kernel()
        .args(["logs", "-f", "d1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(follower.try_wait().unwrap().is_none());
    let metrics = done(&world, &["metrics"]);
    for name in [
        "boot_seconds",
        "guest_boot_seconds",
        "container_pids",
        "guest_disk_read_bytes_total",
    ] {
        let there = |line: &str| line.starts_with(&format!("fcpipe_{name}{{id=\"d1\""));
        assert!(metrics.lines().any(there), "{name}: {metrics}");
    }
    let figures: Value = serde_json::from_str(&done(&world, &["events", "--stats", "d1"])).unwrap();
    assert!(
        figures["data"]["guest"]["uptime_us"].as_u64().unwrap() > 0,
        "{figures}"
    );
    assert_code(&fcpipe(&world, &["exec", "d1", "touch", "/tmp/go"]), 0);
    assert_eq!(done(&world, &["wait", "d1"]), "4\n");
    let output = follower.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!((out.as_str(), err.as_str()), ("out\nhalf\n", "err\n"));
    assert_eq!(text(fcpipe(&world, &["logs", "d1"]).stdout), out);
    let stamped = done(&world, &["logs", "-t", "d1"]);
    assert!(
        stamped.lines().next().unwrap().ends_with("Z out"),
        "{stamped}"
    );
    let events = done(&world, &["events", "d1"]);
    let events: Vec<Value> = events
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["created", "started", "exit"]);
    assert_eq!(events[2]["code"], 4);
    done(&world, &["delete", "d1"]);
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_exec_has_its_own_streams_status_user_and_directory() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    detached(&world, "d1", "sleep 1000");
    let exec = |arguments: &[&str]| {
        let mut command = world.with_kernel();
        command.args(["exec", "d1"]).args(arguments);
        command
    };
    let output = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 6"])
        .output()
        .unwrap();
    assert_code(&output, 6);
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let output = with_input(&mut exec(&["-i", "--", "cat"]), b"typed\n");
    assert_eq!(output.stdout, b"typed\n");
    let script = "echo $A $(id -u):$(id -g); pwd";
    let output = exec(&[
        "-e", "A=b c", "--user", "7:8", "--cwd", "/etc", "--", "sh", "-c", script,
    ])
    .output()
    .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "b c 7:8\n/etc\n");
    assert_code(&exec(&["--", "no-such-program"]).output().unwrap(), 127);
    assert_code(&exec(&["--", "/etc/passwd"]).output().unwrap(), 126);
    assert_code(
        &exec(&["--", "sh", "-c", "kill -9 $$"]).output().unwrap(),
        137,
    );
    let file = world.path("process.json");
    fs::write(
        &file,
        r#"{"args": ["sh", "-c", "echo $Z; exit 2"], "env": ["PATH=/bin", "Z=z"], "cwd": "/"}"#,
    )
    .unwrap();
    let output = exec(&["--process"]).arg(&file).output().unwrap();
    assert_code(&output, 2);
    assert_eq!(output.stdout, b"z\n");
    // A client that is killed takes its process with it.
    let mut client = exec(&["--", "sleep", "777"]).spawn().unwrap();
    let sleeping = || {
        let output = exec(&["--", "ps"]).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("sleep 777")
    };
    until(sleeping);
    client.kill().unwrap();
    client.wait().unwrap();
    until(|| !sleeping());
    done(&world, &["delete", "--force", "d1"]);
    Leftovers::of(&world).assert_none();
}

#[track_caller]
pub(crate) fn until(mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The limits of the machine's control group, whichever version has the controllers here.
pub(crate) fn limits(group: &str) -> (String, String) {
    let read = |files: &[&str]| -> String {
        let found = files.iter().find_map(|file| {
            let path = format!("/sys/fs/cgroup/{}", file.replace("GROUP", group));
            fs::read_to_string(path).ok()
        });
        found.unwrap_or_else(|| panic!("none of {files:?}"))
    };
    let memory = read(&["memory/GROUP/memory.limit_in_bytes", "GROUP/memory.max"]);
    let cpu = match fs::read_to_string(format!("/sys/fs/cgroup/{group}/cpu.max")) {
        Ok(max) => max,
        Err(_) => {
            let of = |name: &str| read(&[&format!("cpu/GROUP/{name}")]).trim().to_owned();
            format!("{} {}", of("cpu.cfs_quota_us"), of("cpu.cfs_period_us"))
        }
    };
    (memory.trim().to_owned(), cpu.trim().to_owned())
}

#[test]
fn qemu_root_the_machine_is_in_the_spec_s_control_group_with_the_spec_s_limits() {
    if skip_without_machine() || skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sleep", "1000"], &[]);
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let top = format!("fcpipe-test-{}", std::process::id());
    spec["linux"] = json!({
        "cgroupsPath": format!("/{top}/deep/er"),
        "resources": {"cpu": {"quota": 50_000, "period": 100_000}, "memory": {"limit": 256 << 20}},
    });
    fs::write(&config, spec.to_string()).unwrap();
    assert_code(&create(&world, "c1").arg("--log").output().unwrap(), 0);
    let pid = state(&world, "c1")["pid"].to_string();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&format!("/{top}/deep/er")), "{groups}");
    let (memory, cpu) = limits(&format!("{top}/deep/er"));
    let monitor = if with_firecracker() { 64 } else { 640 };
    assert_eq!(memory, ((256_u64 + monitor) << 20).to_string());
    assert_eq!(cpu, "50000 100000");
    // A group that somebody is in is not shared.
    let output = create(&world, "c2").arg("--log").output().unwrap();
    assert_code(&output, 1);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("has processes already"), "{said}");
    // And whoever is in it stays.
    assert_eq!(state(&world, "c1")["status"], "created");
    done(&world, &["delete", "--force", "c1"]);
    for mount in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(!mount.path().join(&top).exists(), "{mount:?}");
    }
    Leftovers::of(&world).assert_none();
}
