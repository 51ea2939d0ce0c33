//! Nothing is left behind: after success, and after SIGKILL at any moment and one more command.

use std::process::Stdio;
use std::time::{Duration, Instant};

use fcpipe_treegen::{Rng, count, seed};
use serde_json::json;

use crate::world::{Leftovers, World, assert_code, machine_program, skip_without_machine};

/// How many runs and kills: a tenth of the soak's number in an ordinary test.
fn runs() -> u64 {
    count("FCPIPE_SOAK_RUNS", 4)
}

/// What is killed of a launch that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Supervisor,
    Machine,
    Shim,
}

#[test]
fn row_33_50_qemu_sigkill_of_any_part_at_random_moments_leaves_nothing_after_the_next_command() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    std::fs::create_dir(world.path("code")).unwrap();
    let mount = json!({"destination": "/mnt", "type": "bind", "source": world.path("code"), "options": ["bind"]});
    let bundle = world.bundle(&["sleep", "100"], &[mount]);
    let mut random = Rng::new(seed());
    // A first run says how long the way to the process takes here.
    let booted = time_to_boot(&world);
    let mut hits = std::collections::BTreeMap::<String, u32>::new();
    for number in 0..runs() {
        std::fs::write(world.path("code/changed"), number.to_string()).unwrap();
        let after = booted.mul_f64(random.below(1_200_000) as f64 / 1e6);
        let victim = [
            Victim::Client,
            Victim::Supervisor,
            Victim::Machine,
            Victim::Shim,
        ][number as usize % 4];
        let detached = number / 4 % 2 == 1;
        let mut command = world.with_kernel();
        command.arg("run");
        if detached {
            command.arg("--detach");
        }
        let mut child = command
            .args(["--id", "victim"])
            .arg(&bundle)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        let hit = strike(&world, victim, &mut child);
        if !hit && !detached {
            // That part is not there yet, and nothing else would end this launch.
            child.kill().unwrap();
        }
        let name = format!("{victim:?}, detached: {detached}, hit: {hit}");
        *hits.entry(name.clone()).or_default() += 1;
        let context = format!("{name}, after {after:?}");
        // Nothing may outlive the supervisor, and that ends with an attached client, with its machine, and when it is killed.
        // A detached launch whose client alone is hit after its creation goes on.
        let goes_on = detached && (victim == Victim::Client || !hit);
        if !(goes_on && alive(&world)) {
            wait_for_end(&world, &context);
        }
        let status = child.wait().unwrap();
        if let Some(state) = told_in_the_end(&world, &context) {
            assert!(detached, "{context}: {status}: {state}");
            if state["status"] != "stopped" {
                let pid = state["pid"].as_u64();
                let there = |pid| std::path::Path::new(&format!("/proc/{pid}")).exists();
                assert!(pid.is_none_or(there), "{context}: {state}");
            }
        }
        command_output(&world, &["delete", "--force", "victim"]);
        let left = Leftovers::of(&world);
        assert_eq!(left, Leftovers::default(), "{context}");
    }
    println!("{hits:#?}");
    let script = world.run_script("echo fine");
    assert_code(&script, 0);
    assert_eq!(script.stdout, b"fine\n");
}

/// What `ps` tells of the launch, once that is what is: one that is just ending may be gone before its state is looked at.
fn told_in_the_end(world: &World, context: &str) -> Option<serde_json::Value> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let ps = command_output(world, &["--format", "json", "ps"]);
        let state = ps.lines().next();
        let state = state.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let runs = state.as_ref().is_some_and(|s| s["status"] != "stopped");
        if runs == alive(world) {
            return state;
        }
        assert!(Instant::now() < end, "{context}: {ps}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills it, if it is there.
fn strike(world: &World, victim: Victim, client: &mut std::process::Child) -> bool {
    let supervisors = || -> Vec<u32> {
        let processes = world.process_ids("fcpipe");
        let others = processes.into_iter().filter(|pid| *pid != client.id());
        others.collect()
    };
    let pids = match victim {
        Victim::Client => return client.kill().is_ok(),
        Victim::Supervisor => supervisors(),
        Victim::Machine => world.process_ids(machine_program()),
        Victim::Shim => world.process_ids("exe"),
    };
    for pid in &pids {
        let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    !pids.is_empty()
}

fn alive(world: &World) -> bool {
    !world.process_ids("fcpipe").is_empty()
}

fn wait_for_end(world: &World, context: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let left: Vec<u32> = ["fcpipe", "exe", machine_program(), "vhost-device-vsock"]
            .iter()
            .flat_map(|name| world.process_ids(name))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{context}: still there: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn command_output(world: &World, arguments: &[&str]) -> String {
    let output = world.with_kernel().args(arguments).output().unwrap();
    assert_code(&output, 0);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn qemu_runs_in_a_row_leave_nothing() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    for number in 0..runs() {
        let output = world.run_script(&format!("echo {number}"));
        assert_code(&output, 0);
        assert_eq!(output.stdout, format!("{number}\n").as_bytes());
        Leftovers::of(&world).assert_none();
    }
}

fn time_to_boot(world: &World) -> Duration {
    let bundle = world.bundle(&["sleep", "100"], &[]);
    let receipt = world.path("first.json");
    let quick = world.bundle(&["true"], &[]);
    let begun = Instant::now();
    let output = world
        .with_kernel()
        .arg("run")
        .arg(quick)
        .arg("--timings")
        .arg(receipt)
        .output()
        .unwrap();
    assert_code(&output, 0);
    // Back to the sleeping process: config.json is read at every run.
    assert_eq!(bundle, world.bundle(&["sleep", "100"], &[]));
    begun.elapsed()
}
