//! Hooks of the host: when each runs, what it is told, and what its failure does. The machines are the fake Firecracker's.

use std::fs;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::firecracker::{fake, fcpipe as command};
use crate::world::{Leftovers, World, assert_code, ended, skip_without_kernel};

fn fcpipe(world: &World, arguments: &[&str]) -> Output {
    command(world).args(arguments).output().unwrap()
}

/// A bundle whose hooks each note that they were there, and what was on their standard input. `failing` also fails.
fn bundle(world: &World, args: &[&str], failing: &str) {
    let bundle = world.bundle(args, &[]);
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let dir = world.dir.path().display();
    for point in ["prestart", "createRuntime", "poststart", "poststop"] {
        let end = if point == failing {
            "echo no such bridge >&2; exit 3"
        } else {
            "exit 0"
        };
        let script = format!("cat > {dir}/{point}.json; echo $0 >> {dir}/order; {end}");
        spec["hooks"][point] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script, point]}]);
    }
    spec["annotations"] = json!({"org.example.a": "b"});
    fs::write(config, spec.to_string()).unwrap();
}

fn create(world: &World) -> Output {
    let path = world.path("bundle").display().to_string();
    let (vmm, bundle) = (["--vmm", "firecracker"], ["--bundle", &path]);
    fcpipe(
        world,
        &[&["create", "c1", "--log"][..], &vmm, &bundle].concat(),
    )
}

/// Runs a bundle's process one of whose hooks fails, which is told.
fn run(args: &[&str], failing: &str, code: i32) {
    let world = fake("");
    bundle(&world, args, failing);
    let path = world.path("bundle").display().to_string();
    let output = fcpipe(&world, &["run", "--vmm", "firecracker", &path]);
    assert_code(&output, code);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains(&format!("the {failing} hook /bin/sh")),
        "{said}"
    );
    Leftovers::of(&world).assert_none();
}

fn order(world: &World) -> String {
    fs::read_to_string(world.path("order")).unwrap_or_default()
}

fn told(world: &World, point: &str) -> Value {
    serde_json::from_slice(&fs::read(world.path(&format!("{point}.json"))).unwrap()).unwrap()
}

#[test]
fn hooks_run_at_their_points_with_oci_s_state() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    bundle(&world, &["sleep", "1000"], "none");
    let path = world.path("bundle").display().to_string();
    assert_code(&create(&world), 0);
    assert_eq!(order(&world), "prestart\ncreateRuntime\n");
    let pid = {
        let state = fcpipe(&world, &["state", "c1"]);
        serde_json::from_slice::<Value>(&state.stdout).unwrap()["pid"].clone()
    };
    assert!(pid.is_u64(), "{pid}");
    let state = |status: &str, pid: Option<&Value>| {
        let mut state = json!({
            "ociVersion": "1.2.0", "id": "c1", "status": status, "bundle": path,
            "annotations": {"org.example.a": "b"},
        });
        if let Some(pid) = pid {
            state["pid"] = pid.clone();
        }
        state
    };
    assert_eq!(told(&world, "prestart"), state("creating", Some(&pid)));
    assert_eq!(told(&world, "createRuntime"), state("creating", Some(&pid)));
    assert_code(&fcpipe(&world, &["start", "c1"]), 0);
    // Beside `start`: it may come after its answer.
    crate::life::until(|| order(&world).ends_with("poststart\n"));
    assert_eq!(told(&world, "poststart"), state("running", Some(&pid)));
    assert_code(&fcpipe(&world, &["kill", "c1", "KILL"]), 0);
    assert_code(&fcpipe(&world, &["wait", "c1"]), 0);
    assert!(!order(&world).contains("poststop"));
    assert_code(&fcpipe(&world, &["delete", "c1"]), 0);
    assert_eq!(
        order(&world),
        "prestart\ncreateRuntime\npoststart\npoststop\n"
    );
    assert_eq!(told(&world, "poststop"), state("stopped", None));
    Leftovers::of(&world).assert_none();
}

#[test]
fn a_hook_that_fails_fails_create_or_start_and_nothing_is_left() {
    if skip_without_kernel() {
        return;
    }
    for (point, ran) in [
        ("prestart", "prestart\npoststop\n"),
        ("createRuntime", "prestart\ncreateRuntime\npoststop\n"),
    ] {
        let world = fake("");
        bundle(&world, &["sleep", "1000"], point);
        let output = create(&world);
        assert_code(&output, 1);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(&format!("the {point} hook /bin/sh")) && said.contains("no such bridge"),
            "{said}"
        );
        assert_eq!(order(&world), ran);
        Leftovers::of(&world).assert_none();
    }
    // One after the start ends the launch; one after the end is a warning.
    run(&["sleep", "1000"], "poststart", 125);
    run(&["exit", "4"], "poststop", 4);
}

/// Neither has a time of its own that would end the waiting.
#[test]
fn row_49_a_signal_ends_a_launch_whose_hook_hangs_and_one_whose_agent_says_nothing() {
    if skip_without_kernel() {
        return;
    }
    for control in ["", "guest silent"] {
        let world = fake(control);
        bundle(&world, &["true"], "none");
        let begun = world.path("begun");
        if control.is_empty() {
            let config = world.path("bundle/config.json");
            let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            let script = format!("touch {}; exec sleep 1000", begun.display());
            let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
            spec["hooks"]["createRuntime"] = json!([hook]);
            fs::write(config, spec.to_string()).unwrap();
        }
        let mut command = command(&world);
        command.args(["--progress", "quiet", "run", "--vmm", "firecracker"]);
        command
            .args(["--boot-timeout", "1000"])
            .arg(world.path("bundle"));
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        if control.is_empty() {
            crate::life::until(|| begun.exists());
        } else {
            crate::life::until(|| !world.process_ids("firecracker").is_empty());
            // Until it has come to the agent, or not quite.
            std::thread::sleep(Duration::from_millis(500));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(ended(&mut child).code(), Some(143), "{control}");
        Leftovers::of(&world).assert_none();
    }
}
